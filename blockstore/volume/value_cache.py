"""Values that the owner lately wrote or read, so that a small read costs no disk. Oldest use goes first."""

from __future__ import annotations

from collections import OrderedDict

from blockstore.ids import ChunkId

ENTRY_BYTES = 256
"""What a value takes in memory besides its bytes: a cache of empty ones must not grow for ever."""


class ValueCache:
    """Bounded by memory. A place in a chunk never changes its content, so nothing is ever invalidated."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size = 0
        self.hits = 0
        self.misses = 0
        self._values: OrderedDict[tuple[ChunkId, int, int], bytes] = OrderedDict()

    def find(self, chunk: ChunkId, offset: int, shard: int = -1) -> bytes | None:
        """`shard`: of a value that shares a stripe with others."""
        place = (chunk, offset, shard)
        value = self._values.get(place)
        if value is None:
            self.misses += 1
        else:
            self.hits += 1
            self._values.move_to_end(place)
        return value

    def keep(self, chunk: ChunkId, offset: int, value: bytes, shard: int = -1) -> None:
        place = (chunk, offset, shard)
        former = self._values.pop(place, None)
        if former is not None:
            self.size -= len(former) + ENTRY_BYTES
        self._values[place] = value
        self.size += len(value) + ENTRY_BYTES
        while self.size > self.bytes_max:
            _, oldest = self._values.popitem(last=False)
            self.size -= len(oldest) + ENTRY_BYTES
