"""Decoders of the Raft log's files."""

from __future__ import annotations

import struct

from blockstore.codec import raft_file, raft_messages
from blockstore.codec.checksum import crc32c
from blockstore.ids import NodeId
from tests.fuzz.decoder import Decoder, u32

_BATCH_USED = 160


def _raft_segment() -> Decoder:
    """The header's 32 bytes, then 160 of each batch's block."""
    header = raft_file.SegmentHeader(3, 0x1234_5678_9ABC)
    entries = tuple(raft_messages.Entry(n, 2, raft_messages.COMMAND, b"payload") for n in (5, 6))
    batches = [
        raft_file.Batch(8, 5, entries),
        raft_file.Batch(9, 7),
        raft_file.Batch(10, 7, entries[:0], True),
    ]
    packed = raft_file.encode_segment_header(header)[:32]
    for n, batch in enumerate(batches):
        packed += raft_file.encode_batch(header, (2 + n) * 4096, batch)[:_BATCH_USED]

    def decode(data: bytes) -> object:
        block = data[:32].ljust(4096, b"\0")
        rest = [
            data[at : at + _BATCH_USED].ljust(4096, b"\0")
            for at in range(32, min(len(data), 2_000), _BATCH_USED)
        ]
        found = raft_file.scan_segment(block + block + b"".join(rest), 3)
        return found if found.batches else None

    def reseal(data: bytearray) -> None:
        if len(data) < 32:
            return
        data[12:16] = u32(raft_file._checksum_without_itself(data[:32]))
        number, nonce = struct.unpack_from("<QQ", data, 16)
        for n, at in enumerate(range(32, min(len(data), 2_000) - 39, _BATCH_USED)):
            end = min(at + 40 + int.from_bytes(data[at + 8 : at + 12], "little"), at + _BATCH_USED)
            place = crc32c(struct.pack("<QQQ", nonce, number, (2 + n) * 4096))
            checked = bytes(data[at + 8 : end]).ljust(end - at - 8, b"\0")
            data[at + 4 : at + 8] = u32(crc32c(checked, place))

    return Decoder(decode, [packed], reseal)


def _raft_vote() -> Decoder:
    """Both slots' used bytes."""
    slots = [
        raft_file.encode_vote_slot(slot, 5, raft_file.HardState(3, NodeId(2), 7))[:48] for slot in (0, 1)
    ]

    def decode(data: bytes) -> object:
        _, newest = raft_file.decode_vote_slots(data[:48].ljust(4096, b"\0") + data[48:96])
        return newest

    def reseal(data: bytearray) -> None:
        for at in range(0, len(data) - 47, 48):
            data[at + 12 : at + 16] = u32(raft_file._checksum_without_itself(data[at : at + 48]))

    return Decoder(decode, [b"".join(slots)], reseal)


def _raft_snapshot() -> Decoder:
    members = raft_messages.Members((NodeId(1), NodeId(2)), (NodeId(3),))
    corpus = [
        raft_file.encode_snapshot(raft_file.Snapshot(9, 2, members, data))
        for data in (b"", b"state", bytes(200))
    ]

    def reseal(data: bytearray) -> None:
        if len(data) >= 44:
            members_bytes = min(int.from_bytes(data[32:36], "little"), len(data) - 44)
            data[32:44] = struct.pack("<IQ", members_bytes, len(data) - 44 - members_bytes)
            data[12:16] = u32(raft_file._checksum_without_itself(data))

    return Decoder(raft_file.decode_snapshot, corpus, reseal)


RAFT_FILES = {
    "raft-segment": _raft_segment(),
    "raft-vote": _raft_vote(),
    "raft-snapshot": _raft_snapshot(),
}
