"""A network with faults, from one seed: a carrier for `MemoryNetwork`.

Between two machines messages are late, lost, or (requests) repeated, each by chance; links are cut and mended
by the test, in one direction or both. What arrives from one machine at another arrives in the order sent, as
on a stream. All chance is drawn from the one `random.Random` given, in the order of sending, so a seed
replays a run."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import trio

from blockstore.runtime.interfaces import Clock


@dataclass(frozen=True, slots=True)
class LinkFaults:
    """Seconds, and probabilities of one message."""

    delay_min: float = 0.0
    delay_max: float = 0.001
    loss: float = 0.0
    repetition: float = 0.0


class SimCarrier:
    """`MemoryNetwork(clock, carrier=SimCarrier(clock, random.Random(seed)))`, used through `seen_as(peer,
    source)`."""

    def __init__(self, clock: Clock, chance: random.Random, faults: LinkFaults | None = None) -> None:
        self.faults = faults if faults is not None else LinkFaults()
        self._clock = clock
        self._chance = chance
        self._cut: set[tuple[str, str]] = set()
        self._last_due: dict[tuple[str, str], float] = {}
        self._on_the_way: list[tuple[float, int, str, str, Callable[[], None]]] = []
        self._n_sent = 0
        self._nap: tuple[float, trio.CancelScope] | None = None

    def cut(self, source: str, target: str) -> None:
        """From now on nothing from `source` arrives at `target`, what is on its way included."""
        self._cut.add((source, target))

    def mend(self, source: str, target: str) -> None:
        self._cut.discard((source, target))

    def mend_all(self) -> None:
        self._cut.clear()

    def carry(self, source: str, target: str, deliver: Callable[[], None], *, may_repeat: bool) -> None:
        if source == target:
            self._send(self._clock.now(), source, target, deliver)
            return
        faults, chance = self.faults, self._chance
        # Always the same number of draws: changing one fault's rate does not reshuffle the others.
        is_lost = chance.random() < faults.loss
        is_repeated = chance.random() < faults.repetition
        delays = [chance.uniform(faults.delay_min, faults.delay_max) for _ in range(2)]
        if is_lost:
            return
        for delay in delays if is_repeated and may_repeat else delays[:1]:
            due = max(self._clock.now() + delay, self._last_due.get((source, target), -math.inf))
            self._last_due[source, target] = due
            self._send(due, source, target, deliver)

    async def run(self) -> None:
        on_the_way = self._on_the_way
        while True:
            now = self._clock.now()
            while on_the_way and on_the_way[0][0] <= now:
                _, _, source, target, deliver = heapq.heappop(on_the_way)
                if (source, target) not in self._cut:
                    deliver()
            await trio.lowlevel.checkpoint()
            until = on_the_way[0][0] if on_the_way else math.inf
            if until <= self._clock.now():
                continue
            with trio.CancelScope() as scope:
                self._nap = (until, scope)
                if until == math.inf:
                    await trio.sleep_forever()
                else:
                    await self._clock.sleep_until(until)
            self._nap = None

    def _send(self, due: float, source: str, target: str, deliver: Callable[[], None]) -> None:
        self._n_sent += 1
        heapq.heappush(self._on_the_way, (due, self._n_sent, source, target, deliver))
        if self._nap is not None and due < self._nap[0]:
            self._nap[1].cancel()
