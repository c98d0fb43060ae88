"""What may be believed of a fragment after a restart.

Pure: header, log and the tail's bytes in, a verdict out.

The log's valid records say which pieces were written. Let `synced` be the largest `synced` field in any of
them: everything below it was durable, and may have been acknowledged, when that record was written. So
below `synced`, damage is rot: the fragment keeps its length, the bad range is named, nothing is cut. Above
`synced` is the last batch that was written: power may have failed before it was durable, any part of it may
be missing, and there alone the length is cut, back to the end of the last append whose pieces all verify. A
cut may, however, also hide that the last batch was durable and has rotted since: `doubtful` tells whoever
asks for the length that another member may know of more. A valid record behind an invalid one has `synced`
to say which of the two it is (Alagappan et al., FAST 2018).

What is cut is blanked in the log before the next append: a stale record must never follow a new one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from blockstore.codec.fragment_file import (
    LAST,
    RECORD_BYTES,
    Header,
    State,
    decode_records,
    is_blank,
    piece_crc,
    piece_seed,
    record_seed,
)
from blockstore.runtime.interfaces import Buffer


@dataclass(slots=True)
class PieceIndex:
    """Where each piece ends and its sum, in order; pieces follow each other from 0 without a gap.

    `bad` are ranges whose records are lost: they have a piece here, but no sum to trust.
    """

    ends: array[int]
    crcs: array[int]
    bad: list[tuple[int, int]]

    @staticmethod
    def empty() -> PieceIndex:
        return PieceIndex(array("I"), array("I"), [])

    @property
    def end(self) -> int:
        return self.ends[-1] if self.ends else 0


@dataclass(frozen=True, slots=True)
class Verdict:
    length: int
    n_records: int  # the next record goes there
    doubtful: bool
    blank_until: int  # records from n_records to here must be zeroed before anything is appended


@dataclass(frozen=True, slots=True)
class LogScan:
    index: PieceIndex
    synced: int
    appends: tuple[tuple[int, int], ...]  # (end, n_records) after each whole append not below `synced`
    n_seen: int  # one more than the last valid record's index
    torn: bool  # something other than nothing follows the last record believed

    @property
    def tail(self) -> tuple[int, int]:
        """The bytes that `judge` must see."""
        return min(self.synced, self.index.end), self.index.end


def scan_log(header: Header, log: Buffer) -> LogScan:
    """`log` from the first record on: all of it, or for a sealed fragment its `n_records`."""
    sealed = header.state is State.SEALED
    records = decode_records(log, record_seed(header.chunk, header.slot, header.tenancy), header.tenancy)
    if sealed:
        records = [record for record in records if record.place < header.n_records]
    synced = header.length if sealed else max((record.synced for record in records), default=0)
    index = PieceIndex.empty()
    appends = [(0, 0)] if synced == 0 else []
    n_records, torn = 0, False
    for record in records:
        if record.offset != index.end or record.place != n_records:
            if index.end >= synced or record.offset < index.end:
                torn = True
                break
            _add_bad(index, min(record.offset, synced))
            if index.end != record.offset:
                break
        index.ends.append(record.offset + record.length)
        index.crcs.append(record.crc)
        n_records = record.place + 1
        if record.flags & LAST and index.end >= synced:
            appends.append((index.end, n_records))
    if index.end < synced:
        _add_bad(index, synced)
    if index.bad and index.bad[-1][1] == synced:
        appends.append((synced, n_records))
    if not sealed and (n_records + 1) * RECORD_BYTES <= len(memoryview(log)):
        torn = torn or not is_blank(log, n_records, header.tenancy)
    n_seen = max((record.place + 1 for record in records), default=0)
    return LogScan(index, synced, tuple(appends), n_seen, torn)


def _add_bad(index: PieceIndex, end: int) -> None:
    if end == index.end:
        return
    index.bad.append((index.end, end))
    index.ends.append(end)
    index.crcs.append(0)


def judge(header: Header, scan: LogScan, tail: memoryview) -> Verdict:
    """The open fragment's state; `tail` are the bytes `scan.tail`. The index in `scan` is cut to the
    length."""
    start, end = scan.tail
    assert len(tail) == end - start
    seed = piece_seed(header.chunk, header.shard_index)
    sound = start
    for piece_start, piece_end, crc in _pieces(scan.index, start):
        if piece_crc(seed, piece_start, tail[piece_start - start : piece_end - start]) != crc:
            break
        sound = piece_end
    length, n_records = max((append for append in scan.appends if append[0] <= sound), default=(start, 0))
    assert length >= start
    _cut(scan.index, length)
    doubtful = header.doubtful or scan.torn or length < end
    return Verdict(length, n_records, doubtful, scan.n_seen)


def _pieces(index: PieceIndex, start: int) -> Iterable[tuple[int, int, int]]:
    previous = 0
    for end, crc in zip(index.ends, index.crcs, strict=True):
        if previous >= start:
            yield previous, end, crc
        previous = end


def _cut(index: PieceIndex, length: int) -> None:
    while index.end > length:
        index.ends.pop()
        index.crcs.pop()
