"""The layout of block devices: ranges, keys, what shows, what changed."""

from __future__ import annotations

import random

import pytest

from blockstore.errors import Corrupt, InvalidRequest, UnknownFormat
from blockstore.kinds import block
from blockstore.kinds.block import (
    BLOCK_BYTES,
    BLOCKS_PER_SPAN,
    DEVICE_BYTES_MAX,
    SPAN_BYTES,
    RangeChange,
    Shown,
    Version,
)


def base(sequence: int, size: int = SPAN_BYTES, span: int = 3) -> Version:
    return Version(block.span_key(span), sequence, size, sequence.to_bytes(8, "big"))


def one_block(number: int, sequence: int, size: int = BLOCK_BYTES, span: int = 3) -> Version:
    return Version(block.block_key(span, number), sequence, size, sequence.to_bytes(8, "big"))


def test_a_range_is_cut_into_spans() -> None:
    start, end = SPAN_BYTES - 10, 3 * SPAN_BYTES + 5
    found = list(block.parts(start, end))
    assert [(part.span, part.start, part.end, part.offset) for part in found] == [
        (0, SPAN_BYTES - 10, SPAN_BYTES, SPAN_BYTES - 10),
        (1, 0, SPAN_BYTES, SPAN_BYTES),
        (2, 0, SPAN_BYTES, 2 * SPAN_BYTES),
        (3, 0, 5, 3 * SPAN_BYTES),
    ]
    assert [part.is_whole for part in found] == [False, True, True, False]
    assert list(block.parts(7, 7)) == []


@pytest.mark.parametrize(
    ("start", "end", "touched", "cut", "filled"),
    [
        (0, BLOCK_BYTES, range(1), [], range(1)),
        (1, BLOCK_BYTES, range(1), [0], range(1, 1)),
        (1, 2, range(1), [0], range(1, 1)),
        (1, BLOCK_BYTES + 1, range(2), [0, 1], range(1, 1)),
        (1, 3 * BLOCK_BYTES - 1, range(3), [0, 2], range(1, 2)),
        (BLOCK_BYTES, 3 * BLOCK_BYTES, range(1, 3), [], range(1, 3)),
    ],
)
def test_which_blocks_a_part_touches_and_fills(
    start: int, end: int, touched: range, cut: list[int], filled: range
) -> None:
    (part,) = block.parts(start, end)
    assert (part.blocks, part.cut_blocks, list(part.filled_blocks)) == (touched, cut, list(filled))


def test_what_blocks_become_keeps_what_is_around_the_part() -> None:
    rng = random.Random(5)
    image = bytearray(rng.randbytes(4 * BLOCK_BYTES))
    for _ in range(200):
        start, end = sorted(rng.sample(range(4 * BLOCK_BYTES), 2))
        (part,) = block.parts(start, end)
        former = {number: bytes(image[number * BLOCK_BYTES :][:BLOCK_BYTES]) for number in part.cut_blocks}
        data = rng.randbytes(end - start)
        image[start:end] = data
        for number, value in block.block_values(part, memoryview(data), former):
            assert bytes(value) == image[number * BLOCK_BYTES :][:BLOCK_BYTES]


def test_keys_are_in_the_order_of_the_device() -> None:
    last = DEVICE_BYTES_MAX // SPAN_BYTES - 1
    keys = [
        key
        for span in (0, 1, 255, 256, last)
        for key in (block.span_key(span), block.block_key(span, 0), block.block_key(span, 255))
    ]
    assert keys == sorted(keys)
    assert [block.split_key(key) for key in keys[:3]] == [(0, -1), (0, 0), (0, 255)]
    assert [block.span_of(key) for key in keys[::3]] == [0, 1, 255, 256, last]
    assert all(block.SPAN_PREFIX <= key < block.SPANS_END for key in keys)
    for bad in (b"", b"b\0\0\0\0\0\0", b"c\0\0\0\0\0", b"b\0\0"):
        with pytest.raises(Corrupt):
            block.span_of(bad)


def test_headers_come_back_and_others_are_refused() -> None:
    assert block.decode_header(block.encode_header(12_345)) == 12_345
    with pytest.raises(Corrupt):
        block.decode_header(b"\x93\1\2")
    with pytest.raises(Corrupt):
        block.decode_header(b"\x94\1\2\3\4")
    with pytest.raises(UnknownFormat):
        block.decode_header(b"\x94\2\2\3\4")


def test_sizes_and_ranges_are_checked() -> None:
    for size in (0, -1, DEVICE_BYTES_MAX + 1, "5", True, 1.0):
        with pytest.raises(InvalidRequest):
            block.check_size(size)
    assert block.check_range(5, 5, 10) == (5, 10)
    for offset, length in ((-1, 2), (0, 11), (10, 1), (0, -1), ("0", 1), (0, True)):
        with pytest.raises(InvalidRequest):
            block.check_range(offset, length, 10)


def test_a_block_shows_before_the_base() -> None:
    shown = Shown([base(9), one_block(1, 10), one_block(2, 11, 0)])
    assert shown.base == base(9)
    assert shown.source(0) == base(9)
    assert shown.source(1) == one_block(1, 10)
    assert shown.source(2) is None  # zeroed since
    assert shown.keys() == [block.span_key(3), block.block_key(3, 1), block.block_key(3, 2)]
    alone = Shown([one_block(3, 2)])
    assert alone.source(3) == one_block(3, 2)
    assert alone.source(4) is None
    for bad in (base(5, 77), base(5, 0), one_block(1, 5, 77)):
        with pytest.raises(Corrupt):
            Shown([bad])


def test_zeroing_deletes_what_it_can() -> None:
    thin = Shown([one_block(1, 2), one_block(2, 3, 0), one_block(9, 4)])
    assert thin.zeroing(range(4)) == ([], [block.block_key(3, 1), block.block_key(3, 2)])
    full = Shown([base(5), one_block(1, 6, 0)])
    assert full.zeroing(range(3)) == ([block.block_key(3, 0), block.block_key(3, 2)], [])
    # the base first: should the rest not follow, nothing shows again that it hid
    assert full.zeroing(range(BLOCKS_PER_SPAN)) == ([], [block.span_key(3), block.block_key(3, 1)])


def test_changes_are_runs_of_blocks() -> None:
    old = Shown([base(5, span=0), one_block(7, 6, span=0)])
    new = Shown(
        [base(5, span=0)]
        + [one_block(number, 10 + number, span=0) for number in (2, 3)]
        + [one_block(4, 20, 0, span=0), one_block(7, 6, span=0)]
    )
    changes = list(block.span_changes(0, old, new))
    assert changes == [
        RangeChange(2 * BLOCK_BYTES, 2 * BLOCK_BYTES, "written"),
        RangeChange(4 * BLOCK_BYTES, BLOCK_BYTES, "zeroed"),
    ]
    assert list(block.span_changes(0, old, old)) == []
    nothing = Shown([])
    assert list(block.span_changes(0, nothing, old)) == [RangeChange(0, SPAN_BYTES, "written")]
    assert list(block.span_changes(0, old, nothing)) == [RangeChange(0, SPAN_BYTES, "zeroed")]


def test_neighbours_are_joined_and_cut_at_the_end() -> None:
    changes = [RangeChange(0, 10, "written"), RangeChange(10, 10, "written"), RangeChange(20, 10, "zeroed")]
    assert block.joined(changes, 25) == [RangeChange(0, 20, "written"), RangeChange(20, 5, "zeroed")]
    assert block.joined(changes, 20) == [RangeChange(0, 20, "written")]
