"""Every decoder of bytes or text that somebody else may have written, with valid encodings of it.

`decode` does what the product does with such bytes, as far as that goes without a disk or a peer. `reseal`
makes the checksums of a mutated encoding right again, and lengths where only that reaches what is behind
them. Where a format is mostly padding, inputs are packed without it, and `decode` puts it back.
"""

from __future__ import annotations

import base64
import json
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from blockstore import errors
from blockstore.api import location
from blockstore.codec import (
    control_record,
    credential,
    fence_file,
    fragment_file,
    journal_record,
    raft_file,
    raft_messages,
    run_file,
    superblock,
)
from blockstore.codec.checksum import crc32c
from blockstore.codec.frame import PREFIX_BYTES, BusWire, FrameWire
from blockstore.codec.grant import is_granted
from blockstore.codec.messages import BusMessage, Failed, WireMessage
from blockstore.daemon.node_directory import NodeDirectory, parse_listen
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, DiskId, MiB, NodeId, VolumeId
from blockstore.kinds import bucket
from blockstore.node.recovery import judge, scan_log
from blockstore.placement.policy import Policy
from blockstore.runtime import bus_pack
from blockstore.runtime.interfaces import ANSWER, REQUEST
from tests.fuzz.mutator import MESSAGEPACK, TEXT
from tests.fuzz.values import encoded, values_of

CHUNK = ChunkId(VolumeId(7), 8, 9)
DISK = DiskId(4)


@dataclass(frozen=True, slots=True)
class Decoder:
    decode: Callable[[bytes], object]
    corpus: Sequence[bytes]
    reseal: Callable[[bytearray], None] | None = None
    tokens: Sequence[bytes] = MESSAGEPACK
    cost: int = 1  # one of so many inputs is tried where the others are: signatures take their time


def _u32(value: int) -> bytes:
    return (value & 0xFFFF_FFFF).to_bytes(4, "little")


def _rng(name: str) -> Random:
    return Random(f"corpus of {name}")


# --- the wire


_wire, _bus = FrameWire(), BusWire()


def _frame() -> Decoder:
    def decode(data: bytes) -> object:
        if len(data) < PREFIX_BYTES:
            return None  # more is waited for
        prefix = _wire.parse_prefix(data)
        header = data[PREFIX_BYTES : PREFIX_BYTES + prefix.header_bytes]
        if len(header) < prefix.header_bytes:
            return None
        error = _wire.error_of(message := _wire.decode(prefix, header))
        return message if error is None else str(error)

    def reseal(data: bytearray) -> None:
        if len(data) >= PREFIX_BYTES:
            header = bytes(data[PREFIX_BYTES:])
            data[12:16] = _u32(len(header))
            data[24:28] = _u32(crc32c(header))
            data[28:32] = _u32(crc32c(bytes(data[:28])))

    rng = _rng("frame")
    messages = values_of(WireMessage, rng, 2)
    messages += [
        Failed(kind.__name__, fields)
        for kind in errors._all_kinds(BlockStoreError).values()
        for fields in ((), ("a",), (1, 2, 3), ("what", 1, 2, 3))
    ]
    corpus = [
        _wire.encode(REQUEST if n % 2 else ANSWER, n, message, 0, n) for n, message in enumerate(messages)
    ]
    for at, frame in enumerate(corpus):  # the header's length stands in bytes 12 to 16
        assert len(frame) == PREFIX_BYTES + int.from_bytes(frame[12:16], "little"), at
    return Decoder(decode, corpus, reseal)


def _bus_message() -> Decoder:
    def reseal(data: bytearray) -> None:
        data[:5] = b"\x01" + _u32(crc32c(bytes(data[5:])))

    return Decoder(
        _bus.decode_bus,
        [_bus.encode_bus(message) for message in values_of(BusMessage, _rng("bus"), 6)],
        reseal,
    )


def _bus_pack() -> Decoder:
    corpus = [
        pack
        for messages in ([b"one"], [b"", b"two", bytes(300)], [b"x"] * 9)
        for pack, _ in bus_pack.packs(NodeId(3), messages)
    ]
    return Decoder(bus_pack.unpack, corpus)


def _raft_message() -> Decoder:
    rng = _rng("raft")
    members = raft_messages.encode_members(raft_messages.Members((NodeId(1), NodeId(2)), (NodeId(3),)))
    entries = tuple(
        raft_messages.Entry(5 + n, 2, raft_messages.MEMBERS if n == 1 else raft_messages.COMMAND, members)
        for n in range(3)
    )
    corpus = encoded(
        [message for message in values_of(raft_messages.RaftMessage, rng, 3) if message.term >= 0]
    )
    corpus = [content for content in corpus if _is_taken(raft_messages.decode_message, content)]
    corpus += encoded([raft_messages.Append(3, 1, 4, 2, 4, entries)] * 6)
    return Decoder(raft_messages.decode_message, corpus)


def _is_taken(decode: Callable[[bytes], object], content: bytes) -> bool:
    """Made from annotations alone, a value may still be an impossible one."""
    try:
        decode(content)
    except BlockStoreError:
        return False
    return True


def _members() -> Decoder:
    members = [
        raft_messages.Members((NodeId(1),)),
        raft_messages.Members((NodeId(1), NodeId(2), NodeId(3)), (NodeId(4), NodeId(70_000))),
    ]
    return Decoder(raft_messages.decode_members, [raft_messages.encode_members(one) for one in members])


def _grant() -> Decoder:
    def decode(data: bytes) -> object:
        chunk = ChunkId(*(int.from_bytes(data[at : at + 9], "little", signed=True) for at in (0, 9, 18)))
        return is_granted(bytes(32), chunk, data[27:59].hex(), data[59:])

    return Decoder(decode, [bytes(27) + bytes(range(32)) + bytes(16)])


# --- the disk


def _superblock() -> Decoder:
    def reseal(data: bytearray) -> None:
        data[508:] = b""
        data.extend(bytes(508 - len(data)))
        data += _u32(crc32c(bytes(data)))

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
            data[at + 124 : at + 128] = _u32(crc32c(bytes(data[at : at + 124])))

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
            return scan_log(sealed, log)
        scan = scan_log(open_, log)
        start, end = scan.tail
        return judge(open_, scan, memoryview(bytes(end - start)))

    def reseal(data: bytearray) -> None:
        for at in range(0, len(data) - 31, 32):
            data[at + 28 : at + 32] = _u32(crc32c(bytes(data[at : at + 28]), log_seed))

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
        return fence_file.decode_fence_file(content + bytes(-len(content) % 4096), DISK)

    def reseal(data: bytearray) -> None:
        if len(data) >= _HEADER_USED:
            data[124:128] = _u32(crc32c(bytes(data[:124])))
            seed = crc32c(identity.pack(DISK, int.from_bytes(data[16:24], "little")))
            for at in range(_HEADER_USED, len(data) - 63, 64):
                data[at + 60 : at + 64] = _u32(crc32c(bytes(data[at : at + 60]), seed))

    return Decoder(
        decode, [header + fence_file.encode_facts(DISK, 2, 0, n, facts[:n]) for n in (1, 3)], reseal
    )


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
        return raft_file.scan_segment(block + block + b"".join(rest), 3)

    def reseal(data: bytearray) -> None:
        if len(data) < 32:
            return
        data[12:16] = _u32(raft_file._checksum_without_itself(data[:32]))
        number, nonce = struct.unpack_from("<QQ", data, 16)
        for n, at in enumerate(range(32, min(len(data), 2_000) - 39, _BATCH_USED)):
            end = min(at + 40 + int.from_bytes(data[at + 8 : at + 12], "little"), at + _BATCH_USED)
            place = crc32c(struct.pack("<QQQ", nonce, number, (2 + n) * 4096))
            checked = bytes(data[at + 8 : end]).ljust(end - at - 8, b"\0")
            data[at + 4 : at + 8] = _u32(crc32c(checked, place))

    return Decoder(decode, [packed], reseal)


def _raft_vote() -> Decoder:
    """Both slots' used bytes."""
    slots = [
        raft_file.encode_vote_slot(slot, 5, raft_file.HardState(3, NodeId(2), 7))[:48] for slot in (0, 1)
    ]

    def decode(data: bytes) -> object:
        return raft_file.decode_vote_slots(data[:48].ljust(4096, b"\0") + data[48:96])

    def reseal(data: bytearray) -> None:
        for at in range(0, len(data) - 47, 48):
            data[at + 12 : at + 16] = _u32(raft_file._checksum_without_itself(data[at : at + 48]))

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
            data[12:16] = _u32(raft_file._checksum_without_itself(data))

    return Decoder(raft_file.decode_snapshot, corpus, reseal)


# --- a volume


_PLACE = crc32c(struct.pack("<QQQQ", *CHUNK, 128))


def _journal() -> Decoder:
    rng = _rng("journal")
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
            data[60:64] = _u32(crc32c(bytes(data[64 : 64 + int.from_bytes(data[36:40], "little")])))
            data[56:60] = _u32(crc32c(bytes(data[:56]), _PLACE))

    return Decoder(decode, corpus, reseal)


def _reseal_blocks(data: bytearray) -> None:
    """The frames of run and head; the first one's length becomes what is there if it claims more."""
    at = 0
    while at + 40 <= len(data):
        length = int.from_bytes(data[at + 28 : at + 32], "little")
        if at + 40 + length > len(data):
            length = len(data) - at - 40
            data[at + 28 : at + 32] = _u32(length)
        data[at + 36 : at + 40] = _u32(crc32c(bytes(data[at + 40 : at + 40 + length])))
        data[at + 32 : at + 36] = _u32(crc32c(bytes(data[at : at + 32])))
        at += 40 + length


def _run() -> Decoder:
    rng = _rng("run")
    versions = [run_file.encode_version(one) for one in values_of(run_file.StoredVersion, rng, 8)]
    entries: list[run_file.RunEntry] = [
        (b"key-%d" % n, version if n % 3 else None, (versions[0],) if n % 2 else ())
        for n, version in enumerate(versions)
    ]
    corpus = [
        run_file.encode_block(CHUNK.volume, 5, 0, entries[:3]),
        run_file.encode_block(CHUNK.volume, 5, 0, entries[:1])
        + run_file.encode_block(CHUNK.volume, 5, 1, entries[3:]),
    ]

    def decode(data: bytes) -> object:
        return list(run_file.decode_blocks(CHUNK.volume, memoryview(data)))

    return Decoder(decode, corpus, _reseal_blocks)


def _head() -> Decoder:
    heads = values_of(run_file.CheckpointHead, _rng("head"), 8)
    return Decoder(
        lambda data: run_file.decode_head(CHUNK.volume, memoryview(data)),
        [run_file.encode_head(CHUNK.volume, head) for head in heads],
        _reseal_blocks,
    )


def _root() -> Decoder:
    roots = values_of(run_file.Root, _rng("root"), 8)
    corpus = [
        b"\x97\x01" + run_file.encode_root(root)[_version_end(run_file.encode_root(root)) :] for root in roots
    ]
    return Decoder(run_file.decode_root, corpus)


def _version_end(content: bytes) -> int:
    """Behind the array's head and the integer that is the version."""
    return 2 + {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(content[1], 0)


# --- control


def _control_record() -> Decoder:
    any_record: Any = control_record._Record
    corpus = [
        control_record.encode_record(one) for one in values_of(control_record.Record, _rng("control"), 3)
    ]
    return Decoder(lambda data: control_record.decode_record(data, any_record, "key"), corpus)


def _control_command() -> Decoder:
    commands = values_of(control_record.Transaction, _rng("command"), 8)
    return Decoder(control_record.decode_command, [control_record.encode_command(one) for one in commands])


def _control_snapshot() -> Decoder:
    contents = values_of(control_record.SnapshotContent, _rng("snapshot"), 8)

    def reseal(data: bytearray) -> None:
        if len(data) >= 24:
            data[12:24] = struct.pack("<IQ", crc32c(bytes(data[24:])), len(data) - 24)

    corpus = [control_record.encode_snapshot(content) for content in contents]
    return Decoder(control_record.decode_snapshot, corpus, reseal)


# --- certificates


_BUNDLE = Path(__file__).parent / "bundle.pem"


def _bundles() -> tuple[bytes, bytes, str]:
    """An administrator's bundle, its certificate, and the authority's; made once and kept, for the corpus
    must not change from run to run."""
    content = _BUNDLE.read_bytes()
    bundle = credential.parse_bundle(content, "bundle.pem")
    return content, bundle.der, bundle.ca_certificate


def _certificate() -> Decoder:
    _, der, authority = _bundles()

    def decode(data: bytes) -> object:
        is_ours = credential.is_signed_by(data, authority)
        return is_ours, credential.identity_of(data)

    return Decoder(decode, [der])


def _credential_bundle() -> Decoder:
    content, _, _ = _bundles()
    return Decoder(lambda data: credential.parse_bundle(data, "here"), [content], tokens=TEXT, cost=4)


def _bundle_of_der() -> Decoder:
    """The holder's certificate in a bundle that is whole otherwise."""
    content, der, _ = _bundles()
    bundle = credential.parse_bundle(content, "here")

    def decode(data: bytes) -> object:
        pem = _armoured(data)
        return credential.parse_bundle((bundle.ca_certificate + pem + bundle.key).encode(), "here")

    return Decoder(decode, [der], cost=4)


def _armoured(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


# --- text


class _FakeFile:
    """Stands where a path does, and is always the same text."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __truediv__(self, _: str) -> _FakeFile:
        return self

    def __str__(self) -> str:
        return "here"

    def exists(self) -> bool:
        return True

    def read_text(self) -> str:
        return self._content.decode()


def _node_file() -> Decoder:
    facts = {
        "version": 1,
        "cluster": "c1",
        "name": "n1",
        "node": 3,
        "security": "tls",
        "host": "10.0.0.1",
        "port": 7440,
        "bus_port": 7441,
        "zone": ["a", "r1"],
        "disks": [{"disk": 4, "directory": "disk-1"}],
    }
    directory = NodeDirectory("here")

    def decode(data: bytes) -> object:
        directory.path = _FakeFile(data)  # type: ignore[assignment]  # what `read` asks of a path
        return directory.read()

    return Decoder(decode, [json.dumps(facts, indent=2).encode(), json.dumps(facts).encode()], tokens=TEXT)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bucket_meta() -> Decoder:
    corpus = [
        bucket.encode_meta(metadata, 1_700_000_000.5)
        for metadata in ({}, {"a": "b"}, {"content-type": "image/jpeg", "größe": "1" * 300})
    ]
    return Decoder(lambda data: bucket.info_of(b"name", 5, data, 9, 7), corpus)


def _names() -> Decoder:
    """Of objects, buckets and snapshots, and etags."""

    def decode(data: bytes) -> object:
        text = _text(data)
        for take in (
            bucket.check_bucket_name,
            bucket.check_snapshot_name,
            bucket.sequence_of_etag,
            bucket.prefix_key,
        ):
            _refused(take, text)
        _refused(bucket.name_of, data)
        return bucket.key_of(text)

    return Decoder(decode, [b"photos/2026/a.jpg", "größe".encode(), b"1f-0badcafe", b"x" * 128], tokens=TEXT)


def _refused(take: Callable[[Any], object], argument: Any) -> None:
    try:
        take(argument)
    except BlockStoreError as error:
        str(error)


def _location() -> Decoder:
    environment: Mapping[str, str] = {"HOME": "/home/nobody"}

    def decode(data: bytes) -> object:
        text = _text(data)
        _refused(parse_listen, text)
        return location.resolve(text, "credential.pem", environment)

    corpus = [
        b"tcp://10.0.0.1:7440",
        b"tcp://a,b:7440,[::1]:1",
        b"/var/lib/store",
        b"~/store",
        b"127.0.0.1:7440",
        b"[::1]:80",
    ]
    return Decoder(decode, corpus, tokens=TEXT)


def _config() -> Decoder:
    def decode(data: bytes) -> object:
        with patch.object(location, "config_path", lambda _: _FakeFile(data)):
            return location.read_config({})

    return Decoder(
        decode, [b'store = "tcp://a:1"\ncredentials = "~/c.pem"\n', b'store = "/x"\n'], tokens=TEXT
    )


def _policy() -> Decoder:
    corpus = [b"replicated(3)", b"ec(4,2)", b"ec(4,2,domain=zone)", b" EC( 2 , 1 )"]
    return Decoder(lambda data: Policy.parse(_text(data)), corpus, tokens=TEXT)


DECODERS: dict[str, Decoder] = {
    "frame": _frame(),
    "bus": _bus_message(),
    "bus-pack": _bus_pack(),
    "raft-message": _raft_message(),
    "raft-members": _members(),
    "grant": _grant(),
    "superblock": _superblock(),
    "fragment-header": _fragment_header(),
    "fragment-log": _fragment_log(),
    "fences": _fences(),
    "raft-segment": _raft_segment(),
    "raft-vote": _raft_vote(),
    "raft-snapshot": _raft_snapshot(),
    "journal": _journal(),
    "run": _run(),
    "head": _head(),
    "root": _root(),
    "control-record": _control_record(),
    "control-command": _control_command(),
    "control-snapshot": _control_snapshot(),
    "certificate": _certificate(),
    "credential-bundle": _credential_bundle(),
    "bundle-of-der": _bundle_of_der(),
    "node-file": _node_file(),
    "bucket-meta": _bucket_meta(),
    "names": _names(),
    "location": _location(),
    "config": _config(),
    "policy": _policy(),
}
