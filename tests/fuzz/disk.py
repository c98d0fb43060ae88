"""Decoders of a node's disk."""

from __future__ import annotations

import struct
from array import array

from blockstore.codec import fence_file, fragment_file, superblock
from blockstore.codec.checksum import crc32c
from blockstore.ids import ChunkId, DiskId, MiB, VolumeId
from blockstore.node.recovery import judge, scan_log
from tests.fuzz.decoder import Decoder, u32

CHUNK = ChunkId(VolumeId(7), 8, 9)
DISK = DiskId(4)


def _superblock() -> Decoder:
    def reseal(data: bytearray) -> None:
        data[508:] = b""
        data.extend(bytes(508 - len(data)))
        data += u32(crc32c(bytes(data)))

    corpus = [
        superblock.encode_superblock(superblock.Superblock(DISK, cluster))
        for cluster in ("c1", "größer" * 30, "x" * 255)
    ]
    return Decoder(lambda data: superblock.decode_superblock(data, "here"), corpus, reseal)


_HEADER_USED = 128


def _fragment_header() -> Decoder:
    """The used bytes of both copies."""

    def decode(data: bytes) -> object:
        first, second = data[:_HEADER_USED], data[_HEADER_USED : 2 * _HEADER_USED]
        return fragment_file.decode_header(first.ljust(fragment_file.BLOCK_BYTES, b"\0") + second, DISK, 5)

    def reseal(data: bytearray) -> None:
        for at in range(0, len(data) - _HEADER_USED + 1, _HEADER_USED):
            data[at + 124 : at + 128] = u32(crc32c(bytes(data[at : at + 124])))

    headers = [
        fragment_file.Header(fragment_file.State.FREE, 1, DISK, 5, 0, MiB),
        fragment_file.Header(fragment_file.State.OPEN, 2, DISK, 5, 1, MiB, CHUNK, 1, 4, 2, False, MiB),
        fragment_file.Header(
            fragment_file.State.SEALED, 3, DISK, 5, 1, MiB, CHUNK, 0, 1, 2, True, MiB, 4_000, 3
        ),
    ]
    corpus = [fragment_file.encode_header(header)[:_HEADER_USED] * 2 for header in headers]
    return Decoder(decode, corpus, reseal)


def _fragment_log() -> Decoder:
    """Records, and what they are believed to say of an open and of a sealed fragment."""
    open_ = fragment_file.Header(fragment_file.State.OPEN, 2, DISK, 5, 6, MiB, CHUNK, 1, 4, 2, False, MiB)
    sealed = fragment_file.Header(
        fragment_file.State.SEALED, 3, DISK, 5, 6, MiB, CHUNK, 1, 4, 2, False, MiB, 17_000, 4
    )
    log_seed = fragment_file.record_seed(CHUNK, 5, 6)
    seed = fragment_file.piece_seed(CHUNK, 1)
    log = bytearray()
    ends, crcs = array("I"), array("I")
    at = 0
    for length in (5, 1_000, 16_384, 100):
        content = memoryview(bytes(length))
        log += fragment_file.encode_append(
            seed, log_seed, 6, len(log) // 32, max(0, at - 5), at, content, ends, crcs
        )
        at += length

    def decode(data: bytes) -> object:
        log = data + bytes(-len(data) % fragment_file.RECORD_BYTES)
        if len(data) & 1:
            scan = scan_log(sealed, log)
        else:
            scan = scan_log(open_, log)
            start, end = scan.tail
            judge(open_, scan, memoryview(bytes(end - start)))
        return scan if scan.n_seen else None

    def reseal(data: bytearray) -> None:
        for at in range(0, len(data) - 31, 32):
            data[at + 28 : at + 32] = u32(crc32c(bytes(data[at : at + 28]), log_seed))

    return Decoder(decode, [bytes(log), bytes(log[:64])], reseal)


def _fences() -> Decoder:
    """The header's used bytes, then records."""
    facts = [
        fence_file.Fact(fence_file.Kind.FENCE, VolumeId(1), 2),
        fence_file.Fact(fence_file.Kind.TOMBSTONE, VolumeId(3), 4, 5),
        fence_file.Fact(fence_file.Kind.FLOOR, VolumeId(6), 7, 8),
    ]
    identity = struct.Struct("<QQ")
    header = fence_file.encode_header(DISK, 2)[:_HEADER_USED]

    def decode(data: bytes) -> object:
        content = data[:_HEADER_USED].ljust(fence_file.HEADER_BYTES, b"\0") + data[_HEADER_USED:]
        found = fence_file.decode_fence_file(content + bytes(-len(content) % 4096), DISK)
        return found if found is not None and found.facts else None

    def reseal(data: bytearray) -> None:
        if len(data) >= _HEADER_USED:
            data[124:128] = u32(crc32c(bytes(data[:124])))
            seed = crc32c(identity.pack(DISK, int.from_bytes(data[16:24], "little")))
            for at in range(_HEADER_USED, len(data) - 63, 64):
                data[at + 60 : at + 64] = u32(crc32c(bytes(data[at : at + 60]), seed))

    return Decoder(
        decode, [header + fence_file.encode_facts(DISK, 2, 0, n, facts[:n]) for n in (1, 3)], reseal
    )


DISK_FILES = {
    "superblock": _superblock(),
    "fragment-header": _fragment_header(),
    "fragment-log": _fragment_log(),
    "fences": _fences(),
}
