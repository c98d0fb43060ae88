"""A run is what was added, whatever the calls; its index says where, how young, and of which chunks."""

from __future__ import annotations

import pytest

from blockstore.codec.messages import Extent
from blockstore.codec.run_file import (
    GONE_SEQUENCE,
    RunEntry,
    RunInfo,
    StoredVersion,
    decode_index,
    encode_version,
    unpack_u64,
)
from blockstore.ids import ChunkId, VolumeId
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import RUN_BLOCK_BYTES, BlockCache, SortedRun
from tests.map_runs import RunStore

VOLUME = VolumeId(1)


def version(sequence: int, chunk: int = 1) -> bytes:
    return encode_version(
        StoredVersion(sequence, b"m", 1, 0, (Extent(ChunkId(VOLUME, 1, chunk), 0, 1, 1, 0),))
    )


ENTRIES: list[RunEntry] = [
    (b"a", version(5), ()),
    (b"b", version(300), (version(70_000, 2), version(2, 3))),
    (b"c", None, ()),
    (b"d", version(100_000, 4), ()),
    (b"e", encode_version(StoredVersion(6, None)), (version(1, 5),)),
]


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("block_bytes", [1, 60, RUN_BLOCK_BYTES])
def test_a_run_reads_back_whatever_the_calls_that_made_it(at_once: int, block_bytes: int) -> None:
    builder = RunBuilder(VOLUME, 9, len(ENTRIES), block_bytes)
    data = b""
    for at in range(0, len(ENTRIES), at_once):
        data += builder.add(ENTRIES[at : at + at_once])
    rest, index = builder.finish()
    data += rest
    store = RunStore(VOLUME)
    written = store.write(data)
    info = RunInfo(written.extents, written.placements, len(data), 9, builder.n_keys, builder.size)
    assert info.n_keys == len(ENTRIES)
    assert decode_index(VOLUME, info, memoryview(data)[builder.size :]) == index
    run = SortedRun(VOLUME, info, index, BlockCache())
    assert store.entries_of(run) == ENTRIES
    if block_bytes == 1:
        assert run.n_blocks == len(ENTRIES)
    if block_bytes == RUN_BLOCK_BYTES:
        assert run.n_blocks == 1


def test_an_index_says_how_young_a_block_is_and_whether_it_has_history() -> None:
    builder = RunBuilder(VOLUME, 9, len(ENTRIES), 1)
    builder.add(ENTRIES)
    _, index = builder.finish()
    assert index.first_keys == [key for key, _, _ in ENTRIES]
    assert list(unpack_u64(index.newest)) == [5, 300, GONE_SEQUENCE, 100_000, 6]
    assert index.with_history == b"\0\1\0\0\1"
    whole = RunBuilder(VOLUME, 9, 2)
    whole.add([ENTRIES[0], ENTRIES[3]])
    assert list(unpack_u64(whole.finish()[1].newest)) == [100_000]
    with_gone = RunBuilder(VOLUME, 9, 5)
    with_gone.add(ENTRIES)
    assert list(unpack_u64(with_gone.finish()[1].newest)) == [GONE_SEQUENCE]


def test_an_index_names_every_chunk_that_a_version_refers_to() -> None:
    builder = RunBuilder(VOLUME, 9, len(ENTRIES))
    builder.note_chunks_of(ENTRIES)
    builder.note_chunks([ChunkId(VOLUME, 1, 9)])
    builder.add(ENTRIES)
    assert [chunk.number for chunk in builder.finish()[1].chunks] == [1, 2, 3, 4, 5, 9]


def test_blocks_are_of_the_size_that_a_look_up_reads() -> None:
    builder = RunBuilder(VOLUME, 9, 2_000)
    builder.add([(b"%09d" % number, version(number + 1), ()) for number in range(2_000)])
    ends = unpack_u64(builder.finish()[1].ends)
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert all(RUN_BLOCK_BYTES * 0.9 < size < RUN_BLOCK_BYTES * 1.1 for size in sizes[:-1])
