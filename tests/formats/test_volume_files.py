"""The bytes of version 1 of the journal, of version 2 of run and index, and of versions 2 and 3 of head and
root, as they were when each was made; and what the page says of them."""

from __future__ import annotations

import re
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blockstore.codec import journal_record, run_file
from blockstore.codec.checksum import crc32c
from blockstore.codec.journal_record import (
    BatchRecord,
    DeleteRecord,
    PutRecord,
    RestoreRecord,
    build_batch,
    decode_header,
    decode_records,
    encode_header,
    value_offsets,
)
from blockstore.codec.messages import Extent, KeyWrite, Placement, SnapshotRecord
from blockstore.codec.run_file import (
    GONE_SEQUENCE,
    HEAD_VERSION,
    Anchor,
    CheckpointHead,
    ForeignChunk,
    Root,
    RunEntry,
    RunIndex,
    RunInfo,
    StoredChunk,
    StoredVersion,
    block_body,
    decode_entries,
    decode_head,
    decode_index,
    decode_root,
    decode_version,
    encode_block,
    encode_head,
    encode_index,
    encode_root,
    encode_version,
    pack_u64,
    unpack_u64,
)
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.volume.key_filter import BITS_PER_KEY

CHUNK = ChunkId(VolumeId(3), 4, 5)
PAGE = Path(__file__).parents[2] / "docs/formats/volume.md"


def batch() -> bytes:
    put = PutRecord(RequestId(SessionId(1), 2), 1, b"k", b"m", 3, 0xAABBCCDD, -1, True)
    delete = DeleteRecord(RequestId(SessionId(1), 3), 1, b"k", -1)
    built = build_batch(9, [(put, b"abc"), (delete, None)])
    return encode_header(built, CHUNK, 128, 17) + built.body


def test_a_batch_has_the_bytes_that_it_always_had() -> None:
    assert batch().hex() == GOLDEN_BATCH


def test_a_batch_reads_back_with_its_values_where_it_says() -> None:
    data = memoryview(batch())
    header = decode_header(data, CHUNK, 128)
    records = decode_records(header, data[64 : 64 + header.n_block], "here")
    first, second = records
    assert isinstance(first, PutRecord)
    assert isinstance(second, DeleteRecord)
    at = value_offsets(header, records)
    assert bytes(data[at[0] : at[0] + first.size]) == b"abc"
    assert at[1] == -1
    assert header.length == data.nbytes


def read_batch(data: memoryview) -> None:
    header = decode_header(data, CHUNK, 128)
    decode_records(header, data[64 : 64 + header.n_block], "here")


@pytest.mark.parametrize(
    ("chunk", "offset"),
    [(CHUNK, 0), (CHUNK, 129), (ChunkId(VolumeId(3), 4, 6), 128), (ChunkId(VolumeId(2), 4, 5), 128)],
)
def test_a_batch_in_another_place_is_not_taken(chunk: ChunkId, offset: int) -> None:
    with pytest.raises(Corrupt):
        decode_header(memoryview(batch()), chunk, offset)


@pytest.mark.parametrize("flipped", [0, 5, 9, 25, 33, 41, 57, 61])
def test_a_flipped_bit_in_a_header_is_seen(flipped: int) -> None:
    data = bytearray(batch())
    data[flipped] ^= 0x10
    with pytest.raises((Corrupt, UnknownFormat)):
        read_batch(memoryview(data))


def test_a_newer_journal_is_refused_by_its_version() -> None:
    data = bytearray(batch())
    data[4] = 2
    with pytest.raises(UnknownFormat, match="version 2"):
        decode_header(memoryview(data), CHUNK, 128)


VOLUME = VolumeId(3)
RUN = RunInfo((), {}, 400, 12, 3, 300)


def block(index: int = 0) -> bytes:
    extent = Extent(CHUNK, 192, 3, 3, 7)
    newest = encode_version(StoredVersion(9, b"m", 3, 7, (extent,)))
    older = encode_version(StoredVersion(5, None))
    return encode_block(VOLUME, 12, index, [(b"k", newest, (older,)), (b"l", None, ())])


def read_block(data: bytes | bytearray, volume: VolumeId = VOLUME, index: int = 0) -> list[RunEntry]:
    return decode_entries(block_body(volume, 12, index, memoryview(data)))


def the_index() -> RunIndex:
    ends, newest = array("Q", [100, 300]), array("Q", [GONE_SEQUENCE, 9])
    return RunIndex(
        [b"k", b"m"], pack_u64(ends), pack_u64(newest), b"\1\0", pack_u64(array("Q", [1 << 63])), [CHUNK]
    )


def test_a_block_has_the_bytes_that_it_always_had() -> None:
    assert block().hex() == GOLDEN_BLOCK


def test_an_index_has_the_bytes_that_it_always_had() -> None:
    assert encode_index(VOLUME, 12, the_index()).hex() == GOLDEN_INDEX
    assert decode_index(VOLUME, RUN, memoryview(bytes.fromhex(GOLDEN_INDEX))) == the_index()
    assert list(unpack_u64(the_index().ends)) == [100, 300]


def test_a_version_whose_extents_do_not_say_a_shard_is_read() -> None:
    """As written before values could share a stripe."""
    before, now = (decode_version(bytes.fromhex(one)) for one in VERSIONS)
    assert before == now
    assert before.extents[0].shard == -1


def test_a_block_reads_back() -> None:
    (key, newest, older), gone = read_block(block())
    assert key == b"k"
    assert newest is not None
    assert decode_version(newest).extents[0].chunk == CHUNK
    assert decode_version(older[0]) == StoredVersion(5, None)
    assert gone == (b"l", None, ())


@pytest.mark.parametrize("flipped", range(0, 60, 3))
def test_a_flipped_bit_in_a_block_is_seen(flipped: int) -> None:
    data = bytearray(block())
    data[flipped] ^= 0x04
    with pytest.raises((Corrupt, UnknownFormat)):
        read_block(data)


def test_another_volumes_block_or_another_of_the_run_is_not_taken() -> None:
    with pytest.raises(Corrupt):
        read_block(block(), VolumeId(4))
    with pytest.raises(Corrupt):
        read_block(block(1))
    with pytest.raises(Corrupt):
        read_block(encode_index(VOLUME, 12, the_index()), index=2)


@pytest.mark.parametrize("flipped", [*range(0, 60, 3), 70, 90])
def test_a_flipped_bit_in_an_index_is_seen(flipped: int) -> None:
    data = bytearray(encode_index(VOLUME, 12, the_index()))
    data[flipped] ^= 0x04
    with pytest.raises((Corrupt, UnknownFormat)):
        decode_index(VOLUME, RUN, memoryview(data))


@pytest.mark.parametrize(
    "changes",
    [
        {"first_keys": [b"m", b"k"]},
        {"first_keys": [b"k", b"k"]},
        {"with_history": b"\0"},
        {"newest": b"\0" * 8},
        {"filter": b""},
        {"filter": b"\0" * 9},
        {"ends": pack_u64(array("Q", [300, 300]))},
        {"ends": pack_u64(array("Q", [0, 300]))},
        {"ends": pack_u64(array("Q", [100, 301]))},
    ],
    ids=str,
)
def test_an_index_that_makes_no_sense_is_not_taken(changes: dict[str, Any]) -> None:
    data = encode_index(VOLUME, 12, msgspec.structs.replace(the_index(), **changes))
    with pytest.raises(Corrupt):
        decode_index(VOLUME, RUN, memoryview(data))


def test_an_index_of_another_run_is_not_taken() -> None:
    data = memoryview(encode_index(VOLUME, 12, the_index()))
    for run in (RunInfo((), {}, 400, 13, 3, 300), RunInfo((), {}, 400, 12, 3, 299)):
        with pytest.raises(Corrupt):
            decode_index(VOLUME, run, data)
    with pytest.raises(Corrupt):
        decode_index(VolumeId(4), RUN, data)


def test_a_root_reads_back_and_another_version_is_refused() -> None:
    root = Root(
        3, 12, 99, (Extent(CHUNK, 0, 99, 99, 1),), {CHUNK: Placement(1, 1, (DiskId(1), DiskId(2)))}, CHUNK, 64
    )
    assert decode_root(encode_root(root)) == root
    for version in (1, 4):
        with pytest.raises(UnknownFormat):
            decode_root(encode_root(msgspec.structs.replace(root, version=version)))


@pytest.mark.parametrize(("version", "golden"), [(2, "GOLDEN_ROOT_2"), (3, "GOLDEN_ROOT_3")])
def test_a_root_of_every_version_is_read(version: int, golden: str) -> None:
    root = decode_root(bytes.fromhex(globals()[golden]))
    volume = VolumeId(9 if version > 2 else 0)
    assert root == Root(
        version, 12, 99, (Extent(CHUNK, 0, 99, 99, 1),), {CHUNK: Placement(1, 1, (DiskId(1), DiskId(2)))},
        CHUNK, 64, volume,
    )  # fmt: skip
    if version == HEAD_VERSION:
        assert encode_root(root).hex() == globals()[golden]


def the_head() -> CheckpointHead:
    chunk = StoredChunk(CHUNK, Placement(1, 0, (DiskId(1),)), 64, "data", SessionId(7), 60, 50, 60, 60, 11)
    run = RunInfo((Extent(CHUNK, 0, 9, 9, 1),), {}, 9, 8, 2, 5, VolumeId(2), 6)
    return CheckpointHead(
        12, CHUNK, 64, (run,), (SnapshotRecord("s", 10, 1.5, True, 3),), (), (chunk,), 2,
        (Anchor(11, 10, "s", "c", 3, 12),),
        (ForeignChunk(ChunkId(VolumeId(2), 1, 1), Placement(1, 0, (DiskId(1),))),),
    )  # fmt: skip


def test_a_head_has_the_bytes_that_it_always_had() -> None:
    assert encode_head(VOLUME, the_head()).hex() == GOLDEN_HEAD_3
    assert decode_head(VOLUME, memoryview(bytes.fromhex(GOLDEN_HEAD_3))) == the_head()


def test_a_head_from_before_there_were_clones_is_read() -> None:
    head = decode_head(VOLUME, memoryview(bytes.fromhex(GOLDEN_HEAD_2)))
    now = the_head()
    before = msgspec.structs.replace(
        now,
        runs=tuple(msgspec.structs.replace(run, volume=VolumeId(0), as_of=0) for run in now.runs),
        snapshots=(SnapshotRecord("s", 10, 1.5, True),),
        chunks=tuple(msgspec.structs.replace(chunk, opened=0) for chunk in now.chunks),
        anchors=(),
        foreign=(),
    )
    assert head == before


def test_a_head_of_another_version_is_refused() -> None:
    data = bytearray(encode_head(VOLUME, the_head()))
    data[4] = 4
    data[32:36] = crc32c(bytes(data[:32])).to_bytes(4, "little")
    with pytest.raises(UnknownFormat, match="version 4"):
        decode_head(VOLUME, memoryview(data))


def test_the_page_says_what_the_code_does() -> None:
    page = PAGE.read_text()
    assert f"Journal, version {journal_record.VERSION}" in page
    assert f"Runs and index, version {run_file.VERSION}; head, version {run_file.HEAD_VERSION}" in page
    for magic in (run_file.RUN_MAGIC, run_file.INDEX_MAGIC, run_file.HEAD_MAGIC):
        assert f"`{magic.decode()}`" in page
    assert f"{BITS_PER_KEY} bits for each" in page
    for struct in (RunIndex, RunInfo, CheckpointHead, Root, Anchor, ForeignChunk):
        names = ", ".join(name.replace("_", " ") for name in struct.__struct_fields__)
        assert f"`[{names}]`" in page
    assert f"a header of {journal_record.HEADER_BYTES} bytes" in page
    records = page[page.index("| tag | record |") : page.index("The values of the puts")]
    tags = re.findall(r"^\| (\d+) \|", records, re.MULTILINE)
    kinds = journal_record.JournalRecord.__args__
    assert sorted(int(tag) for tag in tags) == sorted(kind.__struct_config__.tag for kind in kinds)


def test_a_restore_has_the_bytes_that_it_always_had() -> None:
    restore = RestoreRecord(RequestId(SessionId(1), 4), 1, (b"k", b"l"), 8, (b"m", b"n"))
    built = build_batch(9, [(restore, None)])
    assert built.body.hex() == GOLDEN_RESTORE
    data = memoryview(encode_header(built, CHUNK, 0, 17) + built.body)
    header = decode_header(data, CHUNK, 0)
    assert decode_records(header, data[64:], "here") == (restore,)


def test_a_batch_of_changes_has_the_bytes_that_it_always_had() -> None:
    extent = Extent(CHUNK, 2, 9, 9, 5)
    changes = (
        KeyWrite(b"k", b"m", 2, 3, -1),
        KeyWrite(b"l", None, 0, 0, 5),
        KeyWrite(b"m", b"", 9, 5, -1, (extent,)),
        KeyWrite(b"n", b"", 1, 4, 0),
    )
    put = PutRecord(RequestId(SessionId(1), 3), 1, b"k", b"m", 3, 0, -1, True)
    record = BatchRecord(RequestId(SessionId(1), 2), 1, changes, ((b"w", 8),))
    built = build_batch(9, [(record, b"abc"), (put, b"def")])
    assert built.body.hex() == GOLDEN_CHANGES
    data = memoryview(encode_header(built, CHUNK, 0, 17) + built.body)
    header = decode_header(data, CHUNK, 0)
    records = decode_records(header, data[64 : 64 + header.n_block], "here")
    assert records == built.records
    assert value_offsets(header, records) == built.value_offsets


GOLDEN_CHANGES = (
    "92950b920102019496c4016bc4016d0203ff9096c4016cc00000059096c4016dc4000905ff91969303040502090905ff"
    "96c4016ec400010400909192c40177089a0192010301c4016bc4016d0300ffc390616263646566"
)
GOLDEN_RESTORE = "91960992010401" + "92c4016bc4016c" + "08" + "92c4016dc4016e"
GOLDEN_BATCH = (
    "42534a310100000003000000000000000400000000000000090000000000000002000000200000000300000000000000"
    "11000000000000001ebd2338abe509b4929a0192010201c4016bc4016d03ceaabbccddffc390950292010301c4016bff"
    "616263"
)
GOLDEN_BLOCK = (
    "425352310200000003000000000000000c0000000000000000000000290000001c7629ea8e7f65dd9293c4016bc41395"
    "09c4016d0307919693030405ccc0030307ff91c4069505c000009093c4016cc090"
)
GOLDEN_INDEX = (
    "425358310200000003000000000000000c00000000000000020000003f00000047a5dcd387f3356f9692c4016bc4016d"
    "c41064000000000000002c01000000000000c410ffffffffffffffff0900000000000000c4020100c408000000000000"
    "00809193030405"
)
VERSIONS = (
    "9509c4016d0307919593030405ccc0030307",
    "9509c4016d0307919693030405ccc0030307ff",
)

GOLDEN_ROOT_2 = "97020c6391969303040500636301ff81930304059301019201029303040540"
GOLDEN_ROOT_3 = "98030c6391969303040500636301ff8193030405930101920102930304054009"
GOLDEN_HEAD_2 = (
    "425348310200000003000000000000000c000000000000000000000041000000adb21ab8f014b730980c930304"
    "0540919691969303040500090901ff800908020591952ba1730acb3ff8000000000000c3909199930304059301"
    "00910140a464617461073c323c3c02"
)
GOLDEN_HEAD_3 = (
    "425348310300000003000000000000000c00000000000000000000005a0000007b620d67f202d7859a0c930304"
    "0540919891969303040500090901ff8009080205020691962ba1730acb3ff8000000000000c30390919a930304"
    "05930100910140a464617461073c323c3c0b0291960b0aa173a163030c9192930201019301009101"
)
