"""Decoders of a volume's journal and checkpoints, and of the control state."""

from __future__ import annotations

import struct
from array import array
from contextlib import suppress
from typing import Any

import msgspec

from blockstore.api.snapshot_map import MapBuilder, SnapshotMap
from blockstore.codec import control_record, journal_record, messages, run_file
from blockstore.codec.checksum import crc32c
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.volume.key_filter import hash_of
from blockstore.volume.sorted_run import BlockCache, BlocksMissing, SortedRun
from tests.fuzz.decoder import Decoder, chance, u32
from tests.fuzz.values import values_of

CHUNK = ChunkId(VolumeId(7), 8, 9)

_PLACE = crc32c(struct.pack("<QQQQ", *CHUNK, 128))


def _journal() -> Decoder:
    rng = chance("journal")
    records = values_of(journal_record.JournalRecord, rng, 4)
    corpus = list[bytes]()
    for at in range(0, len(records), 2):
        values = [
            bytes(min(record.size, 40)) if getattr(record, "inline", False) else None
            for record in records[at : at + 2]
        ]
        batch = journal_record.build_batch(9, list(zip(records[at : at + 2], values, strict=True)))
        corpus.append(journal_record.encode_header(batch, CHUNK, 128, 17) + batch.body)

    def decode(data: bytes) -> object:
        view = memoryview(data)
        header = journal_record.decode_header(view, CHUNK, 128)
        block = view[journal_record.HEADER_BYTES :][: header.n_block]
        if len(block) < header.n_block:
            return None  # more of the chunk is read
        return journal_record.value_offsets(header, journal_record.decode_records(header, block, "here"))

    def reseal(data: bytearray) -> None:
        if len(data) >= 64:
            data[60:64] = u32(crc32c(bytes(data[64 : 64 + int.from_bytes(data[36:40], "little")])))
            data[56:60] = u32(crc32c(bytes(data[:56]), _PLACE))

    return Decoder(decode, corpus, reseal)


def _reseal_blocks(data: bytearray) -> None:
    """The frames of run and head; the first one's length becomes what is there if it claims more."""
    at = 0
    while at + 40 <= len(data):
        length = int.from_bytes(data[at + 28 : at + 32], "little")
        if at + 40 + length > len(data):
            length = len(data) - at - 40
            data[at + 28 : at + 32] = u32(length)
        data[at + 36 : at + 40] = u32(crc32c(bytes(data[at + 40 : at + 40 + length])))
        data[at + 32 : at + 36] = u32(crc32c(bytes(data[at : at + 32])))
        at += 40 + length


def _run() -> Decoder:
    rng = chance("run")
    versions = [run_file.encode_version(one) for one in values_of(run_file.StoredVersion, rng, 8)]
    entries: list[run_file.RunEntry] = [
        (b"key-%d" % n, version if n % 3 else None, (versions[0],) if n % 2 else ())
        for n, version in enumerate(versions)
    ]
    corpus = [run_file.encode_block(CHUNK.volume, 5, 0, some) for some in (entries[:3], entries[3:])]

    def decode(data: bytes) -> object:
        return run_file.decode_entries(run_file.block_body(CHUNK.volume, 5, 0, memoryview(data))) or None

    return Decoder(decode, corpus, _reseal_blocks)


def _index() -> Decoder:
    """Of runs of two and of three blocks that end at the same place."""
    run = run_file.RunInfo((), {}, 400, 5, 9, 300)
    corpus = list[bytes]()
    for ends in ((100, 300), (50, 200, 300)):
        n = len(ends)
        newest = array("Q", [7, run_file.GONE_SEQUENCE, 1 << 40][:n])
        index = run_file.RunIndex(
            [b"key-%d" % number for number in range(n)],
            run_file.pack_u64(array("Q", ends)),
            run_file.pack_u64(newest),
            bytes([0, 1, 0][:n]),
            bytes(8 * n),
            [CHUNK],
        )
        corpus.append(run_file.encode_index(CHUNK.volume, 5, index))

    def decode(data: bytes) -> object:
        index = run_file.decode_index(CHUNK.volume, run, memoryview(data))
        read = SortedRun(CHUNK.volume, run, index, BlockCache())
        with suppress(BlocksMissing):
            read.find(b"key-1", hash_of(b"key-1"))
        return [read.span(block, block + 1) for block in range(read.n_blocks)] or None

    return Decoder(decode, corpus, _reseal_blocks)


def _version() -> Decoder:
    versions = values_of(run_file.StoredVersion, chance("version"), 8)
    return Decoder(run_file.decode_version, [run_file.encode_version(version) for version in versions])


def _head() -> Decoder:
    heads = values_of(run_file.CheckpointHead, chance("head"), 8)
    return Decoder(
        lambda data: run_file.decode_head(CHUNK.volume, memoryview(data)),
        [run_file.encode_head(CHUNK.volume, head) for head in heads],
        _reseal_blocks,
    )


def _root() -> Decoder:
    roots = values_of(run_file.Root, chance("root"), 8)
    corpus = [
        bytes([0x98, run_file.HEAD_VERSION])
        + run_file.encode_root(root)[_version_end(run_file.encode_root(root)) :]
        for root in roots
    ]
    return Decoder(run_file.decode_root, corpus)


def _version_end(content: bytes) -> int:
    """Behind the array's head and the integer that is the version."""
    return 2 + {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(content[1], 0)


def _control_record() -> Decoder:
    any_record: Any = control_record._Record
    corpus = [
        control_record.encode_record(one) for one in values_of(control_record.Record, chance("control"), 3)
    ]
    return Decoder(lambda data: control_record.decode_record(data, any_record, "key"), corpus)


def _control_command() -> Decoder:
    commands = values_of(control_record.Transaction, chance("command"), 8)
    return Decoder(control_record.decode_command, [control_record.encode_command(one) for one in commands])


def _control_snapshot() -> Decoder:
    contents = values_of(control_record.SnapshotContent, chance("snapshot"), 8)

    def reseal(data: bytearray) -> None:
        if len(data) >= 24:
            data[12:24] = struct.pack("<IQ", crc32c(bytes(data[24:])), len(data) - 24)

    corpus = [control_record.encode_snapshot(content) for content in contents]
    return Decoder(control_record.decode_snapshot, corpus, reseal)


def _map_file() -> Decoder:
    rng = chance("map-file")
    corpus = list[bytes]()
    for n_keys in (1, 4):
        builder = MapBuilder("cluster", CHUNK.volume, 5, b"k", None)
        version = msgspec.structs.replace(values_of(messages.Entry, rng, 1)[0], meta=b"m")
        entries = tuple(msgspec.structs.replace(version, key=b"key-%03d" % n) for n in range(n_keys))
        builder.add(messages.KeyPage(entries, False, 5, b"", {CHUNK: messages.Placement(1, 0, (DiskId(1),))}))
        corpus.append(bytes(builder.finish().image))

    def decode(data: bytes) -> object:
        known = SnapshotMap(data)
        found = known.find_many([b"key-001"])
        return [found, known.page(messages.ListKeys(known.tail.prefix))]

    def reseal(data: bytearray) -> None:
        if len(data) >= 16:
            length = min(struct.unpack_from("<I", data, len(data) - 8)[0], len(data) - 16)
            data[-4:] = struct.pack("<I", crc32c(bytes(data[len(data) - 16 - length : -4])))

    return Decoder(decode, corpus, reseal)


VOLUME = {
    "journal": _journal(),
    "run": _run(),
    "run-index": _index(),
    "version": _version(),
    "head": _head(),
    "root": _root(),
    "map-file": _map_file(),
    "control-record": _control_record(),
    "control-command": _control_command(),
    "control-snapshot": _control_snapshot(),
}
