"""The owner's write side: what goes into the journal next, and what of it has become durable.

Pure. Records are added with a token; `next_append` forms a batch of what waits, while fewer than
`JOURNAL_BATCHES_IN_FLIGHT` are under way: so one caller pays one append, and many share one. `on_ack` gives
back the batches that are now on every member, in order. When a member fails or is late the chunk ends at
the length acknowledged so far; batches beyond it are unplaced again and go, in order, into the next chunk.
Nothing of them was told to anyone, so nothing is lost and nothing is there twice: a reader of the journal
stops at the seal.

    writing ──full──▶ draining ──all acknowledged──▶ waiting ──start_chunk──▶ writing
       └──────────────── a member fails ────────────────▲

Invariants: sequences are given when a batch is placed, and increase by one from record to record over the
whole journal; a chunk's first batch begins with the record that opens it, so whoever replays knows the
chunk before anything refers to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.checksum import crc32c
from blockstore.codec.control_record import JournalChunk
from blockstore.codec.journal_record import (
    Batch,
    BatchRecord,
    ChunkOpenedRecord,
    ChunkSealedRecord,
    DeleteRecord,
    JournalRecord,
    MovedRecord,
    PutRecord,
    RestoreRecord,
    brings_values,
    build_batch,
    encode_header,
    total_work,
    work_of,
)
from blockstore.codec.messages import Extent, Placement
from blockstore.config import JOURNAL_BATCH_BYTES_MAX, JOURNAL_BATCHES_IN_FLIGHT
from blockstore.errors import BlockStoreError, FragmentFull, StaleEpoch
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId
from blockstore.volume.chunk_table import OPEN

BATCH_RECORDS_MAX = 1_000
"""Bounds the time that one batch takes to encode and to apply: some 5 ms. A record that changes many keys
counts as so many."""


RECORD_BYTES = 256
"""What a record costs besides the bytes that its client chose: the objects it is made of, while it waits."""
EXTENT_BYTES = 64
"""An extent in a record: 40 to 60 bytes."""
KEY_BYTES = 64
"""What one of many keys of a record costs besides its bytes."""


class Phase(Enum):
    WAITING = "waiting for a chunk"
    WRITING = "writing"
    DRAINING = "full; waiting for what is under way"


@dataclass(frozen=True, slots=True)
class Append:
    """To be sent to every member of the chunk's write set."""

    writer: ChunkWriter
    chunk: ChunkId
    offset: int
    header: bytes
    body: bytes
    crc: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A batch that every member has: apply it, then answer its tokens."""

    batch: Batch
    tokens: tuple[object, ...]
    chunk: ChunkId
    offset: int


@dataclass(slots=True)
class _Placed:
    batch: Batch
    tokens: tuple[object, ...]
    offset: int
    end: int


class Journal:
    def __init__(
        self,
        session: SessionId,
        next_sequence: int,
        to_seal: dict[ChunkId, int],
        *,
        batch_bytes_max: int = JOURNAL_BATCH_BYTES_MAX,
        batches_in_flight: int = JOURNAL_BATCHES_IN_FLIGHT,
    ) -> None:
        """`to_seal`: chunks whose end the takeover found, with the lengths; said in the first batch."""
        self.phase = Phase.WAITING
        self.is_fenced = False  # a member told that a later owner was there: this journal goes nowhere
        self.waiting_bytes = 0
        self.written_bytes = self.written_records = 0  # over all chunks: what a replay would have to read
        self.chunk: ChunkId | None = None
        self.writer: ChunkWriter | None = None
        self._batch_bytes_max, self._batches_in_flight = batch_bytes_max, batches_in_flight
        self._to_seal = dict(to_seal)
        self._session = session
        self._next_sequence = next_sequence
        self._next_request = 0
        self._added: deque[tuple[JournalRecord, bytes | memoryview | None, object, int]] = deque()
        self._unplaced: deque[tuple[Batch, tuple[object, ...]]] = deque()
        self._placed: deque[_Placed] = deque()

    # --- what comes in

    def own_request(self) -> RequestId:
        """An id for a record of the owner's own."""
        self._next_request += 1
        return RequestId(self._session, self._next_request)

    def add(self, record: JournalRecord, value: bytes | memoryview | None, token: object) -> None:
        """Queue a record; `token` comes back with its batch. The value is copied when the batch is formed."""
        cost = _cost(record, value)
        self._added.append((record, value, token, cost))
        self.waiting_bytes += cost

    @property
    def is_idle(self) -> bool:
        return not (self._added or self._unplaced or self._placed)

    def referred_chunks(self) -> frozenset[ChunkId]:
        """Those that records refer to which are not applied yet."""
        waiting = [record for record, *_ in self._added]
        for batch in (*(batch for batch, _ in self._unplaced), *(placed.batch for placed in self._placed)):
            waiting += batch.records
        return frozenset(extent.chunk for record in waiting for extent in _extents_of(record))

    # --- chunks

    def named_with(
        self, journal: tuple[JournalChunk, ...], chunk: ChunkId, disks: tuple[DiskId, ...]
    ) -> tuple[JournalChunk, ...]:
        """The journal as control shall name it: the chunk that ended with its length, `chunk` as the open
        one. An open chunk besides was named by an attempt whose outcome was not known, and never begun."""
        ended = [
            JournalChunk(one.chunk, one.disks, self.sealed_length) if one.chunk == self.chunk else one
            for one in journal
        ]
        return (*(one for one in ended if one.length > 0), JournalChunk(chunk, disks, OPEN))

    def start_chunk(self, chunk: ChunkId, placement: Placement, capacity: int) -> None:
        """Go on in this chunk, which control names as the journal's last."""
        assert self.phase is Phase.WAITING
        opening: list[tuple[JournalRecord, bytes | memoryview | None]] = [
            (ChunkOpenedRecord(self.own_request(), 0, chunk, placement, capacity, "journal"), None)
        ]
        opening += [(ChunkSealedRecord(sealed, length), None) for sealed, length in self._to_seal.items()]
        self._unplaced.appendleft((build_batch(0, opening), (None,) * len(opening)))
        self.chunk = chunk
        self.writer = ChunkWriter(chunk, chunk.epoch, placement, capacity)
        self.phase = Phase.WRITING

    def refuse_puts(self) -> list[object]:
        """The store is full: take back the puts that wait, and return their tokens. Right after
        `start_chunk`: control then names where the chunk before ended, so that what some of its members have
        of them is never replayed."""
        assert not self._placed
        refused: list[object] = []
        added, self._added = self._added, deque()
        for entry in added:
            record, _, token, cost = entry
            if brings_values(record):
                self.waiting_bytes -= cost
                refused.append(token)
            else:
                self._added.append(entry)
        unplaced, self._unplaced = self._unplaced, deque()
        for batch, tokens in unplaced:
            kept = [i for i, record in enumerate(batch.records) if not brings_values(record)]
            refused += [token for i, token in enumerate(tokens) if i not in kept]
            if kept:  # none of them has a value
                records = [(batch.records[i], None) for i in kept]
                self._unplaced.append((build_batch(0, records), tuple(tokens[i] for i in kept)))
        return refused

    def _end_chunk(self) -> None:
        assert self.writer is not None
        assert self.chunk is not None
        self._unplaced.extendleft((placed.batch, placed.tokens) for placed in reversed(self._placed))
        self._next_sequence -= sum(len(placed.batch.records) for placed in self._placed)
        self._placed.clear()
        if self.sealed_length:
            self._to_seal[self.chunk] = self.sealed_length
        else:
            self._unplaced.popleft()  # the batch that opened it: to the volume this chunk never was
        self.phase = Phase.WAITING

    @property
    def sealed_length(self) -> int:
        """Where `chunk` ends, once the phase is WAITING."""
        return 0 if self.writer is None else self.writer.acknowledged

    # --- appends

    def next_append(self, now: float) -> Append | None:
        """The next batch to send, if one may be sent now."""
        if self.phase is not Phase.WRITING or len(self._placed) >= self._batches_in_flight:
            return None
        if not self._unplaced:
            if not self._added:
                return None
            self._unplaced.append(self._form_batch())
        assert self.writer is not None
        assert self.chunk is not None
        batch, tokens = self._unplaced[0]
        try:
            offset = self.writer.reserve(batch.length, now)
        except FragmentFull:
            self.phase = Phase.DRAINING
            if not self._placed:
                self._end_chunk()
            return None
        self._unplaced.popleft()
        batch = replace(batch, base_sequence=self._next_sequence)
        self._next_sequence += len(batch.records)
        self._placed.append(_Placed(batch, tokens, offset, offset + batch.length))
        header = encode_header(batch, self.chunk, offset, self._session)
        return Append(self.writer, self.chunk, offset, header, batch.body, crc32c(batch.body, crc32c(header)))

    def _form_batch(self) -> tuple[Batch, tuple[object, ...]]:
        entries: list[tuple[JournalRecord, bytes | memoryview | None]] = []
        tokens: list[object] = []
        size = work = 0
        while self._added and work < BATCH_RECORDS_MAX:
            record, value, token, cost = self._added[0]
            if entries and size + cost > self._batch_bytes_max:
                break
            self._added.popleft()
            self.waiting_bytes -= cost
            size += cost
            work += work_of(record)
            entries.append((record, value))
            tokens.append(token)
        return build_batch(0, entries), tuple(tokens)

    # --- what becomes of them

    def on_ack(self, writer: ChunkWriter, shard_index: int, length: int) -> list[Committed]:
        """A member has everything up to `length` on its disk."""
        if writer is not self.writer or self.phase is Phase.WAITING:
            return []  # an answer about a chunk that was left behind
        writer.on_ack(shard_index, length)
        acknowledged = writer.acknowledged
        committed: list[Committed] = []
        while self._placed and self._placed[0].end <= acknowledged:
            placed = self._placed.popleft()
            if placed.offset == 0:
                self._to_seal.clear()  # the opening batch has said it
            self.written_bytes += placed.batch.length
            self.written_records += total_work(placed.batch.records)
            committed.append(Committed(placed.batch, placed.tokens, writer.chunk, placed.offset))
        if self.phase is Phase.DRAINING and not self._placed:
            self._end_chunk()
        return committed

    def on_failure(self, writer: ChunkWriter, shard_index: int, why: BlockStoreError) -> bool:
        """A member failed. True if the chunk ended by it."""
        if writer is not self.writer or self.phase is Phase.WAITING:
            return False
        self.is_fenced = self.is_fenced or isinstance(why, StaleEpoch)
        writer.on_failure(shard_index)
        self._end_chunk()
        return True

    def late_members(self, now: float) -> list[tuple[int, DiskId]]:
        if self.writer is None or self.phase is Phase.WAITING:
            return []
        return self.writer.late(now)


def _extents_of(record: JournalRecord) -> Iterable[Extent]:
    """What becomes referred to when it is applied, besides its own value."""
    if isinstance(record, PutRecord):
        return record.extents
    if isinstance(record, BatchRecord):
        return [extent for change in record.changes for extent in change.extents]
    if isinstance(record, MovedRecord):
        return [extent for _, _, extents in record.moves for extent in extents]
    return ()


def _cost(record: JournalRecord, value: bytes | memoryview | None) -> int:
    """What it takes in memory while it waits, and at most in its batch."""
    cost = RECORD_BYTES if value is None else RECORD_BYTES + len(value)
    if isinstance(record, PutRecord):
        cost += len(record.key) + len(record.meta) + EXTENT_BYTES * len(record.extents)
    elif isinstance(record, DeleteRecord):
        cost += len(record.key)
    elif isinstance(record, MovedRecord):
        cost += sum(len(key) + EXTENT_BYTES * (1 + len(extents)) for key, _, extents in record.moves)
    elif isinstance(record, BatchRecord):
        cost += sum(len(key) + KEY_BYTES for key, _ in record.conditions)
        cost += sum(
            len(one.key) + len(one.meta or b"") + KEY_BYTES + EXTENT_BYTES * len(one.extents)
            for one in record.changes
        )
    elif isinstance(record, RestoreRecord):
        cost += sum(len(key) + KEY_BYTES for key in (*record.keys, *record.targets))
    return cost
