"""What a chunk table lets be referred to, and what it says is dead."""

from __future__ import annotations

import pytest

from blockstore.codec.messages import Extent, Placement
from blockstore.errors import InvalidRequest, Unavailable
from blockstore.ids import ChunkId, DiskId, SessionId, VolumeId
from blockstore.volume.chunk_table import DATA, EVERY_CHUNK, JOURNAL, OPEN, PACKED, ChunkEntry, ChunkTable

CHUNK = ChunkId(VolumeId(1), 1, 1)
CLIENT = SessionId(9)
PLACEMENT = Placement(1, 1, (DiskId(1), DiskId(2)))
NOTHING: frozenset[ChunkId] = frozenset()


def extent(offset: int, length: int, chunk: ChunkId = CHUNK) -> Extent:
    return Extent(chunk, offset, length, length, 0)


def table(purpose: str = DATA, placement: Placement = PLACEMENT) -> ChunkTable:
    chunks = ChunkTable()
    chunks.open_chunk(CHUNK, ChunkEntry(placement, 100, purpose, CLIENT))
    return chunks


def dead(chunks: ChunkTable, *, gone: bool = False) -> list[ChunkId]:
    return [chunk for chunk, _ in chunks.dead_chunks(NOTHING, lambda _: gone)]


def test_an_extent_lies_below_the_capacity_and_once_sealed_below_the_end() -> None:
    chunks = table()
    assert chunks.may_refer([extent(90, 10)], 1)
    assert not chunks.may_refer([extent(90, 11)], 1)
    chunks.seal(CHUNK, 50)
    assert chunks.may_refer([extent(40, 10)], 1)
    assert not chunks.may_refer([extent(41, 10)], 1)


def test_nothing_refers_to_an_unknown_chunk_or_to_one_whose_end_an_earlier_epoch_took_along() -> None:
    chunks = table()
    assert not chunks.may_refer([extent(0, 10, ChunkId(VolumeId(1), 1, 2))], 1)
    assert not chunks.may_refer([extent(0, 10)], 2)
    chunks.seal(CHUNK, 10)
    assert chunks.may_refer([extent(0, 10)], 2)


def test_a_client_refers_to_what_it_was_granted() -> None:
    chunks = table()
    chunks.check_granted([extent(0, 10)], CLIENT)
    with pytest.raises(InvalidRequest):
        chunks.check_granted([extent(0, 10)], SessionId(8))
    with pytest.raises(InvalidRequest):
        table("journal").check_granted([extent(0, 10)], CLIENT)
    with pytest.raises(InvalidRequest):
        chunks.check_granted([Extent(CHUNK, 0, 11, 10, 0)], CLIENT)  # longer than its stripe


def test_a_chunk_is_never_sealed_below_what_was_committed_in_it() -> None:
    chunks = table()
    chunks.add_live([extent(0, 30)])
    chunks.seal(CHUNK, 20)
    entry = chunks.find(CHUNK)
    assert entry is not None
    assert entry.length == 30


def test_a_sealed_length_stands() -> None:
    chunks = table()
    chunks.seal(CHUNK, 20)
    chunks.seal(CHUNK, 40)
    entry = chunks.find(CHUNK)
    assert entry is not None
    assert entry.length == 20


def test_a_chunk_with_a_live_byte_or_an_open_end_is_not_dead() -> None:
    chunks = table()
    chunks.note_named([extent(0, 30)])
    chunks.add_live([extent(0, 30)])
    chunks.free([extent(0, 29)])
    chunks.seal(CHUNK, 30)
    assert not dead(chunks)
    chunks.free([extent(29, 1)])
    assert dead(chunks) == [CHUNK]
    assert not chunks.dead_chunks(frozenset({CHUNK}))
    assert not dead(table(), gone=True)


def test_a_clients_chunk_lives_until_all_of_it_was_committed_or_the_client_is_gone() -> None:
    """A value of many chunks is committed when the last is written."""
    chunks = table()
    chunks.seal(CHUNK, 30)
    assert not dead(chunks)
    chunks.note_named([extent(0, 20)])
    chunks.add_live([extent(0, 20)])
    chunks.free([extent(0, 20)])
    assert not dead(chunks)
    assert dead(chunks, gone=True) == [CHUNK]
    chunks.note_named([extent(20, 10)])
    assert dead(chunks) == [CHUNK]


def test_no_client_is_waited_for_in_a_journal() -> None:
    chunks = table("journal")
    chunks.seal(CHUNK, 30)
    assert dead(chunks) == [CHUNK]


def test_what_was_dropped_is_told_once_and_is_not_found() -> None:
    chunks = table()
    chunks.drop(CHUNK)
    assert chunks.take_dropped() == [(CHUNK, PLACEMENT)]
    assert chunks.take_dropped() == []
    assert chunks.find(CHUNK) is None
    assert not chunks.open_chunks()
    with pytest.raises(Unavailable):
        chunks.placements_of([extent(0, 10)])
    chunks.free([extent(0, 10)])  # a former version that only a deleted snapshot saw


def test_a_table_reads_back_as_it_was_stored() -> None:
    chunks = table()
    chunks.note_named([extent(0, 20)])
    chunks.add_live([extent(0, 20)])
    chunks.open_chunk(
        ChunkId(VolumeId(1), 1, 2), ChunkEntry(PLACEMENT, 100, "journal", CLIENT, 40, 7, 40, 40)
    )
    again = ChunkTable()
    again.load(chunks.to_stored())
    assert again.to_stored() == chunks.to_stored()
    assert (
        again.totals()
        == chunks.totals()
        == {
            "chunks": 2,
            "chunks_open": 1,
            "live_bytes": 27,
            "stored_bytes": 40,
            "disk_bytes": 80,
        }
    )
    assert again.n_open(CLIENT) == 1
    assert [chunk for chunk, _ in again.open_chunks(DATA)] == [CHUNK]
    entry = again.find(CHUNK)
    assert entry is not None
    assert entry.length == OPEN


def test_a_chunk_with_a_hole_is_under_protected() -> None:
    assert table().under_protected() == (0, 0)
    assert table(placement=Placement(1, 2, (DiskId(1), DiskId(0), DiskId(3)))).under_protected() == (1, 1)


def test_what_an_anchor_keeps_is_neither_dead_nor_emptied() -> None:
    chunks = ChunkTable()
    for number, opened in ((1, 5), (2, 9)):
        for purpose, live in ((JOURNAL, 0), (PACKED, 10)):
            chunk = ChunkId(VolumeId(1), number, live)
            chunks.open_chunk(chunk, ChunkEntry(PLACEMENT, 100, purpose, CLIENT, 100, live, 100, 100, opened))

    def emptied() -> list[ChunkId]:
        return [chunk for chunk, _ in chunks.to_empty(NOTHING, lambda _: True, journals_too=True)]

    of_1, of_2 = ChunkId(VolumeId(1), 1, 0), ChunkId(VolumeId(1), 2, 0)
    full_1, full_2 = ChunkId(VolumeId(1), 1, 10), ChunkId(VolumeId(1), 2, 10)
    assert (dead(chunks, gone=True), emptied()) == ([of_1, of_2], [full_1, full_2])
    chunks.kept_to = 5
    assert (dead(chunks, gone=True), emptied()) == ([of_2], [full_2])
    assert chunks.kept_for_clones() == (2, 190)
    chunks.kept_to = EVERY_CHUNK
    assert (dead(chunks, gone=True), emptied()) == ([], [])
    again = ChunkTable()
    again.load(chunks.to_stored())
    again.kept_to = 5
    assert dead(again, gone=True) == [of_2]


def test_a_foreign_chunk_is_found_and_is_nothing_to_count_or_drop() -> None:
    chunks, other = table(), ChunkId(VolumeId(2), 1, 1)
    with pytest.raises(Unavailable):
        chunks.placements_of([extent(0, 10, other)])
    chunks.foreign[other] = PLACEMENT
    assert chunks.placements_of([extent(0, 10, other)]) == {other: PLACEMENT}
    chunks.add_live([extent(0, 10, other)])
    chunks.free([extent(0, 10, other), extent(0, 10, other)])
    assert dead(chunks, gone=True) == []
    assert chunks.totals()["live_bytes"] == 0
    assert not chunks.may_refer([extent(0, 10, other)], 1)
    again = ChunkTable()
    again.load_foreign(chunks.foreign_to_stored())
    assert again.foreign == chunks.foreign
