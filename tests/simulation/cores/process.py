"""One run after the other of a node or a client: its clock, its tasks, its sleep and its death.

All that happens in a process goes through `arrive`, `after` and its tasks, so that a crash ends all of it
and a pause holds all of it up. Its clock has its own rate, within what the protocols allow for."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Coroutine
from typing import Any

from tests.simulation.cores.tasks import Promise, Task
from tests.simulation.heap import Event, Schedule


class Process:
    def __init__(self, name: str, schedule: Schedule, rng: random.Random, drift_max: float) -> None:
        self.name = name
        self.schedule = schedule
        self.rng = rng
        self.rate = 1 + rng.uniform(-drift_max, drift_max)
        self.offset = rng.uniform(0, 100)
        self.is_up = False
        self.life: int = 0
        self._paused: deque[tuple[int, Event, tuple[Any, ...]]] | None = None
        self._tasks: dict[Task, None] = {}

    # --- its clock

    def now(self) -> float:
        return self.schedule.now * self.rate + self.offset

    def wall(self) -> float:
        return 1.7e9 + self.schedule.now

    # --- what happens in it

    def after(self, seconds: float, event: Event, *args: Any) -> None:
        """In so many seconds of its own clock."""
        self.schedule.after(max(0.0, seconds) / self.rate, self.run, self.life, event, args)

    def arrive(self, seconds: float, event: Event, *args: Any) -> None:
        self.schedule.arrive(seconds, self.run, self.life, event, args)

    def run(self, life: int, event: Event, args: tuple[Any, ...]) -> None:
        if life != self.life or not self.is_up:
            return
        if self._paused is not None:
            self._paused.append((life, event, args))
        else:
            event(*args)

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Task:
        task = Task(self.schedule, coroutine, self._forget)
        self._tasks[task] = None
        return task

    def end(self, task: Task) -> None:
        self._tasks.pop(task, None)
        task.end()

    def _forget(self, task: Task) -> None:
        self._tasks.pop(task, None)

    async def sleep(self, seconds: float) -> None:
        promise: Promise[None] = Promise()
        self.after(seconds, promise.keep, None)
        await promise

    # --- faults

    def crash(self) -> None:
        """Nothing of this run happens any more."""
        self.is_up = False
        self.life += 1
        self._paused = None
        tasks, self._tasks = self._tasks, {}
        for task in tasks:
            task.end()

    @property
    def is_paused(self) -> bool:
        return self._paused is not None

    def pause(self) -> None:
        if self._paused is None:
            self._paused = deque()

    def resume(self) -> None:
        """What came meanwhile happens now, in its order."""
        waiting, self._paused = self._paused, None
        for life, event, args in waiting or ():
            self.schedule.soon(self.run, life, event, args)
