"""What every lane promises, on every kind of lane there is."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from blockstore.codec.messages import Appended, Event, Events, ListFragments, Ok, Ping
from blockstore.config import CALLS_PER_CONNECTION_MAX, FRAME_PAYLOAD_BYTES_MAX
from blockstore.errors import (
    BlockStoreError,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    NotOwner,
    OffsetMismatch,
    PermissionDenied,
)
from blockstore.ids import DiskId, NodeId
from blockstore.runtime.interfaces import Address, Answer, IncomingCall, Lane
from blockstore.runtime.trio_caller import TrioCaller
from tests.lane_harness import KINDS, LaneHarness

Outcome = Answer | BlockStoreError


@pytest.fixture(params=KINDS)
def lanes(request: pytest.FixtureRequest, tmp_path: Path) -> LaneHarness:
    return LaneHarness(request.param, tmp_path)


def echo(call: IncomingCall) -> None:
    call.answer(call.message, [bytes(call.payload.view)])


def ignore(call: IncomingCall) -> None:
    pass


class Outcomes:
    """Collects what is told to `on_answer`."""

    def __init__(self, n_expected: int) -> None:
        self.found: list[tuple[int, Outcome]] = []
        self._n_expected = n_expected
        self._complete = trio.Event()

    def on_answer(self, tag: int) -> Callable[[Outcome], None]:
        def told(outcome: Outcome) -> None:
            self.found.append((tag, outcome))
            if len(self.found) >= self._n_expected:
                self._complete.set()

        return told

    async def all(self) -> list[tuple[int, Outcome]]:
        with trio.fail_after(10):
            await self._complete.wait()
        return self.found


# --- what goes through


async def test_a_request_is_answered_with_its_message_and_payload(lanes: LaneHarness) -> None:
    async with lanes.network() as network, lanes.serve(echo) as listener:
        answer = await network.lane(listener.address).call(
            Appended(7), [b"abc", memoryview(b"def")], lanes.soon()
        )
        assert answer.message == Appended(7)
        assert bytes(answer.payload.view) == b"abcdef"


@pytest.mark.parametrize(
    "size", [0, 1, 16 * 1024, 16 * 1024 + 1, 64 * 1024, 65_537, 1 << 20, FRAME_PAYLOAD_BYTES_MAX]
)
async def test_payloads_of_every_size_arrive_whole(lanes: LaneHarness, size: int) -> None:
    data = random.Random(size).randbytes(size)
    async with lanes.network() as network, lanes.serve(echo) as listener:
        lane = network.lane(listener.address)
        for _ in range(2):  # the second time from the pool
            answer = await lane.call(Ping(), [data], lanes.soon())
            assert answer.payload.view == data
            answer.payload.release()


async def test_mixed_sizes_in_flight_are_not_confused(lanes: LaneHarness) -> None:
    chance = random.Random(1)
    sizes = [chance.choice([0, 10, 3_000, 17_000, 70_000, 300_000, 2_000_000]) for _ in range(150)]
    data = [chance.randbytes(size) for size in sizes]
    async with lanes.network() as network, lanes.serve(echo) as listener:
        flight = TrioCaller(network, lanes.clock).flight()
        for index, piece in enumerate(data):
            flight.start(index, listener.address, Appended(index), [piece], lanes.soon(30))
        seen: set[int] = set()
        while (completed := await flight.next(lanes.soon(30))) is not None:
            index, answer = completed
            assert isinstance(answer, Answer), answer
            assert answer.message == Appended(index)
            assert answer.payload.view == data[index]
            answer.payload.release()
            seen.add(index)
        assert seen == set(range(len(data)))


async def test_a_large_header_arrives(lanes: LaneHarness) -> None:
    events = Events(tuple(Event(number, 0.0, NodeId(1), "code", "x" * 300_000) for number in range(3)), 3)
    async with lanes.network() as network, lanes.serve(echo) as listener:
        lane = network.lane(listener.address)
        for message in (events, Ping(), events, events, Ping()):
            answer = await lane.call(message, [b"payload"], lanes.soon())
            assert answer.message == message
            assert bytes(answer.payload.view) == b"payload"


async def test_requests_arrive_in_the_order_posted(lanes: LaneHarness) -> None:
    arrived: list[int] = []

    def handler(call: IncomingCall) -> None:
        arrived.append(call.message.length)
        call.answer(Ok())

    async with lanes.network() as network, lanes.serve(handler) as listener:
        lane = network.lane(listener.address)
        outcomes = Outcomes(500)
        for number in range(500):
            payload = [b"x" * (40_000 if number % 50 == 0 else 10)]
            lane.post(Appended(number), payload, lanes.soon(), outcomes.on_answer(number))
        await outcomes.all()
        assert arrived == list(range(500))


async def test_answers_may_come_later_and_in_any_order(lanes: LaneHarness) -> None:
    waiting: list[IncomingCall] = []
    async with lanes.network() as network, lanes.serve(waiting.append) as listener:
        outcomes = Outcomes(3)
        for number in range(3):
            network.lane(listener.address).post(
                Appended(number), [], lanes.soon(), outcomes.on_answer(number)
            )
        while len(waiting) < 3:
            await trio.testing.wait_all_tasks_blocked(0.01)
        for call in reversed(waiting):
            call.answer(Appended(call.message.length + 100))
            call.answer(Ok())  # only the first counts
            call.fail(NotOwner(1, 2, 3))
        found = await outcomes.all()
        assert [tag for tag, _ in found] == [2, 1, 0]
        assert all(
            isinstance(answer, Answer) and answer.message == Appended(tag + 100) for tag, answer in found
        )


async def test_the_receiver_may_hold_a_payload_after_answering(lanes: LaneHarness) -> None:
    held: list[IncomingCall] = []

    def handler(call: IncomingCall) -> None:
        held.append(call)
        call.answer(Ok())

    async with lanes.network() as network, lanes.serve(handler) as listener:
        lane = network.lane(listener.address)
        buffer = bytearray(100_000)
        for number in range(5):
            buffer[:] = bytes([number]) * len(buffer)
            await lane.call(Ping(), [buffer], lanes.soon())  # answered: the buffer may be used again
        assert [set(call.payload.view) for call in held] == [{0}, {1}, {2}, {3}, {4}]


async def test_an_answers_buffers_are_told_to_be_free_once(lanes: LaneHarness) -> None:
    sent: list[int] = []

    def handler(call: IncomingCall) -> None:
        call.answer(Ok(), [bytearray(300_000)], on_sent=lambda: sent.append(1))

    async with lanes.network() as network, lanes.serve(handler) as listener:
        answer = await network.lane(listener.address).call(Ping(), [], lanes.soon())
        answer.payload.release()
        answer.payload.release()
        with trio.fail_after(5):
            while not sent:
                await trio.lowlevel.checkpoint()
        assert sent == [1]


async def test_the_handler_sees_who_asks_and_how_long_it_has(lanes: LaneHarness) -> None:
    calls: list[IncomingCall] = []

    def handler(call: IncomingCall) -> None:
        calls.append(call)
        call.answer(Ok())

    async with lanes.network() as network, lanes.serve(handler) as listener:
        deadline = lanes.soon(5)
        await network.lane(listener.address).call(Ping(), [], deadline)
        assert calls[0].peer.name == "tester"
        assert abs(calls[0].deadline - deadline) < 1.0


# --- errors


async def test_errors_arrive_as_types_with_fields(lanes: LaneHarness) -> None:
    def handler(call: IncomingCall) -> None:
        if isinstance(call.message, Ping):
            call.fail(OffsetMismatch(4096))
        else:
            raise NotOwner(3, 2, 17)

    async with lanes.network() as network, lanes.serve(handler) as listener:
        lane = network.lane(listener.address)
        with pytest.raises(OffsetMismatch) as mismatch:
            await lane.call(Ping(), [b"x"], lanes.soon())
        assert mismatch.value.fields == (4096,)
        with pytest.raises(NotOwner) as not_owner:
            await lane.call(Ok(), [], lanes.soon())
        assert not_owner.value.fields == (3, 2, 17)


async def test_a_handlers_bug_is_logged_and_answered(
    lanes: LaneHarness, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(call: IncomingCall) -> None:
        if isinstance(call.message, ListFragments):
            raise ZeroDivisionError("secret detail")
        call.answer(Ok())

    async with lanes.network() as network, lanes.serve(handler) as listener:
        lane = network.lane(listener.address)
        with pytest.raises(BlockStoreError, match="internal error") as told:
            await lane.call(ListFragments(DiskId(1)), [], lanes.soon())
        assert "secret" not in str(told.value)
        assert "handling ListFragments failed" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        await lane.call(Ping(), [], lanes.soon())


async def test_a_call_without_an_answer_ends_at_its_deadline(lanes: LaneHarness) -> None:
    calls: list[IncomingCall] = []

    def handler(call: IncomingCall) -> None:
        if isinstance(call.message, Ping):
            calls.append(call)
        else:
            call.answer(Ok())

    async with lanes.network() as network, lanes.serve(handler) as listener:
        lane = network.lane(listener.address)
        await lane.call(Ok(), [], lanes.soon())
        began = lanes.clock.now()
        with pytest.raises(DeadlineExceeded, match=str(listener.address)):
            await lane.call(Ping(), [], began + 0.1)
        assert 0.1 <= lanes.clock.now() - began < 1.0
        calls[0].answer(Ok(), [b"x" * 100_000])  # too late: dropped, and the lane goes on
        assert (await lane.call(Appended(1), [], lanes.soon())).message == Ok()


async def test_a_deadline_already_past_fails_at_once(lanes: LaneHarness) -> None:
    calls: list[IncomingCall] = []
    async with lanes.network() as network, lanes.serve(calls.append) as listener:
        with pytest.raises(DeadlineExceeded):
            await network.lane(listener.address).call(Ping(), [], lanes.clock.now() - 0.001)
        assert not calls


async def test_a_peer_that_dies_fails_what_is_under_way_each_once(lanes: LaneHarness) -> None:
    arrived: list[IncomingCall] = []
    async with lanes.network() as network:
        outcomes = Outcomes(20)
        async with lanes.serve(arrived.append) as listener:
            for number in range(20):
                network.lane(listener.address).post(
                    Ping(), [b"x" * 1000], lanes.soon(), outcomes.on_answer(number)
                )
            with trio.fail_after(5):
                while len(arrived) < 20:
                    await trio.lowlevel.checkpoint()
        found = await outcomes.all()
        assert sorted(tag for tag, _ in found) == list(range(20))
        for _, outcome in found:
            assert isinstance(outcome, ConnectionLost)
            assert str(listener.address) in str(outcome)
        for call in arrived:  # nobody is there any more: nothing happens
            call.answer(Ok(), [b"x"])


async def test_on_sent_is_told_when_the_peer_is_gone(lanes: LaneHarness) -> None:
    arrived: list[IncomingCall] = []
    sent: list[int] = []
    async with lanes.network() as network:
        async with lanes.serve(arrived.append) as listener:
            network.lane(listener.address).post(Ping(), [], lanes.soon(), Outcomes(1).on_answer(0))
            with trio.fail_after(5):
                while not arrived:
                    await trio.lowlevel.checkpoint()
        arrived[0].answer(Ok(), [b"x"], on_sent=lambda: sent.append(1))
        assert sent == [1]


async def test_a_lane_connects_again_after_its_peer_came_back(lanes: LaneHarness) -> None:
    async with lanes.network() as network:
        async with lanes.serve(echo) as listener:
            address = listener.address
            await network.lane(address).call(Ping(), [], lanes.soon())
        with pytest.raises(ConnectionLost, match=str(address)):
            await network.lane(address).call(Ping(), [], lanes.soon())
        async with lanes.serve(echo, address):
            await call_until_it_works(network.lane(address), lanes)


async def call_until_it_works(lane: Lane, lanes: LaneHarness) -> Answer:
    with trio.fail_after(5):
        while True:
            try:
                return await lane.call(Ping(), [], lanes.soon())
            except ConnectionLost:
                await trio.lowlevel.checkpoint()


async def test_nobody_there_is_connection_lost(lanes: LaneHarness) -> None:
    async with lanes.network() as network:
        with pytest.raises(ConnectionLost, match=r"tcp://127\.0\.0\.1:1"):
            await network.lane(Address("127.0.0.1", 1)).call(Ping(), [], lanes.soon())


async def test_what_is_too_large_to_send_is_refused_on_either_side(lanes: LaneHarness) -> None:
    too_large = bytes(FRAME_PAYLOAD_BYTES_MAX + 1)

    def handler(call: IncomingCall) -> None:
        call.answer(Ok(), [too_large])

    async with lanes.network() as network, lanes.serve(handler) as listener:
        lane = network.lane(listener.address)
        with pytest.raises(InvalidRequest, match="too large"):
            await lane.call(Ping(), [too_large], lanes.soon())
        with pytest.raises(InvalidRequest, match="too large"):
            await lane.call(Ping(), [], lanes.soon())


async def test_more_calls_than_the_bound_are_busy(lanes: LaneHarness) -> None:
    async with lanes.network() as network, lanes.serve(ignore) as listener:
        lane = network.lane(listener.address)
        outcomes = Outcomes(3)
        for number in range(CALLS_PER_CONNECTION_MAX + 3):
            lane.post(Ping(), [], lanes.soon(), outcomes.on_answer(number))
        found = await outcomes.all()
        assert [tag for tag, _ in found] == [CALLS_PER_CONNECTION_MAX + more for more in range(3)]
        assert all(isinstance(outcome, Busy) for _, outcome in found)


async def test_more_bytes_than_the_bound_are_busy(lanes: LaneHarness) -> None:
    """Nobody answers, and the server stops reading: what waits at the client is bounded too."""
    async with lanes.network() as network, lanes.serve(ignore) as listener:
        lane = network.lane(listener.address)
        outcomes = Outcomes(1)
        payload = [bytes(FRAME_PAYLOAD_BYTES_MAX)]
        for number in range(40):
            lane.post(Ping(), payload, lanes.soon(), outcomes.on_answer(number))
        found = await outcomes.all()
        assert isinstance(found[0][1], Busy)


async def test_nothing_is_told_from_inside_post(lanes: LaneHarness) -> None:
    async with lanes.network() as network, lanes.serve(ignore) as listener:
        lane, nobody = network.lane(listener.address), network.lane(Address("127.0.0.1", 1))
        with pytest.raises(ConnectionLost):
            await nobody.call(Ping(), [], lanes.soon())
        for number in range(CALLS_PER_CONNECTION_MAX):
            lane.post(Ping(), [], lanes.soon(), Outcomes(1).on_answer(number))
        outcomes = Outcomes(4)
        lane.post(Ping(), [], lanes.soon(), outcomes.on_answer(0))  # Busy
        lane.post(Ping(), [], lanes.clock.now(), outcomes.on_answer(1))  # late
        lane.post(Ping(), [bytes(FRAME_PAYLOAD_BYTES_MAX + 1)], lanes.soon(), outcomes.on_answer(2))
        nobody.post(Ping(), [], lanes.soon(), outcomes.on_answer(3))  # lost just now
        assert not outcomes.found
        assert sorted(tag for tag, _ in await outcomes.all()) == [0, 1, 2, 3]


async def test_a_dropped_certificate_learns_why(lanes: LaneHarness) -> None:
    calls: list[IncomingCall] = []
    async with lanes.network() as network, lanes.serve(calls.append) as listener:
        outcomes = Outcomes(1)
        network.lane(listener.address).post(Ping(), [], lanes.soon(), outcomes.on_answer(0))
        with trio.fail_after(5):
            while not calls:
                await trio.lowlevel.checkpoint()
        listener.drop("of somebody else", PermissionDenied("not this one"))
        listener.drop(calls[0].peer.fingerprint, PermissionDenied("client tester was revoked"))
        [(_, outcome)] = await outcomes.all()
        assert isinstance(outcome, PermissionDenied)
        assert "client tester was revoked" in str(outcome)


# --- cancelling and closing


async def test_cancelling_forgets_the_answer_not_the_request(lanes: LaneHarness) -> None:
    calls: list[IncomingCall] = []

    def handler(call: IncomingCall) -> None:
        if isinstance(call.message, Appended):
            call.answer(Ok())
        else:
            calls.append(call)

    async with lanes.network() as network, lanes.serve(handler) as listener:
        lane = network.lane(listener.address)
        with trio.CancelScope() as scope:
            scope.cancel()
            await lane.call(Ping(), [], lanes.soon())
        assert scope.cancelled_caught
        await lane.call(Appended(1), [], lanes.soon())
        assert len(calls) == 1
        calls[0].answer(Ok(), [b"x" * 100_000])
        await lane.call(Appended(1), [], lanes.soon())


async def test_closing_the_network_fails_what_is_under_way(lanes: LaneHarness) -> None:
    outcomes = Outcomes(2)
    async with lanes.network() as network, lanes.serve(ignore) as listener:
        lane = network.lane(listener.address)
        lane.post(Ping(), [], lanes.soon(), outcomes.on_answer(0))
        await trio.lowlevel.checkpoint()
    lane.post(Ping(), [], lanes.soon(), outcomes.on_answer(1))
    assert all(isinstance(outcome, ConnectionLost) for _, outcome in await outcomes.all())


async def test_what_the_block_raises_comes_out_as_it_is(lanes: LaneHarness) -> None:
    with pytest.raises(ValueError, match="mine"):
        async with lanes.network(), lanes.serve(echo):
            raise ValueError("mine")


# --- flights


async def test_a_flight_gives_calls_as_they_complete(lanes: LaneHarness) -> None:
    waiting: dict[int, IncomingCall] = {}

    def handler(call: IncomingCall) -> None:
        waiting[call.message.length] = call
        if len(waiting) == 3:
            waiting[2].answer(Ok())
            waiting[0].fail(OffsetMismatch(5))

    async with lanes.network() as network, lanes.serve(handler) as listener:
        flight = TrioCaller(network, lanes.clock).flight()
        for number in range(3):
            flight.start(number, listener.address, Appended(number), [], lanes.soon())
        first = await flight.next(lanes.soon())
        second = await flight.next(lanes.soon())
        assert first is not None
        assert first[0] == 2
        assert second is not None
        assert second[0] == 0
        assert isinstance(second[1], OffsetMismatch)
        assert await flight.next(lanes.soon(0.05)) is None  # the third is not there yet
        waiting[1].answer(Ok())
        third = await flight.next(lanes.soon())
        assert third is not None
        assert third[0] == 1
        assert await flight.next(lanes.soon()) is None  # nothing is left


async def test_a_flight_ends_by_its_calls_deadlines(lanes: LaneHarness) -> None:
    async with lanes.network() as network, lanes.serve(ignore) as listener:
        flight = TrioCaller(network, lanes.clock).flight()
        flight.start("a", listener.address, Ping(), [], lanes.soon(0.1))
        completed = await flight.next(lanes.soon(60))
        assert completed is not None
        assert isinstance(completed[1], DeadlineExceeded)


async def test_an_abandoned_flight_hears_nothing_more_and_may_start_anew(lanes: LaneHarness) -> None:
    calls: list[IncomingCall] = []

    def handler(call: IncomingCall) -> None:
        calls.append(call)
        if isinstance(call.message, Ping):
            calls[0].answer(Appended(0), [b"x" * 50_000])
            call.answer(Ok())

    async with lanes.network() as network, lanes.serve(handler) as listener:
        flight = TrioCaller(network, lanes.clock).flight()
        flight.start("old", listener.address, Appended(0), [], lanes.soon())
        flight.abandon()
        assert await flight.next(lanes.soon()) is None
        flight.start("new", listener.address, Ping(), [], lanes.soon())
        completed = await flight.next(lanes.soon())
        assert completed is not None
        assert completed[0] == "new"
        assert await flight.next(lanes.soon()) is None


async def test_waiting_for_a_flight_can_be_cancelled(lanes: LaneHarness) -> None:
    calls: list[IncomingCall] = []
    async with lanes.network() as network, lanes.serve(calls.append) as listener:
        flight = TrioCaller(network, lanes.clock).flight()
        flight.start("a", listener.address, Ping(), [], lanes.soon())
        with trio.move_on_after(0.05) as scope:
            await flight.next(lanes.soon())
        assert scope.cancelled_caught
        calls[0].answer(Ok())
        completed = await flight.next(lanes.soon())
        assert completed is not None
        assert completed[0] == "a"
