"""What a run says of a key, and of keys in order; which blocks it asks for; what the cache keeps."""

from __future__ import annotations

import msgspec
import pytest

from blockstore.codec.run_file import RunEntry, StoredVersion, encode_version
from blockstore.errors import Corrupt
from blockstore.ids import VolumeId
from blockstore.volume.key_filter import hash_of
from blockstore.volume.sorted_run import (
    PASSED_OVER,
    READ_AHEAD_BLOCKS,
    BlockCache,
    BlockRange,
    BlocksMissing,
    KeyState,
    SortedRun,
)
from tests.map_runs import EXTENT_BYTES, RunStore

VOLUME = VolumeId(1)


def entry(number: int) -> RunEntry:
    older = (encode_version(StoredVersion(1, b"was")),) if number % 10 == 0 else ()
    return b"%06d" % number, encode_version(StoredVersion(number + 2, b"m")), older


def entries(n_keys: int) -> list[RunEntry]:
    """Of even numbers, so that there are keys between them."""
    return [entry(number) for number in range(0, 2 * n_keys, 2)]


def made(n_keys: int, block_bytes: int = 100) -> tuple[RunStore, SortedRun]:
    store = RunStore(VOLUME, block_bytes)
    return store, store.run_of(entries(n_keys), BlockCache())


def find(run: SortedRun, key: bytes) -> KeyState | None:
    return run.find(key, hash_of(key))


def test_a_run_says_of_its_keys_what_it_was_made_of_and_nothing_of_others() -> None:
    store, run = made(100)
    assert 1 < run.n_blocks < 100
    for number in range(-1, 201):
        key = b"%06d" % number
        expected = entry(number)[1:] if 0 <= number < 200 and number % 2 == 0 else None
        assert store.asked(lambda: find(run, key)) == expected, number  # noqa: B023
    assert store.asked(lambda: find(run, b"")) is None
    assert store.asked(lambda: find(run, b"z")) is None


def test_a_block_at_hand_is_not_missing_and_a_damaged_one_is() -> None:
    store = RunStore(VOLUME, 100)
    cache = BlockCache()
    run = store.run_of(entries(100), cache)
    read: list[int] = []

    def near(_: SortedRun, block: int) -> memoryview | None:
        read.append(block)
        data = store.data_of(run, block, block + 1)
        if block == 2:
            data = memoryview(bytes(data)[:-1] + b"?")
        return None if block == 3 else data

    cache.near = near
    number_of = {block: int(run._first_keys[block]) for block in (1, 2, 3)}
    for _ in range(2):
        assert find(run, b"%06d" % number_of[1]) == entry(number_of[1])[1:]
    for block in (2, 3):
        with pytest.raises(BlocksMissing):
            find(run, b"%06d" % number_of[block])
    assert read == [1, 2, 3]


def test_one_key_needs_one_block_and_one_that_is_not_there_mostly_none() -> None:
    store, run = made(1_000)
    with pytest.raises(BlocksMissing) as missing:
        find(run, b"000800")
    ((asked, first, last),) = missing.value.ranges
    assert (asked, last - first) == (run, 1)
    store.fetch(missing.value)
    assert find(run, b"000800") is not None
    store.n_fetched = 0
    for number in range(1, 2_000, 2):
        store.asked(lambda: find(run, b"%06d" % number))  # noqa: B023
    assert store.n_fetched < 50


@pytest.mark.parametrize("start", [b"", b"000000", b"000051", b"000052", b"000198", b"000199"])
def test_entries_come_in_order_from_a_key_on(start: bytes) -> None:
    store, run = made(100)
    found = store.asked(lambda: list(run.entries_from(start)))
    assert found == [one for one in entries(100) if one[0] >= start]


def test_whoever_reads_in_order_is_told_at_once_what_is_missing_and_some_more() -> None:
    store, run = made(1_000, 1)
    assert run.n_blocks == 1_000
    missing = run.missing_at(b"000100")
    assert missing == BlockRange(run, 50, 50 + READ_AHEAD_BLOCKS)
    assert missing is not None
    store.fetch(BlocksMissing((missing,)))
    assert run.missing_at(b"000100") is None
    assert run.missing_at(b"001999") == BlockRange(run, 999, 1_000)
    reader = run.entries_from(b"000100")
    with pytest.raises(BlocksMissing) as raised:
        list(reader)
    assert raised.value.ranges == (BlockRange(run, 50 + READ_AHEAD_BLOCKS, 50 + 2 * READ_AHEAD_BLOCKS),)


def test_blocks_that_are_passed_over_are_not_asked_for() -> None:
    store, run = made(100, 1)
    kept = store.asked(lambda: list(run.entries_from(b"", lambda run, block: not run.has_history(block))))
    assert kept == [one for one in entries(100) if one[2]]
    assert run.missing_at(b"", lambda run, block: block < 100) is None
    again, run = made(100, 1)
    assert run.missing_at(b"", lambda run, block: block < 90) == BlockRange(run, 90, 100)
    young = again.asked(lambda: list(run.entries_from(b"", lambda run, at: run.is_unchanged_since(at, 200))))
    assert young == entries(100)[-1:], "the last has sequence 200"
    assert again.n_fetched == 1


def test_a_block_with_a_key_that_is_gone_is_never_unchanged() -> None:
    store = RunStore(VOLUME, 1)
    run = store.run_of([(b"a", None, ()), (b"b", encode_version(StoredVersion(7, None)), ())], BlockCache())
    assert not run.is_unchanged_since(0, 1 << 63)
    assert [run.is_unchanged_since(1, sequence) for sequence in (6, 7, 8)] == [False, False, True]


def test_who_passes_over_many_blocks_says_now_and_then_how_far_it_is() -> None:
    n_keys = 2 * PASSED_OVER + 10
    store, run = made(n_keys, 1)
    told = list(run.entries_from(b"", lambda run, block: True))
    assert told == [b"%06d" % (2 * number) for number in (PASSED_OVER, 2 * PASSED_OVER)]
    store.n_fetched = 0
    last = n_keys - 1
    mixed = store.asked(lambda: list(run.entries_from(b"", lambda run, block: block != last)))
    assert mixed == [*told, entry(2 * last)]
    assert store.n_fetched == 1
    assert run.missing_at(b"", lambda run, block: block != last) is None, "so many are not looked at at once"


def test_any_blocks_are_read_from_the_extents_that_hold_them_alone() -> None:
    store, run = made(60, 1)
    for first in range(0, run.n_blocks, 7):
        for last in range(first + 1, run.n_blocks + 1, 5):
            extents, start, end = run.extents_of(first, last)
            assert 0 <= start < EXTENT_BYTES
            length = sum(one.length for one in extents)
            assert length - EXTENT_BYTES < end <= length
            bodies = list(run.bodies(first, last, store.data_of(run, first, last)))
            assert len(bodies) == last - first


def test_so_many_bytes_ahead_are_one_block_at_least() -> None:
    _, run = made(60, 1)
    size = run.span(0, 1)[1]
    assert (run.n_ahead(0, 1), run.n_ahead(5, 1)) == (1, 6)
    assert run.n_ahead(3, run.span(3, 6)[1] - run.span(3, 6)[0]) == 6
    assert run.n_ahead(0, 1_000 * size) == run.n_blocks


def test_another_block_than_the_one_asked_for_is_not_taken() -> None:
    store, run = made(60, 1)
    other = store.data_of(run, 1, 2)
    with pytest.raises(Corrupt):
        run.keep(0, 1, other)


# --- cache


def test_a_cache_forgets_what_was_not_used_for_the_longest_time() -> None:
    cache = BlockCache(30)
    for block in range(3):
        cache.keep(1, block, b"x" * 10)
    assert cache.find(1, 0) is not None
    cache.keep(1, 3, b"x" * 10)
    assert [cache.find(1, block) is not None for block in range(4)] == [True, False, True, True]
    assert cache.size == 30


def test_a_block_kept_twice_counts_once_and_one_too_large_is_there_alone() -> None:
    cache = BlockCache(30)
    cache.keep(1, 0, b"x" * 10)
    cache.keep(1, 0, b"x" * 12)
    assert cache.size == 12
    cache.keep(1, 1, b"x" * 100)
    assert (cache.find(1, 0), cache.size) == (None, 100)
    assert cache.find(1, 1) is not None, "who asked for it must find it"


def test_a_run_that_is_not_needed_leaves_nothing_and_takes_nothing_of_others() -> None:
    store, cache = RunStore(VOLUME), BlockCache()
    one, other = (store.run_of(entries(5), cache) for _ in range(2))
    for run in (one, other):
        store.fetch(BlocksMissing((BlockRange(run, 0, 5),)))
    size = cache.size
    one.forget()
    assert cache.size == size // 2
    assert one.missing_at(b"") is not None
    assert list(other.entries_from(b"")) == entries(5)


@pytest.mark.parametrize("as_of", [3, 5, 6, 20])
def test_a_run_of_another_volume_says_what_was_visible_at_a_sequence(as_of: int) -> None:
    def version(sequence: int, meta: bytes | None = b"m") -> bytes:
        return encode_version(StoredVersion(sequence, meta))

    histories: dict[bytes, list[tuple[int, bytes | None]]] = {
        b"a": [(4, b"m")],
        b"b": [(6, b"m"), (2, b"m")],
        b"c": [(9, None), (5, b"m"), (3, b"m")],
        b"d": [(9, b"m"), (5, None), (3, b"m")],
        b"e": [],
    }
    packed: list[RunEntry] = []
    for key, history in histories.items():
        stored = [version(*one) for one in history]
        packed.append((key, stored[0], tuple(stored[1:])) if stored else (key, None, ()))
    store, cache = RunStore(VolumeId(2), 1), BlockCache()
    info = store.run_of(packed, cache).info
    run = store.open(msgspec.structs.replace(info, volume=VolumeId(2), as_of=as_of), cache)
    for key, history in histories.items():
        seen = next((one for one in history if one[0] <= as_of), None)
        expected = (None if seen is None or seen[1] is None else version(*seen), ())
        assert store.asked(lambda: find(run, key)) == expected, key  # noqa: B023
        assert (key, *expected) in store.entries_of(run)
    assert not any(run.has_history(block) for block in range(run.n_blocks))
