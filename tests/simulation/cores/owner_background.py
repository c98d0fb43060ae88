"""What an owner does besides serving: checkpoints, packing, and giving back what nobody needs. The product's
`Checkpoints`, `packing.plan` and `Garbage` decide; here they are driven, at moments of the seed's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from blockstore.chunk.chunk_shell import DataWriter
from blockstore.codec.messages import DeleteFragment, Extent
from blockstore.codec.run_file import decode_entries, encode_root
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import BlockStoreError, NotFound, StaleEpoch
from blockstore.ids import ChunkId, DiskId
from blockstore.runtime.interfaces import Answer
from blockstore.volume.block_shell import read_blocks
from blockstore.volume.checkpoint import Checkpoints, Draft, Merged, Written, journal_from, written_run
from blockstore.volume.compaction import Merge, n_to_merge
from blockstore.volume.garbage import Garbage
from blockstore.volume.owner import Owner
from blockstore.volume.packing import Chosen, Item, Move, Stripe, items_of, plan, records_of
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import BlockRange, SortedRun
from tests.simulation.cores.owner_record import seal_members, tell_disk
from tests.simulation.cores.owner_takeover import Taken

if TYPE_CHECKING:
    from tests.simulation.cores.owner import OwnerRun

PACKED_CHUNKS_MAX = 3
"""Emptied in one pass."""


class Background:
    def __init__(self, run: OwnerRun, core: Owner, taken: Taken) -> None:
        self._run, self._core, self._node, self._state = run, core, run.node, taken.state
        self._owned, self._journal, self._settings = run.owned, run.journal, run.settings
        self._checkpoints = Checkpoints(taken.root, taken.runs)
        caller, table = run.node.caller, run.node.table
        self._run_writer = DataWriter(caller, table, run.grant_run, run.rng)
        self._merge_writer = DataWriter(caller, table, run.grant_run, run.rng)
        self._pack_writer = DataWriter(caller, table, run.grant_packed, run.rng)
        self._covered_bytes = 0
        self._garbage = Garbage()
        self._n_writing = 0
        self._packed: set[ChunkId] = set()  # with bytes to which nothing refers yet

    def _needed_chunks(self) -> frozenset[ChunkId]:
        journal = frozenset(one.chunk for one in self._owned.current().journal)
        return journal | self._checkpoints.needed_chunks() | self._packed

    # --- tidying

    async def tidy(self) -> None:
        core, node = self._core, self._node
        while True:
            await node.sleep(self._settings.tidy_seconds)
            is_purged = await self._purge()
            now = node.now()
            core.end_idle_grants(now)
            self._state.end_views(now)
            core.drop_dead(
                self._needed_chunks(), now, runs_too=not self._n_writing and not self._checkpoints.merged
            )
            self._run.wake()
            for chunk, disks, length in core.take_ended():
                seal_members(node, self._owned.record.epoch, chunk, disks, length)
            for chunk, placement in self._state.chunks.take_dropped():
                if is_purged:  # else versions that nobody sees are still there, which a replay brought back
                    node.world.witness.on_dropped(self._state, chunk)
                self._garbage.add(chunk, placement.disks)
            for disk, chunk in self._garbage.next(sorted(node.live_disks())):
                self._delete(disk, chunk)

    async def _purge(self) -> bool:
        """False: blocks of the map could not be read."""
        while True:
            try:
                if not await self._run.with_blocks(lambda: self._core.purge_some(2)):
                    return True
            except BlockStoreError:
                return False
            await self._node.sleep(0.001)

    def _delete(self, disk: DiskId, chunk: ChunkId) -> None:
        def on_answer(outcome: Answer | BlockStoreError) -> None:
            if isinstance(outcome, Answer | NotFound | StaleEpoch):
                self._garbage.on_deleted(disk, chunk)
            else:
                self._garbage.on_failed(disk, chunk)

        epoch = self._owned.record.epoch
        tell_disk(self._node, disk, lambda disk: DeleteFragment(disk, chunk, epoch), on_answer)

    # --- checkpoints

    async def write_checkpoints(self) -> None:
        node, settings = self._node, self._settings
        while True:
            await node.sleep(settings.checkpoint_seconds)
            n_bytes = self._journal.written_bytes - self._covered_bytes
            is_due = n_bytes >= settings.checkpoint_bytes or self._checkpoints.merged is not None
            if is_due or (self._run.is_full and n_bytes):
                self._n_writing += 1
                try:
                    await self._write_checkpoint()
                except BlockStoreError as error:
                    node.say("volume {}: checkpoint failed ({})", self._state.volume, type(error).__name__)
                finally:
                    self._n_writing -= 1

    async def _write_checkpoint(self) -> None:
        if self._core.applied_to is None:
            return
        chunk, offset = self._core.applied_to
        written_bytes = self._journal.written_bytes
        checkpoints, state = self._checkpoints, self._state
        draft = checkpoints.begin(state, chunk, offset, self._settings.block_bytes)
        try:
            draft.on_written(await self._write_run(draft), state)
            runs = checkpoints.runs_with(draft)
            head = checkpoints.encode_head(draft, runs)
            root = checkpoints.root_of(draft, await self._write(self._run_writer, head))
            self._node.world.on_moment("checkpoint", self._node)
            checkpoints.on_committing(root, runs)
            await self._owned.change(
                root=encode_root(root), journal=lambda journal: journal_from(journal, chunk)
            )
        except BaseException:
            checkpoints.on_failed(state)
            raise
        checkpoints.on_committed(state, draft, root, runs)
        self._covered_bytes = written_bytes
        self._node.say(
            "volume {}: checkpoint at sequence {}, {} runs", state.volume, root.sequence, len(runs)
        )

    async def _write_run(self, draft: Draft) -> Written:
        parts: list[bytes] = []
        for block in draft.blocks(2):
            parts.append(block)
            if self._run.rng.random() < 0.3:
                await self._node.sleep(0.001)  # others change the map meanwhile
        return await self._write_whole(self._run_writer, b"".join(parts))

    async def _write_whole(self, writer: DataWriter, data: bytes) -> Written:
        """A run. The witness sees what is in it."""
        written = await self._write(writer, data) if data else Written((), {}, 0)
        self._node.world.witness.run_bytes[written.extents] = data
        return written

    async def _write(self, writer: DataWriter, data: bytes) -> Written:
        extents = await writer.write(data, self._node.now() + OPERATION_SECONDS)
        return Written(extents, self._state.chunks.placements_of(extents), len(data))

    # --- merging

    async def merge(self) -> None:
        node, checkpoints = self._node, self._checkpoints
        while True:
            settings = self._settings
            await node.sleep(settings.checkpoint_seconds)
            n = n_to_merge(checkpoints.runs, settings.small_run_keys, settings.runs_per_size)
            if not n or checkpoints.merged is not None:
                continue
            self._n_writing += 1
            try:
                inputs = self._state.map.runs[:n]
                checkpoints.merged = await self._merge(inputs, with_oldest=n == len(checkpoints.runs))
            except BlockStoreError as error:
                node.say("volume {}: merging failed ({})", self._state.volume, type(error).__name__)
            finally:
                self._n_writing -= 1

    async def _merge(self, inputs: tuple[SortedRun, ...], *, with_oldest: bool) -> Merged:
        state, settings = self._state, self._settings
        n_keys = sum(run.info.n_keys for run in inputs)
        builder = RunBuilder(state.volume, inputs[0].info.sequence, n_keys, settings.block_bytes)
        for run in inputs:
            builder.note_chunks(run.chunks)
        merge, parts = Merge(len(inputs), with_oldest=with_oldest), list[bytes]()
        next_blocks = [0] * len(inputs)
        while not merge.is_done:
            while (source := merge.needs()) is not None:
                run, first = inputs[source], next_blocks[source]
                if first == run.n_blocks:
                    merge.end(source)
                    continue
                deadline = self._node.now() + OPERATION_SECONDS
                (data,) = await read_blocks(self._run.reader, [BlockRange(run, first, first + 1)], deadline)
                next_blocks[source] += 1
                (body,) = run.bodies(first, first + 1, memoryview(data))
                merge.push(source, decode_entries(body))
            parts.append(builder.add(merge.take()))
        self._node.world.witness.n_merged += 1
        if not builder.n_keys:
            return Merged(inputs, None)
        rest, index = builder.finish()
        written = await self._write_whole(self._merge_writer, b"".join([*parts, rest]))
        return Merged(inputs, written_run(state.volume, written, builder, index, state))

    # --- packing

    async def pack(self) -> None:
        """As the product's packer does, for less than it would think worth a pass."""
        node, core, run = self._node, self._core, self._run
        while True:
            await node.sleep(self._settings.pack_seconds)
            candidates = core.to_empty(self._needed_chunks(), node.now(), journals_too=run.policy.k > 1)
            if candidates:
                try:
                    n_moved = await self._empty(candidates[:PACKED_CHUNKS_MAX])
                except BlockStoreError as error:
                    node.say("volume {}: packing failed ({})", self._state.volume, type(error).__name__)
                else:
                    node.say("volume {}: {} values are packed", self._state.volume, n_moved)

    async def _empty(self, chosen: Chosen) -> int:
        chunks = frozenset(chunk for chunk, _ in chosen)
        start = b""
        n_moved = 0
        while True:
            look = partial(self._state.map.placed_in, chunks, start, 4)
            found, start = await self._run.with_blocks(look)
            stripes, alone = plan(items_of(found), self._run.policy.k)
            for stripe in stripes:
                n_moved += await self._move_stripe(stripe)
            for item in alone:
                n_moved += await self._move_alone(item)
            if not start:
                return n_moved
            await self._node.sleep(0.001)

    async def _move_stripe(self, stripe: Stripe) -> int:
        values = await self._read([item.version.extents for item in stripe.items])
        (extent,) = await self._write_packed(stripe.content(values))
        await self._commit_moves(list(stripe.moves(extent)))
        return len(stripe.items)

    async def _move_alone(self, item: Item) -> int:
        extents: list[Extent] = []
        for extent in item.version.extents:
            (data,) = await self._read([(extent,)])
            extents += await self._write_packed(data)
        await self._commit_moves(list(item.moves(tuple(extents))))
        return 1

    async def _read(self, wanted: Sequence[tuple[Extent, ...]]) -> list[bytes]:
        placements = self._state.chunks.placements_of(extent for extents in wanted for extent in extents)
        wants = [(extents, placements, 0, sum(extent.length for extent in extents)) for extents in wanted]
        deadline = self._node.now() + OPERATION_SECONDS
        return [bytes(data) for data in await self._run.reader.read_many(wants, deadline)]

    async def _write_packed(self, data: bytes) -> tuple[Extent, ...]:
        extents = await self._pack_writer.write(data, self._node.now() + OPERATION_SECONDS)
        self._packed |= {extent.chunk for extent in extents}
        return extents

    async def _commit_moves(self, moves: Sequence[Move]) -> None:
        self._node.world.on_moment("packing", self._node)
        for record in records_of(moves):
            await self._run.applied(self._journal.own_request(), record)
        self._packed.clear()
