"""Writing values straight to the nodes that will keep them.

A session's writer of what is too large for the journal. It appends to chunks that the owner granted; the
references that come out are durable on the whole write set, and become visible when the owner commits them.
There are no partial acknowledgements (DESIGN invariant 1): when a member fails or is late its chunk ends at
the length that all have, and what was beyond is written again in a new chunk on others.

Between taking an offset and handing the appends of all members to their lanes nothing is awaited: lanes keep
the order, so the fragments grow as the offsets were given, whichever tasks they came from. Written over
`Caller`."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from blockstore.chunk.hedging import Quantile
from blockstore.chunk.node_table import NodeTable
from blockstore.chunk.striping import data_shards, piece_bytes_max, unit_of
from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.checksum import crc32c
from blockstore.codec.erasure import erasure_code
from blockstore.codec.messages import Appended, AppendFragment, Extent, Granted
from blockstore.config import MEMBER_LATE_SECONDS, SHARD_ALIGN_BYTES, SHARD_UNIT_BYTES
from blockstore.errors import (
    BlockStoreError,
    Busy,
    DeadlineExceeded,
    FragmentFull,
    FragmentSealed,
    ProtocolViolation,
    StaleEpoch,
    Unavailable,
)
from blockstore.ids import ChunkId, DiskId, MiB
from blockstore.runtime.interfaces import Address, Answer, Buffer, Caller, Flight

log = logging.getLogger(__name__)

RequestGrant = Callable[
    [tuple[tuple[ChunkId, int], ...], tuple[DiskId, ...], float],
    Awaitable[Granted],
]
"""Ask the owner for a chunk: `(finished, avoid, deadline)`, as in `Grant`. Finds the owner, and retries, by
itself."""

PIECES_IN_FLIGHT = 4
"""Of one value in one chunk: while a member syncs one, the next are on their way; more only fills queues."""

BYTES_IN_FLIGHT_MAX = 32 * MiB
"""Of one writer: half of what a lane will hold unsent, so that our own appends never meet its Busy."""

SHARE_BYTES = 8 * MiB
"""A chunk with less than this in flight is shared before another is opened: its members sync appends
together."""

AVOID_SECONDS = 5.0
"""A disk that failed an append is not asked for again before that."""

FAILURES_MAX = 8
"""Chunks in a row that failed without a byte of progress; then the last error is the caller's."""

_WAIT_SECONDS = 0.002
_PAUSE_SECONDS_MIN = 0.02
_PAUSE_SECONDS_MAX = 0.3
_GRACE_SECONDS = 0.05
"""Answers that came while this process itself was not running are taken before a member is called late."""
_SPARE_SHARDS_MAX = 16


class _Chunk:
    """A granted chunk that this writer appends to."""

    __slots__ = ("core", "error", "in_flight_bytes", "is_closed", "is_reported", "n_users")

    def __init__(self, core: ChunkWriter) -> None:
        self.core = core
        self.in_flight_bytes = 0
        self.n_users = 0
        self.is_closed = False  # nothing more is appended
        self.is_reported = False
        self.error: BlockStoreError | None = None


class _Piece:
    """One append to every member."""

    __slots__ = ("extent", "fragment_end", "parity", "posted", "value_end")

    def __init__(
        self, extent: Extent, value_end: int, fragment_end: int, posted: float, parity: list[bytearray]
    ) -> None:
        self.extent, self.value_end, self.fragment_end = extent, value_end, fragment_end
        self.posted, self.parity = posted, parity


class DataWriter:
    """Safe to use from many tasks at once: their values share the open chunks."""

    def __init__(
        self,
        caller: Caller,
        nodes: NodeTable,
        grant: RequestGrant,
        rng: random.Random,
        chunks_open_max: int = 4,
    ) -> None:
        self._caller, self._nodes, self._grant, self._rng = caller, nodes, grant, rng
        self._chunks_open_max = chunks_open_max
        self._open: list[_Chunk] = []
        self._n_granting = 0
        self._finished: list[tuple[ChunkId, int]] = []
        self._avoid_until: dict[DiskId, float] = {}
        self._append_seconds = Quantile(0.0)
        self._spare_shards: list[bytearray] = []

    async def write(
        self, data: Buffer, deadline: float, piece_bytes: int | None = None
    ) -> tuple[Extent, ...]:
        """The extents of `data`, durable on their whole write sets; with `piece_bytes` none crosses a
        multiple of that. `data` must not change meanwhile. Raises DeadlineExceeded, what the grant raised,
        or the members' error when chunk after chunk fails; what was written then is garbage that the owner
        knows of."""
        view = memoryview(data).cast("B")
        extents: list[Extent] = []
        position = 0
        n_failures = 0
        while position < view.nbytes:
            if self._caller.now() >= deadline:
                raise self._too_late(view, position)
            if self._in_flight_bytes() >= BYTES_IN_FLIGHT_MAX:
                await self._caller.sleep(_WAIT_SECONDS)
                continue
            chunk = await self._take_chunk(deadline)
            before = position
            position = await self._append(chunk, view, position, extents, deadline, piece_bytes)
            if position > before:
                n_failures = 0
            elif chunk.error is not None:
                n_failures += 1
                if n_failures >= FAILURES_MAX:
                    raise chunk.error
                if n_failures > 1:  # the first is the ordinary loss of a member
                    pause = min(_PAUSE_SECONDS_MIN * 2**n_failures, _PAUSE_SECONDS_MAX)
                    await self._caller.sleep(pause * (0.5 + self._rng.random() / 2))
        return tuple(extents)

    def finish(self) -> tuple[tuple[ChunkId, int], ...]:
        """Give up the open chunks: what `Grant.finished` should say, for an owner that is told when we
        leave."""
        for chunk in list(self._open):
            self._close(chunk)
        finished, self._finished = tuple(self._finished), []
        return finished

    # --- chunks

    async def _take_chunk(self, deadline: float) -> _Chunk:
        """An open chunk, the one with the least in flight; a new one when all are busy or there is none."""
        while True:
            least = min(self._open, key=lambda chunk: chunk.in_flight_bytes, default=None)
            if least is not None and least.in_flight_bytes < SHARE_BYTES:
                return least
            if len(self._open) + self._n_granting < self._chunks_open_max:
                return await self._open_chunk(deadline)
            if least is not None:
                return least
            if self._caller.now() >= deadline:
                raise DeadlineExceeded("No chunk to write to was granted in the time given.")
            await self._caller.sleep(_WAIT_SECONDS)  # others of us are being given all that we may have

    async def _open_chunk(self, deadline: float) -> _Chunk:
        now = self._caller.now()
        self._avoid_until = {disk: until for disk, until in self._avoid_until.items() if until > now}
        finished, self._finished = self._finished, []
        self._n_granting += 1
        try:
            granted = await self._grant(tuple(finished), tuple(sorted(self._avoid_until)), deadline)
        except BaseException:
            self._finished = finished + self._finished  # not told, as far as we know
            raise
        finally:
            self._n_granting -= 1
        placement = granted.placement
        capacity = granted.capacity
        if placement.k > 1:
            capacity -= capacity % SHARD_ALIGN_BYTES
        if (
            capacity < SHARD_ALIGN_BYTES
            or len(placement.disks) != placement.k + placement.m
            or not any(placement.disks)
        ):
            raise ProtocolViolation(f"the chunk {granted.chunk} that was granted cannot be written to")
        chunk = _Chunk(ChunkWriter(granted.chunk, granted.epoch, placement, capacity, granted.token))
        self._open.append(chunk)
        return chunk

    def _close(self, chunk: _Chunk) -> None:
        if not chunk.is_closed:
            chunk.is_closed = True
            self._open.remove(chunk)
        self._report(chunk)

    def _report(self, chunk: _Chunk) -> None:
        """Note where a closed chunk ends, as soon as that is certain: when it is broken, or nobody waits for
        it."""
        if chunk.is_closed and not chunk.is_reported and (chunk.core.broken or not chunk.n_users):
            chunk.is_reported = True
            self._finished.append((chunk.core.chunk, chunk.core.acknowledged))

    def _member_failed(self, chunk: _Chunk, shard_index: int, disk: DiskId, error: BlockStoreError) -> None:
        if not chunk.core.broken:
            log.info("append_failed chunk=%s disk=%d why=%s", chunk.core.chunk, disk, error)
            chunk.error = error
            chunk.core.on_failure(shard_index)
            self._close(chunk)
            if isinstance(error, StaleEpoch):  # the owner changed: all that it granted is closed
                for other in list(self._open):
                    if other.core.chunk[:2] == chunk.core.chunk[:2]:
                        self._close(other)
        if not isinstance(
            error, (StaleEpoch, FragmentSealed, FragmentFull, Busy)
        ):  # those are not the disk's fault
            now = self._caller.now()
            self._avoid_until[disk] = now + AVOID_SECONDS
            self._nodes.suspect(disk, now)

    # --- appends

    async def _append(
        self,
        chunk: _Chunk,
        view: memoryview,
        position: int,
        extents: list[Extent],
        deadline: float,
        piece_bytes: int | None,
    ) -> int:
        """Append from `position` for as long as the chunk lasts. Return how far the value is durable;
        `extents` are added accordingly."""
        core = chunk.core
        flight = self._caller.flight()
        pending: deque[_Piece] = deque()
        posted_end = position
        chunk.n_users += 1
        try:
            while True:
                while (
                    posted_end < view.nbytes
                    and not chunk.is_closed
                    and len(pending) < PIECES_IN_FLIGHT
                    and (not pending or self._in_flight_bytes() < BYTES_IN_FLIGHT_MAX)
                ):
                    rest = view
                    if piece_bytes is not None:
                        rest = view[: posted_end - posted_end % piece_bytes + piece_bytes]
                    piece = self._post(chunk, flight, rest, posted_end, deadline)
                    if piece is None:
                        break
                    pending.append(piece)
                    posted_end = piece.value_end
                while pending and pending[0].fragment_end <= core.acknowledged:
                    done = pending.popleft()
                    chunk.in_flight_bytes -= done.extent.length
                    self._keep_shards(done.parity)
                    extents.append(done.extent)
                    position = done.value_end
                if core.broken or (not pending and (chunk.is_closed or position == view.nbytes)):
                    return position
                if pending:
                    await self._wait(chunk, flight, pending[0], deadline, view, position)
        finally:
            flight.abandon()
            chunk.n_users -= 1
            for piece in pending:
                chunk.in_flight_bytes -= piece.extent.length
            if pending:
                # Cut short: what its members answer is not heard any more, so the chunk goes no further.
                self._close(chunk)
            self._report(chunk)

    def _in_flight_bytes(self) -> int:
        return sum(chunk.in_flight_bytes for chunk in self._open)

    def _post(
        self, chunk: _Chunk, flight: Flight, view: memoryview, start: int, deadline: float
    ) -> _Piece | None:
        """Send the next piece to every member. None when the chunk is full or a member is nowhere: it is
        closed."""
        core = chunk.core
        k = core.placement.k
        length = min(view.nbytes - start, piece_bytes_max(k), k * core.capacity)
        unit = unit_of(length, k)
        addresses: list[Address] = []
        for shard_index, disk in core.members:
            address = self._nodes.address_of_disk(disk)
            if address is None:
                self._member_failed(
                    chunk, shard_index, disk, Unavailable(f"Disk {disk} is on no known node.")
                )
                return None
            addresses.append(address)
        now = self._caller.now()
        try:
            offset = core.reserve(unit, now)
        except FragmentFull:
            self._close(chunk)
            return None
        piece = view[start : start + length]
        extent = Extent(core.chunk, offset, length, unit, crc32c(piece))
        parity: list[bytearray] = []
        shards: list[Buffer] = [piece]
        if k > 1:
            shards = data_shards(piece, k, unit)
            parity = erasure_code(k, core.placement.m).encode(
                shards, self._take_shards(unit, core.placement.m)
            )
            shards += parity
        done = _Piece(extent, start + length, offset + unit, now, parity)
        # No await from `reserve` to here, and none until every member's append is with its lane.
        for (shard_index, disk), address in zip(core.members, addresses, strict=True):
            shard = shards[shard_index] if k > 1 else piece
            crc = crc32c(shard) if k > 1 else extent.crc
            message = AppendFragment(
                disk, core.chunk, core.epoch, offset, crc, core.spec(shard_index, offset), core.token
            )
            flight.start((done, shard_index, disk), address, message, (shard,), deadline)
        chunk.in_flight_bytes += length
        return done

    async def _wait(
        self, chunk: _Chunk, flight: Flight, oldest: _Piece, deadline: float, view: memoryview, position: int
    ) -> None:
        """Take one answer, or find out who is late."""
        late_seconds = min(max(MEMBER_LATE_SECONDS, 4 * self._append_seconds.p95), 4 * MEMBER_LATE_SECONDS)
        taken = await flight.next(min(deadline, oldest.posted + late_seconds))
        if taken is None and self._caller.now() < deadline:
            taken = await flight.next(min(deadline, self._caller.now() + _GRACE_SECONDS))
        if taken is not None:
            self._take_answer(chunk, *taken)
            return
        now = self._caller.now()
        if now >= deadline:
            raise self._too_late(view, position)
        late = chunk.core.late(now, late_seconds)
        for shard_index, disk in late:
            error = DeadlineExceeded(
                f"Disk {disk} did not acknowledge an append within {late_seconds:.1f} s."
            )
            self._member_failed(chunk, shard_index, disk, error)
        if len(late) == len(chunk.core.members) > 1:
            for (
                _,
                disk,
            ) in late:  # everybody at once: that is load, or our own link, and no reason to avoid them
                self._avoid_until.pop(disk, None)

    def _take_answer(self, chunk: _Chunk, tag: Any, outcome: Answer | BlockStoreError) -> None:
        piece, shard_index, disk = tag
        if isinstance(outcome, Answer):
            outcome.payload.release()
            try:
                if not isinstance(outcome.message, Appended):
                    raise ProtocolViolation(f"disk {disk} answered an append with something else")
                chunk.core.on_ack(shard_index, outcome.message.length)
            except ProtocolViolation as violation:
                self._member_failed(chunk, shard_index, disk, violation)
            else:
                self._append_seconds.add(self._caller.now() - piece.posted)
        else:
            self._member_failed(chunk, shard_index, disk, outcome)

    def _too_late(self, view: memoryview, position: int) -> DeadlineExceeded:
        return DeadlineExceeded(f"{position} of {view.nbytes} bytes were durable in the time given.")

    # --- parity buffers, used again: fresh memory costs more than the arithmetic that fills it

    def _take_shards(self, unit: int, m: int) -> list[bytearray]:
        if unit != SHARD_UNIT_BYTES:
            return [bytearray(unit) for _ in range(m)]
        spare = self._spare_shards
        return [spare.pop() if spare else bytearray(unit) for _ in range(m)]

    def _keep_shards(self, parity: list[bytearray]) -> None:
        """Every member has them on its disk, so no lane needs them any more."""
        if parity and len(parity[0]) == SHARD_UNIT_BYTES and len(self._spare_shards) < _SPARE_SHARDS_MAX:
            self._spare_shards += parity
