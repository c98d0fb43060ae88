"""What an owner keeps of values, and for how long."""

from __future__ import annotations

from blockstore.ids import ChunkId, VolumeId
from blockstore.volume.value_cache import ENTRY_BYTES, ValueCache

CHUNK = ChunkId(VolumeId(1), 1, 1)
VALUE = b"v" * 100
COST = len(VALUE) + ENTRY_BYTES


def test_what_was_used_longest_ago_goes_first() -> None:
    cache = ValueCache(2 * COST)
    cache.keep(CHUNK, 0, VALUE)
    cache.keep(CHUNK, 100, VALUE)
    assert cache.find(CHUNK, 0) == VALUE
    cache.keep(CHUNK, 200, VALUE)
    assert cache.find(CHUNK, 100) is None
    assert cache.find(CHUNK, 0) == cache.find(CHUNK, 200) == VALUE
    assert (cache.hits, cache.misses) == (3, 1)


def test_a_value_kept_twice_counts_once() -> None:
    cache = ValueCache(10 * COST)
    cache.keep(CHUNK, 0, VALUE)
    cache.keep(CHUNK, 0, VALUE)
    assert cache.size == COST


def test_one_that_does_not_fit_is_not_kept() -> None:
    cache = ValueCache(COST - 1)
    cache.keep(CHUNK, 0, VALUE)
    assert cache.size == 0
    assert cache.find(CHUNK, 0) is None


def test_tiny_values_take_memory_too() -> None:
    cache = ValueCache(100 * ENTRY_BYTES)
    for offset in range(1_000):
        cache.keep(CHUNK, offset, b"")
    kept = sum(cache.find(CHUNK, offset) is not None for offset in range(1_000))
    assert kept == 100
