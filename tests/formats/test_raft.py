"""The bytes of version 1 of Raft's files and messages, as they were when they were made."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from blockstore.codec import raft_file
from blockstore.codec.raft_file import (
    Batch,
    HardState,
    SegmentHeader,
    Snapshot,
    batch_bytes,
    decode_snapshot,
    decode_vote_slots,
    encode_batch,
    encode_segment_header,
    encode_snapshot,
    encode_vote_slot,
    scan_segment,
)
from blockstore.codec.raft_messages import (
    COMMAND,
    MEMBERS,
    NOOP,
    Append,
    AppendAnswer,
    AppendRefused,
    Entry,
    Members,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    ReadAnswer,
    ReadAsk,
    SnapshotOffer,
    StandNow,
    Vote,
    VoteAnswer,
    decode_members,
    decode_message,
    encode_members,
    encode_message,
)
from blockstore.config import RAFT_SEGMENT_BYTES
from blockstore.errors import Corrupt, ProtocolViolation, UnknownFormat
from blockstore.ids import NodeId

PAGE = Path(__file__).parents[2] / "docs/formats/raft.md"
HEADER = SegmentHeader(7, 0x0123456789ABCDEF)
PAIR = Members((NodeId(1), NodeId(2)), (NodeId(3),))
BATCH = Batch(
    5, 3, (Entry(3, 2, NOOP), Entry(4, 2, COMMAND, b"hello"), Entry(5, 2, MEMBERS, encode_members(PAIR)))
)
ANEW = Batch(6, 9, anew=True)
SNAPSHOT = Snapshot(12, 3, Members((NodeId(1),), (NodeId(2),)), b"state")

GOLDEN_HEADER = "425352465453454701000000c71576910700000000000000efcdab8967452301"
GOLDEN_BATCH = (
    "524241549851eda55300000003000000050000000000000003000000000000000000000000000000"
    "030000000000000002000000000000000000000000000000"
    "04000000000000000200000000000000010000000500000068656c6c6f"
    "050000000000000002000000000000000200000006000000929201029103"
)
GOLDEN_ANEW = "52424154991f9d3300000000000000000600000000000000090000000000000001"
GOLDEN_VOTE = "4253524654564f5401000100076122670400000000000000090000000000000002000000000000004d"
GOLDEN_SNAPSHOT = (
    "4253524654534e50010000000ec1864b0c000000000000000300000000000000"
    "0500000005000000000000009291019102"
    "7374617465"
)
GOLDEN_MESSAGES: list[tuple[RaftMessage, str]] = [
    (PreVote(4, 9, 3), "9401040903"),
    (PreVoteAnswer(4, True), "930204c3"),
    (Vote(4, 9, 3, True), "9503040903c3"),
    (VoteAnswer(4, False), "930404c2"),
    (Append(4, 2, 9, 3, 8, (Entry(10, 4, COMMAND, b"x"),), 77, 11), "9905040209030891940a0401c401784d0b"),
    (AppendAnswer(4, 2, 10, 77), "950604020a4d"),
    (AppendRefused(4, 2, 9, 7, 3, 77), "970704020907034d"),
    (SnapshotOffer(4, 2, 9), "9408040209"),
    (ReadAsk(4, 1234567890123), "930904cf0000011f71fb04cb"),
    (ReadAnswer(4, 1234567890123, 9), "940a04cf0000011f71fb04cb09"),
    (StandNow(4), "920b04"),
]


def segment() -> bytes:
    """With two batches."""
    first = encode_batch(HEADER, 8192, BATCH)
    second = encode_batch(HEADER, 12288, ANEW)
    return (encode_segment_header(HEADER) + first + second).ljust(65536, b"\0")


def test_a_segment_has_the_bytes_that_it_always_had() -> None:
    content = segment()
    for copy in (0, 4096):
        assert content[copy : copy + 4096].rstrip(b"\0").hex() == GOLDEN_HEADER
    assert content[8192:12288].rstrip(b"\0").hex() == GOLDEN_BATCH
    assert content[12288:16384].rstrip(b"\0").hex() == GOLDEN_ANEW
    assert batch_bytes(BATCH.entries) == 4096
    scanned = scan_segment(content, 7)
    assert scanned.header == HEADER
    assert scanned.batches == (BATCH, ANEW)
    assert (scanned.end, scanned.last_offset, scanned.damaged) == (16384, 12288, False)


def test_a_vote_has_the_bytes_that_it_always_had() -> None:
    block = encode_vote_slot(1, 4, HardState(9, NodeId(2), 77))
    assert block.rstrip(b"\0").hex() == GOLDEN_VOTE
    content = encode_vote_slot(0, 3, HardState(8)) + block
    assert decode_vote_slots(content) == ([3, 4], HardState(9, NodeId(2), 77))


def test_a_snapshot_has_the_bytes_that_it_always_had() -> None:
    assert encode_snapshot(SNAPSHOT).hex() == GOLDEN_SNAPSHOT
    assert decode_snapshot(bytes.fromhex(GOLDEN_SNAPSHOT)) == SNAPSHOT


@pytest.mark.parametrize(("message", "body"), GOLDEN_MESSAGES, ids=lambda value: type(value).__name__)
def test_a_message_has_the_bytes_that_it_always_had(message: RaftMessage, body: str) -> None:
    assert encode_message(message).hex() == body
    assert decode_message(bytes.fromhex(body)) == message


def test_a_vote_of_a_release_that_knew_no_handover_is_understood() -> None:
    assert decode_message(bytes.fromhex("9403040903")) == Vote(4, 9, 3, handover=False)


def test_a_newer_version_is_refused_by_name() -> None:
    newer = bytearray(encode_vote_slot(0, 1, HardState(1)))
    newer[8] = 2
    crc = raft_file._checksum_without_itself(newer[:48])
    newer[12:16] = crc.to_bytes(4, "little")
    with pytest.raises(UnknownFormat):
        decode_vote_slots(bytes(newer))
    with pytest.raises(UnknownFormat):
        decode_snapshot(b"BSRFTSNP" + (2).to_bytes(2, "little") + bytes(40))


def test_any_flipped_bit_of_a_snapshot_is_noticed() -> None:
    content = bytes.fromhex(GOLDEN_SNAPSHOT)
    for at in range(len(content)):
        bad = bytearray(content)
        bad[at] ^= 1
        with pytest.raises((Corrupt, UnknownFormat)):
            decode_snapshot(bytes(bad))


def test_any_flipped_bit_of_a_batch_is_noticed() -> None:
    content = segment()
    for at in range(8192, 8192 + len(GOLDEN_BATCH) // 2):
        bad = bytearray(content)
        bad[at] ^= 0x10
        scanned = scan_segment(bytes(bad), 7)
        assert scanned.batches == ()
        assert scanned.damaged  # for a good batch follows


def test_a_batch_in_another_place_is_not_believed() -> None:
    content = bytearray(segment())
    content[16384:20480] = content[8192:12288]
    scanned = scan_segment(bytes(content), 7)
    assert (scanned.batches, scanned.damaged) == ((BATCH, ANEW), False)
    assert scan_segment(segment(), 8).header is None  # nor a segment under another name
    other = encode_segment_header(SegmentHeader(7, 1)) + segment()[8192:]
    assert scan_segment(other, 7).batches == ()


def test_one_bad_copy_of_a_segment_s_header_does_no_harm() -> None:
    for copy in (0, 4096):
        bad = bytearray(segment())
        bad[copy + 20] ^= 1
        assert scan_segment(bytes(bad), 7).batches == (BATCH, ANEW)
    for copy in (0, 4096):
        bad[copy : copy + 32] = bytes(32)
    scanned = scan_segment(bytes(bad), 7)
    assert (scanned.header, scanned.damaged) == (None, True)


@pytest.mark.parametrize("cut", [0, 3, 31, 32, 4096, 8192, 8200, 8240, 12000])
def test_a_file_cut_short_is_read_as_far_as_it_goes(cut: int) -> None:
    scanned = scan_segment(segment()[:cut], 7)
    assert scanned.batches in ((), (BATCH,))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x93",
        b"\x94\x01\x04\x09",
        b"\x94\x63\x04\x09\x03",  # an unknown tag
        b"\x94\x01\xff\x09\x03",  # a negative term
        b"\x94\x01\xcb\x7f\xf8\0\0\0\0\0\0\x09\x03",  # NaN
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff\x01",
        encode_message(Append(4, 2, 9, 3, 8, (Entry(11, 4, COMMAND),))),  # a gap
        encode_message(Append(4, 2, 9, 3, 8, (Entry(10, 5, COMMAND),))),  # of a term to come
        encode_message(Append(4, 2, 9, 3, 8, (Entry(10, 2, COMMAND),))),  # of a term before
        encode_message(Append(4, 2, -1, 3, 8)),
        encode_message(Append(4, 2, 9, 3, 8, (Entry(10, 4, MEMBERS, b"\x92\x90\x90"),))),  # nobody votes
        encode_message(Append(4, 2, 9, 3, 8, (Entry(10, 4, MEMBERS, b"\x92\x91\x01\x91\x01"),))),
    ],
)
def test_a_malformed_message_is_a_violation(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_message(body)


def test_noise_is_a_violation_or_a_message() -> None:
    rng = random.Random(0)
    for _, golden in GOLDEN_MESSAGES:
        for _ in range(200):
            body = bytearray.fromhex(golden)
            body[rng.randrange(len(body))] = rng.randrange(256)
            try:
                decode_message(bytes(body))
            except ProtocolViolation:
                continue


@pytest.mark.parametrize("payload", [b"", b"\x92\x90\x90", b"\x92\x91\x00\x90", b"\x92\x92\x01\x01\x90"])
def test_an_impossible_membership_is_a_violation(payload: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_members(payload)


def test_the_page_tells_the_truth() -> None:
    page = PAGE.read_text()
    told = {
        name: int(number.replace(",", "")) for name, number in re.findall(r"\| `(\w+)` \| ([\d,]+) \|", page)
    }
    assert told == {
        "raft_file_version": raft_file.VERSION,
        "raft_block_bytes": raft_file.BLOCK_BYTES,
        "raft_segment_bytes": RAFT_SEGMENT_BYTES,
        "raft_first_batch_offset": raft_file.FIRST_BATCH_OFFSET,
        "raft_vote_file_bytes": raft_file.VOTE_FILE_BYTES,
    }
    for message, body in GOLDEN_MESSAGES:
        kind = type(message)
        fields = [name for name in kind.__struct_fields__ if name != "term"]
        row = re.search(rf"\| {int(body[2:4], 16)} \| {kind.__name__} \| (.*) \|", page)
        assert row is not None
        assert re.sub(r" \(.*?\)", "", row[1]).split(", ") == (fields or [""])
