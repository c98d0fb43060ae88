"""One connected socket that carries frames both ways, until it ends for a reason that it tells.

Two tasks, both parked while nothing moves: one receives and parses, one sends what a tick has queued. What
the parsing of one `recv` answers leaves at once, in one system call. TLS is a non-blocking `ssl.SSLSocket`
driven the same way (2.4 times the throughput of trio's SSLStream); it may want to read in order to write, and
the reverse.

Bounds: what is queued is counted here; refusing more is the owner's decision. A server's end `pauses`: it
reads nothing more while too much is unsent or unanswered. A client's end always reads, so the two cannot wait
for each other. Progress needs no timers: the owner asks `find_stall` now and then."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from blockstore.config import (
    ANSWERED_BYTES_PER_CONNECTION_MAX,
    FAREWELL_SECONDS_MAX,
    FRAME_BYTES_PER_STALL,
    FRAME_STALL_SECONDS_MAX,
    RECEIVED_BYTES_PER_CONNECTION_MAX,
    SEND_STALL_SECONDS_MAX,
)
from blockstore.errors import BlockStoreError, ConnectionLost, PermissionDenied, ProtocolViolation
from blockstore.ids import MiB
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import Buffer, Wire
from blockstore.runtime.lane_inbox import Inbox, OnFrame
from blockstore.runtime.lane_outbox import Outbox
from blockstore.runtime.sockets import linger

_TICK_BYTES: Final = 4 * MiB  # received before the other tasks get their turn


class LaneSocket:
    """`send` works from the start; what it queues leaves once `run` has a connected socket."""

    __slots__ = (
        "_corked", "_farewell", "_inbox", "_is_leaving", "_outbox", "_parked_reader", "_parked_writer",
        "_pauses", "_readable", "_reading", "_refusal", "_scope", "_stall", "_writable", "held_bytes",
        "reason",
    )  # fmt: skip

    def __init__(
        self,
        wire: Wire,
        pool: BufferPool,
        on_frame: OnFrame,
        *,
        pauses: bool,
        farewell: Callable[[BlockStoreError], bytes] | None = None,
    ) -> None:
        """`farewell` spells the last frame, which tells the peer why it is refused."""
        self.reason: BlockStoreError | None = None
        self.held_bytes = 0  # payloads of requests not yet answered; counted by the owner
        self._pauses = pauses
        self._farewell = farewell
        self._inbox = Inbox(wire, pool, on_frame)
        self._outbox = Outbox()
        self._corked = False
        self._is_leaving = False
        self._refusal: BlockStoreError | None = None
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._parked_reader: trio.lowlevel.Task | None = None
        self._parked_writer: trio.lowlevel.Task | None = None
        self._readable = _Turn(trio.lowlevel.wait_readable)
        self._writable = _Turn(trio.lowlevel.wait_writable)
        self._stall = _Stall()

    @property
    def queued_bytes(self) -> int:
        return self._outbox.queued_total - self._outbox.sent_total

    def send(
        self, frame: bytes, payload: Sequence[Buffer] = (), on_sent: Callable[[], None] | None = None
    ) -> None:
        """Queue. Once the connection has ended or is being refused, everything is dropped."""
        if self.reason is not None or self._is_leaving:
            if on_sent is not None:
                on_sent()
            return
        self._outbox.put(frame, payload, on_sent)
        if not self._corked:
            self._wake_writer()

    def unpause(self) -> None:
        """To be called after `held_bytes` has sunk."""
        reader = self._parked_reader
        if reader is not None and not self._is_over():
            self._parked_reader = None
            trio.lowlevel.reschedule(reader)

    def end(self, reason: BlockStoreError) -> None:
        """Close at once; the first reason given counts."""
        if self.reason is None:
            self.reason = reason
        self._scope.cancel()

    def refuse(self, reason: BlockStoreError) -> None:
        """Read nothing more, tell the peer why, close."""
        if self._refusal is None:
            self._refusal = reason
        self._reading.cancel()

    def find_stall(self, now: float) -> str:
        """Why to close this connection, if a frame begun or what waits to be sent does not get on; else
        ""."""
        inbox, outbox = self._inbox, self._outbox
        return self._stall.find(
            now,
            inbox.received_total,
            inbox.is_inside_frame and self._parked_reader is None,
            outbox.sent_total,
            outbox.queued_total,
        )

    async def run(self, sock: socket.socket) -> None:
        """Carry frames until the connection has ended, and close it; then `reason` is set."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, sock)
                    await self._read(sock)
        finally:
            if self.reason is None:
                self.reason = ConnectionLost("closed here")
            trio.lowlevel.notify_closing(sock)
            sock.close()
            self._inbox.drop()
            self._outbox.drop()

    async def _read(self, sock: socket.socket) -> None:
        reason: BlockStoreError = ConnectionLost("the peer hung up")
        try:
            with self._reading:
                await self._receive_frames(sock)
            reason = self._refusal or reason
        except BlockStoreError as error:
            reason = error
        except OSError as error:
            reason = lost(error)
        if self._farewell is not None and not isinstance(reason, ConnectionLost):
            await self._leave(sock, self._farewell(reason))
        self.end(reason)

    async def _receive_frames(self, sock: socket.socket) -> None:
        """Return at the end of the stream, raise what is wrong with it."""
        await trio.lowlevel.checkpoint()  # refused before it began: not one frame is taken
        inbox = self._inbox
        quota = _TICK_BYTES
        while True:
            try:
                received = inbox.receive(sock)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._readable.wait(sock)
                quota = _TICK_BYTES
                continue
            except ssl.SSLWantWriteError:
                await self._writable.wait(sock)
                continue
            if received == 0:
                if inbox.is_inside_frame and self._pauses:
                    raise ProtocolViolation("the connection ended inside a frame")
                return  # a server's process died, as a rule: to its clients the connection is lost, like any
            while not self._parse(sock):
                if self._is_over():  # else what was answered has left at once
                    await self._pause()
            quota -= received
            if inbox.drained:
                await self._readable.wait(sock)
                quota = _TICK_BYTES
            elif quota <= 0:
                await trio.lowlevel.checkpoint()
                quota = _TICK_BYTES

    def _parse(self, sock: socket.socket) -> bool:
        """Handle what has come, and send what it made us answer together; False if a pause is due first."""
        self._corked = True
        try:
            return self._inbox.parse(self._is_over if self._pauses else None)
        finally:
            self._corked = False
            if self._parked_writer is not None and self.queued_bytes and self._outbox.flush(sock) != "all":
                self._wake_writer()

    def _is_over(self) -> bool:
        outbox = self._outbox
        return (
            self._refusal is not None
            or outbox.queued_total - outbox.sent_total > ANSWERED_BYTES_PER_CONNECTION_MAX
            or self.held_bytes > RECEIVED_BYTES_PER_CONNECTION_MAX
        )

    async def _pause(self) -> None:
        self._parked_reader = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked_reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _write(self, sock: socket.socket) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked_writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        outbox = self._outbox
        try:
            while True:
                flushed = outbox.flush(sock)
                self.unpause()
                if flushed == "until writable":
                    await self._writable.wait(sock)
                elif flushed == "until readable":
                    await self._readable.wait(sock)
                elif self._is_leaving:
                    sock.shutdown(socket.SHUT_WR)
                    return
                else:
                    self._parked_writer = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(abort)
        except OSError as error:
            # The reader finds the end too, and before it the peer's last words, if there are any.
            with trio.move_on_after(FAREWELL_SECONDS_MAX):
                await trio.sleep_forever()
            self.end(self._refusal or lost(error))

    def _wake_writer(self) -> None:
        writer = self._parked_writer
        if writer is not None:
            self._parked_writer = None
            trio.lowlevel.reschedule(writer)

    async def _leave(self, sock: socket.socket, farewell: bytes) -> None:
        """Send the last frame and give the peer time to read it."""
        self._outbox.put(farewell, (), None)
        self._is_leaving = True
        self._wake_writer()
        await linger(sock)


def lost(error: OSError) -> BlockStoreError:
    """What a socket's error means to whoever used it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return PermissionDenied(f"the peer's certificate is not of this cluster: {error.verify_message}")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ConnectionLost("the peer hung up")
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if "ALERT" in reason and any(
            word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")
        ):
            return PermissionDenied(f"the peer refused our certificate: {_in_words(reason)}")
        if reason == "WRONG_VERSION_NUMBER":  # the first bytes are not of TLS
            return ProtocolViolation("TLS failed: the peer does not speak TLS")
        return ConnectionLost(f"TLS failed: {_in_words(reason)}")
    return ConnectionLost(error.strerror or str(error))


def _in_words(reason: str) -> str:
    return reason.lower().replace("_", " ")


class _Turn:
    """Waits for one direction of a socket, which only one task may do at a time: with TLS, sender and
    receiver may both want the same. Whoever comes second is woken with the first, and tries again."""

    __slots__ = ("_is_taken", "_lot", "_wait")

    def __init__(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        self._wait = wait
        self._is_taken = False
        self._lot = trio.lowlevel.ParkingLot()

    async def wait(self, sock: socket.socket) -> None:
        if self._is_taken:
            await self._lot.park()
            return
        self._is_taken = True
        try:
            await self._wait(sock)
        finally:
            self._is_taken = False
            self._lot.unpark_all()


class _Stall:
    """Remembers since when nothing has moved."""

    __slots__ = ("_asked", "_received", "_receiving_since", "_sending_since", "_sent")

    def __init__(self) -> None:
        self._asked = self._receiving_since = self._sending_since = 0.0
        self._received = self._sent = -1

    def find(self, now: float, received: int, is_receiving: bool, sent: int, queued: int) -> str:
        # A long time since the last look: this process itself stood still, and what came meanwhile is unread.
        was_away = now - self._asked > FRAME_STALL_SECONDS_MAX / 2
        self._asked = now
        if was_away or not is_receiving or received - self._received >= FRAME_BYTES_PER_STALL:
            self._receiving_since, self._received = now, received
        if was_away or sent == queued or sent != self._sent:
            self._sending_since, self._sent = now, sent
        if now - self._receiving_since > FRAME_STALL_SECONDS_MAX:
            return "the rest of a frame did not come"
        if now - self._sending_since > SEND_STALL_SECONDS_MAX:
            return f"it took none of the {queued - sent} bytes that wait for it"
        return ""
