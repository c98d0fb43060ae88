"""What each record does, live and in replay alike."""

from __future__ import annotations

import pytest

from blockstore.codec.journal_record import (
    AnchorFixedRecord,
    AnchorRecord,
    AnchorReleasedRecord,
    BatchRecord,
    ChunkDroppedRecord,
    ChunkOpenedRecord,
    ChunkSealedRecord,
    DeleteRecord,
    EpochRecord,
    FlattenedRecord,
    JournalRecord,
    MovedRecord,
    PutRecord,
    RestoreRecord,
    SnapshotDeleteRecord,
    SnapshotHoldRecord,
    SnapshotRecord,
)
from blockstore.codec.messages import ABSENT, ANY, Extent, Failed, Granted, KeyWrite, Ok, Placement, Written
from blockstore.codec.messages import SnapshotRecord as SnapshotAnswer
from blockstore.codec.run_file import Result
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.volume.state import ANCHORS_MAX, SNAPSHOTS_MAX, VIEWS_MAX, VolumeState

VOLUME = VolumeId(7)
JOURNAL = ChunkId(VOLUME, 1, 1)
DATA = ChunkId(VOLUME, 1, 2)
PLACEMENT = Placement(1, 1, (DiskId(1), DiskId(2)))
CLIENT = SessionId(9)


class Bench:
    def __init__(self) -> None:
        self.state = VolumeState(VOLUME)
        self.n_requests = 0
        self.apply(ChunkOpenedRecord(RequestId(SessionId(1), 1), 0, JOURNAL, PLACEMENT, 10_000, "journal"))
        self.apply(EpochRecord(1, 0.0))

    def request(self) -> RequestId:
        self.n_requests += 1
        return RequestId(CLIENT, self.n_requests)

    def apply(self, record: JournalRecord, offset: int = 0) -> Result:
        return self.state.apply(record, self.state.sequence + 1, JOURNAL, offset)

    def put(self, key: bytes = b"k", size: int = 10, expected: int = ANY) -> Result:
        record = PutRecord(self.request(), 0, key, b"m", size, 0, expected, inline=True)
        return self.apply(record, 100)

    def put_extents(self, *extents: Extent, key: bytes = b"k", expected: int = ANY) -> Result:
        size = sum(extent.length for extent in extents)
        return self.apply(PutRecord(self.request(), 0, key, b"m", size, 0, expected, False, extents))

    def delete(self, key: bytes = b"k", expected: int = ANY) -> Result:
        return self.apply(DeleteRecord(self.request(), 0, key, expected))

    def snapshot(self, name: str) -> Result:
        return self.apply(SnapshotRecord(self.request(), 0, name, 1.0))

    def grant(self) -> Result:
        return self.apply(ChunkOpenedRecord(self.request(), 0, DATA, PLACEMENT, 1_000, "data"))

    def live(self, chunk: ChunkId = JOURNAL) -> int:
        entry = self.state.chunks.find(chunk)
        assert entry is not None
        return entry.live_bytes


@pytest.fixture
def bench() -> Bench:
    return Bench()


def why(result: Result) -> str:
    assert isinstance(result, Failed)
    return result.name


def sequence(result: Result) -> int:
    assert isinstance(result, Written)
    return result.sequence


def test_a_request_is_applied_once_and_answered_alike(bench: Bench) -> None:
    record = PutRecord(RequestId(CLIENT, 50), 0, b"k", b"m", 10, 0, ABSENT, inline=True)
    first = bench.apply(record, 100)
    assert bench.apply(record, 200) == first
    version = bench.state.map.find(b"k")
    assert version is not None
    assert version.extents[0].offset == 100
    assert bench.live() == 10


def test_a_refusal_is_remembered_too(bench: Bench) -> None:
    bench.put()
    record = PutRecord(RequestId(CLIENT, 50), 0, b"k", b"m", 10, 0, ABSENT, inline=True)
    refused = bench.apply(record)
    assert why(refused) == "PreconditionFailed"
    bench.delete()
    assert bench.apply(record) == refused


def test_conditions_are_judged_by_what_is_there_when_their_turn_comes(bench: Bench) -> None:
    first = sequence(bench.put(expected=ABSENT))
    assert why(bench.put(expected=ABSENT)) == "PreconditionFailed"
    second = sequence(bench.put(expected=first))
    assert why(bench.put(expected=first)) == "PreconditionFailed"
    assert why(bench.delete(expected=first)) == "PreconditionFailed"
    bench.delete(expected=second)
    assert why(bench.put(expected=second)) == "PreconditionFailed"
    assert why(bench.delete()) == "NotFound"
    bench.put(expected=ABSENT)


def test_live_bytes_follow_overwriting_deleting_snapshots_and_purges(bench: Bench) -> None:
    bench.put(size=10)
    bench.put(size=20)
    assert bench.live() == 20
    bench.snapshot("s")
    bench.put(size=5)
    assert bench.live() == 25
    bench.delete()
    assert bench.live() == 20
    bench.apply(SnapshotDeleteRecord(bench.request(), 0, "s"))
    assert bench.state.history_to_purge
    assert bench.state.purge_some(b"", 100) == b""
    assert bench.live() == 0


def test_a_move_says_where_the_bytes_of_one_version_are_now(bench: Bench) -> None:
    bench.grant()
    first = sequence(bench.put(size=10))
    bench.snapshot("s")
    second = sequence(bench.put(size=20))
    to = (Extent(DATA, 0, 10, 10, 0),)
    bench.apply(MovedRecord(((b"k", first, to),)))
    old, new = bench.state.map.find(b"k", second - 1), bench.state.map.find(b"k")
    assert old is not None
    assert new is not None
    assert (old.sequence, old.extents) == (first, to)
    assert (new.sequence, new.extents[0].chunk) == (second, JOURNAL)
    assert (bench.live(JOURNAL), bench.live(DATA)) == (20, 10)


def test_a_move_of_what_was_replaced_or_deleted_meanwhile_says_nothing(bench: Bench) -> None:
    bench.grant()
    first = sequence(bench.put(size=10))
    bench.put(size=20)
    bench.apply(MovedRecord(((b"k", first, (Extent(DATA, 0, 10, 10, 0),)),)))
    version = bench.state.map.find(b"k")
    assert version is not None
    assert version.extents[0].chunk == JOURNAL
    assert (bench.live(JOURNAL), bench.live(DATA)) == (20, 0)
    bench.delete()
    bench.apply(MovedRecord(((b"k", version.sequence, (Extent(DATA, 0, 20, 20, 0),)),)))
    assert bench.state.map.find(b"k") is None
    assert (bench.live(JOURNAL), bench.live(DATA)) == (0, 0)


def test_a_snapshot_is_the_sequence_of_its_record_and_has_its_name_once(bench: Bench) -> None:
    bench.put()
    bench.snapshot("s")
    at = bench.state.sequence
    assert why(bench.snapshot("s")) == "AlreadyExists"
    assert bench.state.seen_sequences() == [at]
    assert bench.state.retains(at)
    assert bench.state.retains(0)
    assert not bench.state.retains(at - 1)
    bench.apply(SnapshotDeleteRecord(bench.request(), 0, "s"))
    assert not bench.state.retains(at)
    assert why(bench.apply(SnapshotDeleteRecord(bench.request(), 0, "s"))) == "NotFound"


def test_a_held_snapshot_stays_until_it_is_released(bench: Bench) -> None:
    def hold(held: bool, name: str = "s") -> Result:
        return bench.apply(SnapshotHoldRecord(bench.request(), 0, name, held))

    def delete() -> Result:
        return bench.apply(SnapshotDeleteRecord(bench.request(), 0, "s"))

    bench.snapshot("s")
    at = bench.state.sequence
    assert why(hold(True, "other")) == "NotFound"
    for _ in range(2):
        assert hold(True) == SnapshotAnswer("s", at, 1.0, True, 0)
        assert why(delete()) == "SnapshotHeld"
        again = VolumeState(VOLUME)
        again.load_head(bench.state.head(JOURNAL, 64, ()), ())
        assert again.snapshots == bench.state.snapshots
    for _ in range(2):
        assert hold(False) == SnapshotAnswer("s", at, 1.0, False, 0)
    assert delete() == Ok()
    assert not bench.state.retains(at)


def batch(bench: Bench, *changes: KeyWrite) -> Result:
    return bench.apply(BatchRecord(bench.request(), 0, changes), 100)


def test_a_batch_changes_all_its_keys(bench: Bench) -> None:
    bench.put(b"old", size=5)
    done = sequence(
        batch(
            bench,
            KeyWrite(b"a", b"m", 10, 1, ANY),
            KeyWrite(b"old", None, 0, 0, ANY),
            KeyWrite(b"empty", b"m", 0, 0, ABSENT),
            KeyWrite(b"b", b"m", 20, 2, ABSENT),
        )
    )
    assert sizes(bench, b"a", b"b", b"empty", b"old") == [10, 20, 0]
    assert (bench.live(), bench.state.map.n_live) == (30, 3)
    b = bench.state.map.find(b"b")
    assert b is not None
    assert (b.sequence, b.extents) == (done, (Extent(JOURNAL, 110, 20, 20, 2),))
    again = batch(bench, KeyWrite(b"a", b"m", 1, 1, done), KeyWrite(b"b", None, 0, 0, done))
    assert sequence(again) > done


def test_a_batch_is_refused_as_a_whole(bench: Bench) -> None:
    bench.put(b"there", size=5)
    fine = KeyWrite(b"a", b"m", 10, 1, ANY)
    assert why(batch(bench, fine, KeyWrite(b"there", b"m", 1, 1, ABSENT))) == "PreconditionFailed"
    assert why(batch(bench, fine, KeyWrite(b"there", None, 0, 0, 1))) == "PreconditionFailed"
    assert why(batch(bench, fine, KeyWrite(b"never", None, 0, 0, ANY))) == "NotFound"
    assert sizes(bench, b"a", b"there") == [5]
    assert bench.live() == 5


def test_a_batch_has_conditions_on_keys_that_it_does_not_change(bench: Bench) -> None:
    bench.put(b"writer")
    here = bench.state.sequence
    fine = KeyWrite(b"a", b"m", 10, 1, ANY)

    def change(*conditions: tuple[bytes, int]) -> Result:
        return bench.apply(BatchRecord(bench.request(), 0, (fine,), conditions), 100)

    for _ in range(2):
        sequence(change((b"writer", here), (b"nobody", ABSENT)))
    found = bench.state.map.find(b"writer")
    assert found is not None
    assert found.sequence == here
    for refused in ((b"writer", here + 1), (b"writer", ABSENT), (b"nobody", here)):
        assert why(change((b"writer", here), refused)) == "PreconditionFailed"


def test_a_batch_refers_to_bytes_in_granted_chunks(bench: Bench) -> None:
    bench.grant()
    placed = KeyWrite(b"a", b"m", 700, 1, ANY, (Extent(DATA, 0, 700, 700, 1),))
    inline = KeyWrite(b"b", b"m", 10, 2, ANY)
    sequence(batch(bench, placed, inline))
    a, b = bench.state.map.find(b"a"), bench.state.map.find(b"b")
    assert a is not None
    assert b is not None
    assert (a.extents, b.extents) == (placed.extents, (Extent(JOURNAL, 100, 10, 10, 2),))
    entry = bench.state.chunks.find(DATA)
    assert entry is not None
    assert (entry.live_bytes, entry.committed, entry.named) == (700, 700, 700)
    beyond = KeyWrite(b"c", b"m", 700, 1, ANY, (Extent(DATA, 1 << 40, 700, 700, 1),))
    assert why(batch(bench, inline, beyond)) == "StaleEpoch"
    foreign = KeyWrite(b"c", b"m", 7, 1, ANY, (Extent(JOURNAL, 0, 7, 7, 1),))
    assert why(batch(bench, inline, foreign)) == "InvalidRequest"
    assert sizes(bench, b"c") == []


def restore(bench: Bench, at: int, *keys: bytes, targets: tuple[bytes, ...] = ()) -> Result:
    return bench.apply(RestoreRecord(bench.request(), 0, keys, at, targets))


def sizes(bench: Bench, *keys: bytes) -> list[int]:
    return [found.size for key in keys if (found := bench.state.map.find(key))]


def test_a_restore_brings_back_what_a_snapshot_shows(bench: Bench) -> None:
    bench.put(b"changed", size=10)
    bench.put(b"deleted", size=20)
    kept = sequence(bench.put(b"kept", size=1))
    bench.snapshot("s")
    at = bench.state.sequence
    bench.put(b"changed", size=100)
    bench.delete(b"deleted")
    bench.put(b"added", size=200)
    assert bench.live() == 331
    done = sequence(restore(bench, at, b"added", b"changed", b"deleted", b"kept", b"never"))
    assert sizes(bench, b"added", b"changed", b"deleted", b"kept") == [10, 20, 1]
    assert bench.state.map.n_live == 3
    untouched, changed = bench.state.map.find(b"kept"), bench.state.map.find(b"changed")
    assert (untouched and untouched.sequence, changed and changed.sequence) == (kept, done)
    assert bench.live() == 61, "10 and 20 are referred to twice now"
    bench.apply(SnapshotDeleteRecord(bench.request(), 0, "s"))
    assert bench.state.purge_some(b"", 100) == b""
    assert bench.live() == 31


def test_a_restore_elsewhere_leaves_the_source(bench: Bench) -> None:
    bench.put(b"a", size=10)
    bench.snapshot("s")
    at = bench.state.sequence
    bench.put(b"a", size=20)
    bench.put(b"c", size=5)
    restore(bench, at, b"a", b"b", targets=(b"b", b"c"))
    assert sizes(bench, b"a", b"b", b"c") == [20, 10], "b was not there then, so c is not now"


def test_a_restore_needs_its_snapshot_when_its_turn_comes(bench: Bench) -> None:
    bench.put()
    bench.snapshot("s")
    at = bench.state.sequence
    bench.delete()
    record = RestoreRecord(bench.request(), 0, (b"k",), at)
    first = bench.apply(record)
    bench.delete()
    assert bench.apply(record) == first, "a repetition is answered, not applied"
    assert sizes(bench, b"k") == []
    bench.apply(SnapshotDeleteRecord(bench.request(), 0, "s"))
    for gone in (at, 0):
        assert why(restore(bench, gone, b"k")) == "NotFound"
    assert sizes(bench, b"k") == []


def test_a_volume_keeps_so_many_snapshots(bench: Bench) -> None:
    for number in range(SNAPSHOTS_MAX):
        bench.snapshot(f"s{number}")
    assert why(bench.snapshot("one more")) == "InvalidRequest"


def test_a_granted_chunk_takes_its_sessions_extents_below_its_end(bench: Bench) -> None:
    granted = bench.grant()
    assert isinstance(granted, Granted)
    assert granted.chunk == DATA
    bench.put_extents(Extent(DATA, 0, 10, 10, 0))
    bench.apply(ChunkSealedRecord(DATA, 20))
    bench.put_extents(Extent(DATA, 10, 10, 10, 0), key=b"l")
    assert bench.live(DATA) == 20
    assert why(bench.put_extents(Extent(DATA, 20, 10, 10, 0))) == "StaleEpoch"
    assert why(bench.put_extents(Extent(JOURNAL, 0, 10, 10, 0))) == "InvalidRequest"
    assert bench.live(DATA) == 20


def test_an_open_chunk_of_an_earlier_epoch_takes_nothing(bench: Bench) -> None:
    bench.grant()
    bench.apply(EpochRecord(2, 0.0))
    assert why(bench.put_extents(Extent(DATA, 0, 10, 10, 0))) == "StaleEpoch"


def test_a_refused_puts_extents_count_as_named(bench: Bench) -> None:
    bench.grant()
    bench.put()
    assert why(bench.put_extents(Extent(DATA, 0, 10, 10, 0), expected=ABSENT)) == "PreconditionFailed"
    bench.apply(ChunkSealedRecord(DATA, 10))
    assert [chunk for chunk, _ in bench.state.chunks.dead_chunks(frozenset())] == [DATA]


def test_a_dropped_chunk_is_gone(bench: Bench) -> None:
    bench.grant()
    bench.apply(ChunkSealedRecord(DATA, 10))
    assert bench.apply(ChunkDroppedRecord(DATA)) == Ok()
    assert bench.state.chunks.find(DATA) is None
    assert why(bench.put_extents(Extent(DATA, 0, 10, 10, 0))) == "StaleEpoch"


def test_a_head_holds_everything_but_the_map(bench: Bench) -> None:
    bench.grant()
    bench.put()
    bench.snapshot("s")
    bench.apply(EpochRecord(1, 0.0))
    again = VolumeState(VOLUME)
    again.load_head(bench.state.head(JOURNAL, 64, ()), ())
    assert again.sequence == bench.state.sequence
    assert again.epoch == 1
    assert again.snapshots == bench.state.snapshots
    assert again.newest_seen == bench.state.newest_seen
    assert again.retains(bench.state.newest_seen)
    assert again.sessions.to_stored() == bench.state.sessions.to_stored()
    assert again.chunks.to_stored() == bench.state.chunks.to_stored()
    assert again.map.n_live == bench.state.map.n_live == 1
    assert again.history_to_purge, "a purge may have been cut short"


def test_a_view_keeps_what_it_shows_until_nobody_uses_it(bench: Bench) -> None:
    bench.put(b"k", 10)
    at = bench.state.open_view(until=5.0)
    bench.put(b"k", 20)
    assert bench.state.retains(at)
    then, now = bench.state.map.find(b"k", at), bench.state.map.find(b"k")
    assert then is not None
    assert now is not None
    assert (then.size, now.size, bench.live()) == (10, 20, 30)
    bench.state.prolong_view(at, 7.0)
    bench.state.end_views(6.0)
    assert bench.state.retains(at)
    bench.state.end_views(7.0)
    assert not bench.state.retains(at)
    assert bench.state.history_to_purge
    bench.state.purge_some(b"", 100)
    assert bench.live() == 20


def test_of_too_many_views_the_one_that_ends_first_ends(bench: Bench) -> None:
    views: list[int] = []
    for number in range(VIEWS_MAX + 1):
        bench.put(b"k", 1)
        views.append(bench.state.open_view(until=100.0 - number))
    assert [bench.state.retains(at) for at in views[-2:]] == [False, True]
    assert all(bench.state.retains(at) for at in views[:-2])
    bench.state.prolong_view(views[-2], 200.0)
    assert not bench.state.retains(views[-2]), "what has ended does not come back"


# --- clones


def set_anchor(bench: Bench, snapshot: str = "s") -> Result:
    return bench.apply(AnchorRecord(bench.request(), 0, snapshot, "clone"))


def test_an_anchor_keeps_all_chunks_while_its_clone_is_made_and_then_those_of_before(bench: Bench) -> None:
    bench.put()
    bench.snapshot("s")
    anchor = set_anchor(bench)
    assert anchor == Written(bench.state.sequence)
    bench.grant()
    opened = bench.state.chunks.find(DATA)
    assert opened is not None
    chunks = bench.state.chunks
    assert chunks.kept_to > opened.opened == bench.state.sequence
    assert isinstance(anchor, Written)
    bench.apply(AnchorFixedRecord(bench.request(), 0, anchor.sequence))
    assert chunks.kept_to == bench.state.sequence
    for _ in range(2):  # it is fixed once
        bench.apply(AnchorFixedRecord(bench.request(), 0, anchor.sequence))
        assert chunks.kept_to < bench.state.sequence
    again = VolumeState(VOLUME)
    again.load_head(bench.state.head(JOURNAL, 64, ()), ())
    assert again.anchors == bench.state.anchors
    assert again.chunks.kept_to == chunks.kept_to
    bench.apply(AnchorReleasedRecord(anchor.sequence))
    assert chunks.kept_to < 0
    assert bench.state.anchors == {}


def test_an_anchor_needs_its_snapshot_and_there_are_not_too_many(bench: Bench) -> None:
    assert why(set_anchor(bench)) == "NotFound"
    bench.snapshot("s")
    for _ in range(ANCHORS_MAX):
        assert isinstance(set_anchor(bench), Written)
    assert why(set_anchor(bench)) == "InvalidRequest"


def test_what_is_being_cloned_is_kept_when_its_snapshot_is_deleted(bench: Bench) -> None:
    bench.put()
    bench.snapshot("s")
    at = bench.state.sequence
    anchor = set_anchor(bench)
    assert isinstance(anchor, Written)
    bench.apply(SnapshotDeleteRecord(bench.request(), 0, "s"))
    bench.put(size=20)
    assert bench.state.purge_some(b"", 10) == b""
    found = bench.state.map.find(b"k", at)
    assert found is not None
    assert found.size == 10
    assert not bench.state.retains(at)  # for readers it is gone
    bench.apply(AnchorFixedRecord(bench.request(), 0, anchor.sequence))
    bench.state.purge_some(b"", 10)
    assert bench.state.map.find(b"k", at) is None


def test_nothing_is_independent_while_a_clone_of_it_is_made(bench: Bench) -> None:
    other = ChunkId(VolumeId(2), 1, 1)
    bench.state.chunks.foreign[other] = PLACEMENT
    bench.snapshot("s")
    anchor = set_anchor(bench)
    assert isinstance(anchor, Written)
    bench.apply(FlattenedRecord())
    assert other in bench.state.chunks.foreign
    bench.apply(AnchorFixedRecord(bench.request(), 0, anchor.sequence))
    bench.apply(FlattenedRecord())
    assert not bench.state.chunks.foreign
