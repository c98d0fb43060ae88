"""Writing a checkpoint: runs of the map, a head over them, and the root that control will point to.

The state is frozen at one instant, between two applied records: the map by copying references, the rest by
encoding it. Then runs are written in blocks, between which others run. Only when everything is durable does
the root change, in one control commit together with the journal's new beginning. Crash before that: the old
root and the whole journal are still named, and the new chunks are garbage that the next checkpoint of a
later owner does not need. Crash after: nothing is left to do.

A checkpoint writes what changed since the last one; when the runs hold more than twice the map's keys, or
are many, it writes the whole map instead, and earlier runs are no longer needed. So a key is rewritten a
bounded number of times."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec
import trio

from blockstore.chunk.chunk_shell import DataWriter
from blockstore.codec.messages import Extent, Placement
from blockstore.codec.run_file import (
    VERSION,
    Root,
    RunInfo,
    encode_block,
    encode_head,
    encode_root,
    split_blocks,
)
from blockstore.config import OPERATION_SECONDS
from blockstore.ids import ChunkId, MiB
from blockstore.volume.record_shell import JournalList, RecordShell
from blockstore.volume.state import VolumeState
from blockstore.volume.versioned_map import Frozen
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

RUNS_MAX = 8
BLOCK_ENTRIES = 500
"""Some 60 KB and half a millisecond."""
WRITE_BYTES = 4 * MiB


class Checkpointer:
    """Knows the last checkpoint of a volume and writes the next."""

    def __init__(
        self,
        world: World,
        control_record: RecordShell,
        state: VolumeState,
        writer: DataWriter,
        root: Root | None,
        runs: tuple[RunInfo, ...],
    ) -> None:
        self.covered_bytes = 0  # of this owner's journal
        self._world = world
        self._control_record = control_record
        self._state = state
        self._writer = writer
        self._root = root
        self._runs = runs

    def needed_chunks(self) -> frozenset[ChunkId]:
        """Chunks that the present checkpoint is made of."""
        extents = [extent for run in self._runs for extent in run.extents]
        if self._root is not None:
            extents += self._root.extents
        return frozenset(extent.chunk for extent in extents)

    async def write(self, journal_chunk: ChunkId, journal_offset: int, written_bytes: int) -> None:
        """Write and commit a checkpoint of the state as it is at this call, with the journal applied up to
        there."""
        started = self._world.clock.now()
        state = self._state
        n_in_runs = sum(run.n_keys for run in self._runs)
        whole = len(self._runs) >= RUNS_MAX or n_in_runs + state.map.n_changed > 2 * len(state.map) + 1_000
        frozen = state.map.freeze(whole=whole)
        head = state.head(journal_chunk, journal_offset, ())
        try:
            run = await self._write_run(frozen, head.sequence, whole=whole)
            runs = (run,) if whole else (*self._runs, run)
            encoded = encode_head(state.volume, msgspec.structs.replace(head, runs=runs))
            extents = await self._writer.write(encoded, self._deadline())
            root = Root(
                VERSION,
                head.sequence,
                len(encoded),
                extents,
                self._placements(extents),
                journal_chunk,
                journal_offset,
            )
            await self._control_record.change(
                root=encode_root(root), journal=lambda journal: _from(journal, journal_chunk)
            )
        except BaseException:
            state.map.unfreeze(frozen)
            raise
        self._root, self._runs, self.covered_bytes = root, runs, written_bytes
        log.info(
            "checkpoint volume=%d sequence=%d keys=%d whole=%d seconds=%.3f",
            state.volume, head.sequence, run.n_keys, whole, self._world.clock.now() - started,
        )  # fmt: skip

    async def _write_run(self, frozen: Frozen, sequence: int, *, whole: bool) -> RunInfo:
        extents: list[Extent] = []
        size = 0
        buffer = bytearray()
        for index, entries in enumerate(split_blocks(frozen.entries(), BLOCK_ENTRIES)):
            buffer += encode_block(self._state.volume, sequence, index, entries)
            if len(buffer) >= WRITE_BYTES:
                extents += await self._writer.write(bytes(buffer), self._deadline())
                size += len(buffer)
                buffer.clear()
            await trio.lowlevel.checkpoint()
        if buffer:
            extents += await self._writer.write(bytes(buffer), self._deadline())
            size += len(buffer)
        return RunInfo(tuple(extents), self._placements(extents), size, sequence, len(frozen.keys), whole)

    def _placements(self, extents: Iterable[Extent]) -> dict[ChunkId, Placement]:
        return self._state.chunks.placements_of(extents)

    def _deadline(self) -> float:
        return self._world.clock.now() + OPERATION_SECONDS


def _from(journal: JournalList, first: ChunkId) -> JournalList:
    """The journal without what lies before `first`."""
    chunks = [one.chunk for one in journal]
    return journal[chunks.index(first) :] if first in chunks else journal
