"""Who sees which version of a key, page by page."""

from __future__ import annotations

import pytest

from blockstore.codec.journal_record import (
    DeleteRecord,
    JournalRecord,
    PutRecord,
    SnapshotDeleteRecord,
    SnapshotRecord,
)
from blockstore.codec.messages import ANY, KeyHistory, KeyVersion, ListChanges
from blockstore.errors import InvalidRequest, NotFound
from blockstore.ids import ChunkId, RequestId, SessionId, VolumeId
from blockstore.volume.history import key_history, list_changes
from blockstore.volume.state import VolumeState

VOLUME = VolumeId(1)


class Filled:
    """A volume without values: what its records say."""

    def __init__(self) -> None:
        self.state = VolumeState(VOLUME)

    def apply(self, record: JournalRecord) -> None:
        self.state.apply(record, self.state.sequence + 1, ChunkId(VOLUME, 1, 1), 0)

    def request(self) -> RequestId:
        return RequestId(SessionId(1), self.state.sequence + 1)

    def put(self, key: bytes, meta: bytes = b"m") -> None:
        self.apply(PutRecord(self.request(), 0, key, meta, 0, 0, ANY, True))

    def delete(self, key: bytes) -> None:
        self.apply(DeleteRecord(self.request(), 0, key, ANY))

    def snapshot(self, name: str) -> None:
        self.apply(SnapshotRecord(self.request(), 0, name, float(self.state.sequence + 1)))

    def forget(self, name: str) -> None:
        self.apply(SnapshotDeleteRecord(self.request(), 0, name))


def told(one: KeyVersion) -> tuple[int, str, str, int]:
    """Sequence (negative: deleted), first and last snapshot, and how many see it, the head among them."""
    first, last = (one.first.name, one.last.name) if one.first and one.last else ("", "")
    return -one.sequence if one.deleted else one.sequence, first, last, one.n_snapshots + one.is_head


def history(filled: Filled) -> list[tuple[int, str, str, int]]:
    return [told(one) for one in key_history(KeyHistory(b"k"), filled.state).versions]


def test_each_version_says_who_sees_it() -> None:
    filled = Filled()
    filled.put(b"k")  # 1
    filled.snapshot("a")
    filled.snapshot("b")
    filled.put(b"k")  # 4: seen by nobody in the end
    filled.delete(b"k")  # 5
    filled.snapshot("c")
    filled.put(b"k")  # 7
    assert history(filled) == [(7, "", "", 1), (-5, "c", "c", 1), (1, "a", "b", 2)]
    filled.delete(b"k")  # 8
    assert history(filled) == [(-8, "", "", 1), (-5, "c", "c", 1), (1, "a", "b", 2)]


def test_what_waits_to_be_purged_is_not_told() -> None:
    filled = Filled()
    filled.put(b"k")
    filled.snapshot("a")
    filled.put(b"k")
    filled.forget("a")
    assert history(filled) == [(3, "", "", 1)]
    filled.state.purge([b"k"])
    assert history(filled) == [(3, "", "", 1)]
    filled.delete(b"k")
    with pytest.raises(NotFound):
        history(filled)


def test_a_history_longer_than_a_page_goes_on_where_it_ended() -> None:
    filled = Filled()
    for index in range(100):
        filled.put(b"k", b"m" * 15_000)
        filled.snapshot(f"s{index}")
    found: list[int] = []
    before = n_pages = 0
    while True:
        page = key_history(KeyHistory(b"k", before), filled.state)
        found += [one.sequence for one in page.versions]
        n_pages, before = n_pages + 1, page.next
        if not before:
            break
    assert found == list(range(199, 0, -2))
    assert n_pages > 1


def test_what_cannot_be_answered_is_refused() -> None:
    filled = Filled()
    filled.put(b"k")
    for op in (ListChanges(1, 0), ListChanges(0, 1)):
        with pytest.raises(NotFound, match="snapshot at sequence 1"):
            list_changes(op, filled.state)
    for limit in (0, 1_001):
        with pytest.raises(InvalidRequest):
            list_changes(ListChanges(0, 0, limit=limit), filled.state)
    with pytest.raises(InvalidRequest):
        key_history(KeyHistory(b""), filled.state)
    with pytest.raises(NotFound):
        key_history(KeyHistory(b"other"), filled.state)


def test_changes_come_without_keys_twice_and_extents() -> None:
    filled = Filled()
    filled.snapshot("a")
    filled.put(b"k")
    page = list_changes(ListChanges(1, 0), filled.state)
    [change] = page.changes
    assert (change.key, change.old, page.next) == (b"k", None, b"")
    assert change.new is not None
    assert (change.new.key, change.new.sequence) == (b"", 2)
