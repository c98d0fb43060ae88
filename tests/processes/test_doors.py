"""Bad input on the wire of real daemons with TLS, from holders of listed keys and from strangers.

Each is refused by name in one log line, soon and in bounded memory, while another client works on. What lanes
alone do is in tests/contracts/test_hostile_lanes.py; here it is the whole daemon.
"""

from __future__ import annotations

import random
import socket
import ssl
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress

import pytest

import blockstore
from blockstore.codec.checksum import crc32c
from blockstore.codec.credential import Bundle
from blockstore.codec.messages import (
    AppendFragment,
    CreateVolume,
    Delete,
    Event,
    Events,
    Extent,
    FetchEvents,
    FetchView,
    FragmentData,
    FragmentRange,
    FragmentSpec,
    Grant,
    Granted,
    ListFragments,
    ListKeys,
    Lookup,
    LookupMany,
    Ok,
    Ping,
    Put,
    ReadFragments,
    SnapshotCreate,
    View,
    VolumeCall,
)
from blockstore.config import (
    FRAME_STALL_SECONDS_MAX,
    HANDSHAKE_SECONDS_MAX,
    SEND_STALL_SECONDS_MAX,
    UNAUTHENTICATED_CONNECTIONS_MAX,
)
from blockstore.daemon.local_cluster import LocalCluster, LocalNode
from blockstore.errors import BlockStoreError, InvalidRequest, NotFound, NotOwner
from blockstore.ids import ChunkId, DiskId, MiB, RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import ANSWER
from tests.contracts.test_hostile_lanes import GREETING, MALFORMED, claim, flipped, frame_with
from tests.processes.raw_client import (
    REFUSED_SECONDS,
    WIRE,
    Log,
    RawClient,
    admin_of,
    context_of,
    listed,
    owner_of,
    request,
    unharmed,
)

PING = request(Ping())
CHANCE = random.Random(11)


@pytest.fixture(scope="module")
def writer(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return listed(cluster, "writer", "write", tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def reader(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return listed(cluster, "reader", "read", tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def bucket(cluster: LocalCluster) -> str:
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        made = store.create_bucket("target")
        made.put("small", b"kept")
        made.put("large", bytes(128 * 1024))
    return "target"


# --- frames that are none

FORGED = {
    name: (data.removeprefix(GREETING), words)
    for name, (data, words) in MALFORMED.items()
    if data.startswith(GREETING) and name != "a second hello"
} | {
    "a hello": (GREETING, "does not say who it is|frame of kind 3"),
    "an answer first": (WIRE.encode(ANSWER, 1, Ok(), 0, 0), "frame of kind 2"),
    "random bytes": (random.Random(7).randbytes(100_000), "not this protocol"),
    "plain http": (b"GET / HTTP/1.1\r\n\r\n" + bytes(99), "not this protocol"),
    "10 MB of nils": (b"\xc0" * 10_000_000, "not this protocol"),
    "a header of nils": (frame_with(b"\xc0" * 1_000_000), "none of ours"),
    "zeros": (bytes(1_000), "not this protocol"),
    "both lengths 2^32-1": (claim(0xFFFF_FFFF, 0xFFFF_FFFF), "header of 4294967295 bytes"),
    "a map of duplicate keys": (frame_with(b"\x92\x0d\x82\x01\x01\x01\x02"), "none of ours"),
    "a text that is not UTF-8": (frame_with(b"\x93\x3c\xa2\xff\xfe\x00"), "none of ours"),
    "a text for a number": (frame_with(b"\x93\x3c\xa0\xa1x"), "none of ours"),
    "an integer beyond 64 bits": (frame_with(b"\x93\x3c\xa0\xcb\x43\xf0" + bytes(6)), "none of ours"),
    "too few fields": (frame_with(b"\x92\x0b\x01"), "none of ours"),
    "bytes behind the message": (frame_with(b"\x91\x04\xc0\xc0"), "none of ours"),
    "an extension type": (frame_with(b"\xc7\x05\x01hello"), "none of ours"),
    "a bus message": (frame_with(b"\x92\x5c\xc4\x01x"), "none of ours"),
}


@pytest.mark.parametrize("case", FORGED)
def test_what_is_no_frame_ends_its_connection_alone(cluster: LocalCluster, writer: Bundle, case: str) -> None:
    data, words = FORGED[case]
    log = Log(cluster.nodes[0].log)
    with RawClient(cluster.nodes[0], writer) as client:
        client.send(data)
        said = client.last_words()
        [line] = log.wait("WARNING", client.name)
    assert "client writer" in line
    assert any(word in line for word in words.split("|"))
    assert not said or any(word in said for word in words.split("|"))


def test_every_flipped_bit_and_every_cut_is_refused(cluster: LocalCluster, writer: Bundle) -> None:
    frame = request(Put(b"key", b"meta", 4, 5), b"data")
    with unharmed(cluster) as log:
        for bit in CHANCE.sample(range(8 * (len(frame) - 4)), 40):
            with RawClient(cluster.nodes[0], writer) as client:
                client.send(flipped(frame, bit))
                assert client.last_words()
                assert len(log.wait("WARNING", client.name)) == 1
        for length in CHANCE.sample(range(1, len(frame)), 10):
            with RawClient(cluster.nodes[0], writer) as client:
                client.send(frame[:length])
                client.sock.shutdown(socket.SHUT_WR)
                client.wait_for_hangup()
                [line] = log.wait("WARNING", client.name)
                assert "ended inside a frame" in line


def test_random_frames_never_hurt(cluster: LocalCluster, writer: Bundle) -> None:
    """Well-formed frames around random and around mutated messages, by the thousand."""
    chance = random.Random(5)
    good = [
        WIRE.encode(1, 1, message, 0, 5_000)[32:]
        for message in (
            FetchView("target", 0),
            FetchEvents(0, 0.0),
            VolumeCall(VolumeId(1), 1, RequestId(SessionId(1), 1), 1, Lookup(b"small")),
            VolumeCall(VolumeId(1), 1, RequestId(SessionId(1), 1), 1, ListKeys()),
            AppendFragment(DiskId(1), ChunkId(VolumeId(1), 1, 1), 1, 0, 0, FragmentSpec(0, 1, 2, 1 * MiB)),
            ReadFragments((FragmentRange(DiskId(1), ChunkId(VolumeId(1), 1, 1), 0, 10),)),
        )
    ]
    with unharmed(cluster):
        until = time.monotonic() + 4
        for _ in range(300):
            header = bytearray(chance.choice(good))
            for _ in range(chance.randrange(1, 4)):
                header[chance.randrange(len(header))] = chance.randrange(256)
            with RawClient(cluster.nodes[0], writer) as client:
                client.send(frame_with(bytes(header)))
                prefix, _, _ = client.receive()  # an answer or a farewell, but something
                assert prefix.call_id in (0, 7)
            if time.monotonic() > until:
                break


# --- messages that ask for what cannot be

NONE = ChunkId(VolumeId(1), 1, 2**40)
NAN, INFINITY = float("nan"), float("inf")


def spec(**changed: int) -> FragmentSpec:
    return FragmentSpec(**({"shard_index": 0, "k": 1, "m": 2, "capacity": 1 * MiB} | changed))


@contextmanager
def granted_to(
    cluster: LocalCluster, bucket: str, bundle: Bundle
) -> Generator[tuple[Granted, LocalNode, DiskId]]:
    """A chunk, and a node with a disk of its write set."""
    owner, volume, epoch = owner_of(cluster, bucket)
    with RawClient(owner, bundle) as client:
        answer = client.ask(VolumeCall(VolumeId(volume), epoch, new_request(), 1, Grant()))
    assert isinstance(answer, Granted)
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        [at] = [one for one in store.nodes() if answer.placement.disks[0] in one.disks]
    [node] = [one for one in cluster.nodes if one.node == at.node]
    yield answer, node, answer.placement.disks[0]


def new_request() -> RequestId:
    return RequestId(SessionId(CHANCE.getrandbits(63)), 1)


def test_numbers_that_overflow_are_refused_by_the_disks(
    cluster: LocalCluster, bucket: str, writer: Bundle
) -> None:
    with unharmed(cluster), granted_to(cluster, bucket, writer) as (granted, node, disk):
        chunk, epoch = granted.chunk, granted.epoch
        crc = crc32c(b"evil")

        def append(offset: int, crc: int, create: FragmentSpec | None, at: DiskId = disk) -> AppendFragment:
            return AppendFragment(at, chunk, epoch, offset, crc, create, granted.token)

        with RawClient(node, writer) as client:
            for message in (
                append(0, crc, None),  # there is no such fragment yet
                append(0, crc, spec(capacity=0)),
                append(0, crc, spec(capacity=2**63)),
                append(0, crc, spec(capacity=-1)),
                append(0, crc, spec(k=0)),
                append(0, crc, spec(m=-1)),
                append(0, crc, spec(shard_index=3)),
                append(0, crc, spec(shard_index=-1)),
                append(0, crc, spec(k=2**63)),
                append(0, crc ^ 1, spec()),
                append(0, -1, spec()),
                append(0, 2**64 - 1, spec()),
                append(1, crc, spec()),
                append(-4, crc, spec()),
                append(0, crc, spec(), DiskId(0)),
                append(0, crc, spec(), DiskId(2**63)),
            ):
                assert isinstance(client.refusal(message, b"evil"), BlockStoreError), message
            client.ask(append(0, crc, spec()), b"evil")
            for offset in (1, 3, 5, 2**31, 2**32 - 2, 2**63 - 2, 2**63, 2**64 - 4, -1, -4, -(2**63)):
                client.refusal(append(offset, crc, None), b"evil")
                client.refusal(append(offset, 0, None))
            for offset, length in (
                (0, 0), (0, -1), (0, 5), (4, 1), (3, 2), (-1, 2), (2**63, 1), (1, 2**63 - 1),
                (2**63 - 1, 2**63), (2**64 - 1, 4), (-(2**63), 2**63),
            ):  # fmt: skip
                ranges = (FragmentRange(disk, chunk, offset, length),)
                try:
                    found = client.ask(ReadFragments(ranges))
                except InvalidRequest:
                    continue  # more than one answer may carry
                assert isinstance(found, FragmentData)
                assert list(found.failed) == [0], (offset, length)
            for where in (
                NONE,
                ChunkId(VolumeId(-1), -1, -1),
                ChunkId(VolumeId(2**64 - 1), 2**64 - 1, 2**64 - 1),
            ):
                found = client.ask(ReadFragments((FragmentRange(disk, where, 0, 1),)))
                assert isinstance(found, FragmentData)
                assert found.failed[0].name == "NotFound"
            many = (FragmentRange(disk, chunk, 0, 1),) * 4_097
            assert "more than one answer" in str(client.refusal(ReadFragments(many)))
            assert client.ask(ReadFragments(())) == FragmentData((), {})
            found = client.ask(ReadFragments((FragmentRange(disk, chunk, 0, 4),)))
            assert found == FragmentData((crc,), {})


def test_numbers_that_overflow_are_refused_by_the_owner(
    cluster: LocalCluster, bucket: str, writer: Bundle
) -> None:
    owner, number, epoch = owner_of(cluster, bucket)
    volume = VolumeId(number)
    crc = crc32c(b"evil")
    with unharmed(cluster), RawClient(owner, writer) as client:

        def refuse(op: object, payload: bytes = b"") -> BlockStoreError:
            return client.refusal(VolumeCall(volume, epoch, new_request(), 1, op), payload)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

        for op in (
            Put(b"", b"", 4, crc),
            Put(b"k" * 1_025, b"", 4, crc),
            Put(b"k", bytes(20_000), 4, crc),
            Put(b"k", b"", 5, crc),
            Put(b"k", b"", 2**63, crc),
            Put(b"k", b"", -1, crc),
            Put(b"k", b"", 4, crc, (Extent(NONE, 0, 4, 4, crc),)),
        ):
            assert isinstance(refuse(op, b"evil"), InvalidRequest), op
        assert "changed on its way" in str(refuse(Put(b"k", b"", 4, crc ^ 1), b"evil"))
        assert "changed on its way" in str(refuse(Put(b"k", b"", 4, 2**63), b"evil"))
        for extent in (
            Extent(NONE, 0, 4, 4, crc),
            Extent(NONE, 2**63, 4, 4, crc),
            Extent(NONE, -1, 4, 4, crc),
            Extent(NONE, 2**64 - 1, 4, 2**64 - 1, 2**64 - 1),
            Extent(ChunkId(VolumeId(2**40), 1, 1), 0, 4, 4, crc),
        ):
            refuse(Put(b"k", b"", 4, crc, (extent,)))
        assert isinstance(
            refuse(Put(b"k", b"", 4, crc, (Extent(NONE, 0, 4, 4, crc),), 2**63)), BlockStoreError
        )
        assert isinstance(refuse(Delete(b"")), InvalidRequest)
        assert isinstance(refuse(Delete(b"nowhere")), NotFound)
        assert isinstance(refuse(Lookup(b"nowhere")), NotFound)
        assert isinstance(refuse(Lookup(b"small", 2**63)), NotFound)
        assert isinstance(refuse(Lookup(b"small", -1)), NotFound)
        for start, end in ((-1, 2), (3, 2), (0, -2), (2**63, 1), (-(2**63), 2**63)):
            assert isinstance(refuse(Lookup(b"small", 0, start, end)), InvalidRequest)
            assert isinstance(
                refuse(LookupMany((b"small", b"large"), 0, ((0, 1), (start, end)))), InvalidRequest
            )
        client.ask(VolumeCall(volume, epoch, new_request(), 1, Lookup(b"small", 0, 2**63, 2**64 - 1)))
        assert isinstance(refuse(LookupMany((b"k",) * 1_001)), InvalidRequest)
        assert isinstance(refuse(LookupMany((b"k",), 0, ((0, 1), (0, 1)))), InvalidRequest)
        for limit in (0, -1, 1_001, 2**63):
            assert isinstance(refuse(ListKeys(limit=limit)), InvalidRequest)
        assert isinstance(refuse(ListKeys(at=2**63)), NotFound)
        for name in ("", "a/b", "a@b", "a\nb", "a\x1b[2J", "n" * 256):
            assert isinstance(refuse(SnapshotCreate(name)), InvalidRequest)
        for wrong in (volume + 1_000, 0, -1, 2**63, 2**64 - 1):
            call = VolumeCall(VolumeId(wrong), epoch, new_request(), 1, Lookup(b"small"))
            assert isinstance(client.refusal(call), NotFound)
        for other in cluster.nodes:
            if other.node != owner.node:
                with RawClient(other, writer) as elsewhere:
                    call = VolumeCall(volume, epoch, new_request(), 1, Lookup(b"small"))
                    assert isinstance(elsewhere.refusal(call), NotOwner)
        for strange_epoch in (0, -1, 2**63, 2**64 - 1):  # what the client believes decides nothing
            client.ask(VolumeCall(volume, strange_epoch, new_request(), 1, Lookup(b"small")))
        for settled in (2**63, 2**64 - 1, -1):
            put = VolumeCall(volume, epoch, new_request(), settled, Put(b"k", b"", 4, crc))
            client.ask(put, b"evil")
        for session, count in ((2**64 - 1, 2**64 - 1), (-1, -1), (0, 0)):
            strange = RequestId(SessionId(session), count)
            client.ask(VolumeCall(volume, epoch, strange, 0, Put(b"k", b"", 4, crc)), b"evil")


def test_control_is_not_confused(cluster: LocalCluster, writer: Bundle) -> None:
    with unharmed(cluster), RawClient(cluster.nodes[0], writer) as client:
        for wait in (NAN, -INFINITY, -1.0):
            assert isinstance(client.ask(FetchEvents(2**63, wait)), Events)
        assert isinstance(client.ask(FetchEvents(0, INFINITY)), Events)
        assert isinstance(client.ask(FetchEvents(-(2**63), 0.0)), Events)
        assert isinstance(
            client.ask(FetchView("", 2**63)), View
        )  # answered with what there is, a moment later
        assert isinstance(client.ask(FetchView("x" * 900_000, 0)), View)
        for name in ("", ".", "..", "a/b", "A", "a\0b", "a\nb", "\x1b[2J", "n" * 64, "é"):
            assert isinstance(
                client.refusal(CreateVolume(name, "bucket", "", True, new_request())), InvalidRequest
            )
        for kind in ("", "BUCKET", "x" * 17):
            assert isinstance(
                client.refusal(CreateVolume("fine", kind, "", True, new_request())), InvalidRequest
            )
        for policy in (
            "raid5",
            "ec(0,0)",
            "replicated(999)",
            "ec(200,200)",
            "replicated(" + "9" * 1_000 + ")",
        ):
            refused = client.refusal(CreateVolume("fine", "bucket", policy, True, new_request()))
            assert isinstance(refused, BlockStoreError)
        assert "does not answer Event" in str(client.refusal(Events((Event(1, NAN, 1, "", ""),), 1)))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert client.ask(Ping()) == Ok()
        client.send(frame_with(b"\x93\x04\x01\xc0"))  # a later release may add fields
        assert client.receive()[1] == Ok()
    with RawClient(cluster.nodes[0], admin_of(cluster)) as client:
        for limit in (-1, 0, 2**63):
            client.ask(ListFragments(first_disk(cluster), None, limit))


def first_disk(cluster: LocalCluster) -> DiskId:
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        [node] = [one for one in store.nodes() if one.node == cluster.nodes[0].node]
    return node.disks[0]


# --- those who take their time


def test_silent_and_half_open_connections_are_closed(cluster: LocalCluster, writer: Bundle) -> None:
    """300 who say nothing, 200 who begin a handshake and stop: the oldest go for the newest, all go soon."""
    node = cluster.nodes[0]
    host, _, port = node.address.rpartition(":")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context_of(writer).wrap_bio(incoming, outgoing).do_handshake()
    client_hello = outgoing.read()
    with unharmed(cluster) as log, ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(300)]
        half_open = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(200)]
        for sock in half_open:
            sock.sendall(client_hello)
        until = time.monotonic() + HANDSHAKE_SECONDS_MAX + REFUSED_SECONDS
        for sock in silent + half_open:
            sock.settimeout(max(0.01, until - time.monotonic()))
            try:
                while sock.recv(65_536):
                    pass
            except ConnectionError:
                pass
        assert len(log.wait("WARNING", "connection closed", "not sa", n=500)) == 500
        assert len(log.lines("have not said who they are")) >= 500 - 2 * UNAUTHENTICATED_CONNECTIONS_MAX


def test_whoever_sends_a_byte_at_a_time_is_given_up(cluster: LocalCluster, writer: Bundle) -> None:
    with unharmed(cluster) as log, RawClient(cluster.nodes[0], writer) as client:
        client.send(PING[:1])
        began = time.monotonic()
        time.sleep(0.5)  # half of what is allowed without progress; a byte is none
        client.send(PING[1:2])
        client.wait_for_hangup(FRAME_STALL_SECONDS_MAX + REFUSED_SECONDS)
        assert time.monotonic() - began < FRAME_STALL_SECONDS_MAX + REFUSED_SECONDS
        [line] = log.wait("WARNING", client.name)
        assert "client writer" in line
        assert "the rest of a frame did not come" in line


def test_whoever_never_reads_is_given_up(cluster: LocalCluster, bucket: str, reader: Bundle) -> None:
    """A thousand answers of 128 KiB are asked for, and a thousand of many single bytes; none is read."""
    owner, volume, epoch = owner_of(cluster, bucket)
    call = VolumeCall(VolumeId(volume), epoch, RequestId(SessionId(1), 1), 1, Lookup(b"large"))
    large = b"".join(request(call, call_id=number, budget_ms=60_000) for number in range(1, 1_001))
    call = VolumeCall(VolumeId(volume), epoch, RequestId(SessionId(1), 1), 1, LookupMany((b"large",) * 60))
    many = b"".join(request(call, call_id=number, budget_ms=60_000) for number in range(1, 201))
    with unharmed(cluster), ExitStack() as stack:
        log = Log(owner.log)
        clients: list[RawClient] = []
        for asked in (large, many):
            client = stack.enter_context(RawClient(owner, reader))
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.sock.settimeout(0.5)
            with suppress(TimeoutError):  # it stops reading from us
                client.send(asked)
            clients.append(client)
        for client in clients:
            [line] = log.wait("WARNING", client.name, seconds=SEND_STALL_SECONDS_MAX + REFUSED_SECONDS)
            assert "bytes that wait for it" in line


def test_many_small_reads_hold_little_memory(cluster: LocalCluster, bucket: str, writer: Bundle) -> None:
    """4,096 ranges of one byte each cost 4 KiB of answer, not the 64 MiB of pieces they are read from."""
    with granted_to(cluster, bucket, writer) as (granted, node, disk):
        data = bytes(1 * MiB)
        append = AppendFragment(
            disk, granted.chunk, granted.epoch, 0, crc32c(data), spec(capacity=4 * MiB), granted.token
        )
        read = ReadFragments(
            tuple(FragmentRange(disk, granted.chunk, 16_384 * (i % 64), 1) for i in range(4_096))
        )
        with RawClient(node, writer) as client:
            client.ask(append, data)
        with unharmed(cluster), RawClient(node, writer) as client:
            client.send(b"".join(request(read, call_id=number) for number in range(1, 9)))
            for number in range(1, 9):
                prefix, found, _ = client.receive()
                assert prefix.call_id == number
                assert isinstance(found, FragmentData)
                assert not found.failed
