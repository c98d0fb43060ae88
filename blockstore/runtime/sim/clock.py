"""A machine's clock in simulated time: begun at an instant of its own, and as fast as its crystal."""

from __future__ import annotations

import outcome
import trio

from blockstore.runtime.sim.scheduler import VirtualTime

WALL_SECONDS = 1_700_000_000.0
"""What the wall shows when a simulation begins: November 2023."""


class MachineClock:
    """`interfaces.Clock`. `rate` is how many of its seconds pass in a second of the simulation."""

    __slots__ = ("_offset", "_time", "rate")

    def __init__(self, time: VirtualTime, offset: float = 0.0, rate: float = 1.0) -> None:
        self._time, self._offset, self.rate = time, offset, rate

    def now(self) -> float:
        return self._offset + self.rate * self._time.current_time()

    def wall(self) -> float:
        return WALL_SECONDS + self.rate * self._time.current_time()

    async def sleep_until(self, when: float) -> None:
        """Without trio's timers: a simulation sleeps more than it does anything else."""
        time = self._time
        due = (when - self._offset) / self.rate
        if due <= time.current_time():
            await trio.lowlevel.checkpoint()
            return
        sleeper = _Sleeper(trio.lowlevel.current_task())
        time.agenda.at(due, sleeper.wake)
        await trio.lowlevel.wait_task_rescheduled(sleeper.abort)


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
