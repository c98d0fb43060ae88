"""What a takeover decides: whom to ask, where chunks end, what is replayed from where."""

from __future__ import annotations

import pytest

from blockstore.codec.control_record import JournalChunk
from blockstore.codec.journal_record import (
    ChunkOpenedRecord,
    DeleteRecord,
    EpochRecord,
    JournalRecord,
    build_batch,
    encode_header,
)
from blockstore.codec.messages import ANY, FragmentState, Placement
from blockstore.codec.run_file import Root, StoredVersion
from blockstore.errors import Corrupt
from blockstore.ids import ChunkId, DiskId, NodeId, RequestId, SessionId, VolumeId
from blockstore.volume.state import VolumeState
from blockstore.volume.takeover import (
    Fencing,
    Replay,
    Sought,
    ended_journal,
    journal_ends,
    open_data,
    open_tail,
)
from blockstore.volume.versioned_map import VersionedMap
from tests.map_runs import RunStore

VOLUME = VolumeId(7)
DISKS = (DiskId(11), DiskId(12), DiskId(13))
PLACEMENT = Placement(1, 2, DISKS)
JOURNAL, DATA = ChunkId(VOLUME, 1, 1), ChunkId(VOLUME, 1, 2)
SESSION = SessionId(5)


def node_of(disk: DiskId) -> NodeId:
    return NodeId(disk - 10)


def told(disk: int, length: int, *, chunk: ChunkId = JOURNAL, doubtful: bool = False) -> FragmentState:
    return FragmentState(DiskId(disk), chunk, length, sealed=False, doubtful=doubtful)


def opened(chunk: ChunkId, purpose: str, number: int) -> ChunkOpenedRecord:
    return ChunkOpenedRecord(RequestId(SESSION, number), 0, chunk, PLACEMENT, 1_000, purpose)


def test_one_answer_is_enough_and_the_smallest_counts() -> None:
    fencing = Fencing({JOURNAL: Sought(DISKS, 0)}, node_of)
    assert fencing.to_ask() == {NodeId(1): (JOURNAL,), NodeId(2): (JOURNAL,), NodeId(3): (JOURNAL,)}
    assert not fencing.is_settled
    fencing.on_fenced(NodeId(1), [told(11, 50)])
    assert fencing.is_settled
    assert fencing.all_told
    assert fencing.ends() == {JOURNAL: 50}
    assert set(fencing.to_ask()) == {NodeId(2), NodeId(3)}
    fencing.on_fenced(NodeId(2), [told(12, 40)])
    assert fencing.ends() == {JOURNAL: 40}
    fencing.on_fenced(NodeId(3), [])  # it has acknowledged nothing of it
    assert fencing.ends() == {JOURNAL: 0}


def test_a_member_that_has_less_than_is_known_to_be_acknowledged_decides_nothing() -> None:
    fencing = Fencing({JOURNAL: Sought(DISKS, 30)}, node_of)
    fencing.on_fenced(NodeId(1), [])
    assert fencing.all_told
    assert not fencing.is_settled
    fencing.on_fenced(NodeId(2), [told(12, 35)])
    assert fencing.ends() == {JOURNAL: 35}


def test_the_tail_is_what_has_no_end_and_the_checkpoint_is_its_floor() -> None:
    journal = (JournalChunk(JOURNAL, DISKS, 90), JournalChunk(DATA, DISKS, -1))
    root = Root(1, 5, 0, (), {}, DATA, 25)
    assert open_tail(journal, root) == {DATA: Sought(DISKS, 25)}
    assert open_tail(journal, None) == {DATA: Sought(DISKS, 0)}
    assert ended_journal(journal, {DATA: 30}) == (journal[0], JournalChunk(DATA, DISKS, 30))


def test_a_journal_chunk_ends_where_control_says_whatever_its_members_say_later() -> None:
    """An owner recorded 571 from the one member that answered it, and died before its journal said so. To the
    next the chunk is open still; the others, who have 458, must not be asked for its end once more."""
    state = VolumeState(VOLUME)
    state.apply(opened(JOURNAL, "journal", 1), 1, JOURNAL, 0)
    state.apply(opened(DATA, "data", 2), 2, JOURNAL, 0)
    journal = (JournalChunk(JOURNAL, DISKS, 571),)
    assert open_tail(journal, None) == {}
    assert set(open_data(state, journal)) == {DATA}
    assert journal_ends(state, journal) == {JOURNAL: 571}
    state.chunks.seal(JOURNAL, 571)
    assert journal_ends(state, journal) == {}


# --- replaying


def written(*batches: list[JournalRecord]) -> tuple[bytes, int]:
    """A journal chunk's bytes, and the sequence after them."""
    content, sequence = b"", 0
    for records in batches:
        batch = build_batch(sequence + 1, [(record, None) for record in records])
        content += encode_header(batch, JOURNAL, len(content), SESSION) + batch.body
        sequence += len(records)
    return content, sequence


def test_a_journal_is_replayed_window_by_window() -> None:
    content, last = written([opened(JOURNAL, "journal", 1), EpochRecord(1, 0.0)], [opened(DATA, "data", 2)])
    state = VolumeState(VOLUME)
    replay = Replay(state, (JournalChunk(JOURNAL, DISKS, len(content)),), None)
    first = replay.wanted()
    assert first is not None
    assert (first.start, first.end, first.extent.length) == (0, len(content), len(content) + 1)
    for _ in replay.take(memoryview(content)[: len(content) - 1]):  # the last batch is cut off
        pass
    second = replay.wanted()
    assert second is not None
    assert 0 < second.start < second.end == len(content)
    for _ in replay.take(memoryview(content)[second.start :]):
        pass
    assert replay.wanted() is None
    assert state.sequence == last == replay.n_records
    assert state.chunks.find(DATA) is not None


def test_a_replay_asks_for_the_blocks_that_its_records_need_and_goes_on() -> None:
    state, runs = VolumeState(VOLUME, VersionedMap(0)), RunStore(VOLUME)
    for sequence, key in enumerate((b"a", b"b"), 1):
        state.map.put(key, StoredVersion(sequence, b"m"), 0)
    runs.flush(state.map)
    deletes: list[JournalRecord] = [
        DeleteRecord(RequestId(SESSION, number), 0, key, ANY) for number, key in enumerate((b"b", b"a"), 1)
    ]
    content, _ = written([*deletes, EpochRecord(1, 0.0)])
    replay = Replay(state, (JournalChunk(JOURNAL, DISKS, len(content)),), None)
    assert replay.wanted() is not None
    n_missing = 0
    for missing in replay.take(memoryview(content)):
        assert state.sequence == 0
        if missing is not None:
            n_missing += len(missing.ranges)
            runs.fetch(missing)
    assert (n_missing, state.sequence) == (2, 3)
    assert runs.asked(lambda: state.map.find_many([b"a", b"b"])) == [None, None]


def test_what_does_not_follow_is_refused() -> None:
    content, _ = written([EpochRecord(1, 0.0)])
    state = VolumeState(VOLUME)
    state.sequence = 4
    replay = Replay(state, (JournalChunk(JOURNAL, DISKS, len(content)),), None)
    assert replay.wanted() is not None
    with pytest.raises(Corrupt, match=r"sequence 1 in 7\.1\.1 follows 4"):
        list(replay.take(memoryview(content)))


def test_a_checkpoint_whose_journal_is_gone_is_refused() -> None:
    with pytest.raises(Corrupt, match="does not hold chunk"):
        Replay(VolumeState(VOLUME), (), Root(1, 5, 0, (), {}, JOURNAL, 25))
