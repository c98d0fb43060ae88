"""The simulated bus: every fault it offers happens, and one seed is one history."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio
from trio.testing import MockClock

from blockstore.ids import NodeId
from blockstore.runtime.interfaces import BusPeer
from blockstore.runtime.memory_bus import MemoryBus
from blockstore.runtime.sim.bus import BusFaults, SimCarrier

A, B = NodeId(1), NodeId(2)


class TrioClock:
    """Simulated time is trio's, which a MockClock turns."""

    def now(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return 0.0

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)


History = list[tuple[float, bytes]]


def run(seed: int, faults: BusFaults, script: Callable[[SimCarrier, MemoryBus], None]) -> History:
    """What B heard from A, and when, up to a second of simulated time."""
    heard: History = []

    async def main() -> None:
        carrier = SimCarrier(random.Random(seed), TrioClock(), faults)
        a = carrier.bus(A, lambda _, message: None)
        b = carrier.bus(B, lambda _, message: heard.append((trio.current_time(), message)))
        for bus in (a, b):
            bus.set_peers({A: BusPeer("", 0), B: BusPeer("", 0)})
        with trio.move_on_at(1.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carrier.run)
                script(carrier, a)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return heard


def hundred(_: SimCarrier, a: MemoryBus) -> None:
    for number in range(100):
        a.send(B, b"%d" % number)


def test_messages_are_delayed_within_the_bounds_and_reordered() -> None:
    heard = run(1, BusFaults(delay_min=0.1, delay_max=0.2), hundred)
    assert len(heard) == 100
    assert all(0.1 <= when <= 0.2 for when, _ in heard)
    assert [message for _, message in heard] != [b"%d" % n for n in range(100)]
    assert heard == sorted(heard, key=lambda one: one[0])


def test_messages_are_lost_and_doubled() -> None:
    lossy = [message for _, message in run(1, BusFaults(loss=0.5), hundred)]
    assert 20 < len(lossy) < 80
    assert len(set(lossy)) == len(lossy)
    doubled = [message for _, message in run(1, BusFaults(duplication=0.5), hundred)]
    assert 120 < len(doubled) < 180
    assert len(set(doubled)) == 100


def test_a_cut_loses_what_is_sent_and_what_is_under_way() -> None:
    def script(carrier: SimCarrier, a: MemoryBus) -> None:
        a.send(B, b"under way")
        carrier.cut([A], [B])
        a.send(B, b"into the cut")

    assert run(1, BusFaults(), script) == []

    def healed(carrier: SimCarrier, a: MemoryBus) -> None:
        script(carrier, a)
        carrier.heal()
        a.send(B, b"healed")

    assert {message for _, message in run(1, BusFaults(), healed)} == {b"under way", b"healed"}

    def backwards(carrier: SimCarrier, a: MemoryBus) -> None:
        carrier.cut([B], [A], both_ways=False)
        a.send(B, b"this way is open")

    assert len(run(1, BusFaults(), backwards)) == 1


def test_one_seed_is_one_history() -> None:
    faults = BusFaults(loss=0.2, duplication=0.2, delay_min=0.0, delay_max=0.5)
    assert run(5, faults, hundred) == run(5, faults, hundred)
    assert run(5, faults, hundred) != run(6, faults, hundred)


def test_an_earlier_message_overtakes_a_sleeping_carrier() -> None:
    faults = BusFaults(delay_min=0.9, delay_max=0.9)
    heard: History = []

    async def main() -> None:
        carrier = SimCarrier(random.Random(1), TrioClock(), faults)
        a = carrier.bus(A, lambda _, message: None)
        b = carrier.bus(B, lambda _, message: heard.append((trio.current_time(), message)))
        for bus in (a, b):
            bus.set_peers({A: BusPeer("", 0), B: BusPeer("", 0)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carrier.run)
            a.send(B, b"slow")
            await trio.sleep(0.1)
            faults.delay_min = faults.delay_max = 0.1
            a.send(B, b"fast")
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [(round(when, 6), message) for when, message in heard] == [(0.2, b"fast"), (0.9, b"slow")]


def test_what_chance_did_is_counted() -> None:
    carriers: list[SimCarrier] = []

    def script(carrier: SimCarrier, a: MemoryBus) -> None:
        carriers.append(carrier)
        hundred(carrier, a)

    heard = run(1, BusFaults(loss=0.2, duplication=0.2, delay_max=0.5), script)
    (carrier,) = carriers
    messages = [message for _, message in heard]
    assert 100 - carrier.n_lost + carrier.n_doubled == len(messages)
    assert carrier.n_lost == 100 - len(set(messages)) > 0
    assert carrier.n_doubled > 0
    assert carrier.n_reordered > 0
    run(1, BusFaults(delay_min=0.1, delay_max=0.1), script)
    assert carriers[1].n_lost == carriers[1].n_doubled == carriers[1].n_reordered == 0
