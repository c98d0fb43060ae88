"""Raft's files: segments of the log, the vote record, the snapshot. Pure: bytes in, values out, and back.

All numbers are little endian; all checksums are crc32c.

**Segment** `raft/segment-<number>`: RAFT_SEGMENT_BYTES, preallocated, in blocks of 4 KiB. Blocks 0 and 1 hold
the same header, written and synced before the first batch, so that one bad block does not make a whole file
unreadable:

    0  8s magic "BSRFTSEG"   8  u16 version   10  u16 zero   12  u32 checksum of these 32, itself as zero
    16 u64 segment number   24  u64 nonce, random

From block 2 on come batches, each at the next block boundary, each written and synced before the next is
begun:

    0  4s magic "RBAT"       4  u32 checksum of what follows, begun with (nonce, segment number, offset)
    8  u32 body bytes       12  u32 entries
    16 u64 sequence: the batch before has one less, in whatever segment it is
    24 u64 next index: the log continues here, what it had from here on is void
    32 u8  flags: 1 = what the log had below is void as well, for a snapshot has taken its place
    33 7 zero bytes
    40 body: for each entry  u64 index, u64 term, u8 kind, 3 zero bytes, u32 payload bytes, payload

A batch is all or nothing. Because one is begun only after the one before is durable, a bad batch with a good
one after it was durable once: it is *damaged*. A bad batch with nothing good after it was being written when
the power failed, and was acknowledged to nobody: it is *torn*, and may be overwritten. To make the two differ
for the last batch also, an empty batch is written behind it when the log falls idle, in another block. The
nonce keeps the content of a payload from passing for a batch, and the offset keeps a batch from passing for
another.

**Vote** `raft/vote`: two slots of one block each, the second written after the first is synced. Whatever is
torn, the other slot is whole; whatever rots later, the other has the same. Highest generation wins.

    0  8s magic "BSRFTVOT"   8  u16 version   10  u16 slot   12  u32 checksum of these 48, itself as zero
    16 u64 generation       24  u64 term   32  u64 vote, 0 for none   40  u64 doubt, 0 for none

**Snapshot** `raft/snapshot-0` and `-1`, equal, each replaced as a whole; also what travels to a member far
behind:

    0  8s magic "BSRFTSNP"   8  u16 version   10  u16 zero   12  u32 checksum of the whole, itself as zero
    16 u64 index            24  u64 term of the last entry it covers
    32 u32 members bytes    36  u64 data bytes
    44 members (MessagePack, as in the log)   then the state machine's own bytes
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from blockstore.codec.checksum import crc32c
from blockstore.codec.raft_messages import (
    COMMAND,
    MEMBERS,
    NOBODY,
    NOOP,
    Entry,
    Members,
    decode_members,
    encode_members,
)
from blockstore.config import RAFT_BATCH_BYTES_MAX, RAFT_SEGMENT_BYTES
from blockstore.errors import Corrupt, ProtocolViolation, UnknownFormat
from blockstore.ids import NodeId

VERSION = 1
BLOCK_BYTES = 4096
FIRST_BATCH_OFFSET = 2 * BLOCK_BYTES
VOTE_FILE_BYTES = 2 * BLOCK_BYTES

_SEGMENT = struct.Struct("<8sHHIQQ")
_BATCH = struct.Struct("<4sIIIQQB7x")
_ENTRY = struct.Struct("<QQB3xI")
_VOTE = struct.Struct("<8sHHIQQQQ")
_SNAPSHOT = struct.Struct("<8sHHIQQIQ")
_PLACE = struct.Struct("<QQQ")

_SEGMENT_MAGIC, _BATCH_MAGIC = b"BSRFTSEG", b"RBAT"
_VOTE_MAGIC, _SNAPSHOT_MAGIC = b"BSRFTVOT", b"BSRFTSNP"
_CRC_AT, _CRC_END = 12, 16
_ANEW = 1

_KINDS: dict[int, Literal[0, 1, 2]] = {NOOP: NOOP, COMMAND: COMMAND, MEMBERS: MEMBERS}

assert _SEGMENT.size == 32
assert _BATCH.size == 40
assert _ENTRY.size == 24
assert _VOTE.size == 48
assert _SNAPSHOT.size == 44


@dataclass(frozen=True, slots=True)
class HardState:
    """What a member must not forget between two lives: durable before anything is said under it."""

    term: int = 0
    vote: NodeId = NOBODY
    doubt: int = 0  # a random number while this node may have forgotten a promise; see consensus/raft.py


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state machine after the entry at `index`."""

    index: int
    term: int
    members: Members
    data: bytes


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    number: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Batch:
    sequence: int
    next_index: int
    entries: tuple[Entry, ...] = ()
    anew: bool = False


@dataclass(frozen=True, slots=True)
class ScannedSegment:
    header: SegmentHeader | None  # None: both copies are bad
    batches: tuple[Batch, ...]  # the good ones from the first on, up to the first that is not
    end: int  # where they end: the next batch goes here
    damaged: bool  # something good, or once good, follows `end` or a bad header
    last_offset: int  # of the last of `batches`; 0 if there is none


def _checksum_without_itself(record: bytes | bytearray) -> int:
    return crc32c(record[_CRC_END:], crc32c(bytes(4), crc32c(record[:_CRC_AT])))


def _sealed(record: bytes) -> bytes:
    sealed = bytearray(record)
    struct.pack_into("<I", sealed, _CRC_AT, _checksum_without_itself(sealed))
    return bytes(sealed)


# --- segments


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Both copies: the first two blocks of the file."""
    record = _sealed(_SEGMENT.pack(_SEGMENT_MAGIC, VERSION, 0, 0, header.number, header.nonce))
    return record.ljust(BLOCK_BYTES, b"\0") * 2


def _find_segment_header(content: bytes, number: int) -> SegmentHeader | None:
    for at in (0, BLOCK_BYTES):
        record = content[at : at + _SEGMENT.size]
        if len(record) < _SEGMENT.size:
            continue
        magic, version, _, crc, found_number, nonce = _SEGMENT.unpack(record)
        if magic == _SEGMENT_MAGIC and crc == _checksum_without_itself(record) and found_number == number:
            if version != VERSION:
                raise UnknownFormat(f"Raft segment {number}", version, VERSION)
            return SegmentHeader(number, nonce)
    return None


def _place_seed(header: SegmentHeader, offset: int) -> int:
    return crc32c(_PLACE.pack(header.nonce, header.number, offset))


def encode_batch(header: SegmentHeader, offset: int, batch: Batch) -> bytes:
    """Whole blocks, to be written at `offset`."""
    body = b"".join(
        part
        for entry in batch.entries
        for part in (_ENTRY.pack(entry.index, entry.term, entry.kind, len(entry.payload)), entry.payload)
    )
    flags = _ANEW if batch.anew else 0
    head = _BATCH.pack(
        _BATCH_MAGIC, 0, len(body), len(batch.entries), batch.sequence, batch.next_index, flags
    )
    crc = crc32c(body, crc32c(head[8:], _place_seed(header, offset)))
    record = _BATCH_MAGIC + struct.pack("<I", crc) + head[8:] + body
    return record.ljust(_round_up(len(record)), b"\0")


def batch_bytes(entries: Iterable[Entry]) -> int:
    """What `encode_batch` makes of them."""
    return _round_up(_BATCH.size + sum(_ENTRY.size + len(entry.payload) for entry in entries))


def _round_up(length: int) -> int:
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def _find_batch(content: bytes, header: SegmentHeader, offset: int) -> tuple[Batch, int] | None:
    """The batch at `offset` and where the next one begins; None if there is no good one."""
    if content[offset : offset + 4] != _BATCH_MAGIC or len(content) - offset < _BATCH.size:
        return None
    _, crc, body_bytes, n_entries, sequence, next_index, flags = _BATCH.unpack_from(content, offset)
    end = offset + _BATCH.size + body_bytes
    if end > len(content):
        return None
    if crc != crc32c(content[offset + 8 : end], _place_seed(header, offset)):
        return None
    entries: list[Entry] = []
    at = offset + _BATCH.size
    for _ in range(n_entries):
        if end - at < _ENTRY.size:
            return None
        index, term, kind, length = _ENTRY.unpack_from(content, at)
        at += _ENTRY.size
        if end - at < length or kind not in _KINDS or index != next_index + len(entries):
            return None
        entries.append(Entry(index, term, _KINDS[kind], content[at : at + length]))
        at += length
    if at != end:
        return None
    return Batch(sequence, next_index, tuple(entries), bool(flags & _ANEW)), _round_up(end)


def scan_segment(content: bytes, number: int) -> ScannedSegment:
    """Read a segment; raises UnknownFormat for one of a newer version."""
    header = _find_segment_header(content, number)
    if header is None:
        blocks = range(FIRST_BATCH_OFFSET, len(content), BLOCK_BYTES)
        used = any(content[at : at + 4] == _BATCH_MAGIC for at in blocks)
        return ScannedSegment(None, (), FIRST_BATCH_OFFSET, used, 0)
    batches: list[Batch] = []
    last_offset, offset = 0, FIRST_BATCH_OFFSET
    while (found := _find_batch(content, header, offset)) is not None:
        last_offset = offset
        batch, offset = found
        if batches and batch.sequence != batches[-1].sequence + 1:
            return ScannedSegment(header, tuple(batches), last_offset, True, last_offset)
        batches.append(batch)
    later = range(offset + BLOCK_BYTES, len(content), BLOCK_BYTES)
    damaged = any(_find_batch(content, header, at) is not None for at in later)
    return ScannedSegment(header, tuple(batches), offset, damaged, last_offset)


# --- vote


def encode_vote_slot(slot: int, generation: int, hard: HardState) -> bytes:
    record = _sealed(_VOTE.pack(_VOTE_MAGIC, VERSION, slot, 0, generation, hard.term, hard.vote, hard.doubt))
    return record.ljust(BLOCK_BYTES, b"\0")


def decode_vote_slots(content: bytes) -> tuple[list[int], HardState | None]:
    """The generations of slot 0 and 1 (-1 where it is bad), and the newest state; None if both are bad."""
    generations = [-1, -1]
    newest: HardState | None = None
    for slot in (0, 1):
        record = content[slot * BLOCK_BYTES : slot * BLOCK_BYTES + _VOTE.size]
        if len(record) < _VOTE.size or record[:8] != _VOTE_MAGIC:
            continue
        _, version, found_slot, crc, generation, term, vote, doubt = _VOTE.unpack(record)
        if crc != _checksum_without_itself(record) or found_slot != slot:
            continue
        if version != VERSION:
            raise UnknownFormat("Raft's vote record", version, VERSION)
        generations[slot] = generation
        if generation == max(generations):
            newest = HardState(term, NodeId(vote), doubt)
    return generations, newest


# --- snapshot


def encode_snapshot(snapshot: Snapshot) -> bytes:
    members = encode_members(snapshot.members)
    head = _SNAPSHOT.pack(
        _SNAPSHOT_MAGIC, VERSION, 0, 0, snapshot.index, snapshot.term, len(members), len(snapshot.data)
    )
    return _sealed(head + members + snapshot.data)


def decode_snapshot(content: bytes) -> Snapshot:
    """Raises Corrupt or UnknownFormat."""
    if len(content) < _SNAPSHOT.size or content[:8] != _SNAPSHOT_MAGIC:
        raise Corrupt("control's snapshot", "no header")
    _, version, _, crc, index, term, members_bytes, data_bytes = _SNAPSHOT.unpack_from(content)
    if version != VERSION:
        raise UnknownFormat("control's snapshot", version, VERSION)
    if len(content) != _SNAPSHOT.size + members_bytes + data_bytes:
        raise Corrupt("control's snapshot", "length")
    if crc != _checksum_without_itself(content):
        raise Corrupt("control's snapshot", "checksum")
    at = _SNAPSHOT.size + members_bytes
    try:
        members = decode_members(content[_SNAPSHOT.size : at])
    except ProtocolViolation as violation:
        raise Corrupt("control's snapshot", "members") from violation
    return Snapshot(index, term, members, content[at:])


assert RAFT_BATCH_BYTES_MAX + BLOCK_BYTES <= RAFT_SEGMENT_BYTES - FIRST_BATCH_OFFSET
