"""Pushes a stream through a real socket into a lane's inbox, in pieces of given sizes."""

from __future__ import annotations

import itertools
import socket

from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import Message, Payload, Prefix, Wire
from blockstore.runtime.lane_inbox import Inbox


def feed(wire: Wire, stream: bytes, piece_sizes: list[int]) -> list[tuple[int, Message, bytes]]:
    found: list[tuple[int, Message, bytes]] = []

    def on_frame(prefix: Prefix, message: Message, payload: Payload) -> None:
        found.append((prefix.call_id, message, bytes(payload.view)))
        payload.release()

    inbox = Inbox(wire, BufferPool(), on_frame)
    sending, receiving = socket.socketpair()
    with sending, receiving:
        receiving.setblocking(False)
        sizes = itertools.cycle(piece_sizes)
        offset = 0
        while offset < len(stream):
            size = next(sizes)
            sending.sendall(stream[offset : offset + size])
            offset += size
            while True:
                try:
                    inbox.receive(receiving)
                except BlockingIOError:
                    break
                inbox.parse()
    assert not inbox.is_inside_frame
    return found
