"""A client's copy of a snapshot's map: a run as owners write it (`run_file.py`), and behind it what a reader
needs besides.

    offset  bytes  field
         0      …  a run: its blocks, then its index
         …      …  tail: MessagePack array of `MapTail`
       -16      4  magic "BSM1"
       -12      4  format version (1)
        -8      4  length of the tail
        -4      4  crc32c of tail, magic, version and length

It may be lost at any time: it holds nothing that the bucket's owner does not know. Little endian."""

from __future__ import annotations

import struct

import msgspec

from blockstore.codec.checksum import crc32c
from blockstore.codec.malformed import MALFORMED
from blockstore.codec.messages import Placement
from blockstore.codec.run_file import RunIndex, RunInfo, decode_index
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import ChunkId, VolumeId

MAGIC = b"BSM1"
VERSION = 1
_FOOT = struct.Struct("<4sII")
_CRC = struct.Struct("<I")
FOOT_BYTES = _FOOT.size + _CRC.size


class MapTail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which map it is, and where the chunks are that it names."""

    cluster: str
    volume: VolumeId
    sequence: int  # of the snapshot
    prefix: bytes  # the map has the keys that begin so, and no others
    run: RunInfo  # without extents: it begins the file
    placements: dict[ChunkId, Placement]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MapTail).decode


def encode_tail(tail: MapTail) -> bytes:
    """Tail and foot: what stands behind the run."""
    body = _encode(tail)
    checked = body + _FOOT.pack(MAGIC, VERSION, len(body))
    return checked + _CRC.pack(crc32c(checked))


def decode_map(image: memoryview) -> tuple[MapTail, RunIndex]:
    """What a whole file says, and the index of its run; its blocks have checksums of their own. Corrupt or
    UnknownFormat."""
    if image.nbytes < FOOT_BYTES:
        raise Corrupt("A snapshot's cached map", "cut short")
    magic, version, length = _FOOT.unpack(image[-FOOT_BYTES : -_CRC.size])
    if magic != MAGIC:
        raise Corrupt("A snapshot's cached map", "it does not end as one")
    if version != VERSION:
        raise UnknownFormat("A snapshot's cached map", version, VERSION)
    run_bytes = image.nbytes - FOOT_BYTES - length
    (crc,) = _CRC.unpack(image[-_CRC.size :])
    if run_bytes < 0 or crc32c(image[run_bytes : -_CRC.size]) != crc:
        raise Corrupt("A snapshot's cached map", "checksum")
    try:
        tail = _decode(image[run_bytes:-FOOT_BYTES])
    except MALFORMED as error:
        raise Corrupt("A snapshot's cached map", str(error)) from error
    run = tail.run
    if not 0 <= run.index_at <= run.size == run_bytes:
        raise Corrupt("A snapshot's cached map", "its run does not add up")
    return tail, decode_index(tail.volume, run, image[run.index_at : run.size])
