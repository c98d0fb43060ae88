"""What happens when: calls in order of time, made by one task."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import trio

from blockstore.runtime.interfaces import Clock


class Agenda:
    """`await run()` in a task that lives as long as anything is planned."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._n_planned = 0  # orders what is due at the same instant
        self._nap_until = math.inf
        self._nap: trio.CancelScope | None = None

    def __len__(self) -> int:
        return len(self._planned)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Not from within this call, even when it is due already."""
        self._n_planned += 1
        heapq.heappush(self._planned, (when, self._n_planned, call))
        if when < self._nap_until and self._nap is not None:
            self._nap.cancel()

    async def run(self) -> None:
        planned = self._planned
        while True:
            now = self._clock.now()
            until = self._n_planned  # what these calls plan for now waits for the next turn
            later: list[tuple[float, int, Callable[[], None]]] = []
            while planned and planned[0][0] <= now:
                due = heapq.heappop(planned)
                if due[1] <= until:
                    due[2]()
                else:
                    later.append(due)
            for due in later:
                heapq.heappush(planned, due)
            self._nap_until = planned[0][0] if planned else math.inf
            with trio.CancelScope() as self._nap:
                if self._nap_until == math.inf:
                    await trio.sleep_forever()
                else:
                    await self._clock.sleep_until(self._nap_until)
            self._nap = None
