"""Writes a checkpoint: its run and head into chunks, its root into control. What they hold is decided in
`checkpoint.py`, which also says what a crash between two steps leaves."""

from __future__ import annotations

import logging

import trio

from blockstore.chunk.chunk_shell import DataWriter
from blockstore.codec.messages import Extent
from blockstore.codec.run_file import Root, RunInfo, encode_root
from blockstore.config import OPERATION_SECONDS
from blockstore.ids import ChunkId, MiB
from blockstore.volume.checkpoint import Checkpoints, Draft, Written, journal_from
from blockstore.volume.record_shell import RecordShell
from blockstore.volume.state import VolumeState
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

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
        self.covered_bytes = self.covered_records = 0  # of this owner's journal; what it replayed is below 0
        self.is_writing = False
        """Chunks of runs are being filled that nothing names yet: they must not be taken for garbage."""
        self._world = world
        self._control_record = control_record
        self._state = state
        self._writer = writer
        self._core = Checkpoints(root, runs)

    def needed_chunks(self) -> frozenset[ChunkId]:
        return self._core.needed_chunks()

    async def write(
        self, journal_chunk: ChunkId, journal_offset: int, written_bytes: int, written_records: int
    ) -> None:
        """Write and commit a checkpoint of the state as it is at this call, with the journal applied up to
        there; `written_…` say how much of this owner's journal that is."""
        self.is_writing = True
        try:
            await self._write_all(journal_chunk, journal_offset)
        finally:
            self.is_writing = False
        self.covered_bytes, self.covered_records = written_bytes, written_records

    async def _write_all(self, journal_chunk: ChunkId, journal_offset: int) -> None:
        started = self._world.clock.now()
        core, state = self._core, self._state
        draft = core.begin(state, journal_chunk, journal_offset)
        try:
            runs = core.runs_with(draft, await self._write_run(draft))
            root = core.root_of(draft, await self._write(core.encode_head(draft, runs)))
            core.on_committing(root, runs)
            await self._control_record.change(
                root=encode_root(root), journal=lambda journal: journal_from(journal, journal_chunk)
            )
        except BaseException:
            core.on_failed(state, draft)
            raise
        core.on_committed(root, runs)
        log.info(
            "checkpoint volume=%d sequence=%d keys=%d whole=%d seconds=%.3f",
            state.volume, root.sequence, runs[-1].n_keys, draft.whole, self._world.clock.now() - started,
        )  # fmt: skip

    async def _write_run(self, draft: Draft) -> Written:
        extents: list[Extent] = []
        size = 0
        buffer = bytearray()
        for block in draft.blocks():
            buffer += block
            if len(buffer) >= WRITE_BYTES:
                extents += (await self._write(bytes(buffer))).extents
                size += len(buffer)
                buffer.clear()
            await trio.lowlevel.checkpoint()
        if buffer:
            extents += (await self._write(bytes(buffer))).extents
            size += len(buffer)
        return Written(tuple(extents), self._state.chunks.placements_of(extents), size)

    async def _write(self, data: bytes) -> Written:
        extents = await self._writer.write(data, self._world.clock.now() + OPERATION_SECONDS)
        return Written(extents, self._state.chunks.placements_of(extents), len(data))
