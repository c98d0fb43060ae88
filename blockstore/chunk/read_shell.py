"""Reading values from the nodes: one message per node, hedged, verified, rebuilt where it must be.

What to ask of whom is decided in `reader.py`; this carries it out over `Caller`, so it runs under trio and
over blocking sockets alike. Every member is asked once in a read, but for what is damaged: that is read again
in ever smaller parts, for each may be whole at another member. Who retries the whole is the layer under
`api/`."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blockstore.chunk.hedging import HedgeDelay
from blockstore.chunk.node_table import NodeTable
from blockstore.chunk.reader import Ask, Buffer, ExtentRead, Member, extent_read
from blockstore.chunk.striping import parts_of, pieces_of
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import Extent, FragmentData, FragmentRange, Placement, ReadFragments
from blockstore.config import APPEND_BYTES_MAX, ATTEMPT_SECONDS
from blockstore.errors import (
    BlockStoreError,
    DeadlineExceeded,
    ProtocolViolation,
    Unavailable,
    from_wire,
)
from blockstore.ids import ChunkId, DiskId, MiB
from blockstore.runtime.interfaces import Address, Answer, Caller, Payload

log = logging.getLogger(__name__)

RANGES_PER_MESSAGE_MAX = 1_024
"""About 50 KiB of header; more only makes the first answer late."""

ASKED_BYTES_PER_NODE_MAX = 16 * MiB
"""Asked of one node and not yet answered, by one read: what a server holds unsent for a connection."""

PART_BYTES_MIN = 512
"""What is read by halves, for its members are damaged, is not read in smaller parts."""

Want = tuple[Sequence[Extent], Mapping[ChunkId, Placement], int, int]
"""Bytes [start, end) of the value that the extents make up, and where their chunks are."""


class ChunkReader:
    """Safe to use from many tasks at once."""

    def __init__(self, caller: Caller, nodes: NodeTable, rng: random.Random) -> None:
        self._caller = caller
        self._nodes = nodes
        self._rng = rng
        self._hedge = HedgeDelay()

    async def read(
        self,
        extents: Sequence[Extent],
        placements: Mapping[ChunkId, Placement],
        start: int,
        end: int,
        deadline: float,
    ) -> bytes:
        """Bytes [start, end) of the value. Raises QuorumLost or Unavailable when too few members answered (a
        retry may help), Corrupt when too few are sound, InvalidRequest for a range that is not there."""
        return (await self.read_many(((extents, placements, start, end),), deadline))[0]

    async def read_many(self, wants: Sequence[Want], deadline: float) -> list[bytes]:
        """The same for many ranges, in their order: one message for each node, as far as 4 MiB go. The first
        that fails fails all. Answers are held until the end, so memory is twice what is asked for. What
        cannot be read for damage is read again by halves, of the ranges and then of the range."""
        if len(wants) == 1:
            found = await self.try_one(*wants[0], deadline)
            if found is not None:
                return [found]
        reads: list[list[ExtentRead]] = []
        for extents, placements, start, end in wants:
            of_want: list[ExtentRead] = []
            for extent, first, last in pieces_of(extents, start, end):
                placement = placements.get(extent.chunk)
                if placement is None:
                    raise ProtocolViolation(f"nobody said where chunk {extent.chunk} is")
                of_want.append(extent_read(extent, placement, first, last))
            reads.append(of_want)
        payloads: list[Payload] = []
        reading = _Reading(self._caller, self._nodes, self._rng, self._hedge, payloads)
        try:
            await reading.run([read for of_want in reads for read in of_want], deadline)
            return [b"".join(_results(of_want)) for of_want in reads]
        except BlockStoreError as error:
            if reading.failed is None or not reading.failed.may_be_in_parts:
                raise
            why = error
        finally:
            del reads
            for payload in payloads:
                payload.release()
        if self._caller.now() >= deadline:
            raise why
        if len(wants) > 1:
            half = len(wants) // 2
            return [
                *await self.read_many(wants[:half], deadline),
                *await self.read_many(wants[half:], deadline),
            ]
        return [await self._read_by_halves(wants[0], deadline, why)]

    async def _read_by_halves(self, want: Want, deadline: float, why: BlockStoreError) -> bytes:
        """Two members that are damaged at different places have the whole between them, and so do one that is
        damaged and one that ends earlier. `why` they did not give it at once."""
        extents, placements, start, end = want
        if end - start <= PART_BYTES_MIN:
            raise why
        middle = (start + end) // 2
        halves = ((extents, placements, start, middle), (extents, placements, middle, end))
        data = b"".join([(await self.read_many((half,), deadline))[0] for half in halves])
        at = 0
        for extent, first, last in pieces_of(extents, start, end):
            part = memoryview(data)[at : at + last - first]
            if part.nbytes == extent.length and crc32c(part) != extent.crc:
                raise why
            at += part.nbytes
        return data

    async def try_one(
        self,
        extents: Sequence[Extent],
        placements: Mapping[ChunkId, Placement],
        start: int,
        end: int,
        deadline: float,
    ) -> bytes | None:
        """A range that one member has is asked of the best one, without what it takes to ask others as well.
        None for another range, and when the answer is late or wrong: then it must be read the long way."""
        if len(extents) != 1 or not 0 <= start < end <= extents[0].length:
            return None
        extent = extents[0]
        placement = placements.get(extent.chunk)
        if placement is None:
            return None
        nodes, now = self._nodes, self._caller.now()
        if placement.k == 1:
            disk, first = nodes.first_of(placement.disks, now, self._rng), start
        else:
            parts = parts_of(extent, start, end)
            if len(parts) > 1:
                return None
            disk, first = placement.disks[parts[0].shard_index], parts[0].start
        address = nodes.address_of_disk(disk)
        if address is None or not nodes.is_sound(disk, now):
            return None
        n_bytes = end - start
        patience = self._hedge.delay(n_bytes) if self._hedge.may_spend else ATTEMPT_SECONDS
        message = ReadFragments((FragmentRange(disk, extent.chunk, extent.offset + first, n_bytes),))
        nodes.add_load(disk, n_bytes)
        try:
            answer = await self._caller.call(address, message, (), min(deadline, now + patience))
        except DeadlineExceeded:
            self._hedge.try_spend()  # it is asked once more; who is late then is passed over for a while
            return None
        except BlockStoreError as error:
            nodes.suspect(disk, now)
            log.info("read_failed at=%s why=%s", address, error)
            return None
        finally:
            nodes.add_load(disk, -n_bytes)
        try:
            found, view = answer.message, answer.payload.view
            if not isinstance(found, FragmentData) or found.failed or view.nbytes != n_bytes:
                return None
            data = bytes(view)
        finally:
            answer.payload.release()
        if crc32c(data) != (extent.crc if n_bytes == extent.length else found.crcs[0]):
            return None
        self._hedge.on_read(n_bytes, self._caller.now() - now)
        return data


def _results(reads: Iterable[ExtentRead]) -> list[Buffer]:
    pieces: list[Buffer] = []
    for read in reads:
        assert read.result is not None
        pieces += read.result
    return pieces


class _Batch:
    """One message under way."""

    __slots__ = ("address", "asks", "hedge_at", "n_bytes", "sent")

    def __init__(self, address: Address, asks: list[Ask], n_bytes: int) -> None:
        self.address, self.asks, self.n_bytes = address, asks, n_bytes
        self.sent = 0.0
        self.hedge_at = 0.0


class _Reading:
    """One call of `read_many`."""

    def __init__(
        self,
        caller: Caller,
        nodes: NodeTable,
        rng: random.Random,
        hedge: HedgeDelay,
        payloads: list[Payload],
    ) -> None:
        self._caller, self._nodes, self._rng, self._hedge = caller, nodes, rng, hedge
        self._payloads = payloads
        self._flight = caller.flight()
        self._now = caller.now()
        self._deadline = 0.0
        self.failed: ExtentRead | None = None
        """The read that ended all of them."""
        self._n_open = 0  # reads without a result
        self._under_way: dict[_Batch, None] = {}  # in the order in which they were sent
        self._asked_bytes: dict[Address, int] = {}
        self._queued: dict[Address, deque[_Batch]] = {}

    async def run(self, reads: list[ExtentRead], deadline: float) -> None:
        """Return when every read has its result."""
        self._deadline = deadline
        self._n_open = len(reads)
        try:
            self._ask(reads, is_late=False)
            while self._n_open:
                taken = await self._flight.next(self._next_look())
                self._now = self._caller.now()
                if taken is not None:
                    self._on_answer(*taken)
                elif self._now >= deadline:
                    raise self._too_late(next(read for read in reads if read.result is None))
                else:
                    self._hedge_late()
        finally:
            self._flight.abandon()
            for batches in (self._under_way, *self._queued.values()):
                for batch in batches:
                    self._note_load(batch, -1)

    def _next_look(self) -> float:
        until = self._deadline
        for batch in self._under_way:
            if batch.hedge_at < until:
                until = batch.hedge_at
        return until

    # --- asking

    def _ask(self, reads: Iterable[ExtentRead], *, is_late: bool) -> None:
        """Send what these reads want to ask now, joined by node."""
        by_address: dict[Address, list[Ask]] = {}
        unknown: list[Ask] = []
        for read in reads:
            for ask in read.next_asks(is_late, self._in_order, self._is_sound):
                address = self._nodes.address_of_disk(ask.disk)
                if address is None:
                    unknown.append(ask)
                else:
                    self._nodes.add_load(ask.disk, ask.end - ask.start)
                    by_address.setdefault(address, []).append(ask)
            if read.result is not None:
                self._n_open -= 1
            elif read.is_stuck and not is_late:
                self.failed = read
                raise self._too_late(read) if self._now >= self._deadline else read.failure()
        for address, asks in by_address.items():
            self._send(address, asks)
        if unknown:
            for ask in unknown:
                ask.read.on_failed(ask, Unavailable(f"Disk {ask.disk} is on no known node."))
            self._ask(_distinct(ask.read for ask in unknown), is_late=is_late)

    def _in_order(self, members: list[Member]) -> list[Member]:
        return self._nodes.in_order(members, self._now, self._rng)

    def _is_sound(self, disk: DiskId) -> bool:
        return self._nodes.is_sound(disk, self._now)

    def _send(self, address: Address, asks: list[Ask]) -> None:
        queued = self._queued.setdefault(address, deque())
        part: list[Ask] = []
        n_bytes = 0
        for ask in asks:
            size = ask.end - ask.start
            if part and (n_bytes + size > APPEND_BYTES_MAX or len(part) == RANGES_PER_MESSAGE_MAX):
                queued.append(_Batch(address, part, n_bytes))
                part, n_bytes = [], 0
            part.append(ask)
            n_bytes += size
        queued.append(_Batch(address, part, n_bytes))
        self._start_queued(address)

    def _start_queued(self, address: Address) -> None:
        queued = self._queued.get(address)
        asked = self._asked_bytes.get(address, 0)
        while queued and (not asked or asked + queued[0].n_bytes <= ASKED_BYTES_PER_NODE_MAX):
            batch = queued.popleft()
            asked += batch.n_bytes
            batch.sent = self._now
            batch.hedge_at = self._now + self._hedge.delay(batch.n_bytes)
            self._under_way[batch] = None
            ranges = tuple(
                [
                    FragmentRange(ask.disk, ask.read.extent.chunk, ask.offset, ask.end - ask.start)
                    for ask in batch.asks
                ]
            )
            until = min(self._deadline, self._now + ATTEMPT_SECONDS)
            self._flight.start(batch, address, ReadFragments(ranges), (), until)
        self._asked_bytes[address] = asked

    def _hedge_late(self) -> None:
        """Ask others for what is late, while the budget lasts; who is late is passed over for a while."""
        for batch in list(self._under_way):
            if batch.hedge_at <= self._now:
                batch.hedge_at = self._deadline
                if self._hedge.try_spend():
                    self._nodes.suspect(batch.asks[0].disk, self._now)
                    late = _distinct(ask.read for ask in batch.asks if ask.read.result is None)
                    self._ask(late, is_late=True)

    # --- answers

    def _on_answer(self, batch: Any, outcome: Answer | BlockStoreError) -> None:
        assert isinstance(batch, _Batch)
        del self._under_way[batch]
        self._asked_bytes[batch.address] -= batch.n_bytes
        self._note_load(batch, -1)
        pending = [ask.read for ask in batch.asks if ask.read.result is None]
        if isinstance(outcome, Answer):
            self._payloads.append(outcome.payload)
            self._hedge.on_read(batch.n_bytes, self._now - batch.sent)
            self._take(batch, outcome)
        else:
            self._nodes.suspect(batch.asks[0].disk, self._now)
            log.info("read_failed at=%s why=%s", batch.address, outcome)
            for ask in batch.asks:
                ask.read.on_failed(ask, outcome)
        open_still: list[ExtentRead] = []
        for read in _distinct(pending):
            if read.result is None:
                open_still.append(read)
            else:
                self._n_open -= 1
        if open_still:
            self._ask(open_still, is_late=False)
        self._start_queued(batch.address)

    def _take(self, batch: _Batch, answer: Answer) -> None:
        """Hand each range's bytes to its read."""
        data, view = answer.message, answer.payload.view
        failed: Mapping[int, Any] = data.failed if isinstance(data, FragmentData) else {}
        expected = sum(ask.end - ask.start for index, ask in enumerate(batch.asks) if index not in failed)
        if not isinstance(data, FragmentData) or len(data.crcs) != len(batch.asks) or view.nbytes != expected:
            error = ProtocolViolation(f"{batch.address} answered a read with something else")
            for ask in batch.asks:
                ask.read.on_failed(ask, error)
            return
        position = 0
        for index, (ask, crc) in enumerate(zip(batch.asks, data.crcs, strict=True)):
            if index in failed:
                why = from_wire(failed[index].name, failed[index].fields)
                log.info("fragment_read_failed disk=%d chunk=%s why=%s", ask.disk, ask.read.extent.chunk, why)
                ask.read.on_failed(ask, why)
            else:
                end = position + ask.end - ask.start
                ask.read.on_data(ask, view[position:end], crc)
                position = end

    def _note_load(self, batch: _Batch, sign: int) -> None:
        for ask in batch.asks:
            self._nodes.add_load(ask.disk, sign * (ask.end - ask.start))

    def _too_late(self, read: ExtentRead) -> DeadlineExceeded:
        chunk, disks = read.extent.chunk, read.placement.disks
        return DeadlineExceeded(f"Chunk {chunk} was not read in the time given; it is on disks {disks}.")


def _distinct(reads: Iterable[ExtentRead]) -> list[ExtentRead]:
    """Each once, in order."""
    return list(dict.fromkeys(reads))
