"""Lanes inside one process: the embedded store's, a daemon's to itself, and, with another carrier, the
simulation's.

Nothing is delivered from inside the call that caused it: a `Carrier` brings it on a later tick. Errors, order
and bounds are those of real lanes. Messages are frozen, so they are passed as they are. Payloads:

- A request's single `bytes` (or a view of one) is passed without a copy; anything else is copied once,
because the sender may reuse its buffer after the answer, while the receiver may hold the payload for as long
as it likes. - An answer's single buffer is passed without a copy: `on_sent` is called when the receiver
releases the payload. Several are joined."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Final, Protocol, Self

import outcome
import trio

from blockstore.config import (
    CALLS_PER_CONNECTION_MAX,
    FRAME_PAYLOAD_BYTES_MAX,
    LANE_SWEEP_SECONDS,
    QUEUED_BYTES_PER_CONNECTION_MAX,
    RECEIVED_BYTES_PER_CONNECTION_MAX,
)
from blockstore.errors import (
    AddressInUse,
    BlockStoreError,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
)
from blockstore.runtime.handling import handle
from blockstore.runtime.interfaces import (
    Address,
    Answer,
    Buffer,
    Clock,
    Handler,
    Lane,
    Message,
    Network,
    OnAnswer,
    Payload,
    Peer,
)
from blockstore.runtime.lane_inbox import NO_PAYLOAD
from blockstore.runtime.lane_outbox import buffer_bytes
from blockstore.runtime.owned_nursery import OwnedNursery
from blockstore.runtime.waiter import Waiter

_BYTES_MAX: Final = QUEUED_BYTES_PER_CONNECTION_MAX + RECEIVED_BYTES_PER_CONNECTION_MAX
"""A real lane holds as much on its two ends before it says Busy."""


class Carrier(Protocol):
    """Brings what is sent to where it is delivered. Per source and target, in the order sent."""

    def carry(
        self,
        source: str,
        target: str,
        deliver: Callable[[], None],
        *,
        may_repeat: bool,
        about: Message = None,
    ) -> None:
        """Call `deliver` on a later tick: once, never, or, if it `may_repeat`, several times. `about` is the
        request, the answer's message or the error, for carriers that look at what they carry."""
        ...

    async def run(self) -> None:
        """Runs for as long as the network is open."""
        ...


class PromptCarrier:
    """Everything arrives, on the next tick."""

    __slots__ = ("_queue", "_task")

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._task: trio.lowlevel.Task | None = None

    def carry(
        self,
        source: str,
        target: str,
        deliver: Callable[[], None],
        *,
        may_repeat: bool,
        about: Message = None,
    ) -> None:
        self._queue.append(deliver)
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))

    async def run(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        queue = self._queue
        while True:
            for _ in range(len(queue)):  # what these cause is for the next tick
                queue.popleft()()
            if queue:
                await trio.lowlevel.checkpoint()
            else:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)


class MemoryNetwork:
    """`async with MemoryNetwork(clock) as network`; leaving fails what is under way with ConnectionLost."""

    def __init__(
        self,
        clock: Clock,
        *,
        carrier: Carrier | None = None,
        calls_max: int = CALLS_PER_CONNECTION_MAX,
        listeners: dict[Address, MemoryListener] | None = None,
        soon: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """`listeners` are shared by networks that reach each other, each with the clock of its machine.
        `soon` makes a call on a later tick; trio does, if nothing else is given."""
        self.clock = clock
        self.carrier: Carrier = carrier if carrier is not None else PromptCarrier()
        self.calls_max = calls_max
        self.listeners: dict[Address, MemoryListener] = {} if listeners is None else listeners
        self._soon = soon
        self._lanes: dict[tuple[str, Address], MemoryLane] = {}
        self._tasks = OwnedNursery()
        self._sweeper: trio.lowlevel.Task | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self.is_closed = False

    async def __aenter__(self) -> Self:
        await self._tasks.open()
        self._token = trio.lowlevel.current_trio_token()
        self._tasks.start_soon(self.carrier.run)
        self._tasks.start_soon(self._sweep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.close()
        finally:
            self.is_closed = True
            for lane in list(self._lanes.values()):
                lane.fail_all(ConnectionLost(f"{lane.address}: this side has closed its network"))

    def attach(self, address: Address, handler: Handler, peer: Peer) -> MemoryListener:
        """Serve `address` until the listener is closed. `peer` is who callers are, unless `seen_as` says
        otherwise."""
        if address in self.listeners:
            raise AddressInUse(str(address))
        listener = self.listeners[address] = MemoryListener(self, address, handler, peer)
        return listener

    def lane(self, address: Address) -> MemoryLane:
        return self.lane_from("", None, address)

    def seen_as(self, peer: Peer, source: str) -> Network:
        """The network as `peer` uses it; `source` names its machine to the carrier."""
        return _SeenAs(self, peer, source)

    def lane_from(self, source: str, peer: Peer | None, address: Address) -> MemoryLane:
        lane = self._lanes.get((source, address))
        if lane is None:
            lane = self._lanes[source, address] = MemoryLane(self, source, peer, address)
        return lane

    def tell_soon(self, on_answer: OnAnswer, error: BlockStoreError) -> None:
        """Not by the carrier, which may lose it or have ended."""
        if self._soon is not None:
            self._soon(partial(on_answer, error))
            return
        token = self._token or trio.lowlevel.current_trio_token()
        token.run_sync_soon(on_answer, error)

    # --- what may happen to its machine

    @property
    def addresses(self) -> frozenset[Address]:
        """That were called from here."""
        return frozenset(lane.address for lane in self._lanes.values())

    def lose(self, address: Address, error: BlockStoreError) -> None:
        """The connections to this address are gone: calls under way fail."""
        for lane in list(self._lanes.values()):
            if lane.address == address:
                lane.fail_all(error)

    def vanish(self) -> None:
        """The machine is gone, and who called from it: nobody is told anything, here or there."""
        self.is_closed = True
        for lane in self._lanes.values():
            lane.forget_all()
        for listener in [one for one in self.listeners.values() if one.network is self]:
            listener.vanish()

    def wake_sweeper(self) -> None:
        task, self._sweeper = self._sweeper, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(None))

    async def _sweep(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._sweeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            now = self.clock.now()
            busy = [lane for lane in self._lanes.values() if lane.has_pending]
            for lane in busy:
                lane.sweep(now)
            if busy:
                await self.clock.sleep_until(now + LANE_SWEEP_SECONDS)
            else:
                self._sweeper = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)


class _SeenAs:
    __slots__ = ("_network", "_peer", "_source")

    def __init__(self, network: MemoryNetwork, peer: Peer, source: str) -> None:
        self._network = network
        self._peer = peer
        self._source = source

    def lane(self, address: Address) -> Lane:
        return self._network.lane_from(self._source, self._peer, address)


class MemoryLane:
    __slots__ = ("_bytes", "_last_id", "_network", "_peer", "_pending", "_source", "_target", "address")

    def __init__(self, network: MemoryNetwork, source: str, peer: Peer | None, address: Address) -> None:
        self.address = address
        self._target = str(address)
        self._network = network
        self._source = source
        self._peer = peer
        self._pending: dict[int, tuple[OnAnswer, float, int]] = {}
        self._last_id = 0
        self._bytes = 0  # payloads of pending calls

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def post(self, message: Message, payload: Sequence[Buffer], deadline: float, on_answer: OnAnswer) -> None:
        network = self._network
        size = buffer_bytes(payload) if payload else 0
        refusal = self._find_refusal(size, deadline)
        if refusal is not None:
            network.tell_soon(on_answer, refusal)
            return
        if not self._pending:
            network.wake_sweeper()
        self._last_id = call_id = self._last_id + 1
        self._pending[call_id] = (on_answer, deadline, size)
        self._bytes += size
        budget = deadline - network.clock.now()
        deliver = partial(self._deliver, call_id, message, _request_view(payload) if size else None, budget)
        network.carrier.carry(self._source, self._target, deliver, may_repeat=True, about=message)

    @trio.lowlevel.enable_ki_protection
    async def call(self, message: Message, payload: Sequence[Buffer], deadline: float) -> Answer:
        waiter = Waiter()
        self.post(message, payload, deadline, waiter)
        return await waiter.wait()

    def sweep(self, now: float) -> None:
        late = [call_id for call_id, (_, deadline, _) in self._pending.items() if deadline <= now]
        for call_id in late:
            self.complete(call_id, DeadlineExceeded(f"{self.address}: no answer within the time given"))

    def complete(self, call_id: int, answer: Answer | BlockStoreError) -> None:
        entry = self._pending.pop(call_id, None)
        if entry is not None:
            on_answer, _, size = entry
            self._bytes -= size
            on_answer(answer)
        elif isinstance(answer, Answer):
            answer.payload.release()

    def fail_all(self, error: BlockStoreError) -> None:
        for call_id in list(self._pending):
            self.complete(call_id, error)

    def forget_all(self) -> None:
        """Nobody waits for the answers any more."""
        self._pending.clear()
        self._bytes = 0

    def send_back(self, call_id: int, answer: Answer | BlockStoreError) -> None:
        deliver = partial(self.complete, call_id, answer)
        about = answer.message if isinstance(answer, Answer) else answer
        self._network.carrier.carry(self._target, self._source, deliver, may_repeat=False, about=about)

    def _find_refusal(self, size: int, deadline: float) -> BlockStoreError | None:
        network, address = self._network, self.address
        if deadline <= network.clock.now():
            return DeadlineExceeded(f"{address}: the deadline passed before sending")
        if network.is_closed:
            return ConnectionLost(f"{address}: this side has closed its network")
        if len(self._pending) >= network.calls_max:
            return Busy(f"{address}: {len(self._pending)} calls are under way")
        if self._bytes + size > _BYTES_MAX:
            return Busy(f"{address}: {self._bytes} bytes are under way")
        if size > FRAME_PAYLOAD_BYTES_MAX:
            return InvalidRequest(
                f"{size} bytes of payload are too large, {FRAME_PAYLOAD_BYTES_MAX} are allowed"
            )
        return None

    def _deliver(self, call_id: int, message: Message, view: memoryview | None, budget: float) -> None:
        listener = self._network.listeners.get(self.address)
        if listener is None:
            self.complete(call_id, ConnectionLost(f"{self.address}: Connection refused"))
            return
        payload = NO_PAYLOAD if view is None else Payload(view)
        deadline = listener.network.clock.now() + budget
        listener.take(
            MemoryCall(listener, self, call_id, self._peer or listener.peer, message, payload, deadline)
        )


class MemoryListener:
    def __init__(self, network: MemoryNetwork, address: Address, handler: Handler, peer: Peer) -> None:
        self.address = address
        self.peer = peer
        self.calls: dict[MemoryCall, None] = {}
        self.network = network
        self._handler = handler

    def take(self, call: MemoryCall) -> None:
        self.calls[call] = None
        handle(self._handler, call)

    def drop(self, fingerprint: str, reason: BlockStoreError) -> None:
        for call in list(self.calls):
            if call.peer.fingerprint == fingerprint:
                call.fail(reason)

    def close(self) -> None:
        """As if its process had died: calls under way fail with ConnectionLost."""
        self._leave()
        for call in list(self.calls):
            call.fail(ConnectionLost(f"{self.address}: the peer hung up"))

    def vanish(self) -> None:
        """As if its machine had lost power: nobody is told."""
        self._leave()
        self.calls.clear()

    def _leave(self) -> None:
        if self.network.listeners.get(self.address) is self:
            del self.network.listeners[self.address]


class MemoryCall:
    """A request to be answered once; see `IncomingCall`."""

    __slots__ = ("_call_id", "_lane", "_listener", "deadline", "message", "payload", "peer")

    def __init__(
        self,
        listener: MemoryListener,
        lane: MemoryLane,
        call_id: int,
        peer: Peer,
        message: Message,
        payload: Payload,
        deadline: float,
    ) -> None:
        self._listener = listener
        self._lane: MemoryLane | None = lane
        self._call_id = call_id
        self.peer = peer
        self.message = message
        self.payload = payload
        self.deadline = deadline

    def answer(
        self, message: Message, payload: Sequence[Buffer] = (), on_sent: Callable[[], None] | None = None
    ) -> None:
        lane = self._settle()
        size = buffer_bytes(payload) if payload else 0
        if lane is None or size == 0 or size > FRAME_PAYLOAD_BYTES_MAX:
            if on_sent is not None:
                on_sent()
            if lane is None:
                return
        if size > FRAME_PAYLOAD_BYTES_MAX:
            answer: Answer | BlockStoreError = InvalidRequest(
                f"{size} bytes of payload are too large, {FRAME_PAYLOAD_BYTES_MAX} are allowed"
            )
        elif size == 0:
            answer = Answer(message, NO_PAYLOAD)
        elif len(payload) == 1:
            answer = Answer(message, Payload(memoryview(payload[0]).cast("B"), on_sent))
        else:
            answer = Answer(message, Payload(memoryview(b"".join(payload))))
            if on_sent is not None:
                on_sent()
        lane.send_back(self._call_id, answer)

    def fail(self, error: BlockStoreError) -> None:
        lane = self._settle()
        if lane is not None:
            lane.send_back(self._call_id, error)

    def _settle(self) -> MemoryLane | None:
        lane, self._lane = self._lane, None
        self._listener.calls.pop(self, None)
        return lane


class RoutedNetwork:
    """Addresses attached to `local` are reached in memory, all others over `remote`: a daemon's lane to
    itself."""

    __slots__ = ("_local", "_remote")

    def __init__(self, local: MemoryNetwork, remote: Network) -> None:
        self._local = local
        self._remote = remote

    def lane(self, address: Address) -> Lane:
        return self._local.lane(address) if address in self._local.listeners else self._remote.lane(address)


def _request_view(payload: Sequence[Buffer]) -> memoryview:
    if len(payload) == 1:
        buffer = payload[0]
        if isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and isinstance(buffer.obj, bytes)):
            return memoryview(buffer).cast("B")
    return memoryview(b"".join(payload))
