"""What a checkpoint holds, and which chunks it keeps."""

from __future__ import annotations

from blockstore.codec.control_record import JournalChunk
from blockstore.codec.journal_record import PutRecord
from blockstore.codec.messages import ANY, Extent, Placement
from blockstore.codec.run_file import decode_blocks, decode_head
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.volume.checkpoint import RUNS_MAX, Checkpoints, Draft, Written, journal_from
from blockstore.volume.state import VolumeState

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


def written(number: int) -> Written:
    chunk = ChunkId(VOLUME, 1, number)
    return Written((Extent(chunk, 0, 9, 9, 0),), {chunk: PLACEMENT}, 9)


def commit(checkpoints: Checkpoints, state: VolumeState, number: int, small: int = 0) -> Draft:
    draft = checkpoints.begin(state, JOURNAL, 64, small)
    runs = checkpoints.runs_with(draft, written(number))
    root = checkpoints.root_of(draft, written(number + 1))
    checkpoints.on_committing(root, runs)
    checkpoints.on_committed(root, runs)
    return draft


def keys_of(draft: Draft) -> list[bytes]:
    data = b"".join(draft.blocks())
    return [key for block in decode_blocks(VOLUME, memoryview(data)) for key, _, _ in block]


def test_a_run_holds_what_changed_since_the_last_in_key_order() -> None:
    state, checkpoints = state_with(b"b", b"a", b"c", b"d"), Checkpoints(None, ())
    assert keys_of(commit(checkpoints, state, 2)) == [b"a", b"b", b"c", b"d"]
    put(state, b"e", b"b")
    assert keys_of(commit(checkpoints, state, 4)) == [b"b", b"e"]


def test_a_run_shows_the_instant_at_which_it_was_begun() -> None:
    state = state_with(b"a")
    draft = Checkpoints(None, ()).begin(state, JOURNAL, 64)
    put(state, b"b")
    assert keys_of(draft) == [b"a"]
    assert draft.head.sequence == 1


def test_the_whole_map_is_written_when_runs_hold_twice_its_keys_or_are_many() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    for number in range(3):
        put(state, b"a")
        commit(checkpoints, state, 10 * number)
    assert len(checkpoints.runs) == 1
    checkpoints = Checkpoints(None, ())
    for number in range(RUNS_MAX + 1):
        put(state, b"a")
        commit(checkpoints, state, 10 * number, small=1_000)
    assert len(checkpoints.runs) == 1


def test_a_checkpoint_keeps_the_chunks_of_its_runs_and_of_its_head() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    commit(checkpoints, state, 2, small=1_000)
    put(state, b"b")
    commit(checkpoints, state, 4, small=1_000)
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {2, 4, 5}


def test_a_commit_whose_outcome_is_not_known_keeps_both_until_one_is_known() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    commit(checkpoints, state, 2, small=1_000)
    put(state, b"b")
    draft = checkpoints.begin(state, JOURNAL, 128)
    runs = checkpoints.runs_with(draft, written(4))
    checkpoints.on_committing(checkpoints.root_of(draft, written(5)), runs)
    checkpoints.on_failed(state, draft)  # control did not answer: its root may be this one by now
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {2, 3, 4, 5}
    again = commit(checkpoints, state, 6, small=1_000)
    assert keys_of(again) == [b"b"], "its keys count as changed again"
    assert {chunk.number for chunk in checkpoints.needed_chunks()} == {2, 6, 7}


def test_a_head_reads_back() -> None:
    state, checkpoints = state_with(b"a"), Checkpoints(None, ())
    draft = checkpoints.begin(state, JOURNAL, 64)
    runs = checkpoints.runs_with(draft, written(2))
    head = decode_head(VOLUME, memoryview(checkpoints.encode_head(draft, runs)))
    assert head.runs == runs
    assert (head.journal_chunk, head.journal_offset, head.sequence) == (JOURNAL, 64, 1)


def test_the_journal_begins_with_the_chunk_that_the_checkpoint_names() -> None:
    named = tuple(JournalChunk(ChunkId(VOLUME, 1, number), (DiskId(1),), 9) for number in (1, 2, 3))
    assert journal_from(named, named[1].chunk) == named[1:]
    assert journal_from(named, ChunkId(VOLUME, 9, 9)) == named
