"""Where large payloads are received: page-aligned buffers, kept for the next one.

Touching fresh memory costs about 2.3 us for each 4 KiB page, more than receiving into it, so buffers of a few
sizes are kept when their payload is released. What is kept idle is bounded; what is in use is bounded by who
asked for it. A buffer starts on a page, as direct I/O to a disk needs it."""

from __future__ import annotations

import mmap
from functools import partial

from blockstore.config import BUFFER_POOL_BYTES_MAX
from blockstore.runtime.interfaces import Payload


class BufferPool:
    """For one trio thread; `take` and `release` are not safe from others."""

    __slots__ = ("_idle", "idle_bytes", "idle_bytes_max")

    def __init__(self, idle_bytes_max: int = BUFFER_POOL_BYTES_MAX) -> None:
        self.idle_bytes_max = idle_bytes_max
        self.idle_bytes = 0
        self._idle: dict[int, list[mmap.mmap]] = {}

    def take(self, length: int) -> Payload:
        """A writable payload of exactly `length` bytes (at least one); its content is whatever was there
        before."""
        size = size_class(length)
        idle = self._idle.get(size)
        if idle:
            buffer = idle.pop()
            self.idle_bytes -= size
        else:
            # Private: a child made by fork must not see what is received here later, nor write into it.
            buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return Payload(memoryview(buffer)[:length], partial(self._give_back, size, buffer))

    def _give_back(self, size: int, buffer: mmap.mmap) -> None:
        if self.idle_bytes + size <= self.idle_bytes_max:
            self.idle_bytes += size
            self._idle.setdefault(size, []).append(buffer)


def size_class(length: int) -> int:
    """Four classes to a doubling, from 16 KiB: at most a quarter more than was asked for, beyond the
    smallest."""
    if length <= _SMALLEST:
        return _SMALLEST
    step = 1 << (length - 1).bit_length() - 3
    return (length + step - 1) // step * step


_SMALLEST = 16 * 1024
