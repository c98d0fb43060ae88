"""What an owner does besides serving: checkpoints, packing, and giving back what nobody needs. The product's
`Checkpoints`, `packing.plan` and `Garbage` decide; here they are driven, at moments of the seed's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockstore.chunk.chunk_shell import DataWriter
from blockstore.codec.messages import DeleteFragment, Extent
from blockstore.codec.run_file import encode_root
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import BlockStoreError, NotFound, StaleEpoch
from blockstore.ids import ChunkId, DiskId
from blockstore.runtime.interfaces import Answer
from blockstore.volume.checkpoint import Checkpoints, Draft, Written, journal_from
from blockstore.volume.garbage import Garbage
from blockstore.volume.owner import Owner
from blockstore.volume.packing import Chosen, Item, Move, Stripe, items_of, plan, records_of
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
        self._pack_writer = DataWriter(caller, table, run.grant_packed, run.rng)
        self._covered_bytes = 0
        self._garbage = Garbage()
        self._is_writing = False
        self._packed: set[ChunkId] = set()  # with bytes to which nothing refers yet

    def _needed_chunks(self) -> frozenset[ChunkId]:
        journal = frozenset(one.chunk for one in self._owned.current().journal)
        return journal | self._checkpoints.needed_chunks() | self._packed

    # --- tidying

    async def tidy(self) -> None:
        core, node = self._core, self._node
        while True:
            await node.sleep(self._settings.tidy_seconds)
            while core.purge_some(2):
                await node.sleep(0.001)
            now = node.now()
            core.end_idle_grants(now)
            core.drop_dead(self._needed_chunks(), now, runs_too=not self._is_writing)
            self._run.wake()
            for chunk, disks, length in core.take_ended():
                seal_members(node, self._owned.record.epoch, chunk, disks, length)
            for chunk, placement in self._state.chunks.take_dropped():
                node.world.witness.on_dropped(self._state, chunk)
                self._garbage.add(chunk, placement.disks)
            for disk, chunk in self._garbage.next(sorted(node.live_disks())):
                self._delete(disk, chunk)

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
            if n_bytes >= settings.checkpoint_bytes or (self._run.is_full and n_bytes):
                self._is_writing = True
                try:
                    await self._write_checkpoint()
                except BlockStoreError as error:
                    node.say("volume {}: checkpoint failed ({})", self._state.volume, type(error).__name__)
                finally:
                    self._is_writing = False

    async def _write_checkpoint(self) -> None:
        if self._core.applied_to is None:
            return
        chunk, offset = self._core.applied_to
        written_bytes = self._journal.written_bytes
        checkpoints, state = self._checkpoints, self._state
        draft = checkpoints.begin(state, chunk, offset, small=4)
        try:
            runs = checkpoints.runs_with(draft, await self._write_run(draft))
            root = checkpoints.root_of(draft, await self._write(checkpoints.encode_head(draft, runs)))
            self._node.world.on_moment("checkpoint", self._node)
            checkpoints.on_committing(root, runs)
            await self._owned.change(
                root=encode_root(root), journal=lambda journal: journal_from(journal, chunk)
            )
        except BaseException:
            checkpoints.on_failed(state, draft)
            raise
        checkpoints.on_committed(root, runs)
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
        data = b"".join(parts)
        return await self._write(data) if data else Written((), {}, 0)

    async def _write(self, data: bytes) -> Written:
        extents = await self._run_writer.write(data, self._node.now() + OPERATION_SECONDS)
        return Written(extents, self._state.chunks.placements_of(extents), len(data))

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
            found, start = self._state.map.placed_in(chunks, start, 4)
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
