"""What a checkpoint leaves behind: runs of the map, a head over them, and the root that points at the head.

Run: a sequence of blocks, each

    offset  bytes  field
         0      4  magic "BSR1"
         4      2  format version (2)
         6      2  zero
         8      8  volume
        16      8  sequence that the run's checkpoint covers
        24      4  index of the block in the run
        28      4  length of the body
        32      4  crc32c of bytes 0..32
        36      4  crc32c of the body
        40      …  body: MessagePack array of [key, newest version, [older versions, newest first]]

A version is the MessagePack array of `StoredVersion`; a key that is gone altogether has neither newest nor
older. A later run overrides what an earlier one says of a key. Behind the blocks stands the run's index, in
the same frame with magic "BSX1" and the number of blocks in place of an index: MessagePack of `RunIndex`,
enough to find the one block that may hold a key, and to know of most keys that the run has nothing of them.
The head has the same frame with magic "BSH1", its own format version (3) and one block. The root is
MessagePack inside a record of control, which has its own checksums. Little endian.

A clone's head names runs and chunks of other volumes. A run, and a head that was written for a clone, carries
in its frame the volume whose chunks it lies in."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Collection, Sequence
from operator import lt

import msgspec

from blockstore.codec.checksum import crc32c
from blockstore.codec.malformed import MALFORMED
from blockstore.codec.messages import (
    Extent,
    Failed,
    Granted,
    Ok,
    Placement,
    SnapshotRecord,
    Written,
)
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import ChunkId, SessionId, VolumeId

VERSION = 2
HEAD_VERSION = 3
"""Of heads and roots. Version 2 knew no clones: it is the same without the last fields."""
HEAD_VERSIONS = (2, 3)
_HEADER = struct.Struct("<4sHHQQII")
_CHECKS = struct.Struct("<II")
HEADER_BYTES = _HEADER.size + _CHECKS.size
assert HEADER_BYTES == 40
RUN_MAGIC = b"BSR1"
INDEX_MAGIC = b"BSX1"
HEAD_MAGIC = b"BSH1"


class StoredVersion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One version of a key. `meta` None: a tombstone."""

    sequence: int
    meta: bytes | None
    size: int = 0
    crc: int = 0
    extents: tuple[Extent, ...] = ()


Result = Ok | Failed | Written | SnapshotRecord | Granted
"""What an applied request answered; remembered so that its repetition is answered alike."""


class StoredSession(msgspec.Struct, frozen=True, array_like=True, gc=False):
    session: SessionId
    settled: int
    last_sequence: int
    results: dict[int, Result]


class StoredChunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    chunk: ChunkId
    placement: Placement
    capacity: int
    purpose: str
    session: SessionId
    length: int  # of each fragment; -1 while open
    live_bytes: int
    committed: int  # of each fragment: the end of what was ever referred to
    named: int = 0  # of each fragment: how many bytes Puts have named, whatever became of the Puts
    opened: int = 0  # sequence of the record that opened it


class ForeignChunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A chunk of another volume, to which a clone refers."""

    chunk: ChunkId
    placement: Placement


ANCHOR_OPEN = -1


class Anchor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What keeps chunks for a clone: all that were opened up to sequence `until`; while the clone is being
    made (ANCHOR_OPEN) all there are, and the map as of `at`."""

    anchor: int  # its number: the sequence of the record that set it
    at: int  # the snapshot's sequence
    snapshot: str
    clone: str  # name of the volume that it was set for
    keys: int  # that the snapshot sees
    until: int = ANCHOR_OPEN


class RunInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A run: where it is, `n_keys` in blocks up to `index_at`, its index behind them up to `size`. One of
    another `volume` (0: its own) is read as of sequence `as_of`."""

    extents: tuple[Extent, ...]
    placements: dict[ChunkId, Placement]
    size: int
    sequence: int
    n_keys: int
    index_at: int
    volume: VolumeId = VolumeId(0)
    as_of: int = 0


GONE_SEQUENCE = (1 << 64) - 1
"""In `RunIndex.newest`: of a block with a key that is gone, which no bound may pass over."""


class RunIndex(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One item for each block in all but `filter` and `chunks`. `ends` and `newest` are arrays of u64."""

    first_keys: list[bytes]
    ends: bytes
    """Where the block ends in the run, its frame included."""
    newest: bytes
    """The highest sequence of a version in it; GONE_SEQUENCE when a key in it is gone."""
    with_history: bytes
    """1: a key in it has former versions."""
    filter: bytes
    """`volume/key_filter.py`."""
    chunks: list[ChunkId]
    """That versions in it refer to, and perhaps some more."""


class CheckpointHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Everything but the map itself. Replay goes on at `journal_offset` of `journal_chunk`. `runs` from the
    oldest to the newest."""

    sequence: int
    journal_chunk: ChunkId
    journal_offset: int
    runs: tuple[RunInfo, ...]
    snapshots: tuple[SnapshotRecord, ...]
    sessions: tuple[StoredSession, ...]
    chunks: tuple[StoredChunk, ...]
    n_live: int = 0
    """Keys that the head sees."""
    anchors: tuple[Anchor, ...] = ()
    foreign: tuple[ForeignChunk, ...] = ()


NO_JOURNAL = ChunkId(VolumeId(0), 0, 0)
"""In place of a journal chunk: nothing of the journal is covered, all of it is replayed."""


class Root(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Control's pointer to a checkpoint: where its head is. A clone's first head is in a chunk of another
    `volume` (0: its own)."""

    version: int
    sequence: int
    size: int
    extents: tuple[Extent, ...]
    placements: dict[ChunkId, Placement]
    journal_chunk: ChunkId
    journal_offset: int
    volume: VolumeId = VolumeId(0)


RunEntry = tuple[bytes, bytes | None, tuple[bytes, ...]]
"""Key, newest version, older versions (newest first), the versions as `StoredVersion` bytes."""

_encoder = msgspec.msgpack.Encoder()
_version_decoder = msgspec.msgpack.Decoder(StoredVersion)
_entries_decoder = msgspec.msgpack.Decoder(list[RunEntry])
_index_decoder = msgspec.msgpack.Decoder(RunIndex)
_head_decoder = msgspec.msgpack.Decoder(CheckpointHead)
_root_decoder = msgspec.msgpack.Decoder(Root)

encode_version = _encoder.encode
_VERSION_FIELDS = encode_version(StoredVersion(0, None))[:1]  # an array of so many


def decode_version(packed: bytes) -> StoredVersion:
    try:
        return _version_decoder.decode(packed)
    except MALFORMED as error:
        raise Corrupt("A version in a volume's map", str(error)) from error


def stored_from(sequence: int) -> bytes:
    """A version, as stored, has this sequence or a later one if and only if its bytes are not below these:
    the sequence is its first field, and whole numbers in MessagePack sort by their bytes as by their size.
    So a million versions can be asked without decoding one."""
    return _VERSION_FIELDS + _encoder.encode(sequence)


def encode_root(root: Root) -> bytes:
    return _encoder.encode(root)


def decode_root(data: bytes) -> Root:
    try:
        root = _root_decoder.decode(data)
    except MALFORMED as error:
        raise Corrupt("A volume's root", str(error)) from error
    if root.version not in HEAD_VERSIONS:
        raise UnknownFormat("A volume's checkpoint", root.version, HEAD_VERSION)
    return root


def _frame(
    magic: bytes, volume: VolumeId, sequence: int, index: int, body: bytes, version: int = VERSION
) -> bytes:
    head = _HEADER.pack(magic, version, 0, volume, sequence, index, len(body))
    return head + _CHECKS.pack(crc32c(head), crc32c(body)) + body


def _unframe(
    magic: bytes,
    volume: VolumeId,
    sequence: int | None,
    index: int,
    view: memoryview,
    versions: Collection[int] = (VERSION,),
) -> tuple[int, memoryview]:
    """Return (sequence, body); raise unless this very block begins here, whole."""
    where = f"volume {volume}, block {index}"
    if view.nbytes < HEADER_BYTES:
        raise Corrupt("A checkpoint", f"{where}: cut short")
    found_magic, version, _, found_volume, found_sequence, found_index, length = _HEADER.unpack_from(view)
    head_crc, body_crc = _CHECKS.unpack_from(view, _HEADER.size)
    if found_magic != magic or crc32c(view[: _HEADER.size]) != head_crc:
        raise Corrupt("A checkpoint", f"{where}: no block begins here")
    if version not in versions:
        raise UnknownFormat("A volume's checkpoint", version, max(versions))
    if (
        found_volume != volume
        or found_index != index
        or (sequence is not None and found_sequence != sequence)
    ):
        raise Corrupt("A checkpoint", f"{where}: another block stands here")
    body = view[HEADER_BYTES : HEADER_BYTES + length]
    if body.nbytes != length or crc32c(body) != body_crc:
        raise Corrupt("A checkpoint", f"{where}: checksum")
    return found_sequence, body


def encode_block(volume: VolumeId, sequence: int, index: int, entries: Sequence[RunEntry]) -> bytes:
    return _frame(RUN_MAGIC, volume, sequence, index, _encoder.encode(entries))


def block_body(volume: VolumeId, sequence: int, index: int, data: memoryview) -> bytes:
    """The body of this very block, whose frame stands in `data`; raise Corrupt when another does."""
    _, body = _unframe(RUN_MAGIC, volume, sequence, index, data)
    return bytes(body)


def decode_entries(body: bytes) -> list[RunEntry]:
    try:
        return _entries_decoder.decode(body)
    except MALFORMED as error:
        raise Corrupt("A block of a volume's map", str(error)) from error


def encode_index(volume: VolumeId, sequence: int, index: RunIndex) -> bytes:
    return _frame(INDEX_MAGIC, volume, sequence, len(index.first_keys), _encoder.encode(index))


def decode_index(volume: VolumeId, run: RunInfo, data: memoryview) -> RunIndex:
    """Raise Corrupt unless it is the index of this run, and makes sense."""
    if data.nbytes < HEADER_BYTES:
        raise Corrupt("A run's index", f"volume {volume}: cut short")
    n_blocks = _HEADER.unpack_from(data)[5]
    _, body = _unframe(INDEX_MAGIC, volume, run.sequence, n_blocks, data)
    try:
        index = _index_decoder.decode(body)
    except MALFORMED as error:
        raise Corrupt("A run's index", f"volume {volume}: {error}") from error
    keys = index.first_keys
    if (
        not len(keys) == len(index.with_history) == n_blocks
        or not len(index.ends) == len(index.newest) == 8 * n_blocks
        or len(index.filter) % 8
        or not index.filter
        or not all(map(lt, keys, keys[1:]))
    ):
        raise Corrupt("A run's index", f"volume {volume}: it does not add up")
    ends = unpack_u64(index.ends)
    if not all(map(lt, (0, *ends), ends)) or (ends[-1] if ends else 0) != run.index_at:
        raise Corrupt("A run's index", f"volume {volume}: its blocks do not follow each other")
    return index


def pack_u64(values: array[int]) -> bytes:
    if sys.byteorder == "big":
        values = array("Q", values)
        values.byteswap()
    return values.tobytes()


def unpack_u64(data: bytes) -> array[int]:
    values = array("Q")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def encode_head(volume: VolumeId, head: CheckpointHead) -> bytes:
    return _frame(HEAD_MAGIC, volume, head.sequence, 0, _encoder.encode(head), HEAD_VERSION)


def decode_head(volume: VolumeId, data: memoryview) -> CheckpointHead:
    _, body = _unframe(HEAD_MAGIC, volume, None, 0, data, HEAD_VERSIONS)
    try:
        return _head_decoder.decode(body)
    except MALFORMED as error:
        raise Corrupt("A checkpoint", f"volume {volume}, its head: {error}") from error
