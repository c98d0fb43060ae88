"""The `Caller` of programs that run under trio: calls over a network's lanes, one or many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import outcome
import trio

from blockstore.errors import BlockStoreError
from blockstore.runtime.interfaces import Address, Answer, Buffer, Clock, Message, Network


class TrioCaller:
    __slots__ = ("_clock", "_network")

    def __init__(self, network: Network, clock: Clock) -> None:
        self._network = network
        self._clock = clock

    def now(self) -> float:
        return self._clock.now()

    async def call(
        self, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> Answer:
        return await self._network.lane(address).call(message, payload, deadline)

    def flight(self) -> TrioFlight:
        return TrioFlight(self._network, self._clock)

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep_until(self._clock.now() + seconds)

    def undoing(self, seconds: float) -> AbstractContextManager[object]:
        return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)


class TrioFlight:
    """For one task."""

    __slots__ = ("_clock", "_completed", "_generation", "_last_deadline", "_n_under_way", "_network", "_task")

    def __init__(self, network: Network, clock: Clock) -> None:
        self._network = network
        self._clock = clock
        self._completed: deque[tuple[object, Answer | BlockStoreError]] = deque()
        self._n_under_way = 0
        self._generation = 0
        self._last_deadline = 0.0
        self._task: trio.lowlevel.Task | None = None

    @trio.lowlevel.enable_ki_protection
    def start(
        self, tag: object, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> None:
        self._n_under_way += 1
        if deadline > self._last_deadline:
            self._last_deadline = deadline
        on_answer = partial(self._on_answer, self._generation, tag)
        self._network.lane(address).post(message, payload, deadline, on_answer)

    async def next(self, until: float) -> tuple[Any, Answer | BlockStoreError] | None:
        completed = self._completed
        if not completed:
            if not self._n_under_way:
                return None
            if until >= self._last_deadline:
                await self._park()  # every call ends by its own deadline, so this needs no timer
            else:
                # Lanes and `until` count on our clock, trio's timers on its own: hand over a duration.
                with trio.move_on_after(max(0.0, until - self._clock.now())):
                    await self._park()
                if not completed:
                    return None
        return completed.popleft()

    def abandon(self) -> None:
        self._generation += 1
        self._n_under_way = 0
        completed, self._completed = self._completed, deque()
        for _, answer in completed:
            if isinstance(answer, Answer):
                answer.payload.release()

    def _on_answer(self, generation: int, tag: object, answer: Answer | BlockStoreError) -> None:
        if generation != self._generation:
            if isinstance(answer, Answer):
                answer.payload.release()
            return
        self._n_under_way -= 1
        self._completed.append((tag, answer))
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))

    @trio.lowlevel.enable_ki_protection
    async def _park(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
