"""What the caller without a loop promises beyond the contract: forks, interrupts, and servers that
misbehave."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from blockstore.codec.frame import FrameWire
from blockstore.codec.messages import Appended, Ok, Ping
from blockstore.errors import ConnectionLost, DeadlineExceeded, PermissionDenied, ProtocolViolation
from blockstore.runtime.blocking_net import BlockingCaller, run
from blockstore.runtime.interfaces import ANSWER, Address, Answer, Caller, IncomingCall
from tests.contracts.test_caller import World, echo, ignore, server, soon
from tests.lane_harness import HELLO, REAL_KINDS, LaneHarness

WIRE = FrameWire()

# The server lives in a thread; what forks here runs only our own code in the child, and leaves by `_exit`.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture(params=REAL_KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World("blocking", LaneHarness(request.param, tmp_path))


async def ping(caller: Caller, address: Address, payload: bytes = b"ping") -> None:
    answer = await caller.call(address, Appended(len(payload)), [payload], soon(caller))
    assert answer.message == Appended(len(payload))
    assert answer.payload.view == payload
    answer.payload.release()


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a forked child that does `work`: 0 when it raised nothing."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_dials_anew_and_the_parents_connection_is_untouched(world: World) -> None:
    peers: list[int] = []

    def handler(call: IncomingCall) -> None:
        peers.append(id(call.peer))  # one for each connection
        echo(call)

    with world.serve(handler) as address, world.blocking_caller() as caller:
        run(ping(caller, address))

        def child() -> None:
            for _ in range(3):
                run(ping(caller, address, bytes(200_000)))
            caller.close()

        assert in_child(child) == 0
        assert in_child(caller.close) == 0
        run(ping(caller, address, bytes(200_000)))
        assert peers[0] == peers[-1]  # the parent's is the one that it had
        assert set(peers[1:4]) == {peers[1]}
        assert peers[1] != peers[0]


def test_what_is_under_way_at_a_fork_is_answered_to_the_parent_alone(world: World) -> None:
    held: list[IncomingCall] = []

    def handler(call: IncomingCall) -> None:
        if isinstance(call.message, Ping):
            for one in held:
                one.answer(Ok(), [b"held"])
            held.clear()
            call.answer(Ok())
        else:
            held.append(call)

    with world.serve(handler) as address, world.blocking_caller() as caller:
        flight = caller.flight()
        flight.start("under way", address, Appended(1), [], soon(caller))
        assert run(flight.next(soon(caller, 0.05))) is None

        def child() -> None:
            completed = run(flight.next(soon(caller)))
            assert completed is not None
            assert isinstance(completed[1], ConnectionLost)
            run(caller.call(address, Ping(), [], soon(caller)))  # which lets the server answer the parent

        assert in_child(child) == 0
        completed = run(flight.next(soon(caller)))
        assert completed is not None
        assert isinstance(completed[1], Answer)
        assert bytes(completed[1].payload.view) == b"held"


def test_a_payload_held_over_a_fork_is_each_processs_own(world: World) -> None:
    with world.serve(echo) as address, world.blocking_caller() as caller:
        answer = run(caller.call(address, Ping(), [b"a" * 100_000], soon(caller)))

        def child() -> None:
            answer.payload.view[:] = bytes(100_000)

        assert in_child(child) == 0
        assert answer.payload.view == b"a" * 100_000


def test_an_interrupt_drops_the_connection_and_the_next_call_dials_anew(world: World) -> None:
    connections: set[int] = set()
    asked = threading.Event()

    def handler(call: IncomingCall) -> None:
        connections.add(id(call.peer))
        if call.message == Appended(-1):
            asked.set()
        else:
            echo(call)

    with world.serve(handler) as address, world.blocking_caller() as caller:
        run(ping(caller, address))
        main_thread = threading.main_thread().ident
        assert main_thread is not None

        def interrupt() -> None:
            assert asked.wait(10)
            signal.pthread_kill(main_thread, signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        flight = caller.flight()
        flight.start("other", address, Appended(-1), [], soon(caller))
        with pytest.raises(KeyboardInterrupt):
            run(caller.call(address, Appended(-1), [], soon(caller)))
        interrupter.join()
        completed = run(flight.next(soon(caller)))
        assert completed is not None
        assert isinstance(completed[1], ConnectionLost)
        for _ in range(3):
            run(ping(caller, address, bytes(100_000)))
        assert len(connections) == 2


def test_an_idle_connection_that_the_server_closed_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockstore.runtime.blocking_net._IDLE_SECONDS", 0.0)
    with world.blocking_caller() as caller:
        with world.serve(echo) as address:
            run(ping(caller, address))
        with world.serve(echo, address):
            run(ping(caller, address))


def test_closing_leaves_no_descriptor(world: World) -> None:
    with world.serve(echo) as address:
        before = len(os.listdir("/proc/self/fd"))
        caller = world.blocking_caller()
        run(ping(caller, address))
        caller.close()
        with pytest.raises(ConnectionLost):
            run(caller.call(Address("127.0.0.1", 1), Ping(), [], soon(caller)))
        deadline = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) != before:  # the server's end goes a moment later
            assert time.monotonic() < deadline


def test_code_that_waits_for_something_else_is_told_so() -> None:
    with pytest.raises(AssertionError, match="not a BlockingCaller"):
        run(trio.lowlevel.checkpoint())  # noqa: ASYNC105 - that nothing awaits it is the point


# --- servers that misbehave, played by a plain socket


def plain_caller() -> BlockingCaller:
    return BlockingCaller(WIRE, hello=HELLO)


def test_a_server_that_stops_within_a_frame_is_given_up_before_the_deadline() -> None:
    over = threading.Event()

    def behave(sock: socket.socket) -> None:
        sock.sendall(WIRE.encode(ANSWER, 1, Ok(), 100_000, 0) + bytes(50_000))
        over.wait(10)

    with server(behave) as address, plain_caller() as caller:
        began = time.monotonic()
        with pytest.raises(ConnectionLost, match="the rest of a frame did not come"):
            run(caller.call(address, Ping(), [], soon(caller)))
        assert 0.9 < time.monotonic() - began < 3
        over.set()


@pytest.mark.parametrize("noise", [b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(64), bytes(4096)])
def test_a_server_that_speaks_something_else_is_named(noise: bytes) -> None:
    with (
        server(lambda sock: sock.sendall(noise)) as address,
        plain_caller() as caller,
        pytest.raises(ProtocolViolation, match=str(address)),
    ):
        run(caller.call(address, Ping(), [], soon(caller)))


def test_one_that_never_reads_is_given_up_at_the_deadline() -> None:
    over = threading.Event()
    with server(lambda _: over.wait(10)) as address, plain_caller() as caller:
        began = time.monotonic()
        flight = caller.flight()
        for number in range(4):
            flight.start(number, address, Ping(), [bytes(8_000_000)], soon(caller, 0.3))
        for _ in range(4):
            completed = run(flight.next(soon(caller)))
            assert completed is not None
            assert isinstance(completed[1], DeadlineExceeded)
        assert time.monotonic() - began < 2
        over.set()


def test_a_host_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1])
        taken: list[socket.socket] = []
        try:
            for _ in range(4):  # nobody accepts: once the queue is full, connecting hangs
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
                taken.append(sock)
            with plain_caller() as caller:
                began = time.monotonic()
                with pytest.raises(ConnectionLost, match="no connection within"):
                    run(caller.call(address, Ping(), [], soon(caller)))
                assert time.monotonic() - began < 3
        finally:
            for sock in taken:
                sock.close()


def test_a_certificate_of_another_cluster_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = World("blocking", LaneHarness("tls", tmp_path / "a")), LaneHarness("tls", tmp_path / "b")
    assert theirs.authority is not None
    context = theirs.authority.client_context("tester")
    with (
        ours.serve(ignore) as address,
        BlockingCaller(WIRE, ssl_context=context) as caller,
        pytest.raises(PermissionDenied, match="not of this cluster"),
    ):
        run(caller.call(address, Ping(), [], soon(caller)))


def test_a_server_that_is_not_who_should_be_there_is_refused(tmp_path: Path) -> None:
    world = World("blocking", LaneHarness("tls", tmp_path))
    assert world.harness.authority is not None
    context: ssl.SSLContext = world.harness.authority.client_context("tester")

    def check(address: Address, certificate: bytes) -> None:
        raise PermissionDenied(f"{len(certificate)} bytes of certificate, and not node 3")

    with (
        world.serve(echo) as address,
        BlockingCaller(WIRE, ssl_context=context, check_server=check) as caller,
        pytest.raises(PermissionDenied, match="not node 3"),
    ):
        run(caller.call(address, Ping(), [], soon(caller)))
