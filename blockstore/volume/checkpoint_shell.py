"""Writes checkpoints, and merges runs: bytes into chunks, the root into control. What they hold is decided in
`checkpoint.py` and `compaction.py`, which also say what a crash between two steps leaves."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

import trio

from blockstore.chunk.chunk_shell import DataWriter
from blockstore.codec.messages import Extent
from blockstore.codec.run_file import Anchor, Root, RunInfo, encode_head, encode_root
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import Busy
from blockstore.ids import ChunkId, MiB
from blockstore.volume.block_shell import read_blocks
from blockstore.volume.checkpoint import (
    Checkpoints,
    Merged,
    Written,
    head_of_clone,
    journal_from,
    root_of_clone,
    serves_clone,
    written_run,
)
from blockstore.volume.compaction import Merge, n_to_merge
from blockstore.volume.record_shell import RecordShell
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import BlockRange, SortedRun
from blockstore.volume.state import VolumeState
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

WRITE_BYTES = 4 * MiB
READ_BYTES = MiB
"""Of a run that is being merged, at once."""
RESTS = 3
"""So many times as long as work took is rested after it, while clients write."""
REST_SECONDS_MAX = 0.1
BLOCKS_AT_ONCE = 8
"""Of each run, merged between two looks at what else there is to do: some 3 ms."""


class Checkpointer:
    """Knows the last checkpoint of a volume and writes the next. `new_writer` makes one for a run's bytes."""

    def __init__(
        self,
        world: World,
        control_record: RecordShell,
        state: VolumeState,
        new_writer: Callable[[], DataWriter],
        root: Root | None,
        runs: tuple[RunInfo, ...],
        is_quiet: Callable[[], bool],
    ) -> None:
        self.covered_bytes = self.covered_records = 0  # of this owner's journal; what it replayed is below 0
        self.written_bytes = 0
        """Of runs and heads, before they are replicated."""
        self.merging = (0, 0)
        """Keys merged and to merge, in the merge under way."""
        self.flatten_runs = False
        """Nothing refers to chunks of other volumes: the next merge takes the runs of theirs too."""
        self._n_writing = 0
        self._n_urgent = 0
        self.turn = trio.Lock()
        """Whoever writes a checkpoint has it: one at a time."""
        self._world = world
        self._control_record = control_record
        self._state = state
        self._writer, self._merge_writer = new_writer(), new_writer()
        self._core = Checkpoints(root, runs)
        self._is_quiet = is_quiet

    @property
    def is_writing(self) -> bool:
        """Chunks of runs are being filled that nothing names yet: they must not be taken for garbage."""
        return self._n_writing > 0 or self._core.merged is not None

    def needed_chunks(self) -> frozenset[ChunkId]:
        return self._core.needed_chunks()

    @property
    def n_foreign_runs(self) -> int:
        """Runs of other volumes that the last checkpoint names."""
        return sum(run.as_of > 0 for run in self._core.runs)

    @property
    def has_merged(self) -> bool:
        """A merged run waits for the next checkpoint to name it."""
        return self._core.merged is not None

    # --- checkpoints

    async def write(
        self, journal_chunk: ChunkId, journal_offset: int, written_bytes: int, written_records: int
    ) -> None:
        """Write and commit a checkpoint of the state as it is at this call, with the journal applied up to
        there; `written_…` say how much of this owner's journal that is."""
        self._n_writing += 1
        try:
            await self._write_all(journal_chunk, journal_offset)
        finally:
            self._n_writing -= 1
        self.covered_bytes, self.covered_records = written_bytes, written_records

    async def _write_all(self, journal_chunk: ChunkId, journal_offset: int) -> None:
        started = self._world.clock.now()
        core, state = self._core, self._state
        draft = core.begin(state, journal_chunk, journal_offset)
        try:
            run = Appending(self._writer, state, self._world)
            began = self._world.clock.now()
            for blocks in draft.blocks():
                await run.add(blocks)
                await self._rest(began)
                began = self._world.clock.now()
            draft.on_written(await run.finish(), state)
            runs = core.runs_with(draft)
            head = Appending(self._writer, state, self._world)
            await head.add(core.encode_head(draft, runs))
            root = core.root_of(draft, await head.finish())
            core.on_committing(root, runs)
            await self._control_record.change(
                root=encode_root(root), journal=lambda journal: journal_from(journal, journal_chunk)
            )
        except BaseException:
            core.on_failed(state)
            raise
        core.on_committed(state, draft, root, runs)
        self.written_bytes += run.size + head.size
        log.info(
            "checkpoint volume=%d sequence=%d keys=%d runs=%d seconds=%.3f",
            state.volume, root.sequence, len(draft.frozen), len(runs), self._world.clock.now() - started,
        )  # fmt: skip

    async def _rest(self, began: float) -> None:
        """Clients come first. What took long waited for a disk, as a rule: that needs no more rest."""
        n_times = 0 if self._is_quiet() or self._n_urgent else RESTS
        await trio.sleep(min(n_times * (self._world.clock.now() - began), REST_SECONDS_MAX))

    # --- clones

    async def write_base(self, anchor: Anchor, checkpoint: Callable[[], Awaitable[None]]) -> bytes:
        """The root of a clone, with a head that is durable. `checkpoint` writes one of the state as it is
        when it is called: if the last one does not do."""
        core, state = self._core, self._state
        self._n_urgent += 1
        try:
            if not serves_clone(state, core.root, anchor):
                await checkpoint()
        finally:
            self._n_urgent -= 1
        self._n_writing += 1
        try:
            async with self.turn:
                if not serves_clone(state, core.root, anchor):
                    raise Busy("the volume's checkpoint, with which a clone begins")
                base = head_of_clone(state, core.runs, anchor)
                head = Appending(self._writer, state, self._world)
                await head.add(encode_head(state.volume, base))
                return encode_root(root_of_clone(state.volume, base.sequence, await head.finish()))
        finally:
            self._n_writing -= 1

    # --- merging

    async def merge(self) -> bool:
        """Merge the newest runs into one, if it is time; then the next checkpoint names it. False: it is
        not."""
        core = self._core
        if core.merged is not None:
            return False
        n = n_to_merge(core.runs)
        if self.flatten_runs and self.n_foreign_runs:
            n = len(core.runs)
        if not n:
            return False
        self._n_writing += 1
        try:
            core.merged = await self._merge(self._state.map.runs[:n], with_oldest=n == len(core.runs))
        finally:
            self._n_writing -= 1
            self.merging = (0, 0)
        return True

    async def _merge(self, inputs: tuple[SortedRun, ...], *, with_oldest: bool) -> Merged:
        world, state = self._world, self._state
        started = world.clock.now()
        n_keys = sum(run.info.n_keys for run in inputs)
        builder = RunBuilder(state.volume, inputs[0].info.sequence, n_keys)
        for run in inputs:
            builder.note_chunks(
                chunk for chunk in run.chunks if state.chunks.find_placement(chunk) is not None
            )
        merge = Merge(len(inputs), with_oldest=with_oldest)
        sources = [_Source(run) for run in inputs]
        output = Appending(self._merge_writer, state, world)
        n_read = 0
        while not merge.is_done:
            began = world.clock.now()
            while (source := merge.needs()) is not None:
                entries = await sources[source].next(world)
                n_read += len(entries)
                if entries:
                    merge.push(source, entries)
                else:
                    merge.end(source)
            await output.add(builder.add(merge.take()))
            self.merging = (n_read, n_keys)
            await self._rest(began)
        if not builder.n_keys:
            return Merged(inputs, None)
        rest, index = builder.finish()
        await output.add(rest)
        run = written_run(state.volume, await output.finish(), builder, index, state)
        self.written_bytes += output.size
        log.info(
            "merged volume=%d runs=%d keys=%d of=%d bytes=%d seconds=%.3f",
            state.volume, len(inputs), builder.n_keys, n_keys, output.size, world.clock.now() - started,
        )  # fmt: skip
        return Merged(inputs, run)


class Appending:
    """Bytes that become extents, so many at a time."""

    def __init__(self, writer: DataWriter, state: VolumeState, world: World) -> None:
        self.size = 0
        self._writer, self._state, self._world = writer, state, world
        self._buffer = bytearray()
        self._extents: list[Extent] = []

    async def add(self, data: bytes) -> None:
        self._buffer += data
        self.size += len(data)
        while len(self._buffer) >= WRITE_BYTES:
            await self._write(WRITE_BYTES)

    async def finish(self) -> Written:
        if self._buffer:
            await self._write(len(self._buffer))
        extents = tuple(self._extents)
        return Written(extents, self._state.chunks.placements_of(extents), self.size)

    async def _write(self, n_bytes: int) -> None:
        data = bytes(self._buffer[:n_bytes])
        del self._buffer[:n_bytes]
        self._extents += await self._writer.write(data, self._world.clock.now() + OPERATION_SECONDS)


class _Source:
    """A run that is being merged."""

    def __init__(self, run: SortedRun) -> None:
        self._run = run
        self._next_block = 0
        self._bodies: deque[bytes] = deque()

    async def next(self, world: World) -> list[tuple[bytes, bytes | None, tuple[bytes, ...]]]:
        """The entries of its next blocks; none at its end."""
        if not self._bodies and self._next_block < self._run.n_blocks:
            first, last = self._next_block, self._run.n_ahead(self._next_block, READ_BYTES)
            blocks = [BlockRange(self._run, first, last)]
            (data,) = await read_blocks(world.reader, blocks, world.clock.now() + OPERATION_SECONDS)
            self._bodies.extend(self._run.bodies(first, last, memoryview(data)))
            self._next_block = last
        return [entry for body in self._take() for entry in self._run.entries_in(body)]

    def _take(self) -> Iterator[bytes]:
        for _ in range(min(BLOCKS_AT_ONCE, len(self._bodies))):
            yield self._bodies.popleft()
