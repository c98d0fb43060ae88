"""A bus that loses, doubles, delays and reorders, from one `random.Random` and one `Clock`.

Each message draws its fate when it is sent; a delay drawn for each alone is what reorders them. A cut between
two nodes loses what is sent while it lasts and what is under way when it falls; it may be in one direction
only.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from blockstore.ids import NodeId
from blockstore.runtime.interfaces import Clock, OnBusMessage
from blockstore.runtime.memory_bus import UNDELIVERED_MAX, Endpoints, MemoryBus


@dataclass(slots=True)
class BusFaults:
    """Chances are for each message; delays are in seconds. Assign to change them while it runs."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_min: float = 0.000_1
    delay_max: float = 0.001


class SimCarrier:
    """`await run()` in a task that lives as long as its endpoints."""

    def __init__(self, chance: random.Random, clock: Clock, faults: BusFaults | None = None) -> None:
        self.faults = faults or BusFaults()
        self._chance, self._clock = chance, clock
        self._endpoints = Endpoints()
        self._cuts: set[tuple[NodeId, NodeId]] = set()
        self._under_way: list[tuple[float, int, NodeId, NodeId, bytes]] = []
        self._count = itertools.count()  # orders what is due at the same instant
        self._sleep: trio.CancelScope | None = None

    def bus(self, me: NodeId, on_message: OnBusMessage) -> MemoryBus:
        return self._endpoints.join(MemoryBus(me, on_message, self))

    def leave(self, bus: MemoryBus) -> None:
        self._endpoints.leave(bus)

    def cut(self, senders: Iterable[NodeId], receivers: Iterable[NodeId], *, both_ways: bool = True) -> None:
        for sender, receiver in itertools.product(tuple(senders), tuple(receivers)):
            self._cuts.add((sender, receiver))
            if both_ways:
                self._cuts.add((receiver, sender))

    def heal(self) -> None:
        self._cuts.clear()

    def carry(self, sender: NodeId, to: NodeId, message: bytes) -> bool:
        # The draws are the same whatever is cut or gone, so that one fault does not change all later fates.
        lost = self._chance.random() < self.faults.loss
        copies = 2 if self._chance.random() < self.faults.duplication else 1
        delays = [self._chance.uniform(self.faults.delay_min, self.faults.delay_max) for _ in range(copies)]
        if lost or (sender, to) in self._cuts or len(self._under_way) >= UNDELIVERED_MAX:
            return False
        for delay in delays:
            due = self._clock.now() + delay
            heapq.heappush(self._under_way, (due, next(self._count), sender, to, message))
        if self._sleep is not None and self._under_way[0][0] < self._due:
            self._sleep.cancel()
        return True

    async def run(self) -> None:
        while True:
            self._due = self._under_way[0][0] if self._under_way else float("inf")
            with trio.CancelScope() as self._sleep:
                if self._under_way:
                    await self._clock.sleep_until(self._due)
                else:
                    await trio.sleep_forever()
            self._sleep = None
            now = self._clock.now()
            while self._under_way and self._under_way[0][0] <= now:
                _, _, sender, to, message = heapq.heappop(self._under_way)
                if (sender, to) not in self._cuts:
                    self._endpoints.deliver(sender, to, message)
