"""Whatever is queued, and however little the socket takes, the bytes leave in order and whole."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.runtime.lane_outbox import Outbox
from tests.certificates import Authority

sizes = st.sampled_from([0, 1, 5, 1_000, 16_384, 16_385, 40_000, 300_000])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.lists(sizes, max_size=3)), max_size=8),
    st.integers(4_000, 400_000),
)
def test_bytes_leave_in_order_and_whole(frames: list[tuple[int, list[int]]], read_bytes: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert_all_arrives(ours, frames, lambda: theirs.recv(read_bytes))


def test_tls_takes_small_and_large_pieces_alike(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = socket.socketpair()
    server = authority.server_context().wrap_socket(theirs, server_side=True, do_handshake_on_connect=False)
    client = authority.client_context().wrap_socket(ours, do_handshake_on_connect=False)
    with server, client:
        for end in (server, client):
            end.setblocking(False)
        finished: set[ssl.SSLSocket] = set()
        while len(finished) < 2:
            for end in (client, server):
                try:
                    end.do_handshake()
                    finished.add(end)
                except ssl.SSLWantReadError:
                    pass
        frames: list[tuple[int, list[int]]] = [
            (100, [0, 1, 300_000]),
            (7, []),
            (9, [16_384, 16_385]),
            (50, [5] * 100),
            (1, [2_000_000]),
        ]

        def read() -> bytes:
            try:
                return server.recv(1 << 20)
            except ssl.SSLWantReadError:
                return b""

        assert_all_arrives(client, frames, read)


def assert_all_arrives(
    sock: socket.socket, frames: list[tuple[int, list[int]]], read: Callable[[], bytes]
) -> None:
    outbox = Outbox()
    expected, told = b"", list[int]()
    for number, (frame_bytes, pieces) in enumerate(frames):
        frame = bytes([number]) * frame_bytes
        payload = [memoryview(bytes([100 + number]) * size) for size in pieces]
        expected += frame + b"".join(payload)
        outbox.put(frame, payload, lambda number=number: told.append(number))  # type: ignore[misc]
    received = bytearray()
    while outbox.flush(sock) != "all":
        received += read()
    while len(received) < len(expected):
        received += read()
    assert received == expected
    assert told == list(range(len(frames)))
    assert outbox.queued_total == outbox.sent_total == len(expected)


def test_what_is_dropped_is_told_too() -> None:
    outbox = Outbox()
    told: list[int] = []
    outbox.put(b"frame", [bytes(10)], lambda: told.append(1))
    outbox.drop()
    outbox.drop()
    assert told == [1]
    assert outbox.queued_total == outbox.sent_total


def test_a_lost_connection_is_an_error() -> None:
    outbox = Outbox()
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        ours.setblocking(False)
        outbox.put(b"frame", [], None)
        with pytest.raises(OSError, match="pipe"):
            outbox.flush(ours)
