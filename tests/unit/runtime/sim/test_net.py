"""The simulated network's faults: each does what it says, and one seed gives one run."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from blockstore.codec.messages import Appended, Ok, Ping
from blockstore.errors import DeadlineExceeded
from blockstore.runtime.interfaces import Address, Answer, IncomingCall, Peer
from blockstore.runtime.memory_net import MemoryNetwork
from blockstore.runtime.sim.net import LinkFaults, SimCarrier
from blockstore.runtime.trio_caller import TrioCaller

SERVER = Address("server", 1)
CLIENT = Peer("client", "c", "admin")


class TrioClock:
    """trio's own clock, which a test may turn forward."""

    def now(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return trio.current_time()

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)


async def run_once(seed: int, faults: LinkFaults, n_calls: int = 60) -> tuple[list[int], list[str]]:
    """What arrived in which order, and how each call ended."""
    arrived: list[int] = []
    clock = TrioClock()

    def handler(call: IncomingCall) -> None:
        arrived.append(call.message.length)
        call.answer(Ok(), [bytes(call.payload.view)])

    carrier = SimCarrier(clock, random.Random(seed), faults)
    async with MemoryNetwork(clock, carrier=carrier) as network:
        network.attach(SERVER, handler, CLIENT)
        flight = TrioCaller(network.seen_as(CLIENT, "client"), clock).flight()
        for number in range(n_calls):
            flight.start(number, SERVER, Appended(number), [b"%d" % number], clock.now() + 1)
        ended: list[str] = []
        while (completed := await flight.next(clock.now() + 5)) is not None:
            number, outcome = completed
            if isinstance(outcome, Answer):
                assert bytes(outcome.payload.view) == b"%d" % number
            ended.append(f"{number} {type(outcome).__name__}")
    return arrived, ended


async def test_without_faults_all_arrives_late_and_in_order(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    arrived, ended = await run_once(1, LinkFaults(delay_min=0.1, delay_max=0.2))
    assert arrived == list(range(60))
    assert ended == [f"{number} Answer" for number in range(60)]
    assert 0.2 <= trio.current_time() - began <= 0.5


async def test_what_is_lost_ends_at_its_deadline(autojump_clock: trio.testing.MockClock) -> None:
    arrived, ended = await run_once(2, LinkFaults(loss=0.2))
    n_late = sum("DeadlineExceeded" in outcome for outcome in ended)
    assert len(ended) == 60
    assert 60 - len(arrived) < n_late < 40  # answers are lost too
    assert arrived == sorted(arrived)


async def test_requests_are_repeated_answers_are_not(autojump_clock: trio.testing.MockClock) -> None:
    arrived, ended = await run_once(3, LinkFaults(repetition=0.5))
    assert len(arrived) > 70
    assert set(arrived) == set(range(60))
    assert len(ended) == 60


async def test_a_cut_link_carries_nothing_in_that_direction(autojump_clock: trio.testing.MockClock) -> None:
    clock, arrived = TrioClock(), list[IncomingCall]()

    def handler(call: IncomingCall) -> None:
        arrived.append(call)
        call.answer(Ok())

    carrier = SimCarrier(clock, random.Random(4))
    async with MemoryNetwork(clock, carrier=carrier) as network:
        network.attach(SERVER, handler, CLIENT)
        lane = network.seen_as(CLIENT, "client").lane(SERVER)
        carrier.cut(str(SERVER), "client")
        with pytest.raises(DeadlineExceeded):
            await lane.call(Ping(), [], clock.now() + 1)
        assert len(arrived) == 1
        carrier.cut("client", str(SERVER))
        with pytest.raises(DeadlineExceeded):
            await lane.call(Ping(), [], clock.now() + 1)
        assert len(arrived) == 1
        carrier.mend_all()
        await lane.call(Ping(), [], clock.now() + 1)
        carrier.cut("client", str(SERVER))
        carrier.mend("client", str(SERVER))
        await lane.call(Ping(), [], clock.now() + 1)


async def test_one_seed_gives_one_run(autojump_clock: trio.testing.MockClock) -> None:
    faults = LinkFaults(delay_max=0.3, loss=0.1, repetition=0.1)
    first, again, other = [await run_once(seed, faults) for seed in (5, 5, 6)]
    assert first == again
    assert first != other
