"""Brings blocks of runs from the nodes that have them.

Whoever needs some waits in a queue; what has gathered while one round was under way is asked for together,
one message for each node. A round that fails fails those who waited for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from blockstore.chunk.read_shell import ChunkReader, Want
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import BlockStoreError
from blockstore.runtime.interfaces import Clock
from blockstore.volume.sorted_run import BlockRange, BlocksMissing

OnThere = Callable[[BlockStoreError | None], None]
Waiting = tuple[Sequence[BlockRange], OnThere]


async def read_blocks(reader: ChunkReader, ranges: Sequence[BlockRange], deadline: float) -> list[bytes]:
    """Their bytes, as they stand in the runs."""
    wants: list[Want] = []
    for run, first, last in ranges:
        extents, start, end = run.extents_of(first, last)
        wants.append((extents, run.info.placements, start, end))
    return await reader.read_many(wants, deadline)


async def fetch_blocks(reader: ChunkReader, ranges: Sequence[BlockRange], deadline: float) -> None:
    """Into the cache with them."""
    for (run, first, last), data in zip(ranges, await read_blocks(reader, ranges, deadline), strict=True):
        run.keep(first, last, memoryview(data))


class BlockShell:
    def __init__(self, reader: ChunkReader, clock: Clock) -> None:
        self.n_fetched = 0
        self._reader, self._clock = reader, clock
        self._waiting: list[Waiting] = []
        self._under_way: list[Waiting] = []
        self._due = trio.Event()

    def when_there(self, missing: BlocksMissing, on_there: OnThere) -> None:
        """Called once, later: with None when the blocks were brought; or why they could not be."""
        self._waiting.append((missing.ranges, on_there))
        self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            self._under_way, self._waiting = self._waiting, []
            ranges = list(dict.fromkeys(one for wanted, _ in self._under_way for one in wanted))
            why: BlockStoreError | None = None
            try:
                await fetch_blocks(self._reader, ranges, self._clock.now() + OPERATION_SECONDS)
                self.n_fetched += sum(last - first for _, first, last in ranges)
            except BlockStoreError as error:
                why = error
            brought, self._under_way = self._under_way, []
            for _, on_there in brought:
                on_there(why)

    def give_up(self) -> list[OnThere]:
        """The owner has fallen: who still waits."""
        waiting, self._under_way, self._waiting = self._under_way + self._waiting, [], []
        return [on_there for _, on_there in waiting]
