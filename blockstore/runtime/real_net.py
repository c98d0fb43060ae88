"""Lanes to real peers: dialled when first needed, kept, dialled again after they were lost.

A lane costs no task, timer or lock for each call: requests of one tick leave in one system call, answers are
matched by call id as they are parsed, and one sweep finds the calls whose deadline has passed; an answer that
comes later is dropped. Every call posted is answered exactly once, whatever happens to the connection."""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

import trio

from blockstore.config import (
    CALLS_PER_CONNECTION_MAX,
    CONNECT_SECONDS_MAX,
    LANE_SWEEP_SECONDS,
    OPENING_SECONDS_MAX,
    QUEUED_BYTES_PER_CONNECTION_MAX,
    RECONNECT_SECONDS_MIN,
)
from blockstore.errors import (
    BlockStoreError,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    PermissionDenied,
    ProtocolViolation,
)
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import (
    ANSWER,
    CLOSING,
    HELLO,
    REQUEST,
    Address,
    Answer,
    Buffer,
    Clock,
    Message,
    OnAnswer,
    Payload,
    Prefix,
    Wire,
)
from blockstore.runtime.lane_outbox import buffer_bytes
from blockstore.runtime.lane_socket import LaneSocket, lost
from blockstore.runtime.owned_nursery import OwnedNursery
from blockstore.runtime.sockets import connect_tcp, connect_unix, shake_hands
from blockstore.runtime.waiter import Waiter

CheckServer = Callable[[Address, bytes], None]
"""Given a server's certificate (DER); raises PermissionDenied if it may not be what answers at this
address."""

_CALL_IDS: Final = 1 << 32


class RealNetwork:
    """`async with RealNetwork(...) as network`; leaving fails what is under way with ConnectionLost.

    Without `ssl_context`, `hello` is the message that says who we are; with it, our certificate does.
    """

    def __init__(
        self,
        clock: Clock,
        wire: Wire,
        *,
        ssl_context: ssl.SSLContext | None = None,
        host_id: str = "",
        hello: Message | None = None,
        check_server: CheckServer | None = None,
        pool: BufferPool | None = None,
    ) -> None:
        assert (ssl_context is None) == (hello is not None), "either a certificate or a hello says who we are"
        self.clock = clock
        self.wire = wire
        self.ssl_context = ssl_context
        self.host_id = host_id
        self.hello = hello
        self.check_server = check_server
        self.pool = pool if pool is not None else BufferPool()
        self._lanes: dict[Address, RealLane] = {}
        self._tasks = OwnedNursery()
        self._token: trio.lowlevel.TrioToken | None = None
        self._sweeper: trio.lowlevel.Task | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.open()
        self._token = trio.lowlevel.current_trio_token()
        self._tasks.start_soon(self._sweep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.close()

    def lane(self, address: Address) -> RealLane:
        lane = self._lanes.get(address)
        if lane is None:
            lane = self._lanes[address] = RealLane(self, address)
        return lane

    def start_soon(self, run: Callable[[], Awaitable[object]]) -> bool:
        """False when the network is closed."""
        return self._tasks.start_soon(run)

    def tell_soon(self, on_answer: OnAnswer, error: BlockStoreError) -> None:
        """Never from inside `post`: the caller may not have finished what it does around it."""
        token = self._token or trio.lowlevel.current_trio_token()
        token.run_sync_soon(on_answer, error)

    def wake_sweeper(self) -> None:
        sweeper = self._sweeper
        if sweeper is not None:
            self._sweeper = None
            trio.lowlevel.reschedule(sweeper)

    async def _sweep(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._sweeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        clock = self.clock
        while True:
            now = clock.now()
            is_anything_pending = False
            for lane in list(self._lanes.values()):
                if lane.has_pending:
                    lane.sweep(now)
                    is_anything_pending = True
            if is_anything_pending:
                await clock.sleep_until(now + LANE_SWEEP_SECONDS)
            else:
                self._sweeper = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)


class RealLane:
    """One peer. Connected, connecting, or neither; in the last state the next post dials."""

    __slots__ = (
        "_clock",
        "_last_id",
        "_network",
        "_not_before",
        "_pending",
        "_refusal",
        "_socket",
        "_was_answered",
        "_why",
        "_wire",
        "address",
    )  # fmt: skip

    def __init__(self, network: RealNetwork, address: Address) -> None:
        self.address = address
        self._network = network
        self._clock = network.clock
        self._wire = network.wire
        self._socket: LaneSocket | None = None
        self._pending: dict[int, tuple[OnAnswer, float]] = {}
        self._last_id = 0
        self._was_answered = False
        self._refusal: BlockStoreError | None = None  # the peer's last words
        self._not_before = -math.inf
        self._why: BlockStoreError = ConnectionLost("")

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def post(self, message: Message, payload: Sequence[Buffer], deadline: float, on_answer: OnAnswer) -> None:
        network = self._network
        now = self._clock.now()
        lane_socket = self._socket
        pending = self._pending
        if deadline <= now:
            network.tell_soon(
                on_answer, DeadlineExceeded(f"{self.address}: the deadline passed before sending")
            )
            return
        if lane_socket is None:
            if now < self._not_before:
                network.tell_soon(on_answer, self._why)
                return
            lane_socket = self._dial()
            if lane_socket is None:
                network.tell_soon(
                    on_answer, ConnectionLost(f"{self.address}: this side has closed its network")
                )
                return
        size = buffer_bytes(payload) if payload else 0
        if len(pending) >= CALLS_PER_CONNECTION_MAX:
            network.tell_soon(on_answer, Busy(f"{self.address}: {len(pending)} calls are under way"))
            return
        if lane_socket.queued_bytes + size > QUEUED_BYTES_PER_CONNECTION_MAX:
            network.tell_soon(
                on_answer, Busy(f"{self.address}: {lane_socket.queued_bytes} bytes wait to be sent")
            )
            return
        call_id = self._next_id()
        budget_ms = min(math.ceil((deadline - now) * 1000), 0xFFFF_FFFF)
        try:
            frame = self._wire.encode(REQUEST, call_id, message, size, budget_ms)
        except BlockStoreError as error:
            network.tell_soon(on_answer, error)
            return
        if not pending:
            network.wake_sweeper()
        pending[call_id] = (on_answer, deadline)
        lane_socket.send(frame, payload)

    @trio.lowlevel.enable_ki_protection
    async def call(self, message: Message, payload: Sequence[Buffer], deadline: float) -> Answer:
        waiter = Waiter()
        self.post(message, payload, deadline, waiter)
        return await waiter.wait()

    def sweep(self, now: float) -> None:
        """Fail the calls whose deadline has passed, and a connection that does not get on."""
        late = [call_id for call_id, (_, deadline) in self._pending.items() if deadline <= now]
        for call_id in late:
            entry = self._pending.pop(call_id, None)
            if entry is not None:
                entry[0](DeadlineExceeded(f"{self.address}: no answer within the time given"))
        if self._socket is not None and (stall := self._socket.find_stall(now)):
            self._socket.end(ConnectionLost(stall))

    def fail_all(self, error: BlockStoreError) -> None:
        pending, self._pending = self._pending, {}
        for on_answer, _ in pending.values():
            on_answer(error)

    def _next_id(self) -> int:
        """Ids are of 32 bits: after a wrap one may still be taken, and 0 is not ours."""
        call_id = self._last_id
        while True:
            call_id = (call_id + 1) % _CALL_IDS
            if call_id and call_id not in self._pending:
                self._last_id = call_id
                return call_id

    def _dial(self) -> LaneSocket | None:
        network = self._network
        lane_socket = LaneSocket(self._wire, network.pool, self._on_frame, pauses=False)
        self._was_answered = False
        self._refusal = None
        if not network.start_soon(self._run):
            return None
        self._socket = lane_socket
        if network.hello is not None:
            lane_socket.send(self._wire.encode(HELLO, 0, network.hello, 0, 0))
        return lane_socket

    async def _run(self) -> None:
        lane_socket = self._socket
        assert lane_socket is not None
        reason: BlockStoreError = ConnectionLost("this side has closed its network")
        try:
            try:
                sock = await self._secure(await self._connect())
            except OSError as error:
                reason = lost(error)
            except (ConnectionLost, PermissionDenied) as error:
                reason = error
            else:
                await lane_socket.run(sock)
                reason = self._refusal or lane_socket.reason or reason
        finally:
            self._on_end(lane_socket, reason)

    def _on_end(self, lane_socket: LaneSocket, reason: BlockStoreError) -> None:
        if isinstance(reason, ConnectionLost):
            reason = ConnectionLost(f"{self.address}: {reason}")
        elif self._refusal is None and isinstance(reason, PermissionDenied | ProtocolViolation):
            reason = type(reason)(f"{self.address}: {reason}")
        lane_socket.end(reason)
        self._socket = None
        if not self._was_answered:
            self._not_before = self._clock.now() + RECONNECT_SECONDS_MIN
            self._why = reason
        self.fail_all(reason)  # last: a callback may post again

    async def _connect(self) -> socket.socket:
        network, address = self._network, self.address
        if address.unix and address.host_id and address.host_id == network.host_id:
            try:
                return await connect_unix(address.unix)
            except OSError:
                pass  # perhaps another container of this machine: TCP reaches it
        with trio.move_on_after(CONNECT_SECONDS_MAX):
            return await connect_tcp(address.host, address.port)
        raise ConnectionLost(f"no connection within {CONNECT_SECONDS_MAX} s")

    async def _secure(self, sock: socket.socket) -> socket.socket:
        network, address = self._network, self.address
        if network.ssl_context is None:
            return sock
        secured: ssl.SSLSocket | None = None
        with trio.move_on_after(OPENING_SECONDS_MAX):
            secured = await shake_hands(sock, network.ssl_context, address.host)
        if secured is None:
            raise ConnectionLost(f"no handshake within {OPENING_SECONDS_MAX} s")
        try:
            if network.check_server is not None:
                network.check_server(address, secured.getpeercert(binary_form=True) or b"")
        except PermissionDenied:
            secured.close()
            raise
        return secured

    def _on_frame(self, prefix: Prefix, message: Message, payload: Payload) -> None:
        kind = prefix.kind
        if kind == ANSWER:
            self._was_answered = True
            entry = self._pending.pop(prefix.call_id, None)
            if entry is None:  # too late, or the answer to our hello
                payload.release()
                return
            error = self._wire.error_of(message)
            entry[0](Answer(message, payload) if error is None else error)
        elif kind == CLOSING:
            self._refusal = self._wire.error_of(message)
        else:
            raise ProtocolViolation(f"a server sent a frame of kind {kind}")
