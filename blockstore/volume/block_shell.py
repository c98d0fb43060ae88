"""Brings blocks of runs: from a disk of this node, or from the nodes that have them.

Whoever needs some of other nodes waits in a queue; what has gathered while one round was under way is asked
for together, one message for each node. When a round fails, each who waited for it is served alone, so that
what one cannot have is missed by nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from blockstore.chunk.read_shell import ChunkReader, Want
from blockstore.codec.messages import Extent
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import BlockStoreError
from blockstore.ids import DiskId
from blockstore.runtime.interfaces import Clock
from blockstore.volume.sorted_run import BlockCache, BlockRange, BlocksMissing, Held, SortedRun
from blockstore.volume.world import World

OnThere = Callable[[BlockStoreError | None], None]
T = TypeVar("T")


async def read_blocks(reader: ChunkReader, ranges: Sequence[BlockRange], deadline: float) -> list[bytes]:
    """Their bytes, as they stand in the runs."""
    wants: list[Want] = []
    for run, first, last in ranges:
        extents, start, end = run.extents_of(first, last)
        wants.append((extents, run.info.placements, start, end))
    return await reader.read_many(wants, deadline)


async def fetch_blocks(reader: ChunkReader, ranges: Sequence[BlockRange], deadline: float) -> Held:
    """Into the cache with them."""
    held: Held = {}
    for (run, first, last), data in zip(ranges, await read_blocks(reader, ranges, deadline), strict=True):
        held |= run.keep(first, last, memoryview(data))
    return held


async def with_blocks(reader: ChunkReader, clock: Clock, cache: BlockCache, work: Callable[[], T]) -> T:
    """The result of `work`, with the blocks that it misses."""
    held: Held = {}
    while True:
        try:
            with cache.holding(held):
                return work()
        except BlocksMissing as missing:
            held |= await fetch_blocks(reader, missing.ranges, clock.now() + OPERATION_SECONDS)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    ranges: Sequence[BlockRange]
    held: Held
    on_there: OnThere


class BlockShell:
    def __init__(self, world: World) -> None:
        self.n_fetched = 0
        self._world = world
        self._own_disks = world.own_disks()
        self._waiting: list[_Waiting] = []
        self._under_way: list[_Waiting] = []
        self._due = trio.Event()

    def bring(self, missing: BlocksMissing, held: Held, on_there: OnThere) -> bool:
        """Into `held` with them. True when they are there at once; else `on_there` is called, later, with
        None or with why they are not."""
        self.n_fetched += sum(last - first for _, first, last in missing.ranges)
        nearby = _Nearby(self, missing.ranges, held, on_there)
        return nearby.begin()

    def read_now(self, run: SortedRun, block: int) -> memoryview | None:
        """A block that a disk of this node has at hand. Given to the cache as its `near`."""
        extents, start, end = run.extents_of(block, block + 1)
        extent = extents[0]
        disk = self._own_disk_with(run, extent) if len(extents) == 1 else None
        if disk is None:
            return None
        data = self._world.local.read_now(disk, extent.chunk, extent.offset + start, end - start)
        self.n_fetched += data is not None
        return data

    def read_near(self, one: BlockRange, on_done: Callable[[bytes | BlockStoreError], None]) -> bool:
        """From a disk of this node, if it has the blocks."""
        extents, start, end = one.run.extents_of(one.first, one.last)
        extent = extents[0]
        disk = self._own_disk_with(one.run, extent) if len(extents) == 1 else None
        if disk is None:
            return False
        self._world.local.read(disk, extent.chunk, extent.offset + start, end - start, on_done)
        return True

    def _own_disk_with(self, run: SortedRun, extent: Extent) -> DiskId | None:
        placement = run.info.placements[extent.chunk]
        if placement.k == 1:
            for disk in placement.disks:
                if disk in self._own_disks:
                    return disk
        return None

    def fetch(self, ranges: Sequence[BlockRange], held: Held, on_there: OnThere) -> None:
        """From other nodes."""
        self._waiting.append(_Waiting(ranges, held, on_there))
        self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            self._under_way, self._waiting = self._waiting, []
            why = await self._round(self._under_way)
            is_joint = len(self._under_way) > 1
            while self._under_way:
                if why is not None and is_joint:
                    outcome = await self._round(self._under_way[:1])
                else:
                    outcome = why
                self._under_way.pop(0).on_there(outcome)

    async def _round(self, served: Sequence[_Waiting]) -> BlockStoreError | None:
        """Why they cannot be served; None when they have what they wait for."""
        ranges = list(dict.fromkeys(one for waiting in served for one in waiting.ranges))
        deadline = self._world.clock.now() + OPERATION_SECONDS
        try:
            bodies = await fetch_blocks(self._world.reader, ranges, deadline)
        except BlockStoreError as error:
            return error
        for waiting in served:
            for run, first, last in waiting.ranges:
                waiting.held.update(
                    ((run.serial, block), bodies[run.serial, block]) for block in range(first, last)
                )
        return None

    def give_up(self) -> list[OnThere]:
        """The owner has fallen: who still waits for other nodes."""
        given_up, self._under_way, self._waiting = self._under_way + self._waiting, [], []
        return [waiting.on_there for waiting in given_up]


class _Nearby:
    """Reads of this node's disks for one who waits; what they do not give is fetched from other nodes."""

    __slots__ = ("_far", "_held", "_is_begun", "_n_left", "_on_there", "_ranges", "_shell")

    def __init__(
        self, shell: BlockShell, ranges: Sequence[BlockRange], held: Held, on_there: OnThere
    ) -> None:
        self._shell, self._ranges, self._held, self._on_there = shell, ranges, held, on_there
        self._far: list[BlockRange] = []
        self._n_left = len(ranges)
        self._is_begun = False

    def begin(self) -> bool:
        for one in self._ranges:
            if not self._shell.read_near(one, partial(self._on_read, one)):
                self._far.append(one)
                self._n_left -= 1
        self._is_begun = True
        if self._n_left:
            return False
        if self._far:
            self._shell.fetch(self._far, self._held, self._on_there)
            return False
        return True

    def _on_read(self, one: BlockRange, outcome: bytes | BlockStoreError) -> None:
        self._n_left -= 1
        try:
            if isinstance(outcome, BlockStoreError):
                raise outcome
            self._held |= one.run.keep(one.first, one.last, memoryview(outcome))
        except BlockStoreError:
            self._far.append(one)  # damaged here: another member has it
        if self._n_left or not self._is_begun:
            return
        if self._far:
            self._shell.fetch(self._far, self._held, self._on_there)
        else:
            self._on_there(None)
