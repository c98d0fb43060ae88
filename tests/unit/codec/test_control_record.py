from __future__ import annotations

import pytest

from blockstore.codec.control_record import (
    RECORD_VERSION,
    SNAPSHOT_HEADER_BYTES,
    SNAPSHOT_VERSION,
    ClusterRecord,
    JournalChunk,
    NameRecord,
    SnapshotContent,
    SnapshotItem,
    VolumeRecord,
    decode_command,
    decode_record,
    decode_snapshot,
    encode_record,
    encode_snapshot,
)
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import ChunkId, DiskId, NodeId, RequestId, SessionId, VolumeId

VOLUME = VolumeRecord(
    VolumeId(3), "photos", "bucket", "ec(4,2)", 2, NodeId(1), b"root",
    (JournalChunk(ChunkId(VolumeId(3), 2, 1), (DiskId(1), DiskId(0)), -1),), 1.5,
)  # fmt: skip
SNAPSHOT = SnapshotContent(
    9, (SnapshotItem("a", b"1", 7), SnapshotItem("b", b"", 9)), ((RequestId(SessionId(2), 3), 9),)
)


def test_a_record_comes_back_as_it_was() -> None:
    assert decode_record(encode_record(VOLUME), VolumeRecord, "volume/3") == VOLUME


def test_a_record_of_another_kind_or_damaged_is_refused() -> None:
    with pytest.raises(Corrupt, match="a VolumeRecord, not a ClusterRecord"):
        decode_record(encode_record(VOLUME), ClusterRecord, "cluster")
    with pytest.raises(Corrupt):
        decode_record(encode_record(VOLUME)[:-2], VolumeRecord, "volume/3")
    with pytest.raises(Corrupt, match="empty"):
        decode_record(b"", NameRecord, "name/x")
    with pytest.raises(Corrupt):
        decode_command(encode_record(VOLUME))


def test_a_record_of_a_newer_release_is_refused_with_its_version() -> None:
    with pytest.raises(UnknownFormat, match="format version 2"):
        decode_record(bytes((RECORD_VERSION + 1,)) + encode_record(VOLUME)[1:], VolumeRecord, "volume/3")


def test_a_snapshot_comes_back_as_it_was() -> None:
    assert decode_snapshot(encode_snapshot(SNAPSHOT)) == SNAPSHOT


def test_no_changed_byte_of_a_snapshot_goes_unnoticed() -> None:
    whole = encode_snapshot(SNAPSHOT)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x40
        with pytest.raises((Corrupt, UnknownFormat)):
            decode_snapshot(bytes(damaged))
    for length in range(len(whole)):
        with pytest.raises(Corrupt):
            decode_snapshot(whole[:length])


def test_a_newer_snapshot_is_refused_with_its_version() -> None:
    newer = bytearray(encode_snapshot(SNAPSHOT))
    newer[8] = SNAPSHOT_VERSION + 1
    with pytest.raises(UnknownFormat):
        decode_snapshot(bytes(newer))
    assert SNAPSHOT_HEADER_BYTES == 24
