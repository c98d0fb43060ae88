"""Trio, made deterministic: one seed, one order of tasks, one course of time.

`run_simulated` is the only function that reaches into trio. It seeds the scheduler, which otherwise shuffles
by chance of its own, and gives it a clock that stands still while anything can run and then jumps to the next
deadline. What runs inside must keep to the rest of the bargain: no thread, no real IO, no iteration over a
set of anything but integers.

`Freezer` stops the tasks of one part of the program, as SIGSTOP stops a process: what becomes due for them
meanwhile waits, and all of it happens at once when they thaw.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
import trio._core._run as trio_run  # private: trio has no public way to be deterministic

T = TypeVar("T")

_trio: Any = trio_run

STUCK_MAX = 1_000
"""Turns in a row in which nothing could run: trio's own messages, as at its end, take one or two."""


class Stuck(Exception):
    """Every task waits for something that can never happen."""


class VirtualTime(trio.abc.Clock):
    """Seconds since the simulation began."""

    def __init__(self) -> None:
        self._now = 0.0
        self._n_stuck = 0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Trio asks this only when nothing can run: then it is `deadline` already."""
        if deadline == math.inf:
            self._n_stuck += 1
            if self._n_stuck > STUCK_MAX:
                raise Stuck
            return 0.0
        self._n_stuck = 0
        self._now = max(self._now, deadline)
        return 0.0


def run_simulated(seed: int, main: Callable[[], Awaitable[T]]) -> T:
    """What `main` returns, under trio. The same seed and `main` take the same course, in every process."""
    chance, was_deterministic = _trio._r, _trio._ALLOW_DETERMINISTIC_SCHEDULING
    state = chance.getstate()
    _trio._ALLOW_DETERMINISTIC_SCHEDULING = True
    chance.seed(seed)
    try:
        return trio.run(main, clock=VirtualTime(), strict_exception_groups=True)
    finally:
        _trio._ALLOW_DETERMINISTIC_SCHEDULING = was_deterministic
        chance.setstate(state)


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
