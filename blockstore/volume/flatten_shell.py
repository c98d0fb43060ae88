"""Makes a clone independent of the volumes that it was made of, in the background: when somebody asked for
it, or one of them was deleted.

1. Values in chunks of other volumes are moved into its own, as packing moves any (`packing.py`); again,
   until a pass over all versions finds none, and restoring has brought none to a further key meanwhile.
   Then none can come back: a record says so, and the chunks of others are forgotten.
2. Runs of others are merged into one of its own, and the next checkpoint names that.
3. Control forgets that it is a clone. Its bases then see that nobody needs their anchors, or, if they were
   deleted, that nothing of them is needed.

Cut short anywhere, the next owner begins at 1 and finds less to do: each step looks only at what is left."""

from __future__ import annotations

import logging

import trio

from blockstore.codec.journal_record import FlattenedRecord
from blockstore.config import OPERATION_SECONDS
from blockstore.control import commands
from blockstore.control.views import is_to_flatten
from blockstore.errors import BlockStoreError, TransactionConflict
from blockstore.ids import ChunkId
from blockstore.volume.checkpoint_shell import Checkpointer
from blockstore.volume.clone_shell import Applied
from blockstore.volume.owner import Owner
from blockstore.volume.packing_shell import Packer
from blockstore.volume.record_shell import RecordShell, wait_for_news
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

LOOK_SECONDS = 1.0
RETRY_SECONDS = 10.0
"""After a pass that left something: what it could not read, the next may."""


class FlattenShell:
    def __init__(
        self,
        world: World,
        control_record: RecordShell,
        core: Owner,
        checkpointer: Checkpointer,
        packer: Packer,
        applied: Applied,
    ) -> None:
        self._world, self._control_record, self._core = world, control_record, core
        self._checkpointer, self._packer, self._applied = checkpointer, packer, applied
        self._volume, self._state = core.state.volume, core.state

    def needed_chunks(self) -> frozenset[ChunkId]:
        """Chunks that have bytes to which nothing refers yet."""
        return self._packer.needed_chunks()

    def facts(self) -> dict[str, int]:
        """How far it is; values and bytes since this owner began."""
        return {"flattened_values": self._packer.moved_values, "flattened_bytes": self._packer.moved_bytes}

    async def run(self) -> None:
        while True:
            await trio.sleep(LOOK_SECONDS)
            views = self._world.control.views
            clone = views.clone(self._volume)
            if clone is None or not is_to_flatten(views, clone):
                continue
            try:
                is_done = await self._step()
            except BlockStoreError as error:
                log.warning("flatten_failed volume=%d why=%s", self._volume, error)
                is_done = False
            if not is_done:
                await trio.sleep(RETRY_SECONDS)

    async def _step(self) -> bool:
        """What is to be done next. False: something is left that should not be."""
        chunks = self._state.chunks
        if chunks.foreign:
            foreign = frozenset(chunks.foreign)
            await self._packer.empty(foreign)
            n_restored = self._state.n_foreign_restored
            if not await self._packer.is_empty(foreign) or n_restored != self._state.n_foreign_restored:
                return False
            await self._applied(self._core.journal.own_request(), FlattenedRecord())
            if chunks.foreign:
                return False  # a clone of this one is being made
            log.info("values_flattened volume=%d values=%d", self._volume, self._packer.moved_values)
        self._checkpointer.flatten_runs = True
        if self._checkpointer.n_foreign_runs == 0:
            await self._end()
        return True

    async def _end(self) -> None:
        control, clock = self._world.control, self._world.clock
        request = control.next_request()
        deadline = clock.now() + OPERATION_SECONDS
        while True:
            revision = control.revision
            self._control_record.current()
            planned = commands.end_clone(control.views, volume=self._volume, request=request)
            if planned is None:
                return
            try:
                await control.transact(
                    planned.compares, planned.puts, planned.deletes, request=request, deadline=deadline
                )
            except TransactionConflict:
                await wait_for_news(control, revision)
                continue
            log.info("flattened volume=%d", self._volume)
            control.event("volume-flattened", f"Volume {self._volume} is independent of others now.")
            return
