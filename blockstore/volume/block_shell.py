"""Brings blocks of runs: from a disk of this node, or from the nodes that have them.

Whoever needs some of other nodes waits in a queue; what has gathered while one round was under way is asked
for together, one message for each node. A round that fails fails those who waited for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import trio

from blockstore.chunk.read_shell import ChunkReader
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, DiskId
from blockstore.volume.sorted_run import BlockRange, BlocksMissing
from blockstore.volume.world import World

OnThere = Callable[[BlockStoreError | None], None]
Waiting = tuple[Sequence[BlockRange], OnThere]


async def read_blocks(reader: ChunkReader, ranges: Sequence[BlockRange], deadline: float) -> list[bytes]:
    """Their bytes, as they stand in the runs."""
    wants = []
    for run, first, last in ranges:
        extents, start, end = run.extents_of(first, last)
        wants.append((extents, run.info.placements, start, end))
    return await reader.read_many(wants, deadline)


async def fetch_blocks(reader: ChunkReader, ranges: Sequence[BlockRange], deadline: float) -> None:
    """Into the cache with them."""
    for (run, first, last), data in zip(ranges, await read_blocks(reader, ranges, deadline), strict=True):
        run.keep(first, last, memoryview(data))


class BlockShell:
    def __init__(self, world: World) -> None:
        self.n_fetched = 0
        self._world = world
        self._own_disks = world.own_disks()
        self._waiting: list[Waiting] = []
        self._under_way: list[Waiting] = []
        self._due = trio.Event()

    def when_there(self, missing: BlocksMissing, on_there: OnThere) -> None:
        """Called once, perhaps at once: with None when the blocks are there; or why they are not."""
        ranges = missing.ranges
        self.n_fetched += sum(last - first for _, first, last in ranges)
        near = [self._near(one) for one in ranges]
        if None in near:
            self._fetch(ranges, on_there)
            return
        n_left, far = len(ranges), list[BlockRange]()

        def on_read(one: BlockRange, outcome: bytes | BlockStoreError) -> None:
            nonlocal n_left
            n_left -= 1
            try:
                if isinstance(outcome, BlockStoreError):
                    raise outcome
                one.run.keep(one.first, one.last, memoryview(outcome))
            except BlockStoreError:
                far.append(one)  # damaged here: another member has it
            if n_left:
                return
            if far:
                self._fetch(far, on_there)
            else:
                on_there(None)

        for one, place in zip(ranges, near, strict=True):
            assert place is not None
            self._world.local.read(*place, partial(on_read, one))

    def _near(self, one: BlockRange) -> tuple[DiskId, ChunkId, int, int] | None:
        """Where on a disk of this node the blocks are: disk, chunk, offset, length."""
        extents, start, end = one.run.extents_of(one.first, one.last)
        extent = extents[0]
        placement = one.run.info.placements[extent.chunk]
        if len(extents) > 1 or placement.k > 1:
            return None
        disk = next((disk for disk in placement.disks if disk in self._own_disks), None)
        return None if disk is None else (disk, extent.chunk, extent.offset + start, end - start)

    def _fetch(self, ranges: Sequence[BlockRange], on_there: OnThere) -> None:
        self._waiting.append((ranges, on_there))
        self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            self._under_way, self._waiting = self._waiting, []
            ranges = list(dict.fromkeys(one for wanted, _ in self._under_way for one in wanted))
            why: BlockStoreError | None = None
            try:
                deadline = self._world.clock.now() + OPERATION_SECONDS
                await fetch_blocks(self._world.reader, ranges, deadline)
            except BlockStoreError as error:
                why = error
            brought, self._under_way = self._under_way, []
            for _, on_there in brought:
                on_there(why)

    def give_up(self) -> list[OnThere]:
        """The owner has fallen: who still waits for other nodes."""
        waiting, self._under_way, self._waiting = self._under_way + self._waiting, [], []
        return [on_there for _, on_there in waiting]
