"""What a lane's socket has still to send: frames queue up and leave together, with few system calls.

Everything that waits goes into one `sendmsg`, or is joined first where joining costs less than the kernel's
handling of many pieces. TLS has no `sendmsg`: small pieces are joined to a record, and a write that OpenSSL
refused is repeated with the same bytes, as it demands.

The buffers are the outbox's until they are sent or dropped; `on_sent` tells either.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Literal

from blockstore.ids import KiB
from blockstore.runtime.interfaces import Buffer

Flushed = Literal["all", "until writable", "until readable"]

_JOIN_BYTES: Final = 32 * KiB  # copying so much takes 3 us, less than a sendmsg of the pieces
_TLS_RECORD_BYTES: Final = 16 * KiB
_PIECES_MAX: Final = 256  # the system takes 1,024; more than this does not make it faster


def buffer_bytes(buffers: Sequence[Buffer]) -> int:
    total = 0
    for buffer in buffers:
        total += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    return total


class Outbox:
    __slots__ = ("_head", "_marks", "_pieces", "queued_total", "sent_total")

    def __init__(self) -> None:
        self.queued_total = 0  # bytes since the connection began; the difference is what waits
        self.sent_total = 0
        self._pieces: deque[Buffer] = deque()
        self._head: memoryview | None = None  # TLS: the write under way
        self._marks: deque[tuple[int, Callable[[], None]]] = deque()  # call when so many bytes are sent

    def put(self, frame: bytes, payload: Sequence[Buffer], on_sent: Callable[[], None] | None) -> None:
        self._pieces.append(frame)
        size = len(frame)
        if payload:
            self._pieces.extend(payload)
            size += buffer_bytes(payload)
        self.queued_total += size
        if on_sent is not None:
            self._marks.append((self.queued_total, on_sent))

    def flush(self, sock: socket.socket) -> Flushed:
        """Send what the socket takes without waiting. OSError when the connection is gone."""
        if isinstance(sock, ssl.SSLSocket):
            flushed = self._flush_tls(sock)
        else:
            flushed = self._flush_plain(sock)
        marks = self._marks
        while marks and marks[0][0] <= self.sent_total:
            marks.popleft()[1]()
        return flushed

    def drop(self) -> None:
        """Forget everything; nothing of it is needed any more."""
        self._pieces.clear()
        self._head = None
        self.sent_total = self.queued_total
        marks, self._marks = self._marks, deque()
        for _, on_sent in marks:
            on_sent()

    def _flush_plain(self, sock: socket.socket) -> Flushed:
        pieces = self._pieces
        while pieces:
            try:
                if self.queued_total - self.sent_total <= _JOIN_BYTES:
                    if len(pieces) > 1:
                        joined = b"".join(pieces)
                        pieces.clear()
                        pieces.append(joined)
                    sent = sock.send(pieces[0])
                else:
                    sent = sock.sendmsg(list(islice(pieces, _PIECES_MAX)))
            except BlockingIOError:
                return "until writable"
            self.sent_total += sent
            _consume(pieces, sent)
        return "all"

    def _flush_tls(self, sock: ssl.SSLSocket) -> Flushed:
        pieces = self._pieces
        while self._head is not None or pieces:
            head = self._head
            if head is None:
                head = self._head = _take_record(pieces)
            try:
                sent = sock.send(head)
            except ssl.SSLWantWriteError:
                return "until writable"
            except ssl.SSLWantReadError:
                return "until readable"
            self.sent_total += sent
            self._head = head[sent:] if sent < len(head) else None
        return "all"


def _consume(pieces: deque[Buffer], sent: int) -> None:
    while pieces:
        piece = pieces[0]
        size = piece.nbytes if isinstance(piece, memoryview) else len(piece)
        if sent < size:
            if sent:
                pieces[0] = memoryview(piece).cast("B")[sent:]
            return
        pieces.popleft()
        sent -= size


def _take_record(pieces: deque[Buffer]) -> memoryview:
    """The next piece if it is large, else as many small ones as one TLS record holds."""
    small: list[Buffer] = []
    room = _TLS_RECORD_BYTES
    while pieces:
        size = buffer_bytes((pieces[0],))
        if size > room and small:
            break
        small.append(pieces.popleft())
        room -= size
        if room <= 0:
            break
    return memoryview(small[0]).cast("B") if len(small) == 1 else memoryview(b"".join(small))
