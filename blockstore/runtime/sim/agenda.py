"""What happens when: calls in order of time.

Simulated time (`scheduler.py`) makes the calls itself, between two steps of the tasks; where time is somebody
else's, a task does (`run`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import trio

from blockstore.runtime.interfaces import Clock


class Agenda:
    def __init__(self) -> None:
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._n_planned = 0  # orders what is due at the same instant
        self._nap: tuple[float, trio.CancelScope] | None = None

    def __len__(self) -> int:
        return len(self._planned)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Not from within this, even when it is due already."""
        self._n_planned += 1
        heapq.heappush(self._planned, (when, self._n_planned, call))
        if self._nap is not None and when < self._nap[0]:
            self._nap[1].cancel()

    @property
    def next_due(self) -> float:
        return self._planned[0][0] if self._planned else math.inf

    def make_due_calls(self, now: float) -> None:
        """All that are due; what these plan for now waits for the next turn."""
        planned, until = self._planned, self._n_planned
        later: list[tuple[float, int, Callable[[], None]]] = []
        while planned and planned[0][0] <= now:
            due = heapq.heappop(planned)
            if due[1] <= until:
                due[2]()
            else:
                later.append(due)
        for due in later:
            heapq.heappush(planned, due)

    async def run(self, clock: Clock) -> None:
        """For as long as anything is planned, by a clock that does not do it."""
        while True:
            self.make_due_calls(clock.now())
            until = self.next_due
            with trio.CancelScope() as scope:
                self._nap = until, scope
                if until == math.inf:
                    await trio.sleep_forever()
                else:
                    await clock.sleep_until(until)
            self._nap = None
