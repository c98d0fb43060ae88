"""Coroutines under a schedule: what a driver of cores waits for, without any event loop.

A task runs until it awaits a `Promise` that is not kept yet; keeping it lets the task go on within the same
step. Ending a task is a crash: its `finally` blocks run, and nothing of it happens afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from tests.simulation.heap import Schedule

T = TypeVar("T")


class Promise(Generic[T]):
    """A value to come. One task may await it, or `then` be set."""

    __slots__ = ("error", "is_done", "then", "value")

    def __init__(self) -> None:
        self.is_done = False
        self.value: T | None = None
        self.error: BaseException | None = None
        self.then: Callable[[], None] | None = None

    def keep(self, value: T) -> None:
        if not self.is_done:
            self.is_done, self.value = True, value
            if self.then is not None:
                self.then()

    def fail(self, error: BaseException) -> None:
        if not self.is_done:
            self.is_done, self.error = True, error
            if self.then is not None:
                self.then()

    def __await__(self) -> Generator[Promise[T], None, T]:
        if not self.is_done:
            yield self
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # T may be None


class Task:
    """`on_end` is called when the coroutine returns; an exception goes up to whoever runs the schedule."""

    __slots__ = ("_coroutine", "_on_end", "_schedule", "is_ended")

    def __init__(
        self,
        schedule: Schedule,
        coroutine: Coroutine[Any, None, None],
        on_end: Callable[[Task], None] | None = None,
    ) -> None:
        self._schedule, self._coroutine, self._on_end = schedule, coroutine, on_end
        self.is_ended = False
        schedule.soon(self._go_on)

    def _go_on(self) -> None:
        if self.is_ended:
            return
        try:
            promise = self._coroutine.send(None)
        except StopIteration:
            self.is_ended = True
            if self._on_end is not None:
                self._on_end(self)
            return
        promise.then = self._wake

    def _wake(self) -> None:
        self._schedule.soon(self._go_on)

    def end(self) -> None:
        if not self.is_ended:
            self.is_ended = True
            self._coroutine.close()
