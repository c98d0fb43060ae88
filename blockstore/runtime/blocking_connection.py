"""One connection of a blocking caller: a state machine that `poll` drives, from dialling to the last frame.

Nothing here waits. `on_ready` gets on as far as the socket lets it and says through `Watch` what it waits
for; `sweep` ends what takes too long. Opening is a generator, which yields where it must wait. Frames,
receiving into pooled buffers and joined sending are those of the lanes under trio (`lane_inbox.py`,
`lane_outbox.py`).
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import ssl
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from blockstore.config import (
    CALLS_PER_CONNECTION_MAX,
    CONNECT_SECONDS_MAX,
    FRAME_STALL_SECONDS_MAX,
    OPENING_SECONDS_MAX,
    QUEUED_BYTES_PER_CONNECTION_MAX,
    RECONNECT_SECONDS_MIN,
    SEND_STALL_SECONDS_MAX,
)
from blockstore.errors import (
    BlockStoreError,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    PermissionDenied,
    ProtocolViolation,
)
from blockstore.ids import KiB
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import (
    ANSWER,
    CLOSING,
    HELLO,
    REQUEST,
    Address,
    Answer,
    Buffer,
    Message,
    OnAnswer,
    Payload,
    Prefix,
    Wire,
)
from blockstore.runtime.lane_inbox import Inbox
from blockstore.runtime.lane_outbox import Outbox, buffer_bytes
from blockstore.runtime.lane_socket import lost
from blockstore.runtime.real_net import CheckServer
from blockstore.runtime.sockets import short_path, tune_tcp, tune_unix

Opening = Generator[None, None, socket.socket]
"""Yields when it must wait for what it watches, and returns the socket once frames may travel on it."""

_IN: Final = select.POLLIN
_OUT: Final = select.POLLOUT
_CALL_IDS: Final = 1 << 32

_SEND_AT_ONCE_BYTES: Final = 64 * KiB
"""What a flight starts is sent when it waits, joined; but not held back beyond this."""


@dataclass(frozen=True, slots=True)
class Dialling:
    """How to reach servers, and who we are to them: our certificate says it, or `hello`."""

    wire: Wire
    ssl_context: ssl.SSLContext | None
    host_id: str
    hello: Message | None
    check_server: CheckServer | None


class Watch:
    """Which descriptors belong to which connection, and what they wait for."""

    __slots__ = ("_connections", "_poll")

    def __init__(self) -> None:
        self._poll = select.poll()
        self._connections: dict[int, BlockingConnection] = {}

    def add(self, fd: int, mask: int, connection: BlockingConnection) -> None:
        self._connections[fd] = connection
        self._poll.register(fd, mask)

    def change(self, fd: int, mask: int) -> None:
        self._poll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        self._connections.pop(fd, None)
        with suppress(KeyError):  # an interrupt may have come between the two lines of `add`
            self._poll.unregister(fd)

    def wait(self, seconds: float) -> bool:
        """Let those that are ready get on; False if none was."""
        ready = self._poll.poll(seconds * 1000 if seconds > 0 else 0)
        for fd, events in ready:
            connection = self._connections.get(fd)
            if connection is not None:
                connection.on_ready(events)
        return bool(ready)


class BlockingConnection:
    """One peer. Connected, connecting, or neither; in the last state the next post dials."""

    __slots__ = (
        "_address",
        "_dialling",
        "_inbox",
        "_last_id",
        "_mask",
        "_not_before",
        "_opening",
        "_opening_ends",
        "_opening_late",
        "_outbox",
        "_pending",
        "_refusal",
        "_sock",
        "_was_answered",
        "_watched",
        "_watched_fd",
        "_why",
        "_wire",
        "is_unflushed",
        "last_moved",
    )  # fmt: skip

    def __init__(self, address: Address, dialling: Dialling, watch: Watch, pool: BufferPool) -> None:
        self._address, self._dialling, self._watched, self._wire = address, dialling, watch, dialling.wire
        self._inbox = Inbox(dialling.wire, pool, self._on_frame)
        self._outbox = Outbox()
        self._sock: socket.socket | None = None
        self._opening: Opening | None = None
        self._opening_ends = 0.0
        self._opening_late = ""  # what to say then
        self._watched_fd = -1
        self._mask = 0
        self._pending: dict[int, tuple[OnAnswer, float]] = {}
        self._last_id = 0
        self._was_answered = False
        self._refusal: BlockStoreError | None = None  # the peer's last words
        self._not_before = -math.inf
        self._why: BlockStoreError = ConnectionLost("")
        self.is_unflushed = False
        self.last_moved = 0.0  # when bytes last came or went, or the connection was opened

    @property
    def is_idle(self) -> bool:
        return self._sock is not None and not self._pending

    @property
    def _n_unsent(self) -> int:
        return self._outbox.queued_total - self._outbox.sent_total

    def post(self, message: Message, payload: Sequence[Buffer], deadline: float, on_answer: OnAnswer) -> None:
        now = time.monotonic()
        pending, outbox = self._pending, self._outbox
        if deadline <= now:
            on_answer(DeadlineExceeded(f"{self._address}: the deadline passed before sending"))
            return
        if self._sock is None and now < self._not_before:
            on_answer(self._why)
            return
        size = buffer_bytes(payload) if payload else 0
        queued = self._n_unsent
        if len(pending) >= CALLS_PER_CONNECTION_MAX:
            on_answer(Busy(f"{self._address}: {len(pending)} calls are under way"))
            return
        if queued + size > QUEUED_BYTES_PER_CONNECTION_MAX:
            on_answer(Busy(f"{self._address}: {queued} bytes wait to be sent"))
            return
        call_id = self._next_id()
        try:
            budget_ms = min(math.ceil((deadline - now) * 1000), 0xFFFF_FFFF)
            frame = self._wire.encode(REQUEST, call_id, message, size, budget_ms)
        except BlockStoreError as error:
            on_answer(error)
            return
        if self._sock is None and self._opening is None:
            self._dial(now)
        if not queued:
            self.last_moved = now  # the peer is late from now on, not from before
        pending[call_id] = (on_answer, deadline)
        outbox.put(frame, payload, None)
        self.is_unflushed = True
        if queued + size >= _SEND_AT_ONCE_BYTES and self._opening is None:
            self.on_ready(0)

    def on_ready(self, events: int) -> None:
        """Get on as far as possible without waiting. `events` 0: there is something to send."""
        try:
            opening, sock = self._opening, self._sock
            if opening is not None:
                self.is_unflushed = False  # it flushes once it is open
                if events or self._watched_fd < 0:
                    self._open_further(opening)
            elif sock is not None:
                if self.is_unflushed or events & _OUT:
                    self._flush(sock)
                if events:
                    self._receive(sock)
        except BlockStoreError as error:
            self.end(error)
        except OSError as error:
            self.end(lost(error))

    def sweep(self, now: float) -> None:
        """Fail the calls whose deadline has passed, and a connection that does not get on. Called right after
        all that has come was taken in, so a pause of this process is not held against the peer."""
        pending = self._pending
        for call_id in [call_id for call_id, (_, deadline) in pending.items() if deadline <= now]:
            pending.pop(call_id)[0](DeadlineExceeded(f"{self._address}: no answer within the time given"))
        if self._opening is not None:
            if now >= self._opening_ends:
                self.end(ConnectionLost(self._opening_late))
        elif self._inbox.is_inside_frame and now - self.last_moved > FRAME_STALL_SECONDS_MAX:
            self.end(ConnectionLost("the rest of a frame did not come"))
        elif self._n_unsent and now - self.last_moved > SEND_STALL_SECONDS_MAX:
            self.end(ConnectionLost("it takes none of the bytes that wait for it"))

    def end(self, reason: BlockStoreError) -> None:
        """Close, and fail what is under way. Nothing happens when there is no connection."""
        sock, opening = self._sock, self._opening
        if sock is None and opening is None:
            return
        self._unwatch()
        self._sock = self._opening = None
        if opening is not None:
            opening.close()
        if sock is not None:
            sock.close()
        reason = self._refusal or reason
        if self._refusal is None and isinstance(
            reason, ConnectionLost | PermissionDenied | ProtocolViolation
        ):
            reason = type(reason)(f"{self._address}: {reason}")
        if not self._was_answered:
            self._not_before = time.monotonic() + RECONNECT_SECONDS_MIN
            self._why = reason
        self._clear()
        pending, self._pending = self._pending, {}
        for on_answer, _ in pending.values():
            on_answer(reason)

    def forsake(self) -> None:
        """After a fork: close the descriptor only. `shutdown`, or a TLS alert, would reach the parent's
        peer."""
        sock, opening = self._sock, self._opening
        self._sock = self._opening = None
        if opening is not None:
            opening.close()  # closes the descriptor and says nothing: Python sends no TLS alert from `close`
        if sock is not None:
            os.close(sock.detach())
        self._clear()
        pending, self._pending = self._pending, {}
        for on_answer, _ in pending.values():
            on_answer(ConnectionLost(f"{self._address}: the connection belongs to the process that forked"))

    def _clear(self) -> None:
        self._inbox.drop()
        self._outbox.drop()
        self.is_unflushed = False

    def _next_id(self) -> int:
        """Ids are of 32 bits: after a wrap one may still be taken, and 0 is not ours."""
        call_id = self._last_id
        while True:
            call_id = (call_id + 1) % _CALL_IDS
            if call_id and call_id not in self._pending:
                self._last_id = call_id
                return call_id

    # --- frames

    def _flush(self, sock: socket.socket) -> None:
        outbox = self._outbox
        sent = outbox.sent_total
        flushed = outbox.flush(sock)
        self.is_unflushed = False
        self._watch(sock, _IN | _OUT if flushed == "until writable" else _IN)
        if outbox.sent_total != sent:
            self.last_moved = time.monotonic()

    def _receive(self, sock: socket.socket) -> None:
        inbox = self._inbox
        tls = sock if isinstance(sock, ssl.SSLSocket) else None
        while True:
            try:
                received = inbox.receive(sock)
            except (BlockingIOError, ssl.SSLWantReadError):
                break
            except ssl.SSLWantWriteError:
                self._watch(sock, _IN | _OUT)
                return
            if received == 0:
                raise ConnectionLost("the peer hung up")
            self.last_moved = time.monotonic()
            inbox.parse()
            if tls is None:
                if inbox.drained:
                    return
            elif not self._pending and not tls.pending():
                return  # all that was asked for is here: asking OpenSSL for more costs 3 us
        if self._n_unsent:
            self._flush(sock)  # TLS may have had to read in order to write

    def _on_frame(self, prefix: Prefix, message: Message, payload: Payload) -> None:
        if prefix.kind == ANSWER:
            self._was_answered = True
            entry = self._pending.pop(prefix.call_id, None)
            if entry is None:  # too late, or the answer to our hello
                payload.release()
                return
            error = self._wire.error_of(message)
            entry[0](Answer(message, payload) if error is None else error)
        elif prefix.kind == CLOSING:
            self._refusal = self._wire.error_of(message)
        else:
            raise ProtocolViolation(f"a server sent a frame of kind {prefix.kind}")

    def _watch(self, sock: socket.socket, mask: int) -> None:
        fd = self._watched_fd
        if fd < 0:
            self._watched_fd = fd = sock.fileno()
            self._watched.add(fd, mask, self)
        elif mask != self._mask:
            self._watched.change(fd, mask)
        self._mask = mask

    def _unwatch(self) -> None:
        fd, self._watched_fd = self._watched_fd, -1
        if fd >= 0:
            self._watched.remove(fd)

    # --- opening

    def _dial(self, now: float) -> None:
        self._was_answered = False
        self._refusal = None
        self._opening_ends = now + CONNECT_SECONDS_MAX
        self._opening_late = f"no connection within {CONNECT_SECONDS_MAX} s"
        self._opening = self._open()
        hello = self._dialling.hello
        if hello is not None:
            self._outbox.put(self._wire.encode(HELLO, 0, hello, 0, 0), (), None)

    def _open_further(self, opening: Opening) -> None:
        self._unwatch()  # what it closes must not be watched
        try:
            next(opening)
        except StopIteration as stop:
            self._opening = None
            self._sock = sock = stop.value
            self.last_moved = time.monotonic()
            self._flush(sock)

    def _open(self) -> Opening:
        dialling, address = self._dialling, self._address
        sock: socket.socket | None = None
        if address.unix and address.host_id and address.host_id == dialling.host_id:
            sock = _connect_unix(address.unix)
        if sock is None:
            sock = yield from self._connect_tcp()
        if dialling.ssl_context is not None:
            sock = yield from self._shake_hands(sock, dialling.ssl_context)
        return sock

    def _connect_tcp(self) -> Opening:
        """To the first of the host's addresses that answers. A name is looked up by blocking."""
        refused: OSError | None = None
        found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, where in found:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                code = sock.connect_ex(where)
                if code == errno.EINPROGRESS:
                    self._watch(sock, _OUT)
                    yield
                    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                tune_tcp(sock)
            except OSError as error:
                sock.close()
                refused = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        assert refused is not None  # getaddrinfo answers with at least one, or raises
        raise refused

    def _shake_hands(self, sock: socket.socket, context: ssl.SSLContext) -> Opening:
        address, check_server = self._address, self._dialling.check_server
        server_name = address.host if context.check_hostname else None
        self._opening_ends = time.monotonic() + OPENING_SECONDS_MAX
        self._opening_late = f"no handshake within {OPENING_SECONDS_MAX} s"
        try:
            secured = context.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        try:
            while True:
                try:
                    secured.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._watch(secured, _IN)
                except ssl.SSLWantWriteError:
                    self._watch(secured, _OUT)
                yield
            if check_server is not None:
                check_server(address, secured.getpeercert(binary_form=True) or b"")
        except BaseException:
            secured.close()
            raise
        return secured


def _connect_unix(path: str) -> socket.socket | None:
    """None when nobody answers there; perhaps it is another container of this machine, and TCP reaches it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        tune_unix(sock)
        with short_path(path) as short:
            sock.connect(short)
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock
