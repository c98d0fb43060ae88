"""Which version of which key is seen when, page by page, and what is purged."""

from __future__ import annotations

from time import process_time

import pytest

from blockstore.codec.messages import Extent
from blockstore.codec.run_file import RunEntry, StoredVersion, decode_version, encode_version, stored_from
from blockstore.ids import ChunkId, VolumeId
from blockstore.volume.versioned_map import (
    CHANGES_EXAMINED_MAX,
    KEYS_EXAMINED_MAX,
    PAGE_BYTES_MAX,
    VersionedMap,
)

CHUNK = ChunkId(VolumeId(1), 1, 1)


def version(sequence: int, meta: bytes | None = b"m") -> StoredVersion:
    return StoredVersion(sequence, meta, 1, 0, () if meta is None else (Extent(CHUNK, sequence, 1, 1, 0),))


def tombstone(sequence: int) -> StoredVersion:
    return version(sequence, None)


def sequences(versions: list[StoredVersion]) -> list[int]:
    return [one.sequence for one in versions]


def found(keys: VersionedMap, key: bytes, at: int = 0) -> int | None:
    one = keys.find(key, at)
    return None if one is None else one.sequence


# --- versions


def test_the_newest_is_seen_and_a_former_one_that_no_snapshot_sees_is_given_back() -> None:
    keys = VersionedMap()
    assert keys.put(b"k", version(1), 0) == []
    assert sequences(keys.put(b"k", version(2), 0)) == [1]
    assert found(keys, b"k") == 2
    assert keys.n_live == 1


def test_a_snapshot_sees_what_was_there_before_it() -> None:
    keys = VersionedMap()
    keys.put(b"k", version(1), 0)
    assert keys.put(b"k", version(3), 2) == []
    assert sequences(keys.put(b"k", version(4), 2)) == [3], "no snapshot lies between 3 and 4"
    assert (found(keys, b"k", 2), found(keys, b"k")) == (1, 4)


def test_a_key_that_came_after_a_snapshot_is_not_in_it() -> None:
    keys = VersionedMap()
    keys.put(b"k", version(3), 2)
    assert found(keys, b"k", 2) is None


def test_a_deleted_key_is_in_the_snapshots_before_and_not_in_the_head() -> None:
    keys = VersionedMap()
    keys.put(b"k", version(1), 0)
    keys.put(b"k", tombstone(3), 2)
    assert (found(keys, b"k"), found(keys, b"k", 2)) == (None, 1)
    assert (len(keys), keys.n_live) == (1, 0)
    keys.put(b"k", version(4), 2)
    assert (found(keys, b"k"), found(keys, b"k", 2), keys.n_live) == (4, 1, 1)


def test_a_deleted_key_that_no_snapshot_sees_is_gone() -> None:
    keys = VersionedMap()
    keys.put(b"k", version(1), 0)
    assert sequences(keys.put(b"k", tombstone(2), 0)) == [1]
    assert (len(keys), keys.n_live) == (0, 0)


# --- changes


def changes(keys: VersionedMap, since: int, until: int, **bounds: bytes) -> list[tuple[bytes, int, int]]:
    """Each with the sequences of both versions, 0 for none."""
    found, rest = keys.changes(since, until, bounds.get("start", b""), bounds.get("end", b""), 1_000)
    assert not rest
    return [(key, old.sequence if old else 0, new.sequence if new else 0) for key, old, new in found]


def test_a_diff_names_what_came_what_changed_and_what_went_in_both_directions() -> None:
    keys = VersionedMap()
    for sequence, key in enumerate([b"changed", b"gone", b"kept"], 1):
        keys.put(key, StoredVersion(sequence, b"old"), 0)
    keys.put(b"changed", StoredVersion(5, b"new"), 4)
    keys.put(b"came", StoredVersion(6, b"new"), 4)
    keys.put(b"gone", tombstone(7), 4)
    assert changes(keys, 4, 0) == [(b"came", 0, 6), (b"changed", 1, 5), (b"gone", 2, 0)]
    assert changes(keys, 0, 4) == [(b"came", 6, 0), (b"changed", 5, 1), (b"gone", 0, 2)]
    assert changes(keys, 4, 8) == changes(keys, 4, 0)
    assert changes(keys, 4, 4) == changes(keys, 0, 0) == []
    assert changes(keys, 4, 0, start=b"ch", end=b"gone") == [(b"changed", 1, 5)]
    assert changes(keys, 4, 0, start=b"d", end=b"e") == []


def test_the_same_content_is_no_change_whatever_its_sequence() -> None:
    keys = VersionedMap()
    keys.put(b"k", StoredVersion(1, b"m", 1, 7), 0)
    keys.put(b"k", StoredVersion(3, b"m", 1, 8), 2)
    keys.put(b"k", StoredVersion(4, b"m", 1, 7), 2)
    assert changes(keys, 2, 0) == []
    keys.put(b"k", StoredVersion(5, b"other", 1, 7), 2)
    assert changes(keys, 2, 0) == [(b"k", 1, 5)]


def test_a_page_of_changes_ends_at_its_bounds_and_the_next_goes_on_there() -> None:
    keys = VersionedMap()
    for index in range(CHANGES_EXAMINED_MAX + 2_000):
        keys.put(b"%06d" % index, StoredVersion(index + 1, b"m"), 0)
    snapshot = CHANGES_EXAMINED_MAX + 2_001
    assert keys.changes(0, snapshot, b"", b"", 10)[1], "so many are not looked at at once"
    for index in (5, 6, CHANGES_EXAMINED_MAX + 1_999):
        keys.put(b"%06d" % index, StoredVersion(snapshot + 1, b"x" * 300_000), snapshot)
    pages: list[list[bytes]] = []
    start = b""
    while True:
        found, start = keys.changes(snapshot, 0, start, b"", 10)
        pages.append([key for key, *_ in found])
        if not start:
            break
    assert pages == [[b"000005"], [b"000006"], [b"%06d" % (CHANGES_EXAMINED_MAX + 1_999)]]
    first, rest = keys.changes(snapshot, 0, b"", b"", 1)
    assert ([key for key, *_ in first], rest) == ([b"000005"], b"000006")


def test_stored_versions_sort_by_their_sequence() -> None:
    edges = [2**n + near for n in (5, 7, 8, 15, 16, 31, 32, 40, 62) for near in (-1, 0, 1)]
    for one in edges:
        for other in edges:
            assert (encode_version(version(one)) >= stored_from(other)) == (one >= other)


# --- purge


def history() -> VersionedMap:
    """Versions 1, 3 and 5, seen by snapshots 2, 4 and the head."""
    keys = VersionedMap()
    keys.put(b"k", version(1), 0)
    keys.put(b"k", version(3), 2)
    keys.put(b"k", version(5), 4)
    return keys


@pytest.mark.parametrize(
    ("snapshots", "freed"), [([2, 4], []), ([4], [1]), ([2], [3]), ([], [3, 1]), ([9], [3, 1])]
)
def test_purge_drops_exactly_what_no_snapshot_sees(snapshots: list[int], freed: list[int]) -> None:
    keys = history()
    assert sequences(keys.purge([b"k", b"unknown"], snapshots)) == freed
    assert found(keys, b"k") == 5
    for snapshot, seen in ((2, 1), (4, 3)):
        if snapshot in snapshots:
            assert found(keys, b"k", snapshot) == seen
    assert keys.keys_with_history() == ([] if len(freed) == 2 else [b"k"])


def test_purge_removes_a_deleted_key_with_its_last_former_version() -> None:
    keys = VersionedMap()
    keys.put(b"k", version(1), 0)
    keys.put(b"k", tombstone(3), 2)
    assert sequences(keys.purge([b"k"], [])) == [1]
    assert len(keys) == 0
    assert list(keys.freeze(whole=False).entries()) == [(b"k", None, ())], "and the next run says so"


# --- pages


def filled(n_keys: int, meta: bytes = b"m") -> VersionedMap:
    keys = VersionedMap()
    for number in range(n_keys):
        keys.put(b"%06d" % number, version(number + 1, meta), 0)
    return keys


def walk(keys: VersionedMap, prefix: bytes = b"", delimiter: bytes = b"", at: int = 0) -> list[list[bytes]]:
    """All pages, going on where each says."""
    pages: list[list[bytes]] = []
    start = b""
    while True:
        entries, start = keys.page(prefix, b"", delimiter, 1_000, at, start)
        pages.append([entry.key for entry in entries])
        if not start:
            return pages


def test_a_page_has_so_many_entries_and_says_where_the_rest_starts() -> None:
    keys = filled(5)
    entries, rest = keys.page(b"", b"", b"", 2, 0)
    assert ([entry.key for entry in entries], rest) == ([b"000000", b"000001"], b"000002")
    entries, rest = keys.page(b"", b"", b"", 3, 0, rest)
    assert ([entry.key for entry in entries], rest) == ([b"000002", b"000003", b"000004"], b"")


def test_a_page_goes_on_behind_a_key_also_one_that_is_gone() -> None:
    keys = filled(5)
    keys.put(b"000002", tombstone(9), 0)
    entries, _ = keys.page(b"", b"000002", b"", 1_000, 0)
    assert [entry.key for entry in entries] == [b"000003", b"000004"]


def test_a_page_of_much_metadata_is_shorter() -> None:
    pages = walk(filled(200, b"m" * 8_000))
    assert sum(len(page) for page in pages) == 200
    assert all(len(page) * 8_000 <= PAGE_BYTES_MAX for page in pages)


def test_a_page_that_finds_nothing_visible_ends_and_says_where_to_go_on() -> None:
    keys = filled(3 * KEYS_EXAMINED_MAX)
    keys.put(b"zz", version(1), 0)  # as old as the snapshot that is looked at
    pages = walk(keys, at=1)
    assert [key for page in pages for key in page] == [b"000000", b"zz"]
    assert len(pages) == 4


def test_folded_prefixes_go_on_in_the_middle_of_one() -> None:
    keys = VersionedMap()
    for number in range(KEYS_EXAMINED_MAX + 10):
        keys.put(b"a/%06d" % number, version(number + 2), 0)
    keys.put(b"a/x", version(1), 0)
    keys.put(b"b", version(1), 0)
    assert [key for page in walk(keys, delimiter=b"/", at=1) for key in page] == [b"a/", b"b"]
    assert walk(keys, delimiter=b"/") == [[b"a/", b"b"]]
    assert walk(keys, prefix=b"a/", delimiter=b"/", at=1)[-1] == [b"a/x"]


# --- checkpoints


def run_of(keys: VersionedMap, *, whole: bool = False) -> list[RunEntry]:
    return list(keys.freeze(whole=whole).entries())


def test_a_run_says_what_changed_since_the_last() -> None:
    keys = filled(3)
    assert len(run_of(keys)) == 3
    keys.put(b"000001", version(9), 0)
    assert [key for key, _, _ in run_of(keys)] == [b"000001"]
    assert run_of(keys) == []
    assert len(run_of(keys, whole=True)) == 3


@pytest.mark.parametrize("whole", [True, False])
def test_what_changes_after_a_freeze_is_not_in_it(whole: bool) -> None:
    keys = history()
    keys.put(b"l", version(6), 4)
    keys.put(b"m", version(7), 4)
    before: list[tuple[bytes, int, list[int]]] = [(b"k", 5, [3, 1]), (b"l", 6, []), (b"m", 7, [])]
    frozen = keys.freeze(whole=whole)
    keys.put(b"k", version(9), 4)
    keys.put(b"l", tombstone(10), 4)
    keys.put(b"n", version(11), 4)
    keys.purge([b"k"], [])
    seen = [
        (key, newest and decode_version(newest).sequence, [decode_version(one).sequence for one in older])
        for key, newest, older in frozen.entries()
    ]
    assert seen == before
    assert [key for key, _, _ in run_of(keys)] == [b"k", b"l", b"n"]


def test_keys_of_a_run_that_came_to_nothing_are_in_the_next() -> None:
    keys = filled(3)
    frozen = keys.freeze(whole=False)
    keys.put(b"x", version(9), 0)
    keys.unfreeze(frozen)
    assert len(run_of(keys)) == 4


def test_many_changed_keys_are_sorted_bit_by_bit() -> None:
    keys = VersionedMap()
    for number in range(50_000):
        keys.put(b"%06d" % (number * 7_919 % 50_000), version(number + 1), 0)
    frozen = keys.freeze(whole=False)
    n_steps = 0
    while frozen.sort_some():
        n_steps += 1
    assert n_steps == 3
    assert [key for key, _, _ in frozen.entries()] == [b"%06d" % number for number in range(50_000)]


def test_a_map_loads_from_its_runs_as_it_was() -> None:
    keys = history()
    keys.put(b"dead", version(6), 4)
    runs = [run_of(keys)]
    keys.put(b"dead", tombstone(8), 7)
    keys.put(b"new", version(9), 7)
    keys.put(b"gone", version(10), 7)
    runs.append(run_of(keys))
    keys.put(b"gone", tombstone(11), 7)
    keys.put(b"a", version(12), 7)
    runs.append(run_of(keys))
    again = VersionedMap()
    for entries in runs:
        again.load(entries)
    assert run_of(again, whole=True) == run_of(keys, whole=True)
    assert again.n_live == keys.n_live == 3
    assert (len(again), again.keys_with_history()) == (4, keys.keys_with_history())
    assert run_of(again) == [], "what was loaded has not changed"


def test_many_keys_load_and_freeze_in_short_steps() -> None:
    """A fifth of a million keys in a fifth of the time that a restart may take; and no step of it keeps
    heartbeats waiting. Counted in processor time, whatever else runs here."""
    n_keys = 200_000
    loaded, longest = VersionedMap(), 0.0
    packed = encode_version(version(1))
    began = last = process_time()
    for start in range(0, n_keys, 500):
        loaded.load([(b"%09d" % number, packed, ()) for number in range(start, start + 500)])
        now = process_time()
        longest, last = max(longest, now - last), now
    assert (loaded.n_live, last - began < 2.0) == (n_keys, True)
    for number in range(0, n_keys, 4):
        loaded.put(b"%09d" % number, version(number + 2), 0)
    last = process_time()
    for whole in (False, True):
        frozen = loaded.freeze(whole=whole)
        more = True
        while more:
            more = frozen.sort_some()
            now = process_time()
            longest, last = max(longest, now - last), now
    assert longest < 0.15
