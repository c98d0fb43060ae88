"""A network with faults, from one seed: a carrier for `MemoryNetwork`.

Between two machines messages are late, lost, or (requests) repeated, each by chance; links are cut and mended
by the test, in one direction or both. What arrives from one machine at another arrives in the order sent, as
on a stream. All chance is drawn from the one `random.Random` given, in the order of sending, so a seed
replays a run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from blockstore.runtime.interfaces import Clock, Message
from blockstore.runtime.sim.agenda import Agenda


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

    def __init__(
        self,
        clock: Clock,
        chance: random.Random,
        faults: LinkFaults | None = None,
        *,
        agenda: Agenda | None = None,
    ) -> None:
        """With an `agenda` that somebody else drives there is no need to `run` this."""
        self.faults = faults if faults is not None else LinkFaults()
        self._clock = clock
        self._chance = chance
        self._agenda = agenda if agenda is not None else Agenda()
        self._cut: set[tuple[str, str]] = set()
        self._links: dict[tuple[str, str], LinkFaults] = {}
        self._last_due: dict[tuple[str, str], float] = {}
        self.n_lost = self.n_repeated = 0

    def cut(self, source: str, target: str) -> None:
        """From now on nothing from `source` arrives at `target`, what is on its way included."""
        self._cut.add((source, target))

    def mend(self, source: str, target: str) -> None:
        self._cut.discard((source, target))

    def mend_all(self) -> None:
        self._cut.clear()

    def set_link(self, source: str, target: str, faults: LinkFaults | None) -> None:
        """This link alone has these faults; None: those of all."""
        if faults is None:
            self._links.pop((source, target), None)
        else:
            self._links[source, target] = faults

    def carry(
        self,
        source: str,
        target: str,
        deliver: Callable[[], None],
        *,
        may_repeat: bool,
        about: Message = None,
    ) -> None:
        if source == target:
            self._agenda.at(self._clock.now(), deliver)
            return
        link, chance = (source, target), self._chance
        faults = self._links.get(link, self.faults)
        # Always the same number of draws: changing one fault's rate does not reshuffle the others.
        is_lost = chance.random() < faults.loss
        is_repeated = chance.random() < faults.repetition
        delays = [chance.uniform(faults.delay_min, faults.delay_max) for _ in range(2)]
        if is_lost:
            self.n_lost += 1
            return
        self.n_repeated += is_repeated and may_repeat
        for delay in delays if is_repeated and may_repeat else delays[:1]:
            due = max(self._clock.now() + delay, self._last_due.get(link, -math.inf))
            self._last_due[link] = due
            self._agenda.at(due, partial(self._arrive, link, deliver))

    def _arrive(self, link: tuple[str, str], deliver: Callable[[], None]) -> None:
        if link not in self._cut:
            deliver()

    async def run(self) -> None:
        await self._agenda.run(self._clock)
