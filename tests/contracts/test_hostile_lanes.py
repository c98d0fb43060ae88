"""What comes over a lane's sockets from those who do not play by the rules.

Each is refused by name in one log line, within about a second, in bounded memory, while another client works
on."""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from fastcrc import crc32

from blockstore.codec.frame import PREFIX_BYTES, FrameWire
from blockstore.codec.messages import Failed, FetchEvents, Hello, Ok, Ping
from blockstore.config import (
    FRAME_STALL_SECONDS_MAX,
    HANDSHAKE_SECONDS_MAX,
    OPENING_SECONDS_MAX,
    SEND_STALL_SECONDS_MAX,
)
from blockstore.errors import BlockStoreError, ConnectionLost, PermissionDenied
from blockstore.ids import KiB, MiB
from blockstore.runtime.interfaces import ANSWER, CLOSING, HELLO, REQUEST, Address, IncomingCall
from blockstore.runtime.lane_server import RealListener, serve_lanes
from blockstore.runtime.real_net import RealNetwork
from blockstore.runtime.sockets import shake_hands
from tests.certificates import Authority
from tests.lane_harness import HELLO as HELLO_MESSAGE
from tests.lane_harness import LaneHarness

WIRE = FrameWire()
GREETING = WIRE.encode(HELLO, 0, HELLO_MESSAGE, 0, 0)
PING = WIRE.encode(REQUEST, 1, Ping(), 0, 5_000)
BLOB = bytes(1 * MiB)


def handler(call: IncomingCall) -> None:
    if isinstance(call.message, FetchEvents):
        call.answer(Ok(), [BLOB])
    else:
        call.answer(Ok(), [bytes(call.payload.view)])


@pytest.fixture(params=["tcp", "unix"])
def lanes(request: pytest.FixtureRequest, tmp_path: Path) -> LaneHarness:
    return LaneHarness(request.param, tmp_path)


@pytest.fixture
def tls_lanes(tmp_path: Path) -> LaneHarness:
    return LaneHarness("tls", tmp_path)


@asynccontextmanager
async def attacked(lanes: LaneHarness) -> AsyncGenerator[RealListener]:
    """A server whose well-behaved client has worked before, and on the same connection still works
    afterwards."""
    listening = lanes.serve(handler)
    assert isinstance(listening, RealListener)
    async with listening as listener, lanes.real_network("good") as network:
        lane = network.lane(listener.address)
        await lane.call(Ping(), [b"before"], lanes.soon())
        [good] = listener.connections
        before = resident_bytes()
        yield listener
        assert resident_bytes() - before < 32 * MiB
        answer = await lane.call(Ping(), [b"after"], lanes.soon())
        assert bytes(answer.payload.view) == b"after"
        assert next(iter(listener.connections)) is good


async def connect(address: Address) -> trio.SocketStream:
    if address.unix:
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await sock.connect(address.unix)
        return trio.SocketStream(sock)
    return await trio.open_tcp_stream(address.host, address.port)


async def read_to_end(stream: trio.abc.ReceiveStream, seconds: float) -> bytes:
    """What the server said before it hung up, which must happen in time."""
    received = b""
    with trio.fail_after(seconds):
        try:
            async for data in stream:
                received += data
        except trio.BrokenResourceError:
            pass
    return received


def last_words(received: bytes) -> Failed:
    """The message of the last frame, which must be a closing one."""
    message, kind = None, 0
    while received:
        prefix = WIRE.parse_prefix(received)
        end = PREFIX_BYTES + prefix.header_bytes
        message, kind = WIRE.decode(prefix, received[PREFIX_BYTES:end]), prefix.kind
        received = received[end + prefix.payload_bytes :]
    assert kind == CLOSING
    assert isinstance(message, Failed)
    return message


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextmanager
def next_line() -> Generator[trio.Event]:
    """Set when something is logged about a lane."""
    noted = trio.Event()

    class Watcher(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noted.set()

    log = logging.getLogger("blockstore.lanes")
    watcher = Watcher(logging.WARNING)
    log.addHandler(watcher)
    try:
        yield noted
    finally:
        log.removeHandler(watcher)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def frame_with(header: bytes, kind: int = REQUEST, payload_bytes: int = 0) -> bytes:
    checked = struct.pack(
        "<3sBB3xIIIII", b"bsl", 1, kind, 7, len(header), payload_bytes, 1000, crc32.iscsi(header)
    )
    return checked + struct.pack("<I", crc32.iscsi(checked)) + header


def claim(header_bytes: int, payload_bytes: int) -> bytes:
    checked = struct.pack("<3sBB3xIIIII", b"bsl", 1, REQUEST, 7, header_bytes, payload_bytes, 1000, 0)
    return checked + struct.pack("<I", crc32.iscsi(checked))


def flipped(frame: bytes, bit: int) -> bytes:
    damaged = bytearray(frame)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


MALFORMED = {
    "random bytes": (random.Random(7).randbytes(5_000), "not this protocol"),
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(99), "not this protocol"),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "not this protocol"),
    "a request before the hello": (PING, "does not say who it is"),
    "an answer as hello": (WIRE.encode(ANSWER, 0, Ok(), 0, 0), "does not say who it is"),
    "a hello that is none": (frame_with(b"\x91\x04", HELLO), "carries Ping"),
    "a second hello": (GREETING + GREETING, "frame of kind 3"),
    "an answer": (GREETING + WIRE.encode(ANSWER, 5, Ok(), 0, 0), "frame of kind 2"),
    "a closing": (GREETING + WIRE.encode(CLOSING, 5, Failed("Busy", ("x",)), 0, 0), "frame of kind 4"),
    "a newer version": (GREETING + b"bsl\x02" + PING[4:], "format version 2"),
    "4 GiB of header": (GREETING + claim(0xFFFF_FFFF, 0), "header of 4294967295 bytes"),
    "4 GiB of payload": (GREETING + claim(2, 0xFFFF_FFFF), "payload of 4294967295 bytes"),
    "an unknown tag": (GREETING + frame_with(b"\x91\xcc\xfa"), "none of ours"),
    "an empty header": (GREETING + frame_with(b""), "none of ours"),
    "a deep header": (GREETING + frame_with(b"\x92\x0d" + b"\x91" * 100_000), "none of ours"),
    "2^32 items": (GREETING + frame_with(b"\x92\x0d\xdd\xff\xff\xff\xff"), "none of ours"),
    "a million nils": (GREETING + frame_with(b"\xdd\x00\x0f\x00\x00" + b"\xc0" * 0xF0000), "none of ours"),
    "a damaged prefix": (GREETING + flipped(PING, 12 * 8), "prefix failed its checksum"),
    "a damaged header": (GREETING + flipped(PING, len(PING) * 8 - 1), "header failed its checksum"),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_frame_ends_its_connection_alone(
    lanes: LaneHarness, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    data, words = MALFORMED[case]
    async with attacked(lanes) as listener:
        async with await connect(listener.address) as stream:
            await stream.send_all(data)
            received = await read_to_end(stream, 1.5)
        [line] = warnings_of(caplog)
        assert words in line
        assert ("tcp://127.0.0.1:" if lanes.kind == "tcp" else f"unix process {os.getpid()}") in line
        assert words in str(WIRE.error_of(last_words(received)))


@pytest.mark.parametrize("length", [1, PREFIX_BYTES - 1, PREFIX_BYTES, PREFIX_BYTES + 1])
async def test_a_frame_cut_off_by_hanging_up_is_noted(
    lanes: LaneHarness, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    async with attacked(lanes) as listener:
        async with await connect(listener.address) as stream:
            await stream.send_all(GREETING + PING[:length])
            await stream.send_eof()
            await read_to_end(stream, 1.5)
        [line] = warnings_of(caplog)
        assert "ended inside a frame" in line


@pytest.mark.parametrize(
    "rest",
    [PING[:5], claim(2, 8 * MiB) + b"\x91", frame_with(b"\x91\x04", payload_bytes=8 * MiB)],
    ids=["in the prefix", "in the header", "in the payload"],
)
async def test_a_frame_whose_rest_does_not_come_is_given_up(
    lanes: LaneHarness, caplog: pytest.LogCaptureFixture, rest: bytes
) -> None:
    async with attacked(lanes) as listener:
        async with await connect(listener.address) as stream:
            await stream.send_all(GREETING + rest)
            await read_to_end(stream, FRAME_STALL_SECONDS_MAX + 0.7)
        [line] = warnings_of(caplog)
        assert "the rest of a frame did not come" in line


async def test_one_byte_at_a_time_is_given_up(lanes: LaneHarness, caplog: pytest.LogCaptureFixture) -> None:
    async with attacked(lanes) as listener:
        async with await connect(listener.address) as stream, trio.open_nursery() as nursery:

            async def trickle() -> None:
                try:
                    for byte in frame_with(b"\x91\x04", payload_bytes=8 * MiB) + bytes(1000):
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.02)
                except trio.BrokenResourceError:
                    pass

            await stream.send_all(GREETING)
            nursery.start_soon(trickle)
            await read_to_end(stream, FRAME_STALL_SECONDS_MAX + 0.7)
            nursery.cancel_scope.cancel()
        [line] = warnings_of(caplog)
        assert "the rest of a frame did not come" in line


async def test_silent_connections_are_closed_and_cost_little(
    lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """300 who say nothing: the oldest go for the newest, the others after the handshake time."""
    async with attacked(lanes) as listener:
        streams = [await connect(listener.address) for _ in range(300)]
        with trio.fail_after(2):
            while len(listener.strangers) < 128:
                await trio.lowlevel.checkpoint()
        assert len(listener.strangers) <= 128
        began = trio.current_time()
        for stream in streams:
            await read_to_end(stream, HANDSHAKE_SECONDS_MAX + 0.7)
            await stream.aclose()
        assert trio.current_time() - began < HANDSHAKE_SECONDS_MAX + 0.7
        lines = warnings_of(caplog)
        assert len(lines) == 300
        assert all("not sa" in line for line in lines)  # "have not said", "did not say"


async def test_one_who_never_reads_is_closed(lanes: LaneHarness, caplog: pytest.LogCaptureFixture) -> None:
    """1,000 answers of 1 MiB are asked for and none is read: the server stops reading, and hangs up at
    last."""
    ask = b"".join(WIRE.encode(REQUEST, number, FetchEvents(0, 0.0), 0, 30_000) for number in range(1, 1_001))
    async with attacked(lanes) as listener:
        async with await connect(listener.address) as stream:
            await stream.send_all(GREETING + ask)
            with trio.fail_after(SEND_STALL_SECONDS_MAX + 1.5), next_line() as noted:
                await noted.wait()
        [line] = warnings_of(caplog)
        assert "bytes that wait for it" in line


async def test_one_who_reads_slowly_gets_everything(
    lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """Back-pressure is not an attack: 100 answers of 1 MiB, though only 16 MiB may wait at the server."""
    ask = b"".join(WIRE.encode(REQUEST, number, FetchEvents(0, 0.0), 0, 30_000) for number in range(1, 101))
    async with attacked(lanes) as listener, await connect(listener.address) as stream:
        await stream.send_all(GREETING + ask)
        received = 0
        with trio.fail_after(10):
            while received < 100 * MiB:
                received += len(await stream.receive_some(256 * KiB))
                await trio.lowlevel.checkpoint()
        assert not warnings_of(caplog)


async def test_more_calls_than_the_bound_are_answered_busy(lanes: LaneHarness) -> None:
    waiting: list[IncomingCall] = []
    async with (
        lanes.serve(waiting.append, calls_max=10) as listener,
        await connect(listener.address) as stream,
    ):
        await stream.send_all(GREETING + PING * 15)
        received = b""
        expected = len(GREETING_ANSWER) + 5 * len(BUSY_ANSWER)
        with trio.fail_after(2):
            while len(received) < expected:
                received += await stream.receive_some()
        assert received == GREETING_ANSWER + 5 * BUSY_ANSWER
        assert len(waiting) == 10


GREETING_ANSWER = WIRE.encode(ANSWER, 0, Ok(), 0, 0)
BUSY_ANSWER = WIRE.encode(ANSWER, 1, Failed("Busy", ("10 calls of this connection are under way",)), 0, 0)


async def test_connections_over_the_bound_are_refused(
    lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_lanes(
        lanes.new_address(), handler, lanes.authorize, clock=lanes.clock, wire=lanes.wire, connections_max=2
    ) as listener:
        streams = [await connect(listener.address) for _ in range(2)]
        for stream in streams:
            await stream.send_all(GREETING)
            await stream.receive_some()
        async with await connect(listener.address) as third:
            assert await read_to_end(third, 1) == b""
        [line] = warnings_of(caplog)
        assert "2 connections are open" in line
        for stream in streams:
            await stream.send_all(PING)
            assert await stream.receive_some()
            await stream.aclose()


async def test_a_refused_name_learns_why(lanes: LaneHarness, caplog: pytest.LogCaptureFixture) -> None:
    async with attacked(lanes) as listener:
        async with lanes.real_network("stranger") as network:
            lane = network.lane(listener.address)
            with pytest.raises(PermissionDenied, match="client stranger is not listed"):
                await lane.call(Ping(), [], lanes.soon())
            with pytest.raises(PermissionDenied, match="client stranger is not listed"):
                await lane.call(Ping(), [], lanes.soon())  # told at once: nobody dials for a while
        [line] = warnings_of(caplog)
        assert "client stranger is not listed" in line


async def test_a_judge_that_fails_refuses(lanes: LaneHarness, caplog: pytest.LogCaptureFixture) -> None:
    def judge(certificate: bytes | None, hello: object) -> None:
        raise ZeroDivisionError

    async with serve_lanes(
        lanes.new_address(),
        handler,
        judge,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # it never returns
        clock=lanes.clock,
        wire=lanes.wire,
    ) as listener:
        async with lanes.real_network() as network:
            with pytest.raises(PermissionDenied, match="could not be judged"):
                await network.lane(listener.address).call(Ping(), [], lanes.soon())
        assert "ZeroDivisionError" in caplog.text


# --- with TLS


async def tls_connect(address: Address, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    stream = trio.SSLStream(await trio.open_tcp_stream(address.host, address.port), context)
    await stream.do_handshake()
    return stream


@pytest.mark.parametrize(
    "data",
    [GREETING + PING, b"GET / HTTP/1.1\r\n\r\n", bytes(3_000)],
    ids=["our frames", "http", "nonsense"],
)
async def test_plain_text_on_a_tls_port_is_refused(
    tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    async with attacked(tls_lanes) as listener:
        async with await connect(listener.address) as stream:
            await stream.send_all(data)
            received = await read_to_end(stream, 1.5)
        assert GREETING_ANSWER not in received
        [line] = warnings_of(caplog)
        assert "tcp://127.0.0.1:" in line
        assert "TLS failed" in line


async def test_a_silent_tls_client_is_closed(
    tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with attacked(tls_lanes) as listener:
        async with await connect(listener.address) as stream:
            await read_to_end(stream, HANDSHAKE_SECONDS_MAX + 0.7)
        [line] = warnings_of(caplog)
        assert "did not say who it is" in line


async def test_a_malformed_frame_inside_tls_is_refused(
    tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    assert tls_lanes.authority is not None
    async with attacked(tls_lanes) as listener:
        stream = await tls_connect(listener.address, tls_lanes.authority.client_context())
        await stream.send_all(bytes(100))
        assert "not this protocol" in str(last_words(await read_to_end(stream, 1.5)).fields)
        await trio.aclose_forcefully(stream)
        [line] = warnings_of(caplog)
        assert "client client at tcp://127.0.0.1:" in line


async def test_a_hello_does_not_stand_in_for_a_certificate(
    tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate that was refused, and a hello with a better name behind it."""
    assert tls_lanes.authority is not None
    async with attacked(tls_lanes) as listener:
        stream = await tls_connect(listener.address, tls_lanes.authority.client_context("stranger"))
        await stream.send_all(WIRE.encode(HELLO, 0, Hello("good", "1"), 0, 0) + PING)
        received = await read_to_end(stream, 1.5)
        assert last_words(received) == Failed("PermissionDenied", ("client stranger is not listed",))
        assert received[8:12] == bytes(4)  # the closing came first: nothing was answered before it
        await trio.aclose_forcefully(stream)
        [line] = warnings_of(caplog)
        assert "client stranger is not listed" in line


async def test_who_is_not_of_the_cluster_is_told_so(
    tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Its server context verifies us, ours is of another authority: on either side it is PermissionDenied."""
    assert tls_lanes.authority is not None
    other = Authority(tmp_path, "other authority")
    context = other.client_context()
    context.load_verify_locations(tmp_path / "test authority.pem")
    async with attacked(tls_lanes) as listener:
        for client in (context, other.client_context(), tls_lanes.authority.anonymous_context()):
            async with RealNetwork(tls_lanes.clock, WIRE, ssl_context=client) as network:
                with pytest.raises(PermissionDenied, match="certificate"):
                    await network.lane(listener.address).call(Ping(), [], tls_lanes.soon())
        lines = warnings_of(caplog)
        assert len(lines) == 3
        assert all("tcp://127.0.0.1:" in line and "certificate" in line for line in lines)


async def test_a_client_of_plain_lanes_at_a_tls_port_loses_its_connection(
    tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with attacked(tls_lanes) as listener:
        async with RealNetwork(tls_lanes.clock, WIRE, hello=HELLO_MESSAGE) as network:
            with pytest.raises(BlockStoreError, match=r"tcp://127\.0\.0\.1"):
                await network.lane(listener.address).call(Ping(), [], tls_lanes.soon())
        assert len(warnings_of(caplog)) == 1


async def test_a_broken_handshake_is_closed(tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture) -> None:
    """The real beginning of a handshake, then nothing."""
    assert tls_lanes.authority is not None
    async with attacked(tls_lanes) as listener:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        half = tls_lanes.authority.client_context().wrap_bio(incoming, outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            half.do_handshake()
        async with await connect(listener.address) as stream:
            await stream.send_all(outgoing.read())
            await read_to_end(stream, HANDSHAKE_SECONDS_MAX + 0.7)
        [line] = warnings_of(caplog)
        assert "did not say who it is" in line


async def test_a_handshake_that_goes_on_has_longer_but_not_for_ever(
    tls_lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """One that never pauses for as long as a silent one may be silent, and never ends."""
    assert tls_lanes.authority is not None
    async with attacked(tls_lanes) as listener:
        outgoing = ssl.MemoryBIO()
        half = tls_lanes.authority.client_context().wrap_bio(ssl.MemoryBIO(), outgoing)
        with pytest.raises(ssl.SSLWantReadError):
            half.do_handshake()
        began = trio.current_time()

        async def send_slowly() -> None:
            async with await connect(listener.address) as stream:
                for byte in outgoing.read():
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(HANDSHAKE_SECONDS_MAX / 4)  # as slow as its network

        with pytest.raises(trio.BrokenResourceError):
            await send_slowly()
        lasted = trio.current_time() - began
        assert OPENING_SECONDS_MAX - 0.1 < lasted < OPENING_SECONDS_MAX + 2 * HANDSHAKE_SECONDS_MAX
        [line] = warnings_of(caplog)
        assert "did not say who it is" in line


# --- hostile servers


async def serve_bytes(data: bytes, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Answers whoever connects with these bytes."""
    listening = socket.create_server(("127.0.0.1", 0))
    [listener] = [trio.SocketListener(trio.socket.from_stdlib_socket(listening))]

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(data)
            await trio.sleep_forever()

    async with listener:
        task_status.started(listening.getsockname()[1])
        await trio.serve_listeners(answer, [listener])


@pytest.mark.parametrize("case", ["random bytes", "4 GiB of payload", "an unknown tag", "a damaged header"])
async def test_a_client_survives_a_server_that_talks_nonsense(
    lanes: LaneHarness, nursery: trio.Nursery, case: str
) -> None:
    data = MALFORMED[case][0].removeprefix(GREETING)
    port = await nursery.start(serve_bytes, data)
    async with lanes.real_network() as network:
        with pytest.raises(BlockStoreError, match=rf"tcp://127.0.0.1:{port}: .*{MALFORMED[case][1]}"):
            await network.lane(Address("127.0.0.1", port)).call(Ping(), [], lanes.soon())


async def test_a_tls_handshake_that_never_ends_is_given_up(
    tls_lanes: LaneHarness, nursery: trio.Nursery
) -> None:
    port = await nursery.start(serve_bytes, b"")
    async with tls_lanes.real_network() as network:
        with pytest.raises(ConnectionLost, match="no handshake within"):
            await network.lane(Address("127.0.0.1", port)).call(Ping(), [], tls_lanes.soon())


async def test_shaking_hands_with_nonsense_leaves_nothing_open(tls_lanes: LaneHarness) -> None:
    assert tls_lanes.authority is not None
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        theirs.sendall(bytes(100))
        with pytest.raises(OSError, match="SSL"):
            await shake_hands(ours, tls_lanes.authority.client_context())
        assert ours.fileno() == -1
