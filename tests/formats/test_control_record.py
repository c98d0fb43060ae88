"""The bytes of version 1, as they were when it was made, and what docs/formats/control.md says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blockstore.codec import control_record
from blockstore.codec.control_record import (
    SNAPSHOT_HEADER_BYTES,
    ClusterRecord,
    CounterRecord,
    CredentialRecord,
    DiskRecord,
    JournalChunk,
    NameRecord,
    NodeRecord,
    PolicyRecord,
    Record,
    SnapshotContent,
    SnapshotItem,
    Transaction,
    VolumeRecord,
    decode_command,
    decode_record,
    decode_snapshot,
    encode_command,
    encode_record,
    encode_snapshot,
)
from blockstore.codec.messages import Compare
from blockstore.ids import ChunkId, DiskId, NodeId, RequestId, SessionId, VolumeId

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats" / "control.md"

RECORDS: list[tuple[Record, str]] = [
    (
        ClusterRecord("c1", "lab", 1.5, "tls", b"key"),
        "019601a26331a36c6162cb3ff8000000000000a3746c73c4036b6579",
    ),
    (
        NodeRecord(NodeId(2), 3, "h", 7440, 7441, "/u", "m", b"k", ("r1", "h1"), "ff", "active"),
        "019c020203a168cd1d10cd1d11a22f75a16dc4016b92a27231a26831a26666a6616374697665",
    ),
    (DiskRecord(DiskId(4), NodeId(2), 1 << 30, "active"), "0195030402ce40000000a6616374697665"),
    (
        PolicyRecord("ec(2,1)", ((DiskId(1), DiskId(2), DiskId(3)),), 9),
        "019404a7656328322c31299193010203" + "09",
    ),
    (
        VolumeRecord(
            VolumeId(5), "photos", "bucket", "ec(2,1)", 6, NodeId(2), b"r",
            (JournalChunk(ChunkId(VolumeId(5), 6, 1), (DiskId(1), DiskId(2)), -1),), 2.0,
        ),
        "019a0505a670686f746f73a66275636b6574a7656328322c31290602c40172919393050601920102ffcb4000000000000000",
    ),
    (NameRecord(VolumeId(5)), "01920605"),
    (CredentialRecord("root", "admin", "ff", revoked=True), "019507a4726f6f74a561646d696ea26666c3"),
    (CounterRecord(7), "01920807"),
]  # fmt: skip
COMMAND = Transaction(RequestId(SessionId(1), 2), (Compare("a", 3),), (("b", b"x"),), ("c",))
SNAPSHOT = SnapshotContent(3, (SnapshotItem("a", b"x", 2),), ((RequestId(SessionId(1), 2), 3),))


@pytest.mark.parametrize(("record", "golden"), RECORDS, ids=lambda value: type(value).__name__)
def test_records_of_version_1(record: Record, golden: str) -> None:
    assert encode_record(record).hex() == golden
    assert decode_record(bytes.fromhex(golden), type(record), "key") == record


def test_a_cluster_record_from_before_grants_were_signed_is_read() -> None:
    old = bytes.fromhex("019501a26331a36c6162cb3ff8000000000000a3746c73")
    assert decode_record(old, ClusterRecord, "cluster") == ClusterRecord("c1", "lab", 1.5, "tls", b"")


def test_a_command_of_version_1() -> None:
    golden = "0195329201029192a1610391" + "92a162c4017891a163"
    assert encode_command(COMMAND).hex() == golden
    assert decode_command(bytes.fromhex(golden)) == COMMAND


def test_a_snapshot_of_version_1() -> None:
    body = "9303" + "9193a161c4017802" + "919292010203"
    whole = encode_snapshot(SNAPSHOT)
    assert whole[SNAPSHOT_HEADER_BYTES:].hex() == body
    assert whole[:12] == b"BSCTRL1\0\x01\0\0\0"
    assert decode_snapshot(whole) == SNAPSHOT


def test_the_page_names_every_record_with_its_tag_and_fields() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (\w*(?:Record|Transaction)) \|", PAGE.read_text(), re.MULTILINE))
    tagged = {
        str(kind.__struct_config__.tag): kind
        for kind in vars(control_record).values()
        if isinstance(kind, type)
        and issubclass(kind, control_record._Record)
        and kind.__struct_config__.tag is not None
    }
    assert rows == {tag: kind.__name__ for tag, kind in tagged.items()}
    for kind in tagged.values():
        [row] = re.findall(rf"^\| \d+ \| {kind.__name__} \| .*? \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
        for field in kind.__struct_fields__:
            assert field in row, f"{kind.__name__}.{field} is not on the page"
    assert f"{SNAPSHOT_HEADER_BYTES} bytes before the body" in PAGE.read_text()
