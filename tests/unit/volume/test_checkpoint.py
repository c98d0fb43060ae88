"""What a checkpoint holds, and which chunks it keeps."""

from __future__ import annotations

from blockstore.codec.control_record import JournalChunk
from blockstore.codec.journal_record import AnchorRecord, ChunkOpenedRecord, PutRecord, SnapshotRecord
from blockstore.codec.messages import ANY, Extent, Placement
from blockstore.codec.run_file import (
    NO_JOURNAL,
    Anchor,
    ForeignChunk,
    RunInfo,
    decode_entries,
    decode_head,
    decode_root,
    encode_root,
)
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.volume.checkpoint import (
    Checkpoints,
    Draft,
    Merged,
    Written,
    head_of_clone,
    journal_from,
    root_of_clone,
    serves_clone,
)
from blockstore.volume.state import VolumeState
from tests.map_runs import RunStore

VOLUME = VolumeId(3)
JOURNAL = ChunkId(VOLUME, 1, 1)
PLACEMENT = Placement(1, 0, (DiskId(1),))


def state_with(*keys: bytes) -> VolumeState:
    state = VolumeState(VOLUME)
    put(state, *keys)
    return state


def put(state: VolumeState, *keys: bytes) -> None:
    for key in keys:
        request = RequestId(SessionId(1), state.sequence + 1)
        state.apply(PutRecord(request, 0, key, b"m", 0, 0, ANY, True), state.sequence + 1, JOURNAL, 0)


def written(number: int, size: int = 9) -> Written:
    chunk = ChunkId(VOLUME, 1, number)
    return Written((Extent(chunk, 0, size, size, 0),), {chunk: PLACEMENT}, size)


def write(draft: Draft, state: VolumeState, number: int) -> bytes:
    data = b"".join(draft.blocks())
    draft.on_written(written(number, len(data)), state)
    return data


def commit(checkpoints: Checkpoints, state: VolumeState, number: int) -> Draft:
    draft = checkpoints.begin(state, JOURNAL, 64)
    write(draft, state, number)
    finish(checkpoints, state, draft, number + 1)
    return draft


def finish(checkpoints: Checkpoints, state: VolumeState, draft: Draft, number: int) -> None:
    runs = checkpoints.runs_with(draft)
    root = checkpoints.root_of(draft, written(number))
    checkpoints.on_committing(root, runs)
    checkpoints.on_committed(state, draft, root, runs)


def keys_of(draft: Draft) -> list[bytes]:
    return [key for key, _, _ in draft.frozen.entries_from(b"")]


def test_a_run_holds_what_changed_since_the_last_in_key_order() -> None:
    state, checkpoints = state_with(b"b", b"a", b"c", b"d"), Checkpoints(None, ())
    assert keys_of(commit(checkpoints, state, 2)) == [b"a", b"b", b"c", b"d"]
    put(state, b"e", b"b")
    assert keys_of(commit(checkpoints, state, 4)) == [b"b", b"e"]


def test_a_run_shows_the_instant_at_which_it_was_begun() -> None:
    state = state_with(b"a")
    draft = Checkpoints(None, ()).begin(state, JOURNAL, 64)
    put(state, b"b")
    data = write(draft, state, 2)
    assert keys_of(draft) == [b"a"]
    assert draft.head.sequence == 1
    assert draft.run is not None
    (body,) = draft.run.bodies(0, 1, memoryview(data)[: draft.run.info.index_at])
    assert [key for key, _, _ in decode_entries(body)] == [b"a"]


def test_nothing_that_changed_makes_no_run() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    commit(checkpoints, state, 2)
    draft = commit(checkpoints, state, 4)
    assert draft.run is None
    assert [extent.chunk.number for run in checkpoints.runs for extent in run.extents] == [2]
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {2, 5}


def merge_newest(state: VolumeState, n: int, store: RunStore) -> Merged:
    inputs = state.map.runs[:n]
    entries = [(b"merged-%d" % len(inputs), None, ())]
    return Merged(inputs, store.run_of(entries, state.map.cache, inputs[0].info.sequence))


def test_a_merged_run_takes_the_place_of_those_it_was_made_of_with_the_next_checkpoint() -> None:
    state, checkpoints, store = state_with(b"a"), Checkpoints(None, ()), RunStore(VOLUME)
    for number in (10, 20, 30):
        put(state, b"key-%d" % number)
        commit(checkpoints, state, number)
    oldest = state.map.runs[2]
    checkpoints.merged = merged = merge_newest(state, 2, store)
    assert [extent.chunk.number for run in checkpoints.runs for extent in run.extents] == [10, 20, 30]
    put(state, b"c")
    draft = commit(checkpoints, state, 40)
    assert merged.run is not None
    assert draft.run is not None
    assert checkpoints.runs == (oldest.info, merged.run.info, draft.run.info)
    assert state.map.runs == (draft.run, merged.run, oldest)
    assert checkpoints.merged is None
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {10, 1, 40, 41}


def test_a_run_merged_while_a_checkpoint_is_written_is_for_the_next_one() -> None:
    state, checkpoints, store = state_with(b"a"), Checkpoints(None, ()), RunStore(VOLUME)
    for number in (10, 20):
        put(state, b"key-%d" % number)
        commit(checkpoints, state, number)
    put(state, b"c")
    draft = checkpoints.begin(state, JOURNAL, 64)
    checkpoints.merged = merge_newest(state, 2, store)
    write(draft, state, 30)
    finish(checkpoints, state, draft, 31)
    assert len(checkpoints.runs) == len(state.map.runs) == 3
    commit(checkpoints, state, 40)
    assert len(checkpoints.runs) == len(state.map.runs) == 2


def test_runs_of_which_nothing_was_left_are_not_named_any_more() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    commit(checkpoints, state, 2)
    checkpoints.merged = Merged(state.map.runs, None)
    commit(checkpoints, state, 4)
    assert (checkpoints.runs, state.map.runs) == ((), ())


def test_a_checkpoint_keeps_the_chunks_of_its_runs_and_of_its_head() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    commit(checkpoints, state, 2)
    put(state, b"b")
    commit(checkpoints, state, 4)
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {2, 4, 5}


def test_a_commit_whose_outcome_is_not_known_keeps_both_until_one_is_known() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    commit(checkpoints, state, 2)
    put(state, b"b")
    draft = checkpoints.begin(state, JOURNAL, 128)
    write(draft, state, 4)
    runs = checkpoints.runs_with(draft)
    checkpoints.on_committing(checkpoints.root_of(draft, written(5)), runs)
    checkpoints.on_failed(state)  # control did not answer: its root may be this one by now
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {2, 3, 4, 5}
    again = commit(checkpoints, state, 6)
    assert keys_of(again) == [b"b"], "its keys count as changed again"
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {2, 6, 7}


def test_a_head_reads_back() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    draft = checkpoints.begin(state, JOURNAL, 64)
    write(draft, state, 2)
    runs = checkpoints.runs_with(draft)
    assert len(runs) == 1
    head = decode_head(VOLUME, memoryview(checkpoints.encode_head(draft, runs)))
    assert head.runs == runs
    assert (head.journal_chunk, head.journal_offset, head.sequence, head.n_live) == (JOURNAL, 64, 1, 1)


def test_the_journal_begins_with_the_chunk_that_the_checkpoint_names() -> None:
    named = tuple(JournalChunk(ChunkId(VOLUME, 1, number), (DiskId(1),), 9) for number in (1, 2, 3))
    assert journal_from(named, named[1].chunk) == named[1:]
    assert journal_from(named, ChunkId(VOLUME, 9, 9)) == named


# --- clones


def test_a_clone_does_not_begin_with_a_checkpoint_that_refers_to_what_is_gone() -> None:
    """An older one has values where they were before they moved."""
    state, store, checkpoints = VolumeState(VOLUME), RunStore(VOLUME), Checkpoints(None, ())
    value = PutRecord(RequestId(SessionId(1), 1), 0, b"k", b"m", 3, 0, ANY, True)
    opened = ChunkOpenedRecord(RequestId(SessionId(2), 1), 0, JOURNAL, PLACEMENT, 100, "journal")
    state.apply(opened, 1, JOURNAL, 0)
    state.apply(value, 2, JOURNAL, 0)
    state.apply(SnapshotRecord(RequestId(SessionId(1), 2), 0, "s", 0.0), 3, JOURNAL, 0)

    def checkpoint() -> None:
        draft = checkpoints.begin(state, JOURNAL, 64, 1)
        draft.on_written(store.write(b"".join(draft.blocks())), state)
        finish(checkpoints, state, draft, 9)

    def anchor() -> Anchor:
        request = RequestId(SessionId(1), state.sequence + 1)
        state.apply(AnchorRecord(request, 0, "s", "c"), state.sequence + 1, JOURNAL, 0)
        return state.anchors[state.sequence]

    assert not serves_clone(state, checkpoints.root, anchor())
    checkpoint()
    assert serves_clone(state, checkpoints.root, anchor())
    state.chunks.drop(JOURNAL)
    late = anchor()
    assert not serves_clone(state, checkpoints.root, late)
    put(state, b"l")
    checkpoint()
    assert serves_clone(state, checkpoints.root, late)


def test_a_clones_head_reads_runs_as_of_its_snapshot_and_knows_where_all_chunks_are() -> None:
    state = VolumeState(VOLUME)
    opened = ChunkOpenedRecord(RequestId(SessionId(2), 1), 0, JOURNAL, PLACEMENT, 100, "journal")
    state.apply(opened, 1, JOURNAL, 0)
    other = ForeignChunk(ChunkId(VolumeId(2), 1, 1), PLACEMENT)
    state.chunks.load_foreign([other])
    own = RunInfo((), {}, 9, 8, 1, 5)
    foreign = RunInfo((), {}, 9, 4, 1, 5, VolumeId(2), 4)
    head = head_of_clone(state, (foreign, own), Anchor(9, 7, "s", "c", 3))
    assert (head.sequence, head.n_live, head.journal_chunk) == (7, 3, NO_JOURNAL)
    assert head.runs == (foreign, RunInfo((), {}, 9, 8, 1, 5, VOLUME, 7))
    assert head.foreign == (other, ForeignChunk(JOURNAL, PLACEMENT))
    assert (head.chunks, head.snapshots, head.sessions, head.anchors) == ((), (), (), ())
    assert decode_root(encode_root(root_of_clone(VOLUME, 7, written(3)))).volume == VOLUME
