"""Runs of a map whose bytes are kept here, in place of nodes; and who brings their blocks when some miss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from blockstore.codec.messages import Extent, Placement
from blockstore.codec.run_file import RunEntry, RunInfo, decode_index
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.volume.checkpoint import Written
from blockstore.volume.compaction import Merge
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import BlockCache, BlocksMissing, SortedRun
from blockstore.volume.versioned_map import VersionedMap

EXTENT_BYTES = 50
"""Blocks cross the ends of extents."""

T = TypeVar("T")


class RunStore:
    def __init__(
        self,
        volume: VolumeId,
        block_bytes: int = 1,
        contents: dict[tuple[Extent, ...], bytes] | None = None,
    ) -> None:
        """`block_bytes` 1: a block for each entry. `contents`: of several volumes, by their extents."""
        self.n_fetched = 0
        self._volume, self._block_bytes = volume, block_bytes
        self._contents = {} if contents is None else contents

    def write(self, data: bytes) -> Written:
        chunk = ChunkId(self._volume, 9, len(self._contents) + 1)
        extents = tuple(
            Extent(chunk, at, min(EXTENT_BYTES, len(data) - at), min(EXTENT_BYTES, len(data) - at), 0)
            for at in range(0, len(data), EXTENT_BYTES)
        )
        self._contents[extents] = data
        return Written(extents, {chunk: Placement(1, 0, (DiskId(1),))}, len(data))

    def run_of(self, entries: Sequence[RunEntry], cache: BlockCache, sequence: int = 1) -> SortedRun:
        builder = RunBuilder(self._volume, sequence, len(entries), self._block_bytes)
        builder.note_chunks_of(entries)
        blocks = builder.add(entries)
        rest, _ = builder.finish()
        written = self.write(blocks + rest)
        return self.open(
            RunInfo(
                written.extents, written.placements, written.size, sequence, builder.n_keys, builder.size
            ),
            cache,
        )

    def open(self, info: RunInfo, cache: BlockCache) -> SortedRun:
        """By what the head says of it, as a takeover does."""
        data = memoryview(self._contents[info.extents])[info.index_at :]
        return SortedRun(self._volume, info, decode_index(info.volume or self._volume, info, data), cache)

    def data_of(self, run: SortedRun, first: int, last: int) -> memoryview:
        """Of blocks [first, last), by the extents that the run names for them."""
        extents, start, end = run.extents_of(first, last)
        whole = self._contents[run.info.extents]
        data = b"".join(whole[one.offset : one.offset + one.length] for one in extents)
        return memoryview(data)[start:end]

    def entries_of(self, run: SortedRun) -> list[RunEntry]:
        if not run.n_blocks:
            return []
        bodies = run.bodies(0, run.n_blocks, self.data_of(run, 0, run.n_blocks))
        return [entry for body in bodies for entry in run.entries_in(body)]

    def fetch(self, missing: BlocksMissing) -> None:
        for run, first, last in missing.ranges:
            self.n_fetched += last - first
            run.keep(first, last, self.data_of(run, first, last))

    def asked(self, ask: Callable[[], T]) -> T:
        """Its answer, once all the blocks that it needs are there."""
        while True:
            try:
                return ask()
            except BlocksMissing as missing:
                self.fetch(missing)

    def merged(self, inputs: Sequence[SortedRun], *, with_oldest: bool) -> list[RunEntry]:
        """What one run in place of these, from the newest to the oldest, has to say; read block by block."""
        merge = Merge(len(inputs), with_oldest=with_oldest)
        next_blocks = [0] * len(inputs)
        entries: list[RunEntry] = []
        while not merge.is_done:
            while (source := merge.needs()) is not None:
                run, block = inputs[source], next_blocks[source]
                if block == run.n_blocks:
                    merge.end(source)
                    continue
                (body,) = run.bodies(block, block + 1, self.data_of(run, block, block + 1))
                merge.push(source, run.entries_in(body))
                next_blocks[source] += 1
            entries += merge.take()
        return entries

    def flush(self, keys: VersionedMap) -> SortedRun | None:
        """What changed becomes a run."""
        entries = list(keys.freeze().entries_from(b""))
        run = self.run_of(entries, keys.cache) if entries else None
        keys.on_run_written(run)
        return run
