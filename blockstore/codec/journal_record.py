"""The journal of a volume: batches of records, one batch to one append.

    offset  bytes  field
         0      4  magic "BSJ1"
         4      2  format version (1)
         6      2  zero
         8      8  volume
        16      8  epoch of the owner that wrote the batch
        24      8  base sequence: record i of the batch has sequence base + i
        32      4  number of records
        36      4  length of the records' MessagePack block
        40      8  length of the values behind it
        48      8  session of the batch (which run of the owner wrote it)
        56      4  crc32c of bytes 0..56, seeded with the chunk and the offset where the batch belongs
        60      4  crc32c of the records' block
        64      …  records, then values, one behind the other in the order of the records

A value's own checksum is in its record, so replaying need not read values. A batch found at another place
than where it was written fails its first checksum (DESIGN invariant 5). Little endian throughout."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from blockstore.codec.checksum import crc32c
from blockstore.codec.malformed import MALFORMED
from blockstore.codec.messages import Extent, KeyWrite, Placement
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import ChunkId, RequestId

MAGIC = b"BSJ1"
VERSION = 1
_HEADER = struct.Struct("<4sHHQQQIIQQ")
_CHECKS = struct.Struct("<II")
HEADER_BYTES = _HEADER.size + _CHECKS.size
assert HEADER_BYTES == 64
_PLACE = struct.Struct("<QQQQ")


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The common form: a MessagePack array that begins with its tag."""


class PutRecord(_Record, frozen=True, tag=1):
    """A key's new version. With `inline` its value stands in the batch, else `extents` say where it is."""

    request: RequestId
    settled: int
    key: bytes
    meta: bytes
    size: int
    crc: int
    expected: int
    inline: bool
    extents: tuple[Extent, ...] = ()


class DeleteRecord(_Record, frozen=True, tag=2):
    request: RequestId
    settled: int
    key: bytes
    expected: int


class SnapshotRecord(_Record, frozen=True, tag=3):
    """`created`: wall clock, seconds since 1970."""

    request: RequestId
    settled: int
    name: str
    created: float


class SnapshotDeleteRecord(_Record, frozen=True, tag=4):
    request: RequestId
    settled: int
    name: str


class ChunkOpenedRecord(_Record, frozen=True, tag=5):
    """From now on this chunk may be referred to. `request` of a grant to a client; of the owner itself
    otherwise."""

    request: RequestId
    settled: int
    chunk: ChunkId
    placement: Placement
    capacity: int
    purpose: str  # "journal", "data", "packed" or "run"


class ChunkSealedRecord(_Record, frozen=True, tag=6):
    """`length`: bytes of each fragment."""

    chunk: ChunkId
    length: int


class ChunkDroppedRecord(_Record, frozen=True, tag=7):
    """Nothing refers to the chunk any more; its fragments are garbage from here on."""

    chunk: ChunkId


class EpochRecord(_Record, frozen=True, tag=8):
    """First record of an owner; `when` is its wall clock."""

    epoch: int
    when: float


class MovedRecord(_Record, frozen=True, tag=12):
    """The bytes of these versions, each named by its key and its sequence, are in other chunks from here on.
    What the versions are does not change, and one that is gone stays gone."""

    moves: tuple[tuple[bytes, int, tuple[Extent, ...]], ...]


class RestoreRecord(_Record, frozen=True, tag=9):
    """Each key becomes what it was at `at`, which must be a snapshot's sequence when this is applied: the
    same extents again, or nothing if it did not exist. With `targets`, one for each key, these become it
    instead."""

    request: RequestId
    settled: int
    keys: tuple[bytes, ...]
    at: int
    targets: tuple[bytes, ...] = ()


class SnapshotHoldRecord(_Record, frozen=True, tag=10):
    """A held snapshot cannot be deleted; `held` False releases it."""

    request: RequestId
    settled: int
    name: str
    held: bool


class BatchRecord(_Record, frozen=True, tag=11):
    """Several keys change together, or none; none if a key of `conditions` is not as expected. The values
    without extents stand in the journal's batch, one after the other."""

    request: RequestId
    settled: int
    changes: tuple[KeyWrite, ...]
    conditions: tuple[tuple[bytes, int], ...] = ()


class AnchorRecord(_Record, frozen=True, tag=13):
    """A clone of this snapshot is being made: from here on no chunk is dropped, and the map keeps what the
    snapshot sees. The record's sequence is the anchor's number."""

    request: RequestId
    settled: int
    snapshot: str
    clone: str


class AnchorFixedRecord(_Record, frozen=True, tag=14):
    """The clone is there: the anchor keeps no chunk that is opened after this. 0: none, which has ended
    since."""

    request: RequestId
    settled: int
    anchor: int


class AnchorReleasedRecord(_Record, frozen=True, tag=15):
    """The clone is gone, needs nothing here any more, or was never made."""

    anchor: int


class FlattenedRecord(_Record, frozen=True, tag=16):
    """Nothing in the map refers to chunks of other volumes any more, and nothing will. It says nothing
    while a clone is being made: runs that this begins with may refer to them."""


RequestRecord = (
    PutRecord
    | BatchRecord
    | DeleteRecord
    | SnapshotRecord
    | SnapshotDeleteRecord
    | SnapshotHoldRecord
    | ChunkOpenedRecord
    | RestoreRecord
    | AnchorRecord
    | AnchorFixedRecord
)
"""Asked for by a session; its result is remembered."""

JournalRecord = (
    RequestRecord
    | ChunkSealedRecord
    | ChunkDroppedRecord
    | EpochRecord
    | MovedRecord
    | AnchorReleasedRecord
    | FlattenedRecord
)


def work_of(record: JournalRecord) -> int:
    """How many keys it may change: what it takes to apply it is in proportion."""
    if isinstance(record, RestoreRecord):
        return len(record.keys)
    if isinstance(record, BatchRecord):
        return len(record.changes) + len(record.conditions)
    return max(1, len(record.moves)) if isinstance(record, MovedRecord) else 1


def brings_values(record: JournalRecord) -> bool:
    """Whether it makes the volume larger, so that a full store cannot take it."""
    if isinstance(record, BatchRecord):
        return any(change.size for change in record.changes)
    return isinstance(record, PutRecord)


def inline_sizes(record: JournalRecord) -> Sequence[int] | None:
    """Of the values that ride with it, one behind the other; None if none do."""
    if isinstance(record, BatchRecord):
        return [change.size for change in record.changes if change.size and not change.extents]
    return (record.size,) if isinstance(record, PutRecord) and record.inline else None


def total_work(records: Iterable[JournalRecord]) -> int:
    return sum(work_of(record) for record in records)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[JournalRecord, ...])


def _place_seed(chunk: ChunkId, offset: int) -> int:
    return crc32c(_PLACE.pack(chunk.volume, chunk.epoch, chunk.number, offset))


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch before it has a place. `value_offsets[i]` is counted from the batch's first byte; -1: no
    value."""

    base_sequence: int
    records: tuple[JournalRecord, ...]
    value_offsets: tuple[int, ...]
    body: bytes  # records' block and values
    n_block: int
    n_values: int

    @property
    def length(self) -> int:
        return HEADER_BYTES + len(self.body)


def build_batch(
    base_sequence: int, entries: Sequence[tuple[JournalRecord, bytes | memoryview | None]]
) -> Batch:
    """Join the records and the values that ride with them. Copies each value once."""
    records = tuple(record for record, _ in entries)
    block = _encoder.encode(records)
    position = HEADER_BYTES + len(block)
    parts: list[bytes | memoryview] = [block]
    offsets: list[int] = []
    for _, value in entries:
        if value is None:
            offsets.append(-1)
        else:
            offsets.append(position)
            position += len(value)
            parts.append(value)
    body = b"".join(parts)
    return Batch(base_sequence, records, tuple(offsets), body, len(block), len(body) - len(block))


def encode_header(batch: Batch, chunk: ChunkId, offset: int, session: int) -> bytes:
    """The header of `batch` when it stands at `offset` of `chunk`."""
    head = _HEADER.pack(
        MAGIC, VERSION, 0, chunk.volume, chunk.epoch, batch.base_sequence, len(batch.records),
        batch.n_block, batch.n_values, session,
    )  # fmt: skip
    block_crc = crc32c(memoryview(batch.body)[: batch.n_block])
    return head + _CHECKS.pack(crc32c(head, _place_seed(chunk, offset)), block_crc)


@dataclass(frozen=True, slots=True)
class BatchHeader:
    base_sequence: int
    n_records: int
    n_block: int
    n_values: int
    block_crc: int

    @property
    def length(self) -> int:
        return HEADER_BYTES + self.n_block + self.n_values


def decode_header(view: memoryview, chunk: ChunkId, offset: int) -> BatchHeader:
    """Raise Corrupt unless a batch written for this very place begins here."""
    where = f"journal chunk {chunk} at {offset}"
    if view.nbytes < HEADER_BYTES:
        raise Corrupt("A journal batch", f"{where}: {view.nbytes} bytes, shorter than its header")
    magic, version, _, volume, epoch, base, n_records, n_block, n_values, _ = _HEADER.unpack_from(view)
    header_crc, block_crc = _CHECKS.unpack_from(view, _HEADER.size)
    if magic != MAGIC:
        raise Corrupt("A journal batch", f"{where}: no batch begins here")
    if version != VERSION:
        raise UnknownFormat("The journal", version, VERSION)
    if crc32c(view[: _HEADER.size], _place_seed(chunk, offset)) != header_crc:
        raise Corrupt("A journal batch", f"{where}: checksum of the header")
    if (volume, epoch) != (chunk.volume, chunk.epoch):
        raise Corrupt("A journal batch", f"{where}: it belongs to volume {volume}, epoch {epoch}")
    return BatchHeader(base, n_records, n_block, n_values, block_crc)


def decode_records(header: BatchHeader, block: memoryview, where: str) -> tuple[JournalRecord, ...]:
    if crc32c(block) != header.block_crc:
        raise Corrupt("A journal batch", f"{where}: checksum of the records")
    try:
        records = _decoder.decode(block)
    except msgspec.ValidationError as error:
        raise UnknownFormat(f"A journal record ({error})", "newer", VERSION) from error
    except MALFORMED as error:
        raise Corrupt("A journal batch", f"{where}: {error}") from error
    if len(records) != header.n_records:
        raise Corrupt("A journal batch", f"{where}: {len(records)} records, not {header.n_records}")
    return records


def value_offsets(header: BatchHeader, records: Sequence[JournalRecord]) -> tuple[int, ...]:
    """As in `Batch`: where each record's value begins, from the batch's first byte; -1: no value."""
    position = HEADER_BYTES + header.n_block
    offsets: list[int] = []
    for record in records:
        sizes = inline_sizes(record)
        if sizes is None:
            offsets.append(-1)
        else:
            offsets.append(position)
            position += sum(sizes)
    return tuple(offsets)
