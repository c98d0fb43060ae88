"""A machine's clock in simulated time: begun at an instant of its own, and as fast as its crystal.

Its crystal may change its mind, and it may stand still for a moment; it never goes back. The wall's clock is
set by people and may jump anywhere."""

from __future__ import annotations

import outcome
import trio

from blockstore.runtime.sim.scheduler import VirtualTime

WALL_SECONDS = 1_700_000_000.0
"""What the wall shows when a simulation begins: November 2023."""


class MachineClock:
    """`interfaces.Clock`. `rate` is how many of its seconds pass in a second of the simulation."""

    __slots__ = ("_least", "_offset", "_rate", "_time", "_wall_offset")

    def __init__(self, time: VirtualTime, offset: float = 0.0, rate: float = 1.0) -> None:
        self._time, self._offset, self._rate = time, offset, rate
        self._least = offset  # it shows that much until it has caught up
        self._wall_offset = 0.0

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        """From now on; what it shows now does not change."""
        self._offset += (self._rate - rate) * self._time.current_time()
        self._rate = rate

    def stand_still(self, seconds: float) -> None:
        """From now on, for so long."""
        self._least = self.now()
        self._offset -= seconds * self._rate

    def set_wall(self, seconds: float) -> None:
        """Somebody sets the wall's clock forward by so much, or back."""
        self._wall_offset += seconds

    def now(self) -> float:
        shown = self._offset + self._rate * self._time.current_time()
        return shown if shown > self._least else self._least

    def wall(self) -> float:
        return WALL_SECONDS + self._wall_offset + self._rate * self._time.current_time()

    async def sleep_until(self, when: float) -> None:
        """Without trio's timers: a simulation sleeps more than it does anything else."""
        time = self._time
        due = (when - self._offset) / self._rate
        if due <= time.current_time():
            await trio.lowlevel.checkpoint()
            return
        while due > time.current_time():
            sleeper = _Sleeper(trio.lowlevel.current_task())
            time.agenda.at(due, sleeper.wake)
            await trio.lowlevel.wait_task_rescheduled(sleeper.abort)
            due = (when - self._offset) / self._rate  # the clock may have lost time meanwhile


class _Sleeper:
    __slots__ = ("_task",)

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self._task: trio.lowlevel.Task | None = task

    def wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))

    def abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
