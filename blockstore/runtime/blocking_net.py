"""The `Caller` of programs without an event loop: calls over sockets driven by `poll` in the calling thread.

Client code is `async def` over `Caller` (interfaces.py). Here nothing it awaits ever suspends: every wait is
a `poll` inside the call, so `run` finishes such a coroutine with one `send(None)`, and no loop is hidden
anywhere. Frames, receiving into pooled buffers and joined sending are those of the lanes under trio
(`lane_inbox.py`, `lane_outbox.py`).

A connection that cannot be trusted to stand between two frames is never used again:

- An exception from outside (KeyboardInterrupt, above all) while sockets are worked on drops every connection.
- In a child made by fork the descriptors are closed and nothing is sent: the connections, and the TLS state
  that belongs to them, are the parent's. The child finds this out by its pid, and dials anew.

Not safe for several threads at once: `api/` gives each its own.
"""

from __future__ import annotations

import os
import ssl
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from blockstore.config import LANE_SWEEP_SECONDS
from blockstore.errors import BlockStoreError, ConnectionLost
from blockstore.ids import MiB
from blockstore.runtime.blocking_connection import BlockingConnection, Dialling, Watch
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import Address, Answer, Buffer, Message, OnAnswer, Wire
from blockstore.runtime.real_net import CheckServer

T = TypeVar("T")
Outcome = Answer | BlockStoreError

_IDLE_SECONDS: Final = 0.05
"""A connection unused for so long is looked at before it is used: the server may have closed it."""


_IDLE_BUFFER_BYTES_MAX: Final = 32 * MiB
"""Per caller, and so per thread: four of the largest payloads."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of client code over a `BlockingCaller`."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise AssertionError(f"{coroutine!r} waited for something that is not a BlockingCaller")


class BlockingCaller:
    """Without `ssl_context`, `hello` is the message that says who we are; with it, our certificate does."""

    def __init__(
        self,
        wire: Wire,
        *,
        ssl_context: ssl.SSLContext | None = None,
        host_id: str = "",
        hello: Message | None = None,
        check_server: CheckServer | None = None,
    ) -> None:
        assert (ssl_context is None) == (hello is not None), "either a certificate or a hello says who we are"
        self._dialling = Dialling(wire, ssl_context, host_id, hello, check_server)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._watch = Watch()
        self._connections: dict[Address, BlockingConnection] = {}
        self._next_sweep = 0.0
        self._pool = BufferPool(_IDLE_BUFFER_BYTES_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def now(self) -> float:
        return time.monotonic()

    async def call(
        self, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> Answer:
        outcomes: list[Outcome] = []
        self.post(address, message, payload, deadline, outcomes.append)
        while not outcomes:
            self.turn(deadline)
        [outcome] = outcomes
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    def flight(self) -> BlockingFlight:
        return BlockingFlight(self)

    async def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))  # noqa: ASYNC251 - this is the thread's own wait; there is no loop

    def undoing(self, seconds: float) -> AbstractContextManager[object]:
        return nullcontext()  # nobody cancels a thread

    def close(self) -> None:
        """What is under way fails with ConnectionLost. A later call dials anew."""
        if self._pid == os.getpid():
            self.drop("this side has closed its connections")
        else:
            self.close_inherited()

    def close_inherited(self) -> None:
        """In a child made by fork: leave the parent's connections alone. Calls do this by themselves."""
        for connection in self._connections.values():
            connection.forsake()
        self._begin_anew()

    # --- for flights and connections

    def post(
        self,
        address: Address,
        message: Message,
        payload: Sequence[Buffer],
        deadline: float,
        on_answer: OnAnswer,
    ) -> None:
        """`on_answer` is called once, now or in a `turn`."""
        if self._pid != os.getpid():
            self.close_inherited()
        connection = self._connections.get(address)
        if connection is None:
            connection = self._connections[address] = BlockingConnection(
                address, self._dialling, self._watch, self._pool
            )
        try:
            if connection.is_idle and time.monotonic() - connection.last_moved > _IDLE_SECONDS:
                self.turn(0.0)
            connection.post(message, payload, deadline, on_answer)
        except BlockStoreError:
            raise
        except BaseException:
            self.drop("interrupted")
            raise

    def turn(self, until: float) -> None:
        """Send what waits, wait until `until` at most for something to happen, take in what has come."""
        if self._pid != os.getpid():
            self.close_inherited()
            return
        try:
            for connection in self._connections.values():
                if connection.is_unflushed:
                    connection.on_ready(0)
            is_any_ready = self._watch.wait(min(until - time.monotonic(), LANE_SWEEP_SECONDS))
            now = time.monotonic()
            if not is_any_ready or now >= self._next_sweep:
                self._next_sweep = now + LANE_SWEEP_SECONDS
                for connection in self._connections.values():
                    connection.sweep(now)
        except BaseException:  # not ours to handle, but what it cut short is in an unknown state
            self.drop("interrupted")
            raise

    def drop(self, why: str) -> None:
        for connection in self._connections.values():
            connection.end(ConnectionLost(why))


class BlockingFlight:
    """Calls under way at once; they make progress within `next`, and whenever their caller waits for
    another."""

    __slots__ = ("_caller", "_completed", "_generation", "_n_under_way")

    def __init__(self, caller: BlockingCaller) -> None:
        self._caller = caller
        self._completed: deque[tuple[object, Outcome]] = deque()
        self._n_under_way = 0
        self._generation = 0

    def start(
        self, tag: object, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> None:
        self._n_under_way += 1
        on_answer = partial(self._on_answer, self._generation, tag)
        self._caller.post(address, message, payload, deadline, on_answer)

    async def next(self, until: float) -> tuple[Any, Outcome] | None:
        completed = self._completed
        while not completed:
            if not self._n_under_way:
                return None
            self._caller.turn(until)
            if not completed and time.monotonic() >= until:
                return None
        return completed.popleft()

    def abandon(self) -> None:
        self._generation += 1
        self._n_under_way = 0
        completed, self._completed = self._completed, deque()
        for _, outcome in completed:
            if isinstance(outcome, Answer):
                outcome.payload.release()

    def _on_answer(self, generation: int, tag: object, outcome: Outcome) -> None:
        if generation == self._generation:
            self._n_under_way -= 1
            self._completed.append((tag, outcome))
        elif isinstance(outcome, Answer):
            outcome.payload.release()
