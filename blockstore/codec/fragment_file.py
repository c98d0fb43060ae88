"""The file that holds one fragment: header, log of piece records, data.

A slot is one preallocated file, used again and again. Little endian; offsets in bytes:

    0                  header, first copy     one 4 KiB block, 128 bytes used
    4096               header, second copy    the same, written together with the first
    8192               log                    FRAGMENT_LOG_BYTES of 32-byte piece records, written in order
    8192 + log         data                   the fragment's byte `o` is at DATA_START + o; `slot_bytes` long

    header  0 magic "BSTFRAG\\n"   8 version u32     12 state u32       16 generation u64   24 disk u64
           32 slot u32            36 tenancy u32    40 slot_bytes u64  48 volume u64       56 epoch u64
           64 number u64          72 shard_index u32 76 k u32          80 m u32            84 flags u32
           88 capacity u64        96 length u64     104 n_records u32  108 zeros          124 crc u32
    record  0 offset u32           4 length u32      8 crc u32         12 synced u32
           16 flags u32           20 place u32      24 tenancy u32     28 record crc u32

Header. `generation` counts its rewrites and the highest valid copy wins, `tenancy` counts the chunks that
the slot has held. Creating, sealing and deleting a fragment is rewriting the header in place: no rename, no
directory sync. Power failing between the copies leaves one of them whole, so either the old state or the
new one stands; both are states that nobody was told was different. `length` and `n_records` are set when
the state is SEALED. The first 128 bytes, with the crc at 124, are so in every version: a flipped bit is
never taken for a newer format.

Record. One piece: `length` bytes at `offset`, within one block of the PIECE_BYTES grid, so that reading a
few bytes verifies one block at most. `crc` is the sum of those bytes started from the fragment's identity
(chunk, shard) and offset: a misdirected or swapped block is as visible as a flipped bit. `synced` is the
fragment's length that was known to be durable when this record was written. LAST marks the last piece of an
append. The record's own crc starts from the chunk, the slot and the tenancy, and `place` is its index in
the log: what an earlier tenant of the slot left in the log is never taken for a record of this one.

Power failing while an append is written loses any of its sectors, record or data; the append was not
acknowledged. `node/recovery.py` argues what is then believed. We rely on a sector write not harming bytes
of the sector that it does not change, for the last sector of log and data is written again by the next
append.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from blockstore.codec.checksum import crc32c
from blockstore.config import FRAGMENT_LOG_BYTES, PIECE_BYTES
from blockstore.errors import UnknownFormat
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.runtime.interfaces import Buffer

VERSION = 1
BLOCK_BYTES = 4096
HEADER_BYTES = 2 * BLOCK_BYTES
LOG_START = HEADER_BYTES
DATA_START = LOG_START + FRAGMENT_LOG_BYTES
RECORD_BYTES = 32
RECORDS_MAX = FRAGMENT_LOG_BYTES // RECORD_BYTES

FLAG_DOUBTFUL = 1
"""Header: the tail was once cut at a bad checksum."""

LAST = 1
"""Record: the last piece of its append."""

NO_CHUNK = ChunkId(VolumeId(0), 0, 0)

_MAGIC = b"BSTFRAG\n"
_HEADER = struct.Struct("<8sIIQQIIQQQQIIIIQQI")
_RECORD = struct.Struct("<8I")
OFFSET_MAX = 2**32 - 1
"""Of a fragment's bytes: what a record can say."""
_RECORD_BODY = struct.Struct("<7I")
_U32 = struct.Struct("<I")
_FRAGMENT_IDENTITY = struct.Struct("<QQQI")
_LOG_IDENTITY = struct.Struct("<QQQII")
_CRC_AT = 124
_BLANK = bytes(BLOCK_BYTES)
_BLANK_STRETCH = bytes(16 * BLOCK_BYTES)

assert DATA_START % BLOCK_BYTES == 0
assert _HEADER.size <= _CRC_AT


class State(IntEnum):
    FREE = 0
    OPEN = 1
    SEALED = 2


@dataclass(frozen=True, slots=True)
class Header:
    state: State
    generation: int
    disk: DiskId
    slot: int
    tenancy: int
    slot_bytes: int
    chunk: ChunkId = NO_CHUNK
    shard_index: int = 0
    k: int = 0
    m: int = 0
    doubtful: bool = False
    capacity: int = 0
    length: int = 0
    n_records: int = 0


class Record(NamedTuple):
    offset: int
    length: int
    crc: int
    synced: int
    flags: int
    place: int
    tenancy: int
    record_crc: int


def file_bytes(slot_bytes: int) -> int:
    return DATA_START + slot_bytes


def written_bytes(content: memoryview) -> int:
    """Where the blocks that were ever written end; zeros follow, up to the end of `content`."""
    end = len(content)
    for blank in (_BLANK_STRETCH, _BLANK):
        n = len(blank)
        while end >= n and bytes(content[end - n : end]) == blank:
            end -= n
    return end


# --- header


def encode_header(header: Header) -> bytes:
    """HEADER_BYTES: both copies."""
    block = bytearray(BLOCK_BYTES)
    _HEADER.pack_into(
        block,
        0,
        _MAGIC,
        VERSION,
        header.state,
        header.generation,
        header.disk,
        header.slot,
        header.tenancy,
        header.slot_bytes,
        *header.chunk,
        header.shard_index,
        header.k,
        header.m,
        FLAG_DOUBTFUL if header.doubtful else 0,
        header.capacity,
        header.length,
        header.n_records,
    )
    _U32.pack_into(block, _CRC_AT, crc32c(block[:_CRC_AT]))
    return bytes(block * 2)


def decode_header(blocks: Buffer, disk: DiskId, slot: int) -> Header | None:
    """The newest valid header of this disk and slot; None if neither copy is one. Raises UnknownFormat."""
    view = memoryview(blocks)
    copies = [_decode_copy(view[at : at + _CRC_AT + 4], disk, slot) for at in (0, BLOCK_BYTES)]
    valid = [header for header in copies if header is not None]
    return max(valid, key=lambda header: header.generation, default=None)


def _decode_copy(view: memoryview, disk: DiskId, slot: int) -> Header | None:
    if len(view) < _CRC_AT + 4 or _U32.unpack_from(view, _CRC_AT)[0] != crc32c(view[:_CRC_AT]):
        return None
    (magic, version, state, generation, found_disk, found_slot, tenancy, slot_bytes, volume, epoch, number,
     shard_index, k, m, flags, capacity, length, n_records) = _HEADER.unpack_from(view)  # fmt: skip
    if magic != _MAGIC:
        return None
    if version != VERSION:
        raise UnknownFormat(f"Fragment file {slot:08d} of disk {disk}", version, VERSION)
    if (found_disk, found_slot) != (disk, slot) or state > State.SEALED:
        return None
    if n_records > RECORDS_MAX or not length <= capacity <= slot_bytes:
        return None
    return Header(
        state=State(state),
        generation=generation,
        disk=disk,
        slot=slot,
        tenancy=tenancy,
        slot_bytes=slot_bytes,
        chunk=ChunkId(VolumeId(volume), epoch, number),
        shard_index=shard_index,
        k=k,
        m=m,
        doubtful=bool(flags & FLAG_DOUBTFUL),
        capacity=capacity,
        length=length,
        n_records=n_records,
    )


# --- pieces and their records


def piece_seed(chunk: ChunkId, shard_index: int) -> int:
    """What a fragment's piece sums start from, before the offset is mixed in."""
    return crc32c(_FRAGMENT_IDENTITY.pack(*chunk, shard_index))


def piece_crc(seed: int, offset: int, data: Buffer) -> int:
    """The sum of a piece's bytes at `offset`: started from the fragment's identity xor the offset."""
    return crc32c(data, seed ^ offset)


def record_seed(chunk: ChunkId, slot: int, tenancy: int) -> int:
    return crc32c(_LOG_IDENTITY.pack(*chunk, slot, tenancy))


def n_pieces(offset: int, length: int) -> int:
    """How many pieces `length` bytes at `offset` become on the grid."""
    return -(-(offset + length) // PIECE_BYTES) - offset // PIECE_BYTES if length else 0


def encode_append(
    seed: int,
    log_seed: int,
    tenancy: int,
    index: int,
    synced: int,
    offset: int,
    data: memoryview,
    ends: array[int],
    crcs: array[int],
) -> bytes | bytearray:
    """The records of one append, the first at `index`. Each piece's end and sum are added to `ends` and
    `crcs`.

    One pass, integers for arguments and a quick way for the append of one piece: this is most of what
    writing costs.
    """
    length = len(data)
    room = PIECE_BYTES - offset % PIECE_BYTES
    if length <= room:
        crc = crc32c(data, seed ^ offset)
        ends.append(offset + length)
        crcs.append(crc)
        body = _RECORD_BODY.pack(offset, length, crc, synced, LAST, index, tenancy)
        return body + _U32.pack(crc32c(body, log_seed))
    into = bytearray(n_pieces(offset, length) * RECORD_BYTES)
    view = memoryview(into)
    pack_body, pack_crc = _RECORD_BODY.pack_into, _U32.pack_into
    at, start, stop = 0, 0, room
    while start < length:
        crc = crc32c(data[start:stop], seed ^ (offset + start))
        ends.append(offset + stop)
        crcs.append(crc)
        last = LAST if stop == length else 0
        pack_body(into, at, offset + start, stop - start, crc, synced, last, index, tenancy)
        pack_crc(into, at + 28, crc32c(view[at : at + 28], log_seed))
        at += RECORD_BYTES
        index += 1
        start, stop = stop, min(stop + PIECE_BYTES, length)
    return into


def decode_records(log: Buffer, log_seed: int, tenancy: int) -> list[Record]:
    """The valid records of this tenancy in `log`, which begins with record 0; each is at its own index."""
    view = memoryview(log)
    content = bytes(view[: written_bytes(view)])  # most of a log was never written
    records = list[Record]()
    for index, fields in enumerate(_RECORD.iter_unpack(content)):
        if fields[6] == tenancy and fields[5] == index:
            at = index * RECORD_BYTES
            offset, length = fields[0], fields[1]
            if (
                fields[7] == crc32c(content[at : at + 28], log_seed)
                and 0 < length <= PIECE_BYTES
                and offset + length <= OFFSET_MAX
            ):
                records.append(Record(*fields))
    return records


def is_blank(log: Buffer, index: int, tenancy: int) -> bool:
    """Whether nothing was ever written at `index` by this tenancy: zeros, or what looks like an older record.

    Anything else there is a record of ours that was torn or has rotted.
    """
    fields = Record(*_RECORD.unpack_from(memoryview(log), index * RECORD_BYTES))
    return not any(fields) or (fields.place == index and 0 < fields.tenancy < tenancy)
