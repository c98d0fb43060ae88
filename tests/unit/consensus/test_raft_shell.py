"""Whole members with their shells: one alone, and three in one process over a network in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import pytest
import trio
import trio.testing

from blockstore.codec.raft_file import decode_snapshot
from blockstore.config import RAFT_COMMAND_BYTES_MAX
from blockstore.consensus import raft_log, raft_shell
from blockstore.consensus.raft_shell import RaftNode, bootstrap, bootstrap_joined, is_bootstrapped
from blockstore.errors import (
    BlockStoreError,
    Busy,
    ConnectionLost,
    Corrupt,
    DeadlineExceeded,
    DiskFailed,
    InvalidRequest,
    NotLeader,
    ProtocolViolation,
    QuorumLost,
    Unavailable,
)
from blockstore.ids import KiB, NodeId
from blockstore.runtime.sim.disk import SimDisk


class TrioClock:
    """The test's clock, which jumps whenever everybody waits."""

    def now(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return 0.0

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


@dataclass
class Member:
    node: RaftNode
    disk: SimDisk
    scope: trio.CancelScope
    commands: list[bytes] = field(default_factory=list[bytes])
    led: list[bool] = field(default_factory=list[bool])


class Group:
    """Members by id; messages arrive in the next tick unless one of the two is isolated."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.disks: dict[NodeId, SimDisk] = {}
        self.members: dict[NodeId, Member] = {}
        self.isolated: set[NodeId] = set()
        self.n_fetches_to_lose = 0
        self.rng = random.Random(1)

    def disk(self, node: NodeId) -> SimDisk:
        if node not in self.disks:
            self.disks[node] = SimDisk(random.Random(node), TrioClock())
            self.nursery.start_soon(self.disks[node].serve)
        return self.disks[node]

    async def start(self, node: NodeId) -> Member:
        def send(to: NodeId, body: bytes) -> None:
            if not {node, to} & self.isolated and to in self.members:
                trio.lowlevel.spawn_system_task(deliver, to, body)

        async def deliver(to: NodeId, body: bytes) -> None:
            if to in self.members:
                self.members[to].node.on_message(node, body)

        async def fetch(leader: NodeId, index: int) -> tuple[int, int, bytes]:
            if {node, leader} & self.isolated or leader not in self.members:
                raise ConnectionLost("cut")
            if self.n_fetches_to_lose:
                self.n_fetches_to_lose -= 1
                await trio.sleep_forever()
            found = self.members[leader].node.current_snapshot()
            assert found[0] >= index
            return found

        def apply(index: int, command: bytes) -> None:
            member.commands.append(command)

        def install(index: int, data: bytes) -> None:
            member.commands[:] = msgspec.msgpack.decode(data, type=list[bytes]) if data else []

        raft = RaftNode(
            me=node,
            disk=self.disk(node),
            clock=TrioClock(),
            rng=random.Random(self.rng.random()),
            send=send,
            fetch_snapshot=fetch,
            apply=apply,
            take_snapshot=lambda: msgspec.msgpack.encode(member.commands),
            install_snapshot=install,
            on_leadership=lambda leading: member.led.append(leading),
        )
        member = Member(raft, self.disk(node), trio.CancelScope())

        async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            with member.scope:
                await raft.run(task_status=task_status)

        await self.nursery.start(run)
        self.members[node] = member
        return member

    def stop(self, node: NodeId) -> None:
        """Its process is killed and its machine loses power."""
        self.members.pop(node).scope.cancel()
        self.disks[node].crash()

    async def leader(self) -> Member:
        with trio.fail_after(30):
            while True:
                for node, member in self.members.items():
                    if member.node.is_leader and node not in self.isolated:
                        return member
                await trio.sleep(0.01)

    async def propose(self, command: bytes) -> int:
        while True:
            try:
                return await (await self.leader()).node.propose(command, trio.current_time() + 2)
            except (NotLeader, QuorumLost, Unavailable):
                await trio.sleep(0.05)


@asynccontextmanager
async def group_of(n: int) -> AsyncGenerator[Group, None]:
    """Node 1 begins alone; the others join as learners, and then become voters."""
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        bootstrap(group.disk(NodeId(1)), NodeId(1), b"", random.Random(0))
        first = await group.start(NodeId(1))
        await group.leader()
        for number in range(2, n + 1):
            node = NodeId(number)
            await change(first, first.node.voters, first.node.learners | {node})
            bootstrap_joined(group.disk(node), first.node.current_snapshot()[2], random.Random(number))
            await group.start(node)
            await change(first, first.node.voters | {node}, first.node.learners - {node})
        yield group
        nursery.cancel_scope.cancel()


async def change(leader: Member, voters: frozenset[NodeId], learners: frozenset[NodeId]) -> None:
    with trio.fail_after(10):
        while True:
            try:
                return await leader.node.change_members(voters, learners, trio.current_time() + 5)
            except Busy:
                await trio.sleep(0.05)


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - many things at many members bring it about
            await trio.sleep(0.05)


async def test_a_member_alone_leads_at_once_and_commits_with_one_sync(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with group_of(1) as group:
        member = group.members[NodeId(1)]
        assert member.led == [True]
        assert trio.current_time() < 0.1  # no election timeout
        steps = member.disk.n_steps
        assert await member.node.propose(b"a", trio.current_time() + 1) == member.node.applied_index
        assert member.commands == [b"a"]
        assert member.disk.n_steps - steps == 2  # one write, one sync
        assert member.node.leader == NodeId(1)
        assert member.node.lease_until > trio.current_time()


async def test_waiting_proposals_share_one_sync(autojump_clock: trio.testing.MockClock) -> None:
    async with group_of(1) as group:
        member = group.members[NodeId(1)]
        steps = member.disk.n_steps
        async with trio.open_nursery() as nursery:
            for n in range(100):
                nursery.start_soon(member.node.propose, b"%d" % n, trio.current_time() + 1)
        assert sorted(member.commands) == sorted(b"%d" % n for n in range(100))
        assert member.disk.n_steps - steps <= 4


async def test_what_was_acknowledged_survives_a_power_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with group_of(1) as group:
        for n in range(20):
            await group.propose(b"%d" % n)
            if n % 5 == 4:
                group.stop(NodeId(1))
                member = await group.start(NodeId(1))
                await eventually(lambda: member.node.is_leader)  # noqa: B023
                assert member.commands == [b"%d" % n for n in range(n + 1)]


async def test_three_members_go_on_when_the_leader_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with group_of(3) as group:
        await group.propose(b"a")
        first = await group.leader()
        group.stop(first.node.me)
        await group.propose(b"b")
        second = await group.leader()
        assert second is not first
        await group.start(first.node.me)
        await eventually(lambda: all(m.commands == [b"a", b"b"] for m in group.members.values()))


async def test_a_cut_off_leader_says_that_it_lost_its_quorum(autojump_clock: trio.testing.MockClock) -> None:
    async with group_of(3) as group:
        old = await group.leader()
        group.isolated.add(old.node.me)
        with pytest.raises(QuorumLost, match="1 of 2"):
            await old.node.propose(b"lost", trio.current_time() + 10)
        assert not old.node.is_leader
        assert old.led[-1] is False
        with pytest.raises(NotLeader):
            await old.node.propose(b"never", trio.current_time() + 10)
        await group.propose(b"kept")
        group.isolated.clear()
        await eventually(lambda: old.commands == [b"kept"])
        assert old.node.leader == (await group.leader()).node.me


async def test_a_read_barrier_on_any_member_shows_what_was_committed_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with group_of(3) as group:
        for n in range(10):
            await group.propose(b"%d" % n)
            for member in group.members.values():
                await member.node.read_barrier(trio.current_time() + 2)
                assert len(member.commands) == n + 1
        group.isolated.add(NodeId(3))
        with pytest.raises((QuorumLost, DeadlineExceeded)):
            await group.members[NodeId(3)].node.read_barrier(trio.current_time() + 2)


async def test_a_member_far_behind_fetches_a_snapshot(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_shell, "RAFT_SNAPSHOT_ENTRIES", 20)
    monkeypatch.setattr(raft_shell, "RAFT_TRAILING_ENTRIES", 5)
    async with group_of(3) as group:
        await group.propose(b"a")
        group.stop(NodeId(3))
        expected = [b"a"]
        for n in range(100):
            await group.propose(b"%d" % n)
            expected.append(b"%d" % n)
        member = await group.start(NodeId(3))
        await eventually(lambda: member.commands == expected)
        await group.propose(b"z")
        await eventually(lambda: member.commands[-1] == b"z")
        group.stop(NodeId(3))  # what it installed is on its disk
        member = await group.start(NodeId(3))
        assert len(member.commands) > 80
        await eventually(lambda: member.commands == [*expected, b"z"])


async def test_a_snapshot_that_could_not_be_fetched_is_asked_for_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_shell, "RAFT_SNAPSHOT_ENTRIES", 20)
    monkeypatch.setattr(raft_shell, "RAFT_TRAILING_ENTRIES", 5)
    failures: list[BlockStoreError] = []
    current_snapshot = RaftNode.current_snapshot

    def fail_first(node: RaftNode) -> tuple[int, int, bytes]:
        if failures:
            raise failures.pop()
        return current_snapshot(node)

    monkeypatch.setattr(RaftNode, "current_snapshot", fail_first)
    async with group_of(3) as group:
        await group.propose(b"a")
        group.stop(NodeId(3))
        for n in range(100):
            await group.propose(b"%d" % n)
        failures += [Unavailable("gone"), ProtocolViolation("nonsense")]
        member = await group.start(NodeId(3))
        await eventually(lambda: len(member.commands) == 101)
        assert not failures


async def test_a_lost_request_for_a_snapshot_keeps_a_member_behind_for_seconds_only(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_shell, "RAFT_SNAPSHOT_ENTRIES", 20)
    monkeypatch.setattr(raft_shell, "RAFT_TRAILING_ENTRIES", 5)
    async with group_of(3) as group:
        group.stop(NodeId(3))
        for n in range(100):
            await group.propose(b"%d" % n)
        group.n_fetches_to_lose = 2
        member = await group.start(NodeId(3))
        began = trio.current_time()
        await eventually(lambda: len(member.commands) == 100)
        assert group.n_fetches_to_lose == 0
        assert trio.current_time() - began < 8


async def test_a_member_with_a_damaged_log_is_healed_by_the_leader(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with group_of(3) as group:
        for n in range(5):
            await group.propose(b"%d" % n)
        victim = next(node for node, member in group.members.items() if not member.node.is_leader)
        group.stop(victim)
        group.disk(victim).flip("raft/segment-000000000001", 3 * 4096 + 50)
        member = await group.start(victim)
        assert member.node.is_doubtful
        await eventually(lambda: not member.node.is_doubtful)
        await group.propose(b"z")
        await eventually(lambda: member.commands[-1:] == [b"z"] and len(member.commands) == 6)


async def test_a_member_alone_with_a_damaged_log_says_so(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        bootstrap(group.disk(NodeId(1)), NodeId(1), b"", random.Random(0))
        await group.start(NodeId(1))
        await group.propose(b"a")
        await group.propose(b"b")
        group.stop(NodeId(1))
        group.disk(NodeId(1)).flip("raft/segment-000000000001", 3 * 4096 + 50)
        with pytest.RaisesGroup(Corrupt, flatten_subgroups=True, allow_unwrapped=True):
            await group.start(NodeId(1))
        nursery.cancel_scope.cancel()


async def test_stopping_ends_every_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with group_of(3) as group:
        leader = await group.leader()
        group.isolated.add(leader.node.me)
        outcomes: list[BlockStoreError] = []

        async def ask(read: bool) -> None:
            try:
                if read:
                    await leader.node.read_barrier(trio.current_time() + 60)
                else:
                    await leader.node.propose(b"x", trio.current_time() + 60)
            except BlockStoreError as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, True)
            nursery.start_soon(ask, False)
            await trio.testing.wait_all_tasks_blocked()
            leader.scope.cancel()
        assert [type(error) for error in outcomes] == [Unavailable, Unavailable]
        with pytest.raises(Unavailable):
            await leader.node.propose(b"x", trio.current_time() + 1)


async def test_a_failed_disk_ends_the_member(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(DiskFailed, flatten_subgroups=True, allow_unwrapped=True):
        async with group_of(1) as group:
            member = group.members[NodeId(1)]
            member.disk.inject("sync", DiskFailed("sim", "broken"))
            with pytest.raises(Unavailable):
                await member.node.propose(b"a", trio.current_time() + 10)
            await trio.sleep(1)


async def test_a_command_too_long_for_the_bus_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with group_of(1) as group:
        with pytest.raises(InvalidRequest):
            await group.propose(bytes(RAFT_COMMAND_BYTES_MAX + 1))
        await group.propose(bytes(RAFT_COMMAND_BYTES_MAX))


async def test_a_snapshot_says_who_the_members_are(autojump_clock: trio.testing.MockClock) -> None:
    async with group_of(3) as group:
        index, term, content = group.members[NodeId(1)].node.current_snapshot()
        snapshot = decode_snapshot(content)
        assert (snapshot.index, snapshot.term) == (index, term)
        assert snapshot.members.voters == (1, 2, 3)
        assert is_bootstrapped(group.disk(NodeId(1)))
        assert not is_bootstrapped(SimDisk(random.Random(0)))


@pytest.mark.parametrize("seed", range(8))
async def test_members_killed_at_random_lose_nothing_that_was_acknowledged(
    seed: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With power failures, small segments, frequent snapshots, and now and then a rotten block."""
    monkeypatch.setattr(raft_shell, "RAFT_SNAPSHOT_ENTRIES", 15)
    monkeypatch.setattr(raft_shell, "RAFT_TRAILING_ENTRIES", 5)
    monkeypatch.setattr(raft_log, "RAFT_SEGMENT_BYTES", 256 * KiB)
    rng = random.Random(seed)
    acknowledged: list[bytes] = []
    async with group_of(3) as group:

        async def client(name: bytes) -> None:
            for n in range(60):
                command = b"%s%d" % (name, n)
                with trio.move_on_after(5):
                    await group.propose(command)
                    acknowledged.append(command)

        async def trouble() -> None:
            while True:
                await trio.sleep(rng.uniform(0.1, 1.5))
                node = NodeId(rng.randint(1, 3))
                group.stop(node)
                if rng.random() < 0.3:
                    rot(group.disk(node), rng)
                await trio.sleep(rng.uniform(0.0, 1.0))
                await sound(await group.start(node))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trouble)
            async with trio.open_nursery() as clients:
                clients.start_soon(client, b"a")
                clients.start_soon(client, b"b")
            nursery.cancel_scope.cancel()
        for node in (NodeId(1), NodeId(2), NodeId(3)):
            if node not in group.members:
                await group.start(node)
        await group.propose(b"last")
        members = list(group.members.values())
        await eventually(lambda: all(member.commands[-1:] == [b"last"] for member in members))
        assert len(acknowledged) > 60
        for member in members:
            assert member.commands == members[0].commands
            assert set(acknowledged) <= set(member.commands)


async def sound(member: Member) -> None:
    await eventually(lambda: not member.node.is_doubtful)


def rot(disk: SimDisk, rng: random.Random) -> None:
    """One block of the log or of the vote is bad."""
    names = [name for name in disk.names("raft") if not name.startswith("snapshot")]
    name = f"raft/{rng.choice(names)}"
    content = disk.read_file(name) or b""
    used = [at for at in range(0, len(content), 4096) if content[at : at + 4] != bytes(4)]
    at = rng.choice(used[:-1] or used)  # the last may be taken for a torn one
    disk.flip(name, at + 30)


async def test_a_full_disk_ends_no_member_and_it_catches_up_when_there_is_room(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_log, "RAFT_SEGMENT_BYTES", 64 * KiB)
    monkeypatch.setattr(raft_shell, "RAFT_SNAPSHOT_ENTRIES", 40)
    async with group_of(3) as group:
        first = await group.leader()
        others = [member for member in group.members.values() if member is not first]
        for n_before, full in enumerate((first, *others)):
            room = full.disk.capacity_bytes
            full.disk.capacity_bytes -= full.disk.free_bytes()
            for n in range(100):  # several segments, and a snapshot is due
                await group.propose(b"%d" % (100 * n_before + n))
            full.disk.capacity_bytes = room
            expected = [b"%d" % n for n in range(100 * n_before + 100)]
            applied = [member.commands for member in group.members.values()]  # one may be there twice: it was
            # under way when its leader resigned, and `propose` above asks again.
            await eventually(lambda: all(list(dict.fromkeys(each)) == expected for each in applied))  # noqa: B023
        assert not first.node.is_leader  # it made way for one that can write


async def test_a_member_alone_answers_again_when_its_disk_has_room(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_log, "RAFT_SEGMENT_BYTES", 64 * KiB)
    async with group_of(1) as group:
        member = group.members[NodeId(1)]
        room = member.disk.capacity_bytes
        member.disk.capacity_bytes -= member.disk.free_bytes()
        n_done = 0
        with trio.move_on_after(5):
            while True:
                await member.node.propose(b"%d" % n_done, trio.current_time() + 10)
                n_done += 1
        assert n_done > 0
        member.disk.capacity_bytes = room
        await eventually(lambda: len(member.commands) == n_done + 1)
        await member.node.propose(b"last", trio.current_time() + 2)
        group.stop(NodeId(1))
        again = await group.start(NodeId(1))
        await eventually(lambda: again.commands == [*(b"%d" % n for n in range(n_done + 1)), b"last"])
