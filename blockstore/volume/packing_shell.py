"""Moves values to other chunks, in the background: reads them, writes them, says so in the journal. What
moves where, and what a crash leaves, is in `packing.py`.

It yields to clients: between two stripes it rests for as long as the last one took, unless nobody else
writes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from blockstore.chunk.chunk_shell import DataWriter
from blockstore.codec.journal_record import MovedRecord
from blockstore.codec.messages import Extent
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId
from blockstore.volume.block_shell import with_blocks
from blockstore.volume.packing import Item, Move, Stripe, items_of, plan, records_of
from blockstore.volume.state import VolumeState
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

KEYS_AT_ONCE = 2_000
"""Looked at between two looks at what else there is to do: some 4 ms."""
ITEMS_MAX = 50_000
"""Laid out together: some 20 MB of memory."""

Commit = Callable[[MovedRecord], Awaitable[None]]
"""Through the journal with it; returns when it is applied."""


class Packer:
    def __init__(
        self,
        world: World,
        state: VolumeState,
        writer: DataWriter,
        k: int,
        commit: Commit,
        is_quiet: Callable[[], bool],
    ) -> None:
        self.moved_bytes = self.moved_values = 0
        self._world, self._state, self._writer, self._k = world, state, writer, k
        self._commit, self._is_quiet = commit, is_quiet
        self._written: set[ChunkId] = set()

    def needed_chunks(self) -> frozenset[ChunkId]:
        """Chunks that have bytes to which nothing refers yet."""
        return frozenset(self._written)

    async def empty(self, chunks: frozenset[ChunkId]) -> int:
        """Move what is live in these chunks elsewhere; return how many values were moved."""
        began, moved_before = self._world.clock.now(), self.moved_values
        start = b""
        while True:
            items: list[Item] = []
            while len(items) < ITEMS_MAX:
                keys = self._state.map
                look = partial(keys.placed_in, chunks, start, KEYS_AT_ONCE)
                found, start = await with_blocks(self._world.reader, self._world.clock, keys.cache, look)
                items += items_of(found)
                await trio.lowlevel.checkpoint()
                if not start:
                    break
            await self._move(items)
            if not start:
                break
        n_moved = self.moved_values - moved_before
        log.info(
            "packed volume=%d chunks=%d values=%d seconds=%.3f",
            self._state.volume, len(chunks), n_moved, self._world.clock.now() - began,
        )  # fmt: skip
        return n_moved

    async def is_empty(self, chunks: frozenset[ChunkId]) -> bool:
        """Whether no version has bytes in these chunks."""
        start = b""
        while True:
            keys = self._state.map
            look = partial(keys.placed_in, chunks, start, KEYS_AT_ONCE)
            found, start = await with_blocks(self._world.reader, self._world.clock, keys.cache, look)
            if found or not start:
                return not found
            await trio.lowlevel.checkpoint()

    async def _move(self, items: Sequence[Item]) -> None:
        stripes, alone = plan(items, self._k)
        for stripe in stripes:
            began = self._world.clock.now()
            await self._move_stripe(stripe)
            await self._rest(began)
        for item in alone:
            began = self._world.clock.now()
            await self._move_alone(item)
            await self._rest(began)

    async def _rest(self, began: float) -> None:
        await trio.sleep(0 if self._is_quiet() else self._world.clock.now() - began)

    async def _move_stripe(self, stripe: Stripe) -> None:
        values = await self._read([(item, item.version.extents) for item in stripe.items])
        if None not in values:
            await self._write_stripe(stripe, values)
            return
        read = {id(item): value for item, value in zip(stripe.items, values, strict=True)}
        left, alone = plan([item for item in stripe.items if read[id(item)] is not None], self._k)
        for again in left:
            await self._write_stripe(again, [read[id(item)] for item in again.items])
        for item in alone:
            await self._move_alone(item)

    async def _write_stripe(self, stripe: Stripe, values: Sequence[bytes | None]) -> None:
        content = stripe.content([value for value in values if value is not None])
        (extent,) = await self._write(content)
        await self._commit_moves(list(stripe.moves(extent)))

    async def _move_alone(self, item: Item) -> None:
        """Extent by extent: of a value of any size, one append at a time is in memory."""
        extents: list[Extent] = []
        for extent in item.version.extents:
            (data,) = await self._read([(item, (extent,))])
            if data is None:
                return  # what was written of it is garbage
            extents += await self._write(data)
        await self._commit_moves(list(item.moves(tuple(extents))))

    async def _read(self, wanted: Sequence[tuple[Item, tuple[Extent, ...]]]) -> list[bytes | None]:
        """Their bytes; None for what was replaced meanwhile, and for what cannot be read now."""
        try:
            return list(await self._read_all([extents for _, extents in wanted]))
        except BlockStoreError:
            values: list[bytes | None] = []
            for item, extents in wanted:
                try:
                    values += await self._read_all([extents])
                except BlockStoreError as error:
                    log.info("not_packed volume=%d key=%r why=%s", self._state.volume, item.key, error)
                    values.append(None)
            return values

    async def _read_all(self, wanted: Sequence[tuple[Extent, ...]]) -> list[bytes]:
        placements = self._state.chunks.placements_of(extent for extents in wanted for extent in extents)
        wants = [(extents, placements, 0, sum(extent.length for extent in extents)) for extents in wanted]
        return await self._world.reader.read_many(wants, self._world.clock.now() + OPERATION_SECONDS)

    async def _write(self, data: bytes) -> tuple[Extent, ...]:
        extents = await self._writer.write(data, self._world.clock.now() + OPERATION_SECONDS)
        self._written |= {extent.chunk for extent in extents}
        return extents

    async def _commit_moves(self, moves: Sequence[Move]) -> None:
        for record in records_of(moves):
            await self._commit(record)
        self.moved_values += len(moves)
        self.moved_bytes += sum(extent.length for _, _, extents in moves for extent in extents)
        self._written.clear()
