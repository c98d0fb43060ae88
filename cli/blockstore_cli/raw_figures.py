"""What the machine does without us: the disk's and the loopback's own rates, to hold ours against.

The disk: one process writes 4 MiB pieces one after the other into a preallocated file and calls fdatasync
after each, through the page cache and past it (O_DIRECT). The loopback: one process sends, another receives,
plain blocking TCP in blocks of 1 MiB. About a second each, measured beside the store, not on another day.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from blockstore.ids import GiB, MiB

PIECE_BYTES = 4 * MiB
FILE_BYTES = 256 * MiB
SENT_BYTES = 2 * GiB
BLOCK_BYTES = 1 * MiB


def disk_write_bytes_per_second(directory: Path, *, direct: bool = False) -> float:
    """Sequential write and fdatasync of each 4 MiB; 0.0 if the file system knows no O_DIRECT."""
    path = directory / "raw-disk-figure"
    piece = mmap.mmap(-1, PIECE_BYTES)  # page aligned, as O_DIRECT wants it
    piece[:] = os.urandom(PIECE_BYTES)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DIRECT if direct else 0), 0o600)
    except OSError:
        return 0.0
    try:
        os.posix_fallocate(fd, 0, FILE_BYTES)
        os.fsync(fd)
        began = time.perf_counter()
        for offset in range(0, FILE_BYTES, PIECE_BYTES):
            os.pwrite(fd, piece, offset)
            os.fdatasync(fd)
        return FILE_BYTES / (time.perf_counter() - began)
    finally:
        os.close(fd)
        path.unlink()
        piece.close()


def loopback_bytes_per_second() -> float:
    """TCP from a child process to this one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if child == 0:
            _send_and_exit(server.getsockname()[1])
        try:
            connection, _ = server.accept()
            with connection:
                return _receive_rate(connection)
        finally:
            os.waitpid(child, 0)


def _receive_rate(connection: socket.socket) -> float:
    block = bytearray(BLOCK_BYTES)
    n_bytes = 0
    began = time.perf_counter()
    while got := connection.recv_into(block):
        n_bytes += got
    return n_bytes / (time.perf_counter() - began)


def _send_and_exit(port: int) -> None:
    """In the child, which must not return into its parent's program."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
        block = bytes(BLOCK_BYTES)
        for _ in range(SENT_BYTES // BLOCK_BYTES):
            connection.sendall(block)
    os._exit(0)
