"""Trio, made deterministic: one seed, one order of tasks, one course of time.

`run_simulated` is the only function that reaches into trio. It seeds the scheduler, which otherwise
shuffles by chance of its own, and gives it a clock that stands still while anything can run and then jumps
to whatever is due next: trio's MockClock with `autojump_threshold=0`, except that it looks at the agenda as
well, so that a message on its way costs a call and not a task that wakes up. What runs inside must keep to
the rest of the bargain: no thread, no real IO, no iteration over a set of anything but integers.

`Freezer` stops the tasks of one part of the program, as SIGSTOP stops a process: what becomes due for them
meanwhile waits, and all of it happens at once when they thaw.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import outcome
import trio
import trio._core._run as trio_run  # private: trio has no public way to be deterministic

from blockstore.runtime.sim.agenda import Agenda

T = TypeVar("T")

_trio: Any = trio_run

STUCK_MAX = 1_000
"""Turns in a row in which nothing could run: trio's own messages, as at its end, take one or two."""


class Stuck(Exception):
    """Every task waits for something that can never happen."""


class VirtualTime(trio.abc.Clock):
    """Seconds since the simulation began. Stands still while any task can run; then it jumps to whatever is
    due next, a deadline of trio's or a call of the agenda."""

    def __init__(self) -> None:
        self.agenda = Agenda()
        self.failed: trio.lowlevel.Task | None = None  # waits for what a call may raise
        self._now = 0.0
        self._n_stuck = 0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Trio asks this only when no task can run: then it is `deadline` already."""
        runner, agenda = _trio.GLOBAL_RUN_CONTEXT.runner, self.agenda
        while (due := agenda.next_due) <= deadline and due < math.inf:
            self._now = max(self._now, due)
            try:
                agenda.make_due_calls(self._now)
            except BaseException as error:
                task, self.failed = self.failed, None
                if task is None:
                    raise
                trio.lowlevel.reschedule(task, outcome.Error(error))
            if runner.runq:
                return 0.0
            deadline = min(deadline, runner.deadlines.next_deadline())
        if deadline < math.inf:
            self._n_stuck = 0
            self._now = max(self._now, deadline)
        else:
            self._n_stuck += 1
            if self._n_stuck > STUCK_MAX:
                raise Stuck
        return 0.0


def simulated_time() -> VirtualTime:
    """Of the simulation that runs now."""
    clock = _trio.GLOBAL_RUN_CONTEXT.runner.clock
    assert isinstance(clock, VirtualTime), "only within run_simulated"
    return clock


def run_simulated(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """What `main` returns, under trio. The same seed and `main` take the same course, in every process."""
    chance, was_deterministic = _trio._r, _trio._ALLOW_DETERMINISTIC_SCHEDULING
    state = chance.getstate()
    _trio._ALLOW_DETERMINISTIC_SCHEDULING = True
    chance.seed(seed)
    time = VirtualTime()

    async def run() -> T:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fail_with_calls, time)
            result = await main()
            nursery.cancel_scope.cancel()
        return result

    try:
        return trio.run(run, clock=time, strict_exception_groups=True)
    finally:
        _trio._ALLOW_DETERMINISTIC_SCHEDULING = was_deterministic
        chance.setstate(state)


async def _fail_with_calls(time: VirtualTime) -> None:
    """Raise what a call of the agenda raises."""

    def abort(_: object) -> trio.lowlevel.Abort:
        time.failed = None
        return trio.lowlevel.Abort.SUCCEEDED

    time.failed = trio.lowlevel.current_task()
    await trio.lowlevel.wait_task_rescheduled(abort)


class _RunQueue(deque[trio.lowlevel.Task]):
    """Takes the place of trio's while something is frozen."""

    def __init__(self, freezer: Freezer, tasks: deque[trio.lowlevel.Task]) -> None:
        super().__init__()
        self._freezer = freezer
        for task in tasks:
            self.append(task)

    def append(self, task: trio.lowlevel.Task, /) -> None:
        held = self._freezer.held_for(task)
        if held is None:
            super().append(task)
        else:
            held.append(task)


class Freezer:
    """Parts are known by the task that they began with: everything below it is theirs."""

    def __init__(self) -> None:
        self._frozen: dict[trio.lowlevel.Task, list[trio.lowlevel.Task]] = {}

    def freeze(self, root: trio.lowlevel.Task) -> None:
        self._frozen.setdefault(root, [])
        runner = _trio.GLOBAL_RUN_CONTEXT.runner
        runner.runq = _RunQueue(self, runner.runq)

    def thaw(self, root: trio.lowlevel.Task) -> None:
        held = self._frozen.pop(root, [])
        runner = _trio.GLOBAL_RUN_CONTEXT.runner
        queue: deque[trio.lowlevel.Task] = (
            _RunQueue(self, runner.runq) if self._frozen else deque(runner.runq)
        )
        queue.extend(held)
        runner.runq = queue

    def held_for(self, task: trio.lowlevel.Task) -> list[trio.lowlevel.Task] | None:
        """Where `task` waits instead of running; None when it may run."""
        above: trio.lowlevel.Task | None = task
        while above is not None:
            held = self._frozen.get(above)
            if held is not None:
                return held
            nursery = above.parent_nursery
            above = None if nursery is None else nursery.parent_task
        return None
