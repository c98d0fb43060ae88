"""Which bytes of a value are where: values into appends, ranges of a value into ranges of shards.

Pure arithmetic. A stripe of unit u is k x u bytes; the value's bytes run through shard 0, then shard 1, and
so on. A value that does not fill a stripe gets a shorter unit, rounded up to SHARD_ALIGN_BYTES; what is then
left of the k x u bytes is zeros, which are stored (parity covers them) but belong to no value. A replica is
the case k = 1 whose unit is the length itself.

    value     aaaaaaaa bbbbbbbb ccccc            length 21, k = 4, unit 8
    shards   |aaaaaaaa|bbbbbbbb|ccccc000|00000000| then m parity shards, each of them `unit` bytes at `offset`

Small values share stripes: each lies in one shard, and its extent is the part of the stripe that is as wide
as the value. Then nothing is known of the other shards' bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from blockstore.codec.messages import Extent
from blockstore.config import APPEND_BYTES_MAX, SHARD_ALIGN_BYTES, SHARD_UNIT_BYTES
from blockstore.errors import InvalidRequest

Buffer = bytes | bytearray | memoryview


class Part(NamedTuple):
    """Bytes [start, end) of one shard's part of an extent, counted from the part's beginning."""

    shard_index: int
    start: int
    end: int


def piece_bytes_max(k: int) -> int:
    """The most of a value that one append to every member may carry."""
    return APPEND_BYTES_MAX if k == 1 else k * SHARD_UNIT_BYTES


def unit_of(length: int, k: int) -> int:
    """The shard unit for `length` bytes of a value, at most `piece_bytes_max(k)` of them."""
    if k == 1:
        return length
    each = -(-length // k)
    return -(-each // SHARD_ALIGN_BYTES) * SHARD_ALIGN_BYTES


def data_shards(piece: memoryview, k: int, unit: int) -> list[Buffer]:
    """The k data shards, each `unit` bytes: views of `piece`, but for the ones that need padding."""
    length = piece.nbytes
    shards: list[Buffer] = []
    for start in range(0, k * unit, unit):
        part = piece[start : start + unit]
        n_missing = unit - part.nbytes
        shards.append(part if not n_missing else bytes(part) + bytes(n_missing))
    assert length <= k * unit
    return shards


def used_bytes(extent: Extent, shard_index: int) -> int:
    """How many of the data shard's `unit` bytes are not surely zeros: those of the value, unless others share
    the stripe."""
    if extent.shard >= 0:
        return extent.unit
    return min(max(extent.length - shard_index * extent.unit, 0), extent.unit)


def parts_of(extent: Extent, start: int, end: int) -> list[Part]:
    """The data shards' bytes that make up bytes [start, end) of a value in a stripe, in order."""
    unit = extent.unit
    origin = max(extent.shard, 0) * unit
    start, end = start + origin, end + origin
    return [
        Part(shard, max(start - shard * unit, 0), min(end - shard * unit, unit))
        for shard in range(start // unit, -(-end // unit))
    ]


def pieces_of(extents: Sequence[Extent], start: int, end: int) -> Iterator[tuple[Extent, int, int]]:
    """The extents that bytes [start, end) of their value lie in, each with the range within it."""
    if not 0 <= start <= end:
        raise InvalidRequest(f"There is no range from byte {start} to byte {end}.")
    position = 0
    for extent in extents:
        if position >= end:
            return
        first, last = max(start - position, 0), min(end - position, extent.length)
        if first < last:
            yield extent, first, last
        position += extent.length
    if position < end:
        raise InvalidRequest(f"Byte {end} is past the end of a value of {position} bytes.")
