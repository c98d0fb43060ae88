"""Serving lanes: who may connect, how much of each peer is taken in, and what happens to one that misbehaves.

A connection is first a stranger: before it has been silent for HANDSHAKE_SECONDS_MAX its certificate (or,
without TLS, its first frame, a hello) must satisfy `authorize`. Then each of its requests is handed to the
handler, in order, synchronously; answers may be given at once or any time later. Whatever is wrong with a
peer ends its own connection only, with one log line that names it and the reason, and a last frame that tells
it."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import trio

from blockstore.config import (
    CALLS_PER_CONNECTION_MAX,
    CONNECTIONS_MAX,
    HANDSHAKE_SECONDS_MAX,
    LANE_SWEEP_SECONDS,
    OPENING_SECONDS_MAX,
    QUEUED_BYTES_PER_CONNECTION_MAX,
    UNAUTHENTICATED_CONNECTIONS_MAX,
)
from blockstore.errors import (
    BlockStoreError,
    Busy,
    ConnectionLost,
    InvalidRequest,
    PermissionDenied,
    ProtocolViolation,
)
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.handling import handle, log
from blockstore.runtime.interfaces import (
    ANSWER,
    CLOSING,
    HELLO,
    REQUEST,
    Address,
    Buffer,
    Clock,
    Handler,
    Message,
    Payload,
    Peer,
    Prefix,
    Wire,
)
from blockstore.runtime.lane_outbox import buffer_bytes
from blockstore.runtime.lane_socket import LaneSocket, lost
from blockstore.runtime.owned_nursery import OwnedNursery
from blockstore.runtime.sockets import listen_tcp, listen_unix, shake_hands, tune_tcp, tune_unix

Authorize = Callable[[bytes | None, Message | None], Peer]
"""Given the client's certificate (DER) or, without TLS, its hello. PermissionDenied says who was refused and
why."""

_REFUSALS: Final = (PermissionDenied, ProtocolViolation, InvalidRequest)

_ACCEPT_PAUSE_SECONDS: Final = 0.5
"""Out of descriptors, as a rule: waiting connections stay in the system's queue until others have closed."""


class RealListener:
    """`async with serve_lanes(...) as listener`; leaving closes every connection."""

    def __init__(
        self,
        address: Address,
        handler: Handler,
        authorize: Authorize,
        *,
        clock: Clock,
        wire: Wire,
        ssl_context: ssl.SSLContext | None = None,
        pool: BufferPool | None = None,
        connections_max: int = CONNECTIONS_MAX,
        strangers_max: int = UNAUTHENTICATED_CONNECTIONS_MAX,
        calls_max: int = CALLS_PER_CONNECTION_MAX,
    ) -> None:
        self.address = address
        self.handler = handler
        self.authorize = authorize
        self.clock = clock
        self.wire = wire
        self.ssl_context = ssl_context
        self.pool = pool if pool is not None else BufferPool()
        self.calls_max = calls_max
        self.connections: dict[Connection, None] = {}  # in order of arrival
        self.strangers: dict[Connection, None] = {}
        self._connections_max = connections_max
        self._strangers_max = strangers_max
        self._refused = 0  # connections over the bound since the last log line about them
        self._tasks = OwnedNursery()
        self._tcp: socket.socket | None = None
        self._unix: socket.socket | None = None
        self._unix_inode = (0, 0)
        self._sweeper: trio.lowlevel.Task | None = None

    async def __aenter__(self) -> Self:
        """Listening when this returns, on the port chosen by the system if it was 0. AddressInUse, or the
        OSError of another failure to listen."""
        address = self.address
        self._tcp = tcp = await listen_tcp(address.host, address.port)
        try:
            if address.unix:
                self._unix = listen_unix(address.unix)
                self._unix_inode = _inode(address.unix)
        except BaseException:
            tcp.close()
            raise
        self.address = Address(address.host, tcp.getsockname()[1], address.unix, address.host_id)
        await self._tasks.open()
        for sock in (self._tcp, self._unix):
            if sock is not None:
                self._tasks.start_soon(partial(self._accept, sock))
        self._tasks.start_soon(self._sweep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._tasks.close()
        finally:
            for sock in (self._tcp, self._unix):
                if sock is not None:
                    sock.close()
            if self._unix is not None:
                with suppress(OSError):
                    if _inode(self.address.unix) == self._unix_inode:  # else a successor listens there
                        os.unlink(self.address.unix)

    def drop(self, fingerprint: str, reason: BlockStoreError) -> None:
        for connection in list(self.connections):
            if connection.peer is not None and connection.peer.fingerprint == fingerprint:
                connection.refuse(reason)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, where = listening.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listening)
                continue
            except OSError as error:
                if error.errno != errno.ECONNABORTED:  # that one was gone before we took it
                    log.error("cannot accept a connection: %s", error.strerror)
                    await self.clock.sleep_until(self.clock.now() + _ACCEPT_PAUSE_SECONDS)
                continue
            self._admit(sock, where)
            await trio.lowlevel.checkpoint()

    def _admit(self, sock: socket.socket, where: Any) -> None:
        if len(self.connections) >= self._connections_max:
            if not self._refused:
                log.warning(
                    "peer %s: refused, %d connections are open", _name(sock, where), len(self.connections)
                )
            self._refused += 1
            sock.close()
            return
        if len(self.strangers) >= self._strangers_max:
            oldest = next(iter(self.strangers))
            oldest.abort(Busy(f"{len(self.strangers)} connections have not said who they are"))
        try:
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                tune_unix(sock)
            else:
                tune_tcp(sock)
        except OSError:
            sock.close()  # gone already
            return
        connection = Connection(self, sock, _name(sock, where))
        self.connections[connection] = None
        self.strangers[connection] = None
        if not self._tasks.start_soon(connection.run):
            sock.close()
        self._wake_sweeper()

    async def _sweep(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._sweeper = None
            return trio.lowlevel.Abort.SUCCEEDED

        clock = self.clock
        while True:
            now = clock.now()
            for connection in list(self.connections):
                connection.sweep(now)
            if self._refused > 1:
                log.warning("refused %d more connections", self._refused - 1)
            self._refused = 0
            if self.connections:
                await clock.sleep_until(now + LANE_SWEEP_SECONDS)
            else:
                self._sweeper = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake_sweeper(self) -> None:
        sweeper = self._sweeper
        if sweeper is not None:
            self._sweeper = None
            trio.lowlevel.reschedule(sweeper)


class Connection:
    """One accepted connection."""

    __slots__ = (
        "_heard",
        "_is_noted",
        "_is_refused",
        "_lane_socket",
        "_listener",
        "_n_calls",
        "_opening",
        "_since",
        "_sock",
        "_wire",
        "name",
        "peer",
    )

    def __init__(self, listener: RealListener, sock: socket.socket, name: str) -> None:
        self.peer: Peer | None = None
        self._listener = listener
        self._wire = listener.wire
        self._sock = sock
        self.name = name
        self._since = self._heard = listener.clock.now()
        self._n_calls = 0
        self._is_noted = False
        self._is_refused = False
        self._opening = trio.CancelScope()
        self._lane_socket = LaneSocket(
            listener.wire, listener.pool, self._on_frame, pauses=True, farewell=self._farewell
        )

    async def run(self) -> None:
        listener = self._listener
        try:
            sock = await self._open()
            if sock is not None:
                await self._lane_socket.run(sock)
            self._note(self._lane_socket.reason)
        finally:
            self._sock.close()  # already closed, or TLS has taken it over, unless something failed in between
            listener.connections.pop(self, None)
            listener.strangers.pop(self, None)

    def refuse(self, reason: BlockStoreError) -> None:
        """Tell the peer why, and close."""
        self._listener.strangers.pop(self, None)
        self._lane_socket.refuse(reason)

    def abort(self, reason: BlockStoreError) -> None:
        """Close without a word."""
        self._listener.strangers.pop(self, None)
        self._lane_socket.end(reason)
        self._opening.cancel()

    def sweep(self, now: float) -> None:
        if self.peer is None and now > min(
            self._heard + HANDSHAKE_SECONDS_MAX, self._since + OPENING_SECONDS_MAX
        ):
            self.abort(ProtocolViolation(f"it did not say who it is within {now - self._since:.1f} s"))
        elif stall := self._lane_socket.find_stall(now):
            self.abort(ProtocolViolation(stall))

    def answer(
        self, call_id: int, message: Message, payload: Sequence[Buffer], on_sent: Callable[[], None] | None
    ) -> None:
        lane_socket = self._lane_socket
        size = buffer_bytes(payload) if payload else 0
        if size and lane_socket.queued_bytes + size > QUEUED_BYTES_PER_CONNECTION_MAX:
            # The peer asks faster than it reads. Only answers to reads have payloads: nothing was changed.
            if on_sent is not None:
                on_sent()
            self.fail(call_id, Busy(f"{lane_socket.queued_bytes} bytes of answers wait to be read"))
            return
        try:
            frame = self._wire.encode(ANSWER, call_id, message, size, 0)
        except BlockStoreError as error:
            if on_sent is not None:
                on_sent()
            self.fail(call_id, error)
            return
        lane_socket.send(frame, payload, on_sent)

    def fail(self, call_id: int, error: BlockStoreError) -> None:
        if not self._is_refused and isinstance(error, _REFUSALS):
            self._is_refused = True  # one line says who tries; the hundredth would say no more
            log.warning("peer %s: request refused: %s", self.name, error)
        self._lane_socket.send(self._wire.encode(ANSWER, call_id, self._wire.failed(error), 0, 0))

    def settle(self, held_bytes: int) -> None:
        """A call has been answered."""
        self._n_calls -= 1
        if held_bytes:
            self._lane_socket.held_bytes -= held_bytes
            self._lane_socket.unpause()

    async def _open(self) -> socket.socket | None:
        """The socket to carry frames on, once the certificate is known; None after a failure, which is
        noted."""
        context = self._listener.ssl_context
        if context is None:
            return self._sock
        secured: ssl.SSLSocket | None = None
        with self._opening:
            try:
                secured = await shake_hands(
                    self._sock,
                    context,
                    server_side=True,
                    on_failure=self._on_tls_failure,
                    on_heard=self._on_heard,
                )
            except OSError as error:
                self._lane_socket.end(lost(error))
        if secured is not None:
            try:
                self._welcome(secured.getpeercert(binary_form=True) or b"", None)
            except BlockStoreError as error:
                self._lane_socket.refuse(error)
        return secured

    def _on_heard(self) -> None:
        self._heard = self._listener.clock.now()

    def _welcome(self, certificate: bytes | None, hello: Message | None) -> None:
        try:
            peer = self._listener.authorize(certificate, hello)
        except BlockStoreError:
            raise
        except Exception as error:
            log.exception("peer %s: judging who it is failed", self.name)
            raise PermissionDenied("who you are could not be judged; see the daemon's log") from error
        self.peer = peer
        self.name = f"{peer} at {self.name}"
        self._listener.strangers.pop(self, None)

    def _on_tls_failure(self, error: ssl.SSLError) -> None:
        reason = lost(error)
        if isinstance(reason, ConnectionLost) and not isinstance(error, ssl.SSLEOFError):
            reason = ProtocolViolation(str(reason))  # it did not merely hang up: worth a warning
        self._note(reason)

    def _note(self, reason: BlockStoreError | None) -> None:
        """One line says why, at the moment it is decided."""
        if self._is_noted:
            return
        self._is_noted = True
        if reason is None or isinstance(reason, ConnectionLost):
            log.debug("peer %s: closed: %s", self.name, reason)
        else:
            log.warning("peer %s: connection closed: %s", self.name, reason)

    def _farewell(self, reason: BlockStoreError) -> bytes:
        self._note(reason)
        return self._wire.encode(CLOSING, 0, self._wire.failed(reason), 0, 0)

    def _on_frame(self, prefix: Prefix, message: Message, payload: Payload) -> None:
        listener, peer = self._listener, self.peer
        if peer is None:
            if prefix.kind != HELLO or listener.ssl_context is not None:
                raise ProtocolViolation("its first frame does not say who it is")
            self._welcome(None, message)
            self.answer(prefix.call_id, self._wire.hello_answer(), (), None)
            return
        if prefix.kind != REQUEST:
            raise ProtocolViolation(f"a client sent a frame of kind {prefix.kind}")
        if self._n_calls >= listener.calls_max:
            payload.release()
            self.fail(prefix.call_id, Busy(f"{self._n_calls} calls of this connection are under way"))
            return
        held_bytes = len(payload)
        self._n_calls += 1
        self._lane_socket.held_bytes += held_bytes
        deadline = listener.clock.now() + prefix.budget_ms / 1000
        call = RealCall(self, prefix.call_id, peer, message, payload, held_bytes, deadline)
        handle(listener.handler, call)


class RealCall:
    """A request to be answered once; see `IncomingCall`."""

    __slots__ = ("_call_id", "_connection", "_held_bytes", "deadline", "message", "payload", "peer")

    def __init__(
        self,
        connection: Connection,
        call_id: int,
        peer: Peer,
        message: Message,
        payload: Payload,
        held_bytes: int,
        deadline: float,
    ) -> None:
        self._connection: Connection | None = connection
        self._call_id = call_id
        self._held_bytes = held_bytes
        self.peer = peer
        self.message = message
        self.payload = payload
        self.deadline = deadline

    def answer(
        self, message: Message, payload: Sequence[Buffer] = (), on_sent: Callable[[], None] | None = None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            if on_sent is not None:
                on_sent()
            return
        connection.settle(self._held_bytes)
        connection.answer(self._call_id, message, payload, on_sent)

    def fail(self, error: BlockStoreError) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.settle(self._held_bytes)
            connection.fail(self._call_id, error)


serve_lanes = RealListener


def _name(sock: socket.socket, where: Any) -> str:
    if sock.family == socket.AF_UNIX:
        with suppress(OSError):
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return f"unix process {pid} of user {uid}"
        return "unix"
    host, port = where[:2]
    return f"tcp://{host}:{port}"


def _inode(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino
