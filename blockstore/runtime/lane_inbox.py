"""What arrives on a lane's socket: bytes become frames, with few system calls and few copies.

Every frame that one `recv` brought is parsed synchronously. A payload above `DIRECT_BYTES` is received
straight into a pooled buffer, by the same system call that brings the beginning of the next frame; a smaller
one is copied out of the receive buffer. No length is believed before `Wire.parse_prefix` has checked it, and
no memory is taken before."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Final

from blockstore.ids import KiB
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import Message, Payload, Prefix, Wire

OnFrame = Callable[[Prefix, Message, Payload], None]
NO_PAYLOAD: Final = Payload(memoryview(b""))

DIRECT_BYTES: Final = 16 * KiB
"""Copying this takes 2 us, about what a pooled buffer and the longer system call cost."""

_RECEIVE_BYTES: Final = 64 * KiB
_TAIL_BYTES: Final = (
    4 * KiB
)  # read behind a payload: the next frame's header, and little of its payload to copy


class Inbox:
    __slots__ = (
        "_end", "_filled", "_message", "_needed", "_on_frame", "_payload", "_pool", "_prefix", "_start",
        "_view", "_wire", "drained", "received_total",
    )  # fmt: skip

    def __init__(self, wire: Wire, pool: BufferPool, on_frame: OnFrame) -> None:
        self._wire = wire
        self._pool = pool
        self._on_frame = on_frame
        self.received_total = 0
        self.drained = False
        """The last `receive` brought less than there was room for: there is probably no more."""
        self._view = memoryview(b"")  # made when the first byte comes: silent connections cost no memory
        self._start = 0  # of what is not yet parsed
        self._end = 0
        self._needed = 0  # bytes from `_start` that the frame there needs in the receive buffer
        # the frame whose payload is being received directly
        self._payload: Payload | None = None
        self._filled = 0
        self._prefix: Prefix | None = None
        self._message: Message = None

    @property
    def is_inside_frame(self) -> bool:
        return self._end > self._start or self._payload is not None

    def receive(self, sock: socket.socket) -> int:
        """One system call; 0 at the end of the stream. BlockingIOError or SSLWant… when there is nothing."""
        payload = self._payload
        if payload is not None:
            rest = payload.view[self._filled :]
            size = rest.nbytes
            if isinstance(sock, ssl.SSLSocket):
                count = sock.recv_into(rest)
                self.drained = False
            else:
                # Nothing unparsed is left in the receive buffer while a payload is incomplete.
                count = sock.recvmsg_into((rest, self._view[:_TAIL_BYTES]))[0]
                self.drained = count < size + _TAIL_BYTES
                if count > size:
                    self._start, self._end = 0, count - size
            self._filled += min(count, size)
        else:
            self._make_room()
            room = self._view[self._end :]
            count = sock.recv_into(room)
            self.drained = count < room.nbytes and not isinstance(sock, ssl.SSLSocket)
            self._end += count
        self.received_total += count
        return count

    def parse(self, is_over: Callable[[], bool] | None = None) -> bool:
        """Hand over every whole frame. False when `is_over` ended it, and there may be more.

        ProtocolViolation or UnknownFormat for what is no frame.
        """
        parse_prefix, decode, on_frame = self._wire.parse_prefix, self._wire.decode, self._on_frame
        prefix_bytes = self._wire.prefix_bytes
        view, end = self._view, self._end
        while is_over is None or not is_over():
            if self._payload is not None:
                if self._filled < len(self._payload):
                    return True
                self._hand_over_payload()
                continue
            start = self._start
            header_start = start + prefix_bytes
            if end < header_start:
                self._needed = prefix_bytes
                return True
            prefix = parse_prefix(view, start)
            header_end = header_start + prefix.header_bytes
            payload_bytes = prefix.payload_bytes
            is_direct = payload_bytes > DIRECT_BYTES
            needed_end = header_end if is_direct else header_end + payload_bytes
            if end < needed_end:
                self._needed = needed_end - start
                return True
            message = decode(prefix, view[header_start:header_end])
            if is_direct:
                self._begin_payload(prefix, message, header_end)
                continue
            self._start = needed_end
            if payload_bytes:
                on_frame(prefix, message, Payload(memoryview(bytes(view[header_end:needed_end]))))
            else:
                on_frame(prefix, message, NO_PAYLOAD)
        return False

    def drop(self) -> None:
        """Give back what is held."""
        payload, self._payload = self._payload, None
        if payload is not None:
            payload.release()
        self._view = memoryview(b"")
        self._start = self._end = 0

    def _begin_payload(self, prefix: Prefix, message: Message, start: int) -> None:
        payload = self._pool.take(prefix.payload_bytes)
        have = min(self._end - start, prefix.payload_bytes)
        payload.view[:have] = self._view[start : start + have]
        self._start = start + have
        self._payload, self._filled, self._prefix, self._message = payload, have, prefix, message

    def _hand_over_payload(self) -> None:
        payload, prefix, message = self._payload, self._prefix, self._message
        assert payload is not None
        assert prefix is not None
        self._payload = self._prefix = self._message = None
        self._on_frame(prefix, message, payload)

    def _make_room(self) -> None:
        view, start, end = self._view, self._start, self._end
        size = view.nbytes
        if start == end:
            self._start = self._end = 0
            if size != _RECEIVE_BYTES:  # the first time, or after a frame with a large header
                self._view = memoryview(bytearray(_RECEIVE_BYTES))
        elif self._needed > size:
            larger = memoryview(bytearray(self._needed))
            larger[: end - start] = view[start:end]
            self._view, self._start, self._end = larger, 0, end - start
        elif start + self._needed > size or end == size:
            view[: end - start] = view[start:end]
            self._start, self._end = 0, end - start
