"""The file of facts about epochs and deleted chunks that a disk must never forget.

Two files, `fences-0` and `fences-1`, preallocated; the one with the higher generation is in use, and
rewriting means filling the other one (records first, synced; then its header). Little endian:

    0      header    0 magic "BSTFENCE"   8 version u32   12 zeros u32   16 generation u64   24 disk u64
    124 crc u32 4096   records of 64 bytes
           0 kind u32      4 index u32     8 volume u64   16 epoch u64   24 number u64
          32 synced u32   36 generation u32   40 zeros   60 crc u32, started from disk and generation

Kinds: FENCE (epochs of `volume` below `epoch` are refused), TOMBSTONE (chunk `volume.epoch.number` was
deleted here), FLOOR (so was every chunk of `volume.epoch` whose number is not above `number` and that is
not here). Facts only accumulate and hold in any order, so reading takes every valid record, whatever is
around it. `synced` is how many records were known durable when this one was written: fewer valid ones below
that is rot, not a torn tail.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from blockstore.codec.checksum import crc32c
from blockstore.codec.fragment_file import written_bytes
from blockstore.errors import UnknownFormat
from blockstore.ids import DiskId, MiB, VolumeId
from blockstore.runtime.interfaces import Buffer

VERSION = 1
NAMES = ("fences-0", "fences-1")
HEADER_BYTES = 4096
RECORD_BYTES = 64
FILE_BYTES = 1 * MiB
"""Room for 16,320 facts; what is alive of them is rewritten when it is full, and at every start."""
RECORDS_MAX = (FILE_BYTES - HEADER_BYTES) // RECORD_BYTES

_MAGIC = b"BSTFENCE"
_HEADER = struct.Struct("<8sIIQQ")
_BODY = struct.Struct("<IIQQQII20x")
_RECORD = struct.Struct("<IIQQQII20xI")
_IDENTITY = struct.Struct("<QQ")
_U32 = struct.Struct("<I")
_CRC_AT = 124

assert _BODY.size == RECORD_BYTES - 4
assert _RECORD.size == RECORD_BYTES


class Kind(IntEnum):
    FENCE = 1
    TOMBSTONE = 2
    FLOOR = 3


_KINDS = frozenset(Kind)


class Fact(NamedTuple):
    kind: Kind
    volume: VolumeId
    epoch: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class FenceFile:
    generation: int
    facts: tuple[Fact, ...]
    damaged: bool  # a fact that was durable may be missing


def encode_header(disk: DiskId, generation: int) -> bytes:
    block = bytearray(HEADER_BYTES)
    _HEADER.pack_into(block, 0, _MAGIC, VERSION, 0, generation, disk)
    _U32.pack_into(block, _CRC_AT, crc32c(block[:_CRC_AT]))
    return bytes(block)


def encode_facts(disk: DiskId, generation: int, index: int, synced: int, facts: Sequence[Fact]) -> bytes:
    """The records of `facts`, the first at `index`."""
    seed = crc32c(_IDENTITY.pack(disk, generation))
    out = bytearray()
    for at, fact in enumerate(facts, index):
        body = _BODY.pack(fact.kind, at, fact.volume, fact.epoch, fact.number, synced, generation)
        out += body + _U32.pack(crc32c(body, seed))
    return bytes(out)


def record_offset(index: int) -> int:
    return HEADER_BYTES + index * RECORD_BYTES


def decode_fence_file(content: Buffer, disk: DiskId) -> FenceFile | None:
    """None when there is no valid header of this disk. Raises UnknownFormat."""
    view = memoryview(content)
    if len(view) < HEADER_BYTES or _U32.unpack_from(view, _CRC_AT)[0] != crc32c(view[:_CRC_AT]):
        return None
    magic, version, _, generation, found_disk = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        return None
    if version != VERSION:
        raise UnknownFormat(f"The fences of disk {disk}", version, VERSION)
    if found_disk != disk:
        return None
    seed = crc32c(_IDENTITY.pack(disk, generation))
    facts = list[Fact]()
    synced, first_bad, damaged = 0, -1, False
    n_written = max(0, written_bytes(view) - HEADER_BYTES) // RECORD_BYTES
    records = bytes(view[HEADER_BYTES : HEADER_BYTES + n_written * RECORD_BYTES])
    for index, fields in enumerate(_RECORD.iter_unpack(records)):
        kind, place, volume, epoch, number, record_synced, written_under, sum_ = fields
        at = index * RECORD_BYTES
        if place == index and sum_ == crc32c(records[at : at + RECORD_BYTES - 4], seed):
            synced = max(synced, record_synced)
            if kind in _KINDS:
                facts.append(Fact(Kind(kind), VolumeId(volume), epoch, number))
            else:
                damaged = True  # it says something, and we do not know what
        elif first_bad < 0:
            first_bad = index
            # A whole record lies in one sector, so power loss leaves none half written: zeros, or what an
            # earlier generation left at the same place, are the end; anything else has rotted.
            stale = place == index and 0 < written_under < generation
            damaged = damaged or (any(records[at : at + RECORD_BYTES]) and not stale)
    return FenceFile(
        generation, tuple(facts), damaged or synced > (n_written if first_bad < 0 else first_bad)
    )
