"""What client code may rely on, under trio and without a loop alike: the same server, the same calls."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
import trio

from blockstore.codec.messages import Appended, Hello, Ok, Ping
from blockstore.config import CALLS_PER_CONNECTION_MAX, FRAME_PAYLOAD_BYTES_MAX
from blockstore.errors import (
    BlockStoreError,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    OffsetMismatch,
    PermissionDenied,
)
from blockstore.runtime.blocking_net import BlockingCaller, run
from blockstore.runtime.interfaces import ANSWER, Address, Answer, Buffer, Caller, Handler, IncomingCall
from blockstore.runtime.trio_caller import TrioCaller
from tests.lane_harness import HELLO, REAL_KINDS, LaneHarness

T = TypeVar("T")
Program = Callable[[Caller], Coroutine[Any, Any, T]]
CALLERS: tuple[Literal["trio", "blocking"], ...] = ("trio", "blocking")


class World:
    """A server in a thread of its own, and client programs run against it."""

    def __init__(self, caller: Literal["trio", "blocking"], harness: LaneHarness) -> None:
        self.caller, self.harness = caller, harness

    @contextmanager
    def serve(self, handler: Handler, address: Address | None = None) -> Generator[Address]:
        started: list[tuple[Address, trio.CancelScope, trio.lowlevel.TrioToken]] = []
        is_started = threading.Event()

        async def main() -> None:
            with trio.CancelScope() as scope:
                async with self.harness.serve(handler, address) as listener:
                    started.append((listener.address, scope, trio.lowlevel.current_trio_token()))
                    is_started.set()
                    await trio.sleep_forever()

        thread = threading.Thread(target=trio.run, args=(main,))
        thread.start()
        try:
            assert is_started.wait(10)
            [(bound, scope, token)] = started
            try:
                yield bound
            finally:
                token.run_sync_soon(scope.cancel)
        finally:
            thread.join(10)

    def blocking_caller(self, name: str = "tester") -> BlockingCaller:
        harness = self.harness
        return BlockingCaller(
            harness.wire,
            ssl_context=harness.authority.client_context(name) if harness.authority else None,
            host_id="here" if harness.kind == "unix" else "",
            hello=None if harness.authority else Hello(name, HELLO.release),
        )

    def run(self, program: Program[T], name: str = "tester") -> T:
        if self.caller == "blocking":
            with self.blocking_caller(name) as caller:
                return run(program(caller))

        async def main() -> T:
            async with self.harness.real_network(name) as network:
                return await program(TrioCaller(network, self.harness.clock))

        return trio.run(main)


@contextmanager
def server(behave: Callable[[socket.socket], object]) -> Generator[Address]:
    """`behave` is given each connection, one at a time, after its hello and one request have come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    sock.recv(65_536)
                    behave(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address("127.0.0.1", listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


@pytest.fixture(params=[f"{caller}-{kind}" for caller in CALLERS for kind in REAL_KINDS])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    caller, kind = request.param.split("-")
    return World(caller, LaneHarness(kind, tmp_path))


def echo(call: IncomingCall) -> None:
    call.answer(call.message, [bytes(call.payload.view)])


def ignore(call: IncomingCall) -> None:
    pass


def ping_only(call: IncomingCall) -> None:
    """Everything else is never answered."""
    if isinstance(call.message, Ping):
        call.answer(Ok())


def soon(caller: Caller, seconds: float = 10.0) -> float:
    return caller.now() + seconds


def unused_address() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Address("127.0.0.1", listener.getsockname()[1])


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 65_537, 1 << 20, FRAME_PAYLOAD_BYTES_MAX])
def test_a_call_is_answered_with_message_and_payload(world: World, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with world.serve(echo) as address:

        async def program(caller: Caller) -> None:
            for number in range(3):  # the later ones into buffers used before
                payload: list[Buffer] = [data[: size // 3], memoryview(data)[size // 3 :]]
                answer = await caller.call(address, Appended(number), payload, soon(caller))
                assert answer.message == Appended(number)
                assert answer.payload.view == data
                answer.payload.release()

        world.run(program)


def test_an_error_is_raised_as_its_type_with_its_fields(world: World) -> None:
    def handler(call: IncomingCall) -> None:
        call.fail(OffsetMismatch(4096))

    with world.serve(handler) as address:

        async def program(caller: Caller) -> None:
            with pytest.raises(OffsetMismatch) as caught:
                await caller.call(address, Ping(), [b"x"], soon(caller))
            assert caught.value.fields == (4096,)

        world.run(program)


def test_a_call_ends_at_its_deadline_and_the_connection_goes_on(world: World) -> None:
    late: list[IncomingCall] = []

    def handler(call: IncomingCall) -> None:
        if isinstance(call.message, Ping):
            for one in late:
                one.answer(Appended(1), [bytes(100_000)])  # nobody waits for it any more
            call.answer(Ok())
        else:
            late.append(call)

    with world.serve(handler) as address:

        async def program(caller: Caller) -> None:
            began = caller.now()
            with pytest.raises(DeadlineExceeded):
                await caller.call(address, Appended(1), [], began + 0.1)
            assert 0.1 <= caller.now() - began < 1.0
            assert (await caller.call(address, Ping(), [], soon(caller))).message == Ok()
            with pytest.raises(DeadlineExceeded):
                await caller.call(address, Ping(), [], caller.now() - 1)

        world.run(program)


def test_many_calls_fly_at_once_and_are_not_confused(world: World) -> None:
    chance = random.Random(1)
    sizes = [chance.choice([0, 10, 3_000, 17_000, 70_000, 300_000, 2_000_000]) for _ in range(100)]
    data = [chance.randbytes(size) for size in sizes]
    with world.serve(echo) as address:

        async def program(caller: Caller) -> None:
            flight = caller.flight()
            for index, piece in enumerate(data):
                flight.start(index, address, Appended(index), [piece], soon(caller, 30))
            seen: set[int] = set()
            while (completed := await flight.next(soon(caller, 30))) is not None:
                index, answer = completed
                assert isinstance(answer, Answer), answer
                assert answer.message == Appended(index)
                assert answer.payload.view == data[index]
                answer.payload.release()
                seen.add(index)
            assert seen == set(range(len(data)))

        world.run(program)


def test_a_flight_gives_what_comes_first_and_waits_no_longer_than_asked(world: World) -> None:
    with world.serve(ping_only) as address:

        async def program(caller: Caller) -> None:
            flight = caller.flight()
            flight.start("never", address, Appended(1), [], soon(caller, 0.5))
            flight.start("now", address, Ping(), [], soon(caller))
            completed = await flight.next(soon(caller))
            assert completed is not None
            assert completed[0] == "now"
            began = caller.now()
            assert await flight.next(began + 0.05) is None
            assert 0.05 <= caller.now() - began < 0.4
            completed = await flight.next(soon(caller))
            assert completed is not None
            tag, outcome = completed
            assert tag == "never"
            assert isinstance(outcome, DeadlineExceeded)
            assert await flight.next(soon(caller)) is None  # nothing is left

        world.run(program)


def test_an_abandoned_flight_is_forgotten(world: World) -> None:
    with world.serve(echo) as address:

        async def program(caller: Caller) -> None:
            flight = caller.flight()
            for number in range(20):
                flight.start(number, address, Appended(number), [bytes(50_000)], soon(caller))
            assert await flight.next(soon(caller)) is not None
            flight.abandon()
            assert await flight.next(soon(caller)) is None
            flight.start("new", address, Ping(), [b"new"], soon(caller))
            completed = await flight.next(soon(caller))
            assert completed is not None
            tag, answer = completed
            assert isinstance(answer, Answer)
            assert (tag, bytes(answer.payload.view)) == ("new", b"new")

        world.run(program)


def test_one_that_is_away_does_not_hold_up_the_others(world: World) -> None:
    away = unused_address()
    with world.serve(echo) as address:

        async def program(caller: Caller) -> None:
            flight = caller.flight()
            flight.start("away", away, Ping(), [], soon(caller))
            flight.start("here", address, Ping(), [], soon(caller))
            outcomes: dict[str, Answer | BlockStoreError] = {}
            while (completed := await flight.next(soon(caller))) is not None:
                outcomes[completed[0]] = completed[1]
            assert isinstance(outcomes["away"], ConnectionLost)
            assert str(away) in str(outcomes["away"])
            assert isinstance(outcomes["here"], Answer)
            began = caller.now()
            with pytest.raises(ConnectionLost):
                await caller.call(away, Ping(), [], soon(caller))
            assert caller.now() - began < 1.0

        world.run(program)


def test_a_server_that_restarts_is_reached_again(world: World) -> None:
    async def ping(caller: Caller, address: Address) -> bytes:
        answer = await caller.call(address, Ping(), [b"ping"], soon(caller))
        return bytes(answer.payload.view)

    async def program(caller: Caller) -> None:
        with world.serve(echo) as address:
            assert await ping(caller, address) == b"ping"
        with pytest.raises(ConnectionLost):
            await ping(caller, address)
        with world.serve(echo, address):
            deadline = soon(caller)
            while True:
                try:
                    assert await ping(caller, address) == b"ping"
                    return
                except ConnectionLost:
                    assert caller.now() < deadline
                    await caller.sleep(0.02)

    world.run(program)


def test_a_server_that_dies_fails_what_is_under_way(world: World) -> None:
    asked = threading.Event()

    def handler(call: IncomingCall) -> None:
        asked.set()

    async def program(caller: Caller) -> None:
        flight = caller.flight()
        with world.serve(handler) as address:
            flight.start(1, address, Appended(1), [], soon(caller))
            while not asked.is_set():
                assert await flight.next(soon(caller, 0.01)) is None
        completed = await flight.next(soon(caller))
        assert completed is not None
        assert isinstance(completed[1], ConnectionLost)

    world.run(program)


@pytest.mark.parametrize("caller", CALLERS)
def test_a_server_that_dies_within_a_frame_is_a_lost_connection(
    caller: Literal["trio", "blocking"], tmp_path: Path
) -> None:
    """Which says that asking again may help; a violation of the protocol would say the opposite."""
    harness = LaneHarness("tcp", tmp_path)
    frame = harness.wire.encode(ANSWER, 1, Ok(), 100_000, 0)
    with server(lambda sock: sock.sendall(frame + bytes(50_000))) as address:

        async def program(caller: Caller) -> None:
            with pytest.raises(ConnectionLost, match="hung up"):
                await caller.call(address, Ping(), [], soon(caller))

        World(caller, harness).run(program)


def test_one_who_is_not_listed_is_told_so(world: World) -> None:
    with world.serve(echo) as address:

        async def program(caller: Caller) -> None:
            with pytest.raises(PermissionDenied, match="stranger"):
                await caller.call(address, Ping(), [], soon(caller))

        world.run(program, "stranger")


def test_calls_in_flight_are_bounded(world: World) -> None:
    with world.serve(ping_only) as address:

        async def program(caller: Caller) -> None:
            flight = caller.flight()
            for number in range(CALLS_PER_CONNECTION_MAX + 1):
                flight.start(number, address, Appended(number), [], soon(caller, 30))
            completed = await flight.next(soon(caller))
            assert completed is not None
            tag, outcome = completed
            assert tag == CALLS_PER_CONNECTION_MAX
            assert isinstance(outcome, Busy)

        world.run(program)


def test_sleep_lasts_as_long_as_asked(world: World) -> None:
    async def program(caller: Caller) -> None:
        began = caller.now()
        await caller.sleep(0.03)
        assert caller.now() - began >= 0.03
        assert abs(caller.now() - time.monotonic()) < 0.1

    world.run(program)
