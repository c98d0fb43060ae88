"""Which version of which key is seen when, page by page, and what is purged, in memory and in runs alike."""

from __future__ import annotations

import pytest

from blockstore.codec.messages import Extent
from blockstore.codec.run_file import RunEntry, StoredVersion, decode_version, encode_version, stored_from
from blockstore.ids import ChunkId, VolumeId
from blockstore.volume import versioned_map
from blockstore.volume.sorted_run import PASSED_OVER, BlockCache, BlocksMissing
from blockstore.volume.versioned_map import (
    CHANGES_EXAMINED_MAX,
    KEYS_EXAMINED_MAX,
    PAGE_BYTES_MAX,
    VersionedMap,
)
from tests.map_runs import RunStore

VOLUME = VolumeId(1)
CHUNK = ChunkId(VOLUME, 1, 1)
OTHER = ChunkId(VOLUME, 1, 2)


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
    assert (len(keys.versions(b"k")), keys.n_live) == (2, 0)
    keys.put(b"k", version(4), 2)
    assert (found(keys, b"k"), found(keys, b"k", 2), keys.n_live) == (4, 1, 1)


def test_a_deleted_key_that_no_snapshot_sees_is_gone() -> None:
    keys = VersionedMap()
    keys.put(b"k", version(1), 0)
    assert sequences(keys.put(b"k", tombstone(2), 0)) == [1]
    assert (keys.versions(b"k"), keys.n_live, keys.n_changed) == ([], 0, 0)


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
    assert keys.with_history(b"", 100) == ([] if len(freed) == 2 else [b"k"], b"")


def test_purge_removes_a_deleted_key_with_its_last_former_version() -> None:
    keys, runs = VersionedMap(), RunStore(VOLUME)
    keys.put(b"k", version(1), 0)
    keys.put(b"k", tombstone(3), 2)
    runs.flush(keys)
    assert sequences(keys.purge([b"k"], [])) == [1]
    assert keys.versions(b"k") == []
    assert run_of(keys) == [(b"k", None, ())], "the next run says so"


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


def test_a_page_that_finds_nothing_visible_ends_sooner_where_there_is_much_metadata() -> None:
    """What it looks at must fit the cache of blocks."""
    pages = walk(filled(600, b"m" * 8_000), at=1)
    assert [key for page in pages for key in page] == [b"000000"]
    assert len(pages) == 3


def test_folded_prefixes_go_on_in_the_middle_of_one() -> None:
    keys = VersionedMap()
    for number in range(KEYS_EXAMINED_MAX + 10):
        keys.put(b"a/%06d" % number, version(number + 2), 0)
    keys.put(b"a/x", version(1), 0)
    keys.put(b"b", version(1), 0)
    assert [key for page in walk(keys, delimiter=b"/", at=1) for key in page] == [b"a/", b"b"]
    assert walk(keys, delimiter=b"/") == [[b"a/", b"b"]]
    assert walk(keys, prefix=b"a/", delimiter=b"/", at=1)[-1] == [b"a/x"]


# --- runs


def run_of(keys: VersionedMap) -> list[RunEntry]:
    """What the next run would say. It comes to nothing."""
    entries = list(keys.freeze().entries_from(b""))
    keys.unfreeze()
    return entries


def forgetful(known_keys_max: int = 0) -> VersionedMap:
    """Every look-up goes to the runs, and their blocks are there only as long as one question needs them."""
    return VersionedMap(known_keys_max, BlockCache(2_000))


def test_a_run_says_what_changed_since_the_last() -> None:
    keys, runs = filled(3), RunStore(VOLUME)
    assert len(run_of(keys)) == 3
    runs.flush(keys)
    keys.put(b"000001", version(9), 0)
    assert [key for key, _, _ in run_of(keys)] == [b"000001"]
    runs.flush(keys)
    assert (run_of(keys), keys.n_changed, len(keys.runs)) == ([], 0, 2)


def test_what_changes_after_a_freeze_is_not_in_it() -> None:
    keys, runs = history(), RunStore(VOLUME)
    keys.put(b"l", version(6), 4)
    keys.put(b"m", version(7), 4)
    before: list[tuple[bytes, int, list[int]]] = [(b"k", 5, [3, 1]), (b"l", 6, []), (b"m", 7, [])]
    frozen = keys.freeze()
    keys.put(b"k", version(9), 4)
    keys.put(b"l", tombstone(10), 4)
    keys.put(b"n", version(11), 4)
    keys.purge([b"k"], [])
    entries = list(frozen.entries_from(b""))
    seen = [
        (key, newest and decode_version(newest).sequence, [decode_version(one).sequence for one in older])
        for key, newest, older in entries
    ]
    assert seen == before
    keys.on_run_written(runs.run_of(entries, keys.cache))
    assert [key for key, _, _ in run_of(keys)] == [b"k", b"l", b"n"]
    assert [found(keys, key) for key in (b"k", b"l", b"m", b"n")] == [9, None, 7, 11]


def test_keys_of_a_run_that_came_to_nothing_are_in_the_next() -> None:
    keys = filled(3)
    keys.freeze()
    keys.put(b"x", version(9), 0)
    keys.put(b"000001", version(10), 0)
    keys.unfreeze()
    assert len(run_of(keys)) == 4
    assert [found(keys, key) for key in (b"000000", b"000001", b"x")] == [1, 10, 9]


def test_many_changed_keys_are_in_order() -> None:
    keys = VersionedMap()
    for number in range(50_000):
        keys.put(b"%06d" % (number * 7_919 % 50_000), version(number + 1), 0)
    assert [key for key, _, _ in run_of(keys)] == [b"%06d" % number for number in range(50_000)]


def test_a_map_is_the_same_whether_read_from_memory_or_from_runs() -> None:
    keys, runs = history(), RunStore(VOLUME)
    keys.put(b"dead", version(6), 4)
    runs.flush(keys)
    runs.asked(lambda: keys.put(b"dead", tombstone(8), 7))
    keys.put(b"new", version(9), 7)
    keys.put(b"gone", version(10), 7)
    runs.flush(keys)
    runs.asked(lambda: keys.put(b"gone", tombstone(11), 7))
    keys.put(b"a", version(12), 7)
    runs.flush(keys)
    again = forgetful()
    again.load([runs.open(run.info, again.cache) for run in keys.runs], keys.n_live)
    for at in (0, 2, 4, 7):
        for key in (b"a", b"dead", b"gone", b"k", b"new", b"other"):
            assert runs.asked(lambda: found(again, key, at)) == found(keys, key, at), (key, at)  # noqa: B023
        pages = runs.asked(lambda: walk(keys, at=at))  # noqa: B023
        assert runs.asked(lambda: walk(again, at=at)) == pages  # noqa: B023
    assert again.n_live == 3
    assert runs.asked(lambda: again.with_history(b"", 100)) == ([b"dead", b"k"], b"")
    assert run_of(again) == [], "what was loaded has not changed"
    assert runs.asked(lambda: changes(again, 4, 0)) == [(b"a", 0, 12), (b"new", 0, 9)]


def test_whoever_needs_a_block_is_told_which_and_nothing_has_changed() -> None:
    keys, runs = forgetful(), RunStore(VOLUME)
    keys.put(b"k", version(1), 0)
    keys.put(b"l", version(2), 0)
    run = runs.flush(keys)
    assert run is not None
    with pytest.raises(BlocksMissing) as missing:
        keys.put(b"l", version(3), 0)
    assert missing.value.ranges == ((run, 1, 2),)
    with pytest.raises(BlocksMissing) as missing:
        keys.find_many([b"l", b"k", b"l"])
    assert missing.value.ranges == ((run, 1, 2), (run, 0, 1)), "all that is missing, each once"
    assert (keys.n_changed, keys.n_live) == (0, 2)
    runs.fetch(missing.value)
    assert sequences(keys.put(b"l", version(3), 0)) == [2]


def test_keys_that_were_written_by_this_owner_are_known_up_to_a_number() -> None:
    keys, runs = VersionedMap(), RunStore(VOLUME)
    for number in range(100):
        runs.asked(lambda: keys.put(b"%06d" % number, version(number + 1), 0))  # noqa: B023
        if number % 30 == 29:
            runs.flush(keys)
    assert [found(keys, b"%06d" % number) for number in range(100)] == list(range(1, 101))


# --- pins


def test_a_pinned_state_stays_in_memory_whatever_becomes_of_its_run() -> None:
    keys, runs = forgetful(), RunStore(VOLUME)
    keys.put(b"k", version(1), 0)
    keys.put(b"l", version(2), 0)
    runs.flush(keys)
    with pytest.raises(BlocksMissing):
        keys.pin([b"k"])
    runs.asked(lambda: keys.pin([b"k"]))
    keys.pin([b"k"])
    keys.put(b"k", version(3), 0)
    keys.freeze()
    assert found(keys, b"k") == 3
    keys.unfreeze()
    runs.flush(keys)
    for number in range(50):  # others come and go
        keys.put(b"m%d" % number, version(number + 4), 0)
    runs.flush(keys)
    forget_blocks(keys)
    assert found(keys, b"k") == 3
    keys.unpin([b"k"])
    assert sequences(keys.put(b"k", version(99), 0)) == [3], "a record that is still on its way"
    keys.unpin([b"k"])
    runs.flush(keys)
    forget_blocks(keys)
    with pytest.raises(BlocksMissing):
        keys.find(b"k")


def forget_blocks(keys: VersionedMap) -> None:
    for run in keys.runs:
        run.forget()


@pytest.mark.parametrize("n_before", [0, 1])
def test_that_a_pinned_key_is_not_there_stays_known_when_runs_come(n_before: int) -> None:
    """Also the first run: its filter takes one key in a hundred that it does not have for its own."""
    names = [b"absent-%d" % number for number in range(1_000)]
    keys, runs = forgetful(), RunStore(VOLUME, 500)
    for _ in range(n_before):
        keys.put(b"a", version(1), 0)
        runs.flush(keys)
        runs.asked(lambda: keys.find_many(names))
    keys.pin(names)
    keys.put(names[0], version(2), 0)
    keys.put(names[0], tombstone(3), 0)
    for number in range(100):
        runs.asked(lambda: keys.put(b"aa-%d" % number, version(number + 4), 0))  # noqa: B023
    runs.flush(keys)
    assert keys.find_many(names) == [None] * 1_000


def test_a_pin_that_fails_pins_nothing() -> None:
    keys, runs = forgetful(), RunStore(VOLUME)
    keys.put(b"k", version(1), 0)
    keys.put(b"l", version(2), 0)
    runs.flush(keys)
    runs.asked(lambda: keys.find(b"k"))
    with pytest.raises(BlocksMissing):
        keys.pin([b"k", b"l"])
    forget_blocks(keys)
    with pytest.raises(BlocksMissing):
        keys.find(b"k")


# --- what blocks are passed over


def test_a_place_that_an_older_run_names_is_not_named_after_a_move() -> None:
    keys, runs = VersionedMap(), RunStore(VOLUME)
    keys.put(b"k", version(1), 0)
    keys.put(b"l", version(2), 0)
    runs.flush(keys)
    keys.move(b"k", 1, (Extent(OTHER, 0, 1, 1, 0),))
    for _ in range(2):  # from the memtable; and from a run, which is not looked at, being of another chunk
        moved = runs.asked(lambda: keys.placed_in(frozenset([CHUNK]), b"", 10))
        assert [(key, one.sequence) for key, one in moved[0]] == [(b"l", 2)]
        here, rest = runs.asked(lambda: keys.placed_in(frozenset([OTHER]), b"", 10))
        assert ([(key, one.sequence) for key, one in here], rest) == ([(b"k", 1)], b"")
        runs.flush(keys)


def test_places_come_so_many_keys_at_once() -> None:
    keys, runs = filled(5), RunStore(VOLUME)
    runs.flush(keys)
    first, rest = runs.asked(lambda: keys.placed_in(frozenset([CHUNK]), b"", 3))
    assert ([key for key, _ in first], rest) == ([b"000000", b"000001", b"000002"], b"000003")


def test_a_diff_reads_no_block_in_which_nothing_is_young_enough_and_sees_what_is_gone() -> None:
    keys, runs = forgetful(), RunStore(VOLUME)
    for number in range(100):
        keys.put(b"%06d" % number, StoredVersion(number + 1, b"m"), 0)
    keys.put(b"gone", StoredVersion(150, b"m"), 101)
    runs.flush(keys)
    runs.asked(lambda: keys.put(b"gone", StoredVersion(151, None), 101))
    assert keys.versions(b"gone") == [], "no snapshot sees it any more"
    runs.flush(keys)
    runs.asked(lambda: keys.put(b"000050", StoredVersion(152, b"new"), 101))
    runs.flush(keys)
    forget_blocks(keys)
    runs.n_fetched = 0
    assert runs.asked(lambda: changes(keys, 101, 0)) == [(b"000050", 51, 152)], "the other came and went"
    assert runs.n_fetched <= 5
    edge = forgetful()
    edge.put(b"k", StoredVersion(7, b"old"), 0)
    edge.put(b"k", StoredVersion(9, b"new"), 8)
    runs.flush(edge)
    assert runs.asked(lambda: changes(edge, 8, 0)) == [(b"k", 7, 9)], "the first sequence behind the snapshot"
    assert runs.asked(lambda: changes(edge, 8, 9)) == [(b"k", 7, 9)]


def test_a_diff_sees_what_is_gone_in_a_block_where_all_else_is_old() -> None:
    """Moves bring old versions into young runs."""
    keys, runs = forgetful(), RunStore(VOLUME, 1_000)
    keys.put(b"a", version(1), 0)
    keys.put(b"gone", version(3), 2)
    runs.flush(keys)
    runs.asked(lambda: keys.move(b"a", 1, (Extent(OTHER, 0, 1, 1, 0),)))
    runs.asked(lambda: keys.put(b"gone", tombstone(4), 2))
    runs.flush(keys)
    assert runs.asked(lambda: changes(keys, 2, 0)) == []


def test_no_change_is_told_twice_where_a_page_ends_among_blocks_that_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(versioned_map, "CHANGES_EXAMINED_MAX", 20)
    n_keys = 2 * PASSED_OVER + 10
    keys, runs = filled(n_keys), RunStore(VOLUME)
    runs.flush(keys)
    changed = b"%06d" % PASSED_OVER  # up to there is passed over before anybody is told
    keys.put(changed, version(n_keys + 2, b"new"), n_keys + 1)
    pages: list[list[bytes]] = []
    start = b""
    while True:
        found, start = runs.asked(lambda: keys.changes(n_keys + 1, 0, start, b"", 10))  # noqa: B023
        pages.append([key for key, *_ in found])
        if not start:
            break
    assert [key for page in pages for key in page] == [changed]
    assert len(pages) > 1
    assert runs.n_fetched == 0


def test_only_blocks_with_history_are_read_for_a_purge_and_it_is_done_once() -> None:
    keys, runs = forgetful(), RunStore(VOLUME)
    for number in range(200):
        keys.put(b"%06d" % number, version(number + 1), 0)
    for number in (20, 150):
        keys.put(b"%06d" % number, version(number + 300), 250)
    runs.flush(keys)
    assert runs.asked(lambda: keys.with_history(b"", 1)) == ([b"000020"], b"000150")
    names, rest = runs.asked(lambda: keys.with_history(b"", 100))
    assert (names, rest) == ([b"000020", b"000150"], b"")
    assert runs.n_fetched < 50
    assert sequences(runs.asked(lambda: keys.purge(names, [250]))) == []
    assert sequences(runs.asked(lambda: keys.purge(names, []))) == [21, 151]
    runs.flush(keys)
    again, _ = runs.asked(lambda: keys.with_history(b"", 100))
    assert set(again) <= set(names), "an older run says so still"
    assert runs.asked(lambda: keys.purge(again, [])) == [], "but bytes are given back once"
