"""What a lane receives: in how many system calls."""

from __future__ import annotations

import random
import socket

from blockstore.codec.frame import FrameWire
from blockstore.codec.messages import Ok
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import ANSWER, Message, Payload, Prefix
from blockstore.runtime.lane_inbox import Inbox
from blockstore.runtime.sockets import tune_unix


def test_after_a_payload_it_is_known_that_nothing_follows() -> None:
    wire = FrameWire()
    data = random.Random(1).randbytes(100_000)
    found: list[bytes] = []

    def on_frame(prefix: Prefix, message: Message, payload: Payload) -> None:
        found.append(bytes(payload.view))
        payload.release()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        tune_unix(ours)
        tune_unix(theirs)
        inbox = Inbox(wire, BufferPool(), on_frame)
        frame = wire.encode(ANSWER, 1, Ok(), len(data), 0) + data
        for n_frames in (1, 2):
            theirs.sendall(frame * n_frames)
            n_calls = 0
            while True:
                inbox.receive(ours)  # would raise BlockingIOError if it were called once too often
                n_calls += 1
                inbox.parse()
                if inbox.drained:
                    break
            assert found == [data] * n_frames
            assert n_calls <= 2 * n_frames
            found.clear()
