"""The messages of `codec/messages.py`, over two simulated disks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal

import pytest

from blockstore import config
from blockstore.codec.checksum import crc32c
from blockstore.codec.grant import KEY_BYTES, grant_token
from blockstore.codec.messages import (
    Appended,
    AppendFragment,
    DeleteFragment,
    Fence,
    Fenced,
    FragmentData,
    FragmentList,
    FragmentRange,
    ListFragments,
    Ok,
    Ping,
    ReadFragments,
    SealFragment,
)
from blockstore.errors import (
    BlockStoreError,
    DiskFailed,
    InvalidRequest,
    NotFound,
    OffsetMismatch,
    PermissionDenied,
    StaleEpoch,
)
from blockstore.ids import DiskId, VolumeId
from blockstore.node.disk_shell import DiskShell, format_disk
from blockstore.node.server_shell import FragmentServer
from blockstore.runtime.interfaces import Buffer, Message, Payload, Peer
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.sim.disk import SimDisk
from tests.unit.node.disks import CLUSTER, SPEC, VOLUME, bytes_for, chunk

ONE, TWO = DiskId(1), DiskId(2)
A, B = chunk(1), chunk(2)
SOME = bytes_for(1, 50_000)
KEY = bytes(range(KEY_BYTES))
GRANT = grant_token(KEY, A, "")
Role = Literal["node", "admin", "write", "read"]


class Call:
    """One request and its answer."""

    def __init__(self, message: Message, payload: bytes = b"", role: Role = "node") -> None:
        self.peer = Peer("node", "1", role)
        self.message = message
        self.released = 0
        self.payload = Payload(memoryview(payload), self._release)
        self.deadline = 1e9
        self.answers = list[object]()
        self.data = b""

    def _release(self) -> None:
        self.released += 1

    def answer(
        self, message: Message, payload: Sequence[Buffer] = (), on_sent: Callable[[], None] | None = None
    ) -> None:
        self.answers.append(message)
        self.data = b"".join(payload)
        if on_sent is not None:
            on_sent()

    def fail(self, error: BlockStoreError) -> None:
        self.answers.append(error)


class Node:
    def __init__(self) -> None:
        self.disks = {disk: SimDisk(random_of(disk)) for disk in (ONE, TWO)}
        for number, disk in self.disks.items():
            format_disk(disk, number, CLUSTER)
        self.open()

    def open(self) -> None:
        self.shells = {
            number: DiskShell(disk, number, CLUSTER, lambda code, text: None)
            for number, disk in self.disks.items()
        }
        for shell in self.shells.values():
            shell.recover()
            shell.start()
            shell.make_spares()
        self.server = FragmentServer(self.shells, RealClock(), lambda: KEY)
        self.settle()

    def settle(self) -> None:
        for disk in self.disks.values():
            disk.settle()

    def ask(self, message: Message, payload: bytes = b"", role: Role = "node") -> Call:
        call = Call(message, payload, role)
        assert self.server.handle(call)
        self.settle()
        assert len(call.answers) == 1
        assert call.released == 1
        return call

    def append(self, disk: DiskId, data: bytes, offset: int = 0, epoch: int = 1) -> object:
        spec = SPEC if offset == 0 else None
        return self.ask(AppendFragment(disk, A, epoch, offset, crc32c(data), spec), data).answers[0]


def random_of(disk: DiskId) -> Random:
    return Random(disk)


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_life_of_a_fragment(node: Node) -> None:
    assert node.append(ONE, SOME) == Appended(50_000)
    assert node.append(ONE, SOME) == Appended(50_000)
    assert node.append(ONE, b"more", 50_000) == Appended(50_004)
    mismatch = node.append(ONE, b"more", 60_000)
    assert isinstance(mismatch, OffsetMismatch)
    assert node.ask(SealFragment(ONE, A, 1, 50_000)).answers == [Ok()]
    (listed,) = node.ask(ListFragments(ONE)).answers
    assert isinstance(listed, FragmentList)
    assert listed.complete
    (state,) = listed.states
    assert (state.disk, state.chunk, state.length, state.sealed) == (ONE, A, 50_000, True)
    assert node.ask(DeleteFragment(ONE, A, 1)).answers == [Ok()]
    assert node.ask(ListFragments(ONE)).answers == [FragmentList((), True)]


def test_a_vectored_read_answers_what_it_can(node: Node) -> None:
    node.append(ONE, SOME)
    node.append(TWO, SOME)
    node.ask(SealFragment(TWO, A, 1, 50_000))
    node.open()  # the sealed one's index is not loaded
    ranges = [
        (ONE, A, 0, 100),
        (TWO, A, 30_000, 20_000),
        (ONE, B, 0, 1),
        (TWO, A, 49_999, 2),
        (DiskId(9), A, 0, 1),
    ]
    call = node.ask(ReadFragments(tuple(FragmentRange(*each) for each in ranges)))
    (answer,) = call.answers
    assert isinstance(answer, FragmentData)
    assert call.data == SOME[:100] + SOME[30_000:]
    assert answer.crcs == (crc32c(SOME[:100]), crc32c(SOME[30_000:]), 0, 0, 0)
    assert {position: failed.name for position, failed in answer.failed.items()} == {
        2: "NotFound",
        3: "OffsetMismatch",
        4: "NotFound",
    }
    assert node.ask(ReadFragments(())).answers == [FragmentData((), {})]


def test_a_damaged_range_is_not_sent_and_the_rest_is(node: Node) -> None:
    node.append(ONE, SOME)
    for name in node.disks[ONE].names("fragments"):
        node.disks[ONE].flip(f"fragments/{name}", (1 << 20) + 8192 + 40_000)
    call = node.ask(ReadFragments((FragmentRange(ONE, A, 40_000, 10), FragmentRange(ONE, A, 0, 10))))
    (answer,) = call.answers
    assert isinstance(answer, FragmentData)
    assert answer.failed[0].name == "Corrupt"
    assert call.data == SOME[:10]


def test_a_fence_covers_every_disk_of_the_node(node: Node) -> None:
    node.append(ONE, SOME)
    node.append(TWO, SOME[:100])
    (fenced,) = node.ask(Fence(VOLUME, 4, (A, B))).answers
    assert isinstance(fenced, Fenced)
    assert sorted((state.disk, state.length) for state in fenced.states) == [(ONE, 50_000), (TWO, 100)]
    for _ in range(2):
        assert isinstance(node.append(TWO, b"x", 100), StaleEpoch)
        assert isinstance(node.ask(Fence(VOLUME, 3)).answers[0], StaleEpoch)
        node.open()


def test_a_fence_holds_when_one_disk_cannot_remember_it(node: Node) -> None:
    node.append(ONE, SOME)
    node.disks[ONE].inject("write", DiskFailed("sim", "EIO"), "fences-1")
    (fenced,) = node.ask(Fence(VOLUME, 4, (A,))).answers
    assert isinstance(fenced, Fenced)
    assert [(state.disk, state.length) for state in fenced.states] == [(ONE, 50_000)]
    assert isinstance(node.append(ONE, b"x", 50_000, epoch=4), DiskFailed)
    node.open()
    assert isinstance(node.append(ONE, b"x", 50_000), StaleEpoch), "the other disk remembered"
    for number, disk in node.disks.items():
        disk.inject("sync", DiskFailed("sim", "EIO"), "fences-0" if number == TWO else None)
    assert isinstance(node.ask(Fence(VOLUME, 5, (A,))).answers[0], DiskFailed)


@pytest.mark.parametrize(
    ("message", "roles"),
    [
        (AppendFragment(ONE, A, 1, 0, 0, SPEC, GRANT), {"node", "admin", "write"}),
        (AppendFragment(ONE, A, 1, 0, 0, SPEC), {"node"}),
        (ReadFragments(()), {"node", "admin", "write", "read"}),
        (SealFragment(ONE, A, 1, 0), {"node"}),
        (Fence(VOLUME, 9), {"node"}),
        (DeleteFragment(ONE, A, 1), {"node"}),
        (ListFragments(ONE), {"node", "admin"}),
    ],
)
def test_who_may_ask_what(node: Node, message: Message, roles: set[Role]) -> None:
    every: tuple[Role, ...] = ("node", "admin", "write", "read")
    for role in every:
        refused = isinstance(node.ask(message, b"", role).answers[0], PermissionDenied)
        assert refused == (role not in roles), role


def test_nonsense_is_refused_by_name(node: Node) -> None:
    none = DiskId(9)
    for message in (
        AppendFragment(none, A, 1, 0, 0),
        SealFragment(none, A, 1, 0),
        DeleteFragment(none, A, 1),
    ):
        assert isinstance(node.ask(message).answers[0], NotFound)
    assert isinstance(node.ask(ListFragments(none)).answers[0], NotFound)
    large = bytes(config.APPEND_BYTES_MAX + 1)
    assert isinstance(
        node.ask(AppendFragment(ONE, A, 1, 0, crc32c(large), SPEC), large).answers[0], InvalidRequest
    )
    much = FragmentRange(ONE, A, 0, config.FRAME_PAYLOAD_BYTES_MAX)
    assert isinstance(node.ask(ReadFragments((much, much))).answers[0], InvalidRequest)
    negative = (FragmentRange(ONE, A, 0, -(1 << 40)), much, much)
    assert isinstance(node.ask(ReadFragments(negative)).answers[0], InvalidRequest)
    for strange in (chunk(-1), chunk(1, -1), chunk(1, 1, -1)):
        for message in (AppendFragment(ONE, strange, 2, 0, 0, SPEC), DeleteFragment(ONE, strange, 2)):
            assert isinstance(node.ask(message).answers[0], InvalidRequest)
    assert isinstance(node.ask(Fence(VolumeId(-1), 2)).answers[0], InvalidRequest)
    assert not node.server.handle(Call(Ping()))


@pytest.mark.parametrize(
    "message",
    [
        AppendFragment(ONE, A, 99, 0, 0, SPEC, GRANT),  # another epoch than the chunk's own
        AppendFragment(ONE, A, 0, 0, 0, SPEC, GRANT),
        AppendFragment(ONE, B, 1, 0, 0, SPEC, GRANT),  # another chunk
        AppendFragment(ONE, A._replace(epoch=2**62), 2**62, 0, 0, SPEC, GRANT),
        AppendFragment(ONE, A._replace(number=2**64 - 1), 1, 0, 0, SPEC, GRANT),
        AppendFragment(ONE, A, 1, 0, 0, SPEC, grant_token(bytes(KEY_BYTES), A, "")),
        AppendFragment(ONE, A, 1, 0, 0, SPEC, grant_token(KEY, A, "somebody else's")),
        AppendFragment(ONE, A, 1, 0, 0, SPEC, GRANT[:-1]),
        SealFragment(ONE, A, 99, 0),
    ],
)
def test_a_client_appends_to_what_it_was_granted_and_fences_nothing(node: Node, message: Message) -> None:
    roles: tuple[Role, ...] = ("write", "admin")
    for role in roles:
        [refused] = node.ask(message, b"", role).answers
        assert isinstance(refused, PermissionDenied)
        assert "Node 1" in str(refused)
    assert node.shells[ONE].all_highest() == {}
    assert node.append(ONE, SOME) == Appended(len(SOME))
