"""A bus that loses, doubles, delays and reorders, from one `random.Random` and one `Clock`.

Each message draws its fate when it is sent; a delay drawn for each alone is what reorders them. A cut between
two nodes loses what is sent while it lasts and what is under way when it falls; it may be in one direction
only. What chance did to messages is counted.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from blockstore.ids import NodeId
from blockstore.runtime.interfaces import Clock, OnBusMessage
from blockstore.runtime.memory_bus import UNDELIVERED_MAX, Endpoints, MemoryBus
from blockstore.runtime.sim.agenda import Agenda


@dataclass(slots=True)
class BusFaults:
    """Chances are for each message; delays are in seconds. Assign to change them while it runs."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_min: float = 0.000_1
    delay_max: float = 0.001


class SimCarrier:
    """`await run()` in a task that lives as long as its endpoints."""

    def __init__(
        self,
        chance: random.Random,
        clock: Clock,
        faults: BusFaults | None = None,
        *,
        agenda: Agenda | None = None,
    ) -> None:
        """With an `agenda` that somebody else drives there is no need to `run` this."""
        self.faults = faults or BusFaults()
        self._chance, self._clock = chance, clock
        self._agenda = agenda if agenda is not None else Agenda()
        self._endpoints = Endpoints()
        self._cuts: set[tuple[NodeId, NodeId]] = set()
        self._links: dict[tuple[NodeId, NodeId], BusFaults] = {}
        self._n_under_way = 0
        self._last_due: dict[tuple[NodeId, NodeId], float] = {}  # of the newest message's first copy
        self.n_lost = self.n_doubled = self.n_reordered = 0

    def bus(self, me: NodeId, on_message: OnBusMessage) -> MemoryBus:
        return self.join(MemoryBus(me, on_message, self))

    def join(self, bus: MemoryBus) -> MemoryBus:
        return self._endpoints.join(bus)

    def leave(self, bus: MemoryBus) -> None:
        self._endpoints.leave(bus)

    def cut(self, senders: Iterable[NodeId], receivers: Iterable[NodeId], *, both_ways: bool = True) -> None:
        for sender, receiver in itertools.product(tuple(senders), tuple(receivers)):
            self._cuts.add((sender, receiver))
            if both_ways:
                self._cuts.add((receiver, sender))

    def mend(self, sender: NodeId, receiver: NodeId) -> None:
        self._cuts.discard((sender, receiver))

    def heal(self) -> None:
        self._cuts.clear()

    def set_link(self, sender: NodeId, receiver: NodeId, faults: BusFaults | None) -> None:
        """This link alone has these faults; None: those of all."""
        if faults is None:
            self._links.pop((sender, receiver), None)
        else:
            self._links[sender, receiver] = faults

    def carry(self, sender: NodeId, to: NodeId, message: bytes) -> bool:
        faults, chance = self._links.get((sender, to), self.faults), self._chance
        # The draws are the same whatever is cut or gone, so that one fault does not change all later fates.
        lost = chance.random() < faults.loss
        copies = 2 if chance.random() < faults.duplication else 1
        delays = [chance.uniform(faults.delay_min, faults.delay_max) for _ in range(copies)]
        self.n_lost += lost
        if lost or (sender, to) in self._cuts or self._n_under_way >= UNDELIVERED_MAX:
            return False
        now = self._clock.now()
        self.n_doubled += copies - 1
        self.n_reordered += now + min(delays) < self._last_due.get((sender, to), 0.0)
        self._last_due[sender, to] = max(now + min(delays), self._last_due.get((sender, to), 0.0))
        for delay in delays:
            self._n_under_way += 1
            self._agenda.at(now + delay, partial(self._arrive, sender, to, message))
        return True

    def _arrive(self, sender: NodeId, to: NodeId, message: bytes) -> None:
        self._n_under_way -= 1
        if (sender, to) not in self._cuts:
            self._endpoints.deliver(sender, to, message)

    async def run(self) -> None:
        await self._agenda.run(self._clock)
