"""One fragment: what an append, a seal or a delete writes, and what may be read.

Pure. Answers values that say what must reach the file; the shell carries them out in order and tells
`on_durable`. Raises before it changes anything.

Two lengths: `length` counts every append taken, `durable` those that are on the disk. An append must
continue `length`; only bytes below `durable` are read, told or sealed. A fragment that met an I/O error
(`failed`) or rot (`damaged`) takes no more appends: its writer seals and goes on elsewhere (DESIGN
invariants 5 and 6).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from blockstore.codec.checksum import crc32c
from blockstore.codec.fragment_file import (
    DATA_START,
    LOG_START,
    RECORD_BYTES,
    RECORDS_MAX,
    Header,
    State,
    encode_append,
    encode_header,
    n_pieces,
    piece_seed,
    record_seed,
)
from blockstore.codec.messages import FragmentSpec
from blockstore.errors import (
    BlockStoreError,
    Corrupt,
    FragmentFull,
    FragmentSealed,
    InvalidRequest,
    OffsetMismatch,
)
from blockstore.ids import ChunkId, KiB
from blockstore.node.recovery import PieceIndex, Verdict
from blockstore.runtime.interfaces import Write

Waiter = Callable[[int | BlockStoreError], None]


class Pending:
    """An append under way, and who waits for it: its sender, retries of it, fences."""

    __slots__ = ("crc", "end", "offset", "waiters", "writes")

    def __init__(self, offset: int, end: int, crc: int, writes: tuple[Write, ...]) -> None:
        self.offset = offset
        self.end = end
        self.crc = crc
        self.writes = writes
        self.waiters: list[Waiter] = []


PREPARED_BYTES = 256 * KiB
"""Written ahead of small appends to a new file: 60 of 4 KiB, a millisecond or two of a disk."""

PREPARED_APPEND_BYTES_MAX = 32 * KiB
"""Writing ahead of larger appends doubles what is written, for less than it takes. Shards that clients write
are larger than this: smaller values are in the journal."""

_ZEROS = bytes(PREPARED_BYTES)


class Span(NamedTuple):
    """What must be read of the file to verify a range: whole pieces `first` to `last`."""

    start: int
    end: int
    first: int
    last: int
    pieces: PieceIndex
    """By which they are verified; the fragment itself may have given up its index when they come."""


class Fragment:
    __slots__ = (
        "_log_seed",
        "_n_records",
        "_piece_seed",
        "capacity",
        "chunk",
        "damaged",
        "doubtful",
        "durable",
        "failed",
        "header",
        "header_written",
        "index",
        "length",
        "pending",
        "prepared",
        "rewriting",
        "seal_durable",
        "sealed",
        "sealing",
        "slot",
        "tenancy",
        "when_idle",
    )

    def __init__(self, header: Header) -> None:
        self.header = header  # as it is on the disk, or will be when `header_written`
        self.header_written = True
        self.chunk = header.chunk
        self.slot = header.slot
        self.tenancy = header.tenancy
        self.capacity = header.capacity
        self._piece_seed = piece_seed(header.chunk, header.shard_index)
        self._log_seed = record_seed(header.chunk, header.slot, header.tenancy)
        self._n_records = 0
        self.length = self.durable = 0
        self.sealed = header.state is State.SEALED
        if self.sealed:
            self.length = self.durable = header.length
        self.seal_durable = False
        self.sealing: int | None = None  # the length of a seal under way
        self.doubtful = header.doubtful
        self.damaged = False
        self.failed: BlockStoreError | None = None
        self.index: PieceIndex | None = None if self.sealed else PieceIndex.empty()
        self.pending: deque[Pending] = deque()
        # Up to where the file's blocks were written before; one that is used again is taken for filled.
        self.prepared = 0 if header.tenancy == 1 else header.capacity
        self.rewriting = False  # a header is under way
        self.when_idle: deque[Callable[[], None]] = deque()

    @staticmethod
    def create(chunk: ChunkId, spec: FragmentSpec, free: Header) -> Fragment:
        """A new fragment in the slot whose header is `free`. Nothing is on the disk before its first
        append."""
        header = Header(
            state=State.OPEN,
            generation=free.generation + 1,
            disk=free.disk,
            slot=free.slot,
            tenancy=free.tenancy + 1,
            slot_bytes=free.slot_bytes,
            chunk=chunk,
            shard_index=spec.shard_index,
            k=spec.k,
            m=spec.m,
            capacity=spec.capacity,
        )
        fragment = Fragment(header)
        fragment.header_written = False
        return fragment

    @staticmethod
    def recovered(header: Header, index: PieceIndex, verdict: Verdict) -> Fragment:
        fragment = Fragment(header)
        fragment.index = index
        fragment.length = fragment.durable = verdict.length
        fragment._n_records = verdict.blank_until if index.bad else verdict.n_records
        fragment.doubtful = verdict.doubtful
        fragment.damaged = bool(index.bad)
        return fragment

    # --- appending

    def append(self, offset: int, data: memoryview, crc: int) -> Pending | None:
        """A new `Pending` with its `writes`, the one under way that this repeats, or None: it is durable
        already."""
        n = len(data)
        end = offset + n
        if offset != self.length or not n:
            if end <= self.length:
                return self._repeated(offset, data, crc)
            raise self._sealed_error() or OffsetMismatch(self.length)
        if self.sealed or self.sealing is not None:
            raise self._sealed_error() or OffsetMismatch(self.length)
        self._check_writable()
        if end > self.capacity or self._n_records + n_pieces(offset, n) > RECORDS_MAX:
            raise FragmentFull()
        if crc32c(data) != crc:
            raise Corrupt(f"An append to {self.chunk}", f"payload at {offset}")
        index = self.index
        assert index is not None
        first = self._n_records
        records = encode_append(
            self._piece_seed,
            self._log_seed,
            self.tenancy,
            first,
            self.durable,
            offset,
            data,
            index.ends,
            index.crcs,
        )
        self._n_records = first + len(records) // RECORD_BYTES
        writes: tuple[Write, ...] = (
            Write(LOG_START + first * RECORD_BYTES, (records,)),
            Write(DATA_START + offset, (data, *self._prepare(end, n))),
        )
        if not self.header_written:
            self.header_written = True
            writes = (Write(0, (encode_header(self.header),)), *writes)
        self.length = end
        return self._push(Pending(offset, end, crc, writes))

    def _prepare(self, end: int, n: int) -> tuple[bytes, ...]:
        """What to write behind a small append so that the next ones go to blocks that were written before:
        for these a sync need not change the file system's own records, and takes a fraction of the time."""
        if end <= self.prepared or n > PREPARED_APPEND_BYTES_MAX:
            return ()
        self.prepared = min(end - end % PREPARED_BYTES + PREPARED_BYTES, self.capacity)
        return (_ZEROS[: self.prepared - end],)

    def _push(self, pending: Pending) -> Pending:
        self.pending.append(pending)
        return pending

    def _check_writable(self) -> None:
        if self.failed is not None:
            raise self.failed
        if self.damaged:
            raise Corrupt(f"Fragment of {self.chunk}", "it is quarantined; seal it and go on elsewhere")

    def _sealed_error(self) -> FragmentSealed | None:
        if self.sealed:
            return FragmentSealed(self.length)
        return None if self.sealing is None else FragmentSealed(self.sealing)

    def _repeated(self, offset: int, data: memoryview, crc: int) -> Pending | None:
        """Bytes at a place that is taken: fine if they are the same ones, as the retry of an append is."""
        end = offset + len(data)
        if not len(data):
            return self._touched(offset)
        if offset >= self.durable:
            for pending in self.pending:
                if (pending.offset, pending.end, pending.crc) == (offset, end, crc):
                    return pending
        elif self._holds(offset, data):
            return None
        raise self._sealed_error() or OffsetMismatch(self.length)

    def _touched(self, offset: int) -> Pending | None:
        """An append of nothing: it creates the fragment, or says that all before it is durable."""
        if offset != self.length:
            raise self._sealed_error() or OffsetMismatch(self.length)
        if not self.header_written:
            self._check_writable()
            self.header_written = True
            return self._push(Pending(offset, offset, 0, (Write(0, (encode_header(self.header),)),)))
        return self.pending[-1] if self.pending else None

    def _holds(self, offset: int, data: memoryview) -> bool:
        """Whether these bytes, cut into pieces the same way, have the sums that the index has."""
        index = self.index
        assert index is not None  # the shell loads it before it asks
        first = bisect_right(index.ends, offset)
        if offset != (index.ends[first - 1] if first else 0) or any(offset < end for _, end in index.bad):
            return False
        fresh = PieceIndex.empty()
        encode_append(self._piece_seed, 0, 0, 0, 0, offset, data, fresh.ends, fresh.crcs)
        last = first + len(fresh.ends)
        return index.ends[first:last] == fresh.ends and index.crcs[first:last] == fresh.crcs

    def on_durable(self, pending: Pending) -> None:
        """The oldest append under way, its writes, and all before it, are on the disk."""
        assert self.pending[0] is pending
        self.pending.popleft()
        self.durable = pending.end

    def on_failed(self, error: BlockStoreError) -> list[Pending]:
        """A write or sync failed: nothing more is written. What was under way, to be told."""
        self.failed = error
        under_way = list(self.pending)
        self.pending.clear()
        self.length = self.durable
        self.sealing, self.rewriting = None, False
        return under_way

    # --- sealing and deleting

    @property
    def is_busy(self) -> bool:
        """Whether something is under way, or waits for that to seal: `when_idle` is called at its end."""
        return bool(self.pending) or self.sealing is not None

    def begin_seal(self, length: int) -> bool:
        """No more appends are taken. True when a seal at this length is under way already."""
        if self.sealing is not None:
            if self.sealing != length:
                raise FragmentSealed(self.sealing)
            return True
        if not self.sealed:
            if self.failed is not None:
                raise self.failed
            if not 0 <= length <= self.length:
                raise OffsetMismatch(self.length)
            self.sealing = length
        return False

    def seal(self, length: int) -> tuple[Write, ...] | None:
        """After `begin_seal`, with nothing under way. What to write; None when it is sealed at `length`
        already.

        A seal found after a restart may be in the page cache alone, and clean there: a sync that failed drops
        the pages' dirt, and the next one "succeeds". So it is written once more.
        """
        if self.sealed:
            if length != self.length:
                raise FragmentSealed(self.length)
            return None if self.seal_durable else (Write(0, (encode_header(self.header),)),)
        if self.failed is not None:
            raise self.failed
        assert not self.pending and self.sealing == length <= self.durable  # noqa: PT018
        index = self.index
        assert index is not None
        n_pieces_kept = bisect_left(index.ends, length) + 1 if length else 0
        n_records = self._n_records if index.bad else n_pieces_kept
        self.rewriting = True
        header = self._rewritten(State.SEALED)
        self.header = replace(header, length=length, n_records=n_records)
        return (Write(0, (encode_header(self.header),)),)

    def on_sealed(self) -> None:
        if self.sealing is not None:
            self.length = self.durable = self.sealing
        self.sealed = self.seal_durable = True
        self.sealing, self.rewriting = None, False

    def mark_doubtful(self) -> bytes:
        """The header that remembers the doubt."""
        self.header = replace(self._rewritten(State.OPEN), doubtful=True)
        return encode_header(self.header)

    def free(self) -> Header:
        """The header that gives the slot back."""
        old = self.header
        return Header(State.FREE, old.generation + 1, old.disk, old.slot, old.tenancy, old.slot_bytes)

    def _rewritten(self, state: State) -> Header:
        return replace(
            self.header, state=state, generation=self.header.generation + 1, doubtful=self.doubtful
        )

    # --- reading

    def find(self, offset: int, length: int) -> Span:
        """The pieces that hold a range. The index is loaded."""
        end = offset + length
        if offset < 0 or length <= 0:
            raise InvalidRequest(f"there is no range of {length} bytes at {offset}")
        if end > self.durable:
            raise OffsetMismatch(self.durable)
        index = self.index
        assert index is not None
        ends = index.ends
        first = bisect_right(ends, offset)
        last = bisect_left(ends, end, first)
        span = Span(ends[first - 1] if first else 0, ends[last], first, last, index)
        if index.bad:
            for bad_start, bad_end in index.bad:
                if bad_start < span.end and span.start < bad_end:
                    raise Corrupt(
                        f"Fragment of {self.chunk}", f"the records of bytes {bad_start} to {bad_end} are lost"
                    )
        return span

    def verify(self, span: Span, data: memoryview) -> None:
        """Raises Corrupt. `data` are the bytes of the span."""
        seed = self._piece_seed
        start, _, first, last, index = span
        if first == last:
            if crc32c(data, seed ^ start) != index.crcs[first]:
                raise Corrupt(f"Fragment of {self.chunk}", f"bytes {start} to {span.end}")
            return
        at = start
        for piece in range(first, last + 1):
            end = index.ends[piece]
            if crc32c(data[at - start : end - start], seed ^ at) != index.crcs[piece]:
                raise Corrupt(f"Fragment of {self.chunk}", f"bytes {at} to {end}")
            at = end
