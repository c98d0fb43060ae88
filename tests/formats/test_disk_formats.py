"""The bytes of version 1 of everything on a disk, as they were when it was made."""

from __future__ import annotations

import re
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from blockstore.codec import fence_file, fragment_file, superblock
from blockstore.codec.checksum import crc32c
from blockstore.codec.fence_file import Fact, Kind, decode_fence_file, encode_facts
from blockstore.codec.fragment_file import (
    Header,
    State,
    decode_header,
    decode_records,
    encode_append,
    encode_header,
    piece_seed,
    record_seed,
)
from blockstore.codec.superblock import Superblock, decode_superblock, encode_superblock
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import ChunkId, DiskId, MiB, VolumeId

PAGE = Path(__file__).parents[2] / "docs/formats/disk.md"
CHUNK = ChunkId(VolumeId(7), 8, 9)
HEADER = Header(State.SEALED, 3, DiskId(4), 5, 6, 16 * MiB, CHUNK, 2, 4, 2, True, 12_345_678, 1_234_567, 89)


def records() -> bytes:
    """Two appends: one piece; and two, over the grid."""
    seed, log_seed = piece_seed(CHUNK, 2), record_seed(CHUNK, 5, 6)
    ends, crcs = array("I"), array("I")
    first = encode_append(seed, log_seed, 6, 0, 0, 0, memoryview(b"hello"), ends, crcs)
    data = memoryview(bytes(range(256)) * 64)
    second = encode_append(seed, log_seed, 6, 1, 5, 5, data, ends, crcs)
    assert list(ends) == [5, 16_384, 16_389]
    return bytes(first + second)


def fences() -> bytes:
    facts = [
        Fact(Kind.FENCE, VolumeId(1), 2),
        Fact(Kind.TOMBSTONE, VolumeId(3), 4, 5),
        Fact(Kind.FLOOR, VolumeId(6), 7, 8),
    ]
    return fence_file.encode_header(DiskId(4), 2) + encode_facts(DiskId(4), 2, 0, 0, facts)


def test_a_superblock_has_the_bytes_that_it_always_had() -> None:
    block = encode_superblock(Superblock(DiskId(4), "c1-photos"))
    assert block.rstrip(b"\0").hex() == GOLDEN_SUPERBLOCK
    assert decode_superblock(block, "here") == Superblock(DiskId(4), "c1-photos")


def test_a_header_has_the_bytes_that_it_always_had() -> None:
    blocks = encode_header(HEADER)
    assert blocks[:128].hex() == GOLDEN_HEADER
    assert blocks[4096:] == blocks[:4096]
    assert decode_header(blocks, DiskId(4), 5) == HEADER
    newer = replace(HEADER, generation=4, doubtful=False)
    for pair in (blocks[:4096] + encode_header(newer)[:4096], encode_header(newer)[:4096] + blocks[:4096]):
        assert decode_header(pair, DiskId(4), 5) == newer


def test_records_have_the_bytes_that_they_always_had() -> None:
    assert records().hex() == GOLDEN_RECORDS
    found = decode_records(records(), record_seed(CHUNK, 5, 6), 6)
    assert [(each.offset, each.length, each.synced, each.flags, each.place) for each in found] == [
        (0, 5, 0, 1, 0),
        (5, 16_379, 5, 0, 1),
        (16_384, 5, 5, 1, 2),
    ]


def test_fences_have_the_bytes_that_they_always_had() -> None:
    content = fences()
    assert (content[:32] + content[124:128] + content[4096:]).hex() == GOLDEN_FENCES
    found = decode_fence_file(content, DiskId(4))
    assert found is not None
    assert (found.generation, found.damaged) == (2, False)
    assert found.facts == ((1, 1, 2, 0), (2, 3, 4, 5), (3, 6, 7, 8))


def resummed(block: bytes, version_at: int, version: int, crc_at: int) -> bytes:
    changed = bytearray(block)
    changed[version_at] = version
    changed[crc_at : crc_at + 4] = crc32c(changed[:crc_at]).to_bytes(4, "little")
    return bytes(changed)


def test_an_unknown_version_is_named_and_refused() -> None:
    with pytest.raises(UnknownFormat, match="version 2"):
        decode_superblock(resummed(encode_superblock(Superblock(DiskId(4), "c")), 8, 2, 508), "here")
    with pytest.raises(UnknownFormat, match="version 2"):
        decode_header(resummed(encode_header(HEADER)[:4096], 8, 2, 124) * 2, DiskId(4), 5)
    with pytest.raises(UnknownFormat, match="version 2"):
        decode_fence_file(resummed(fences(), 8, 2, 124), DiskId(4))


def test_every_flipped_bit_is_seen() -> None:
    for at in range(128):
        hurt = bytearray(encode_header(HEADER))
        hurt[at] ^= 16
        hurt[4096 + at] ^= 16
        assert decode_header(hurt, DiskId(4), 5) is None
        hurt[:4096] = encode_header(HEADER)[:4096]
        assert decode_header(hurt, DiskId(4), 5) == HEADER, "the other copy"
    for at in range(32):
        log = bytearray(records())
        log[at] ^= 16
        found = decode_records(log, record_seed(CHUNK, 5, 6), 6)
        assert [each.place for each in found] == [1, 2]
    for at in range(512):
        block = bytearray(encode_superblock(Superblock(DiskId(4), "c")))
        block[at] ^= 16
        with pytest.raises(Corrupt):
            decode_superblock(block, "here")
    for at in range(4096, 4096 + 64):
        content = bytearray(fences())
        content[at] ^= 16
        found_fences = decode_fence_file(content, DiskId(4))
        assert found_fences is not None
        assert found_fences.damaged
        assert len(found_fences.facts) == 2


def test_another_identity_is_not_ours() -> None:
    assert decode_header(encode_header(HEADER), DiskId(3), 5) is None
    assert decode_header(encode_header(HEADER), DiskId(4), 6) is None
    assert decode_fence_file(fences(), DiskId(3)) is None
    assert decode_records(records(), record_seed(CHUNK, 6, 6), 6) == [], "another slot"
    assert decode_records(records(), record_seed(CHUNK, 5, 7), 7) == [], "a later tenancy"
    assert decode_records(records()[32:], record_seed(CHUNK, 5, 6), 6) == [], "another place"


def test_the_page_tells_the_sizes_that_the_code_has() -> None:
    page = PAGE.read_text()
    told = {
        name: int(number.replace(",", "")) for name, number in re.findall(r"\| `(\w+)` \| ([\d,]+) \|", page)
    }
    assert told == {
        "fragment_file_version": fragment_file.VERSION,
        "fragment_header_bytes": fragment_file.HEADER_BYTES,
        "fragment_record_bytes": fragment_file.RECORD_BYTES,
        "fragment_data_start": fragment_file.DATA_START,
        "superblock_version": superblock.VERSION,
        "superblock_bytes": superblock.SIZE,
        "fence_file_version": fence_file.VERSION,
        "fence_file_bytes": fence_file.FILE_BYTES,
        "fence_record_bytes": fence_file.RECORD_BYTES,
    }


GOLDEN_SUPERBLOCK = (
    "4253544449534b0a010000000000000004000000000000000900000063312d70686f746f730000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000000000ca8b69ff"
)
GOLDEN_HEADER = (
    "425354465241470a01000000020000000300000000000000040000000000000005000000060000000000000100000000"
    "070000000000000008000000000000000900000000000000020000000400000002000000010000004e61bc0000000000"
    "87d6120000000000590000000000000000000000000000000000000093e6b0d7"
)
GOLDEN_RECORDS = (
    "00000000050000008116dff5000000000100000000000000060000002526505e05000000fb3f0000d228f27905000000"
    "000000000100000006000000114f25e4004000000500000077a320480500000001000000020000000600000019acba96"
)
GOLDEN_FENCES = (
    "42535446454e43450100000000000000020000000000000004000000000000008acb46e6010000000000000001000000"
    "000000000200000000000000000000000000000000000000020000000000000000000000000000000000000000000000"
    "60a9cc270200000001000000030000000000000004000000000000000500000000000000000000000200000000000000"
    "00000000000000000000000000000000effc8fd203000000020000000600000000000000070000000000000008000000"
    "0000000000000000020000000000000000000000000000000000000000000000b1118ef9"
)
