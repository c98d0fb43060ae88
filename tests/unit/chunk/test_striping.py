"""Values into shards and back, by arithmetic alone."""

from __future__ import annotations

import pytest

from blockstore.chunk.striping import (
    Part,
    data_shards,
    parts_of,
    piece_bytes_max,
    pieces_of,
    unit_of,
    used_bytes,
)
from blockstore.codec.messages import Extent
from blockstore.errors import InvalidRequest
from blockstore.ids import ChunkId, KiB, MiB, VolumeId

CHUNK = ChunkId(VolumeId(1), 1, 1)


@pytest.mark.parametrize(
    ("length", "k", "unit"),
    [(1, 1, 1), (4 * MiB, 1, 4 * MiB), (1, 4, 64), (256, 4, 64), (257, 4, 128), (130_000, 4, 32_512),
     (4 * MiB, 4, MiB), (4 * MiB - 1, 4, MiB)],
)  # fmt: skip
def test_the_unit_is_as_short_as_the_value_allows(length: int, k: int, unit: int) -> None:
    assert unit_of(length, k) == unit
    assert length <= piece_bytes_max(k)


def test_a_full_stripe_is_cut_without_a_copy() -> None:
    piece = memoryview(bytes(range(256)))
    shards = data_shards(piece, 4, 64)
    assert [bytes(shard) for shard in shards] == [
        bytes(range(start, start + 64)) for start in (0, 64, 128, 192)
    ]
    assert all(isinstance(shard, memoryview) and shard.obj is piece.obj for shard in shards)


def test_a_short_stripe_is_padded_with_zeros() -> None:
    shards = data_shards(memoryview(b"a" * 64 + b"b" * 6), 4, 64)
    assert [bytes(shard) for shard in shards] == [b"a" * 64, b"b" * 6 + bytes(58), bytes(64), bytes(64)]
    extent = Extent(CHUNK, 0, 70, 64, 0)
    assert [used_bytes(extent, shard) for shard in range(4)] == [64, 6, 0, 0]


def test_a_range_lies_in_few_shards() -> None:
    extent = Extent(CHUNK, 1000, 4 * 100 - 30, 100, 0)
    assert parts_of(extent, 10, 20) == [Part(0, 10, 20)]
    assert parts_of(extent, 90, 210) == [Part(0, 90, 100), Part(1, 0, 100), Part(2, 0, 10)]
    assert parts_of(extent, 100, 200) == [Part(1, 0, 100)]
    assert parts_of(extent, 0, 370) == [Part(0, 0, 100), Part(1, 0, 100), Part(2, 0, 100), Part(3, 0, 70)]


def test_a_range_of_a_value_is_found_in_its_extents() -> None:
    first, second, third = (Extent(CHUNK, 0, length, length, 0) for length in (10, 5, 20))
    extents = (first, second, third)
    assert list(pieces_of(extents, 0, 35)) == [(first, 0, 10), (second, 0, 5), (third, 0, 20)]
    assert list(pieces_of(extents, 12, 16)) == [(second, 2, 5), (third, 0, 1)]
    assert list(pieces_of(extents, 10, 10)) == []
    assert list(pieces_of((), 0, 0)) == []


@pytest.mark.parametrize(("start", "end"), [(0, 36), (-1, 3), (5, 4), (36, 36)])
def test_a_range_that_is_not_there_is_refused(start: int, end: int) -> None:
    extents = tuple(Extent(CHUNK, 0, length, length, 0) for length in (10, 5, 20))
    with pytest.raises(InvalidRequest):
        list(pieces_of(extents, start, end))


def test_units_are_multiples_of_the_alignment() -> None:
    assert all(unit_of(length, k) % 64 == 0 for k in (2, 3, 10) for length in range(1, 3 * KiB, 7))
