"""A parked task that one answer wakes: how `call` is made of `post`."""

from __future__ import annotations

import outcome
import trio

from blockstore.errors import BlockStoreError
from blockstore.runtime.interfaces import Answer


class Waiter:
    """Pass it as `on_answer`, then `wait`, with no checkpoint between. When the wait is cancelled nobody
    waits any more: the answer is dropped and its buffer given back. Ctrl-C between the two would leave a task
    that does not wait: whoever does both is protected from it (trio's `enable_ki_protection`)."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    def __call__(self, answer: Answer | BlockStoreError) -> None:
        task = self._task
        if task is None:
            if isinstance(answer, Answer):
                answer.payload.release()
        elif isinstance(answer, Answer):
            trio.lowlevel.reschedule(task, outcome.Value(answer))
        else:
            trio.lowlevel.reschedule(task, outcome.Error(answer))

    @trio.lowlevel.enable_ki_protection
    async def wait(self) -> Answer:
        self._task = trio.lowlevel.current_task()
        answer = await trio.lowlevel.wait_task_rescheduled(self._abort)
        assert isinstance(answer, Answer)
        return answer

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
