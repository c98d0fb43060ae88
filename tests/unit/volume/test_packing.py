"""How values share stripes, and which chunks are worth emptying."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.chunk.striping import parts_of, piece_bytes_max, unit_of
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import Extent, Placement
from blockstore.codec.run_file import StoredVersion
from blockstore.config import APPEND_BYTES_MAX, SHARD_UNIT_BYTES
from blockstore.ids import ChunkId, DiskId, KiB, MiB, SessionId, VolumeId
from blockstore.volume.chunk_table import DATA, JOURNAL, PACKED, ChunkEntry
from blockstore.volume.packing import Item, choose_chunks, items_of, plan, records_of

OLD, NEW = ChunkId(VolumeId(7), 1, 1), ChunkId(VolumeId(7), 1, 2)


def item(number: int, size: int) -> Item:
    value = random.Random(number).randbytes(size)
    crc = crc32c(value)
    extents = (Extent(OLD, number, size, size, crc),)
    return Item(b"%06d" % number, StoredVersion(number + 1, b"", size, crc, extents), (number + 1,))


def value_of(one: Item) -> bytes:
    return random.Random(one.version.sequence - 1).randbytes(one.version.size)


@given(
    st.lists(st.one_of(st.integers(1, 300), st.integers(1, 128 * KiB)), min_size=1, max_size=120),
    st.sampled_from([1, 2, 4]),
)
@settings(max_examples=60, deadline=None)
def test_every_value_is_found_whole_where_its_move_says(sizes: list[int], k: int) -> None:
    items = [item(number, size) for number, size in enumerate(sizes)]
    stripes, alone = plan(items, k)
    moved = {one.key for one in alone}
    for stripe in stripes:
        assert stripe.unit <= piece_bytes_max(k) // k
        content = stripe.content([value_of(one) for one in stripe.items])
        assert len(content) == k * stripe.unit == k * unit_of(len(content), k)  # it is written as one append
        written = Extent(NEW, 4096, len(content), stripe.unit, crc32c(content))
        for (key, sequence, (extent,)), one in zip(stripe.moves(written), stripe.items, strict=True):
            assert (key, sequence) == (one.key, one.version.sequence)
            assert key not in moved
            moved.add(key)
            parts = parts_of(extent, 0, extent.length) if k > 1 else [(0, 0, extent.length)]
            ((shard, start, end),) = parts
            begin = shard * stripe.unit + extent.offset - written.offset
            assert content[begin + start : begin + end] == value_of(one)
            assert crc32c(value_of(one)) == extent.crc
    assert moved == {one.key for one in items}


def test_values_stay_in_the_order_of_their_keys_and_little_is_wasted() -> None:
    items = [item(number, 100 * KiB) for number in range(200)]
    stripes, alone = plan(items, 4)
    order = [one.key for stripe in stripes for one in stripe.items] + [one.key for one in alone]
    assert order == sorted(order)
    stored = sum(4 * stripe.unit for stripe in stripes)
    assert stored <= 1.01 * sum(one.version.size for stripe in stripes for one in stripe.items)


def test_a_last_value_that_would_leave_shards_empty_is_striped_by_itself() -> None:
    stripes, alone = plan([item(1, 100 * KiB)], 4)
    assert not stripes
    assert len(alone) == 1


def test_what_does_not_fit_a_shard_is_moved_by_itself() -> None:
    large = item(1, SHARD_UNIT_BYTES + 1)
    stripes, alone = plan([large, *(item(number, 64) for number in range(2, 300))], 4)
    assert alone == [large]
    assert sum(len(stripe.items) for stripe in stripes) == 298


def test_copies_lie_one_behind_the_other_without_a_gap() -> None:
    stripes, alone = plan([item(number, 999) for number in range(10_000)], 1)
    assert not alone
    assert all(stripe.unit == sum(one.version.size for one in stripe.items) for stripe in stripes)
    assert max(stripe.unit for stripe in stripes) <= APPEND_BYTES_MAX


def test_a_restored_version_moves_with_the_one_whose_bytes_it_has() -> None:
    one, other = item(1, 100).version, item(2, 200).version
    restored = StoredVersion(9, one.meta, one.size, one.crc, one.extents)
    first, second, third = items_of([(b"a", restored), (b"a", other), (b"a", one), (b"b", other)])
    assert (first.key, first.sequences) == (b"a", (9, one.sequence))
    assert (second.key, second.sequences) == (b"a", (other.sequence,))
    assert third.key == b"b"
    (stripe,), _ = plan([first, second, third], 1)
    moves = list(stripe.moves(Extent(NEW, 0, 500, 500, 0)))
    assert [(key, sequence) for key, sequence, _ in moves] == [(b"a", 9), (b"a", 2), (b"a", 3), (b"b", 3)]
    assert moves[0][2] == moves[1][2]


def entry(purpose: str, stored: int, live: int) -> ChunkEntry:
    placement = Placement(1, 0, (DiskId(1),))
    return ChunkEntry(placement, 64 * MiB, purpose, SessionId(1), stored, live)


def test_a_pass_over_the_keys_waits_until_it_is_worth_it() -> None:
    little = [(OLD, entry(JOURNAL, 9 * MiB, 8 * MiB)), (NEW, entry(DATA, 9 * MiB, MiB))]
    assert choose_chunks(little) == ()
    assert len(choose_chunks([*little, (NEW, entry(PACKED, 10 * MiB, MiB))])) == 3
    assert len(choose_chunks([(OLD, entry(JOURNAL, 17 * MiB, 16 * MiB))])) == 1
    assert len(choose_chunks([(OLD, entry(JOURNAL, 64 * MiB, 60 * MiB))] * 9)) == 4


def test_a_record_of_moves_stays_small() -> None:
    moves = [(b"key", number, ()) for number in range(1_234)]
    records = list(records_of(moves))
    assert [move for record in records for move in record.moves] == moves
    assert max(len(record.moves) for record in records) <= 500
