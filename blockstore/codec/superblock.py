"""The superblock: whose disk a directory is.

`superblock` is a file of 512 bytes, written once by formatting, after everything else. Little endian:

     0 magic "BSTDISK\\n"    8 version u32     12 zeros u32      16 disk u64
    24 cluster length u32   28 cluster, UTF-8, at most CLUSTER_BYTES_MAX bytes, zeros behind it
   508 crc u32 of all before it: it is there in every version
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blockstore.codec.checksum import crc32c
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import DiskId
from blockstore.runtime.interfaces import Buffer

VERSION = 1
NAME = "superblock"
SIZE = 512
CLUSTER_BYTES_MAX = 255

_MAGIC = b"BSTDISK\n"
_FIXED = struct.Struct("<8sIIQI")
_U32 = struct.Struct("<I")
_CRC_AT = SIZE - 4


@dataclass(frozen=True, slots=True)
class Superblock:
    disk: DiskId
    cluster: str


def encode_superblock(superblock: Superblock) -> bytes:
    cluster = superblock.cluster.encode()
    assert 0 < len(cluster) <= CLUSTER_BYTES_MAX
    block = bytearray(SIZE)
    _FIXED.pack_into(block, 0, _MAGIC, VERSION, 0, superblock.disk, len(cluster))
    block[_FIXED.size : _FIXED.size + len(cluster)] = cluster
    _U32.pack_into(block, _CRC_AT, crc32c(block[:_CRC_AT]))
    return bytes(block)


def decode_superblock(block: Buffer, where: str) -> Superblock:
    """Raises Corrupt, or UnknownFormat for a version that we do not know; `where` is for the message."""
    view = memoryview(block)
    if len(view) != SIZE or _U32.unpack_from(view, _CRC_AT)[0] != crc32c(view[:_CRC_AT]):
        raise Corrupt(f"The superblock of {where}", "checksum")
    magic, version, _, disk, cluster_length = _FIXED.unpack_from(view)
    if magic != _MAGIC:
        raise Corrupt(f"The superblock of {where}", "magic")
    if version != VERSION:
        raise UnknownFormat(f"The disk in {where}", version, VERSION)
    if not 0 < cluster_length <= CLUSTER_BYTES_MAX:
        raise Corrupt(f"The superblock of {where}", "length of the cluster's name")
    try:
        cluster = bytes(view[_FIXED.size : _FIXED.size + cluster_length]).decode()
    except UnicodeDecodeError as error:
        raise Corrupt(f"The superblock of {where}", "the cluster's name") from error
    return Superblock(DiskId(disk), cluster)
