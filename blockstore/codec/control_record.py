"""What control keeps: the records behind its keys, the commands of its log, and its snapshot.

A record or command is one byte of format version and a MessagePack array `[tag, field, …]`; fields are only
ever added at the end, with a default. The Raft log checks the commands' bytes; a snapshot checks its own:

    offset  bytes  field
         0      8  magic "BSCTRL1\\0"
         8      4  format version (1)
        12      4  crc32c of the body
        16      8  length of the body
        24      …  body: MessagePack array (cluster revision, items, remembered requests)

Little endian. A snapshot travels and is stored inside a file of the Raft log, which has a length and
checksum of its own; this one also catches what went wrong before it was stored.
"""

from __future__ import annotations

import struct
from typing import Final, TypeVar

import msgspec

from blockstore.codec.checksum import crc32c
from blockstore.codec.malformed import MALFORMED
from blockstore.codec.messages import Compare
from blockstore.errors import Corrupt, UnknownFormat
from blockstore.ids import ChunkId, DiskId, NodeId, RequestId, VolumeId

RECORD_VERSION: Final = 1
SNAPSHOT_VERSION: Final = 1
SNAPSHOT_MAGIC: Final = b"BSCTRL1\0"
_HEADER = struct.Struct("<8sIIQ")
SNAPSHOT_HEADER_BYTES: Final = _HEADER.size
assert SNAPSHOT_HEADER_BYTES == 24


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The common form."""


class ClusterRecord(_Record, frozen=True, tag=1):
    """Key `cluster`."""

    id: str  # drawn at random when the cluster was made
    name: str
    created: float  # wall clock, seconds since 1970
    security: str  # "tls" or "plain"
    grant_key: bytes = b""  # what owners sign grants with; every node has it, and no client


class NodeRecord(_Record, frozen=True, tag=2):
    """Key `node/<id>`."""

    node: NodeId
    incarnation: int  # how often it has started
    host: str
    port: int
    bus_port: int
    unix: str
    host_id: str
    curve_public: bytes  # Z85
    zone: tuple[str, ...]  # from the outside in: room, rack, host
    fingerprint: str  # of its certificate; "" in a cluster without
    state: str = "active"


class DiskRecord(_Record, frozen=True, tag=3):
    """Key `disk/<id>`."""

    disk: DiskId
    node: NodeId
    capacity: int  # bytes
    state: str = "active"


class PolicyRecord(_Record, frozen=True, tag=4):
    """Key `policy/<text>`: the table of groups from which new chunks of the policy choose."""

    text: str
    groups: tuple[tuple[DiskId, ...], ...]
    topology: int  # digest of the disks that it was drawn from


class JournalChunk(_Record, frozen=True):
    """Not a record by itself."""

    chunk: ChunkId
    disks: tuple[DiskId, ...]
    length: int  # -1 while open


class VolumeRecord(_Record, frozen=True, tag=5):
    """Key `volume/<id>`."""

    volume: VolumeId
    name: str
    kind: str
    policy: str
    epoch: int
    owner: NodeId  # 0: none yet
    root: bytes | None  # the owner's pointer to its checkpoint; control does not look inside
    journal: tuple[JournalChunk, ...]
    created: float  # wall clock, seconds since 1970


class NameRecord(_Record, frozen=True, tag=6):
    """Key `name/<volume name>`."""

    volume: VolumeId


class CredentialRecord(_Record, frozen=True, tag=7):
    """Key `credential/<name>`: a client's certificate and what it may do."""

    name: str
    role: str  # "admin", "write" or "read"
    fingerprint: str
    revoked: bool = False


class CounterRecord(_Record, frozen=True, tag=8):
    """Key `counter/<what>`: the next id to give out."""

    next: int


class DeletedVolumeRecord(_Record, frozen=True, tag=9):
    """Key `deleted/<id>`: nodes give its fragments' space back whenever they learn it. Kept for ever."""

    volume: VolumeId
    name: str


class Base(_Record, frozen=True):
    """Not a record by itself: a volume whose chunks a clone may refer to, and the anchor that keeps them
    there."""

    volume: VolumeId
    anchor: int


class CloneRecord(_Record, frozen=True, tag=10):
    """Key `clone/<id>`, as long as the volume may refer to chunks of others: its bases keep them until this
    is gone."""

    volume: VolumeId
    parent: str  # name of the volume that it was made of, as it was then
    snapshot: str
    bases: tuple[Base, ...]  # its parent first; behind it what that was a clone of
    flatten: bool = False  # somebody asked for it to become independent


Record = (
    ClusterRecord
    | NodeRecord
    | DiskRecord
    | PolicyRecord
    | VolumeRecord
    | NameRecord
    | CredentialRecord
    | CounterRecord
    | DeletedVolumeRecord
    | CloneRecord
)
R = TypeVar("R", bound=Record)


class Transaction(_Record, frozen=True, tag=50):
    """All compares hold, or nothing happens. The same request is applied once."""

    request: RequestId
    compares: tuple[Compare, ...]
    puts: tuple[tuple[str, bytes], ...]
    deletes: tuple[str, ...] = ()


class SnapshotItem(_Record, frozen=True):
    key: str
    value: bytes
    modified: int


class SnapshotContent(_Record, frozen=True):
    """All of the control state: what two nodes at one log index agree on, byte for byte."""

    revision: int
    items: tuple[SnapshotItem, ...]  # in key order
    requests: tuple[tuple[RequestId, int], ...]  # applied ones and their revisions, oldest first


_encoder = msgspec.msgpack.Encoder()
_record_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_command_decoder = msgspec.msgpack.Decoder(Transaction)
_snapshot_decoder = msgspec.msgpack.Decoder(SnapshotContent)


def encode_record(record: Record) -> bytes:
    return bytes((RECORD_VERSION,)) + _encoder.encode(record)


def decode_record(value: bytes, kind: type[R], key: str) -> R:
    """The record behind `key`. Raise Corrupt when it is none of that kind, UnknownFormat when it is another
    version."""
    try:
        record = _record_decoder.decode(_body(value, f"The control record {key!r}"))
    except MALFORMED as error:
        raise Corrupt(f"The control record {key!r}", str(error)) from error
    if not isinstance(record, kind):
        raise Corrupt(f"The control record {key!r}", f"a {type(record).__name__}, not a {kind.__name__}")
    return record


def encode_command(command: Transaction) -> bytes:
    return bytes((RECORD_VERSION,)) + _encoder.encode(command)


def decode_command(content: bytes) -> Transaction:
    try:
        return _command_decoder.decode(_body(content, "A control command"))
    except MALFORMED as error:
        raise Corrupt("A control command", str(error)) from error


def encode_snapshot(content: SnapshotContent) -> bytes:
    body = _encoder.encode(content)
    return _HEADER.pack(SNAPSHOT_MAGIC, SNAPSHOT_VERSION, crc32c(body), len(body)) + body


def decode_snapshot(data: bytes) -> SnapshotContent:
    what = "A control snapshot"
    if len(data) < SNAPSHOT_HEADER_BYTES:
        raise Corrupt(what, f"{len(data)} bytes are less than its header")
    magic, version, crc, length = _HEADER.unpack_from(data)
    if magic != SNAPSHOT_MAGIC:
        raise Corrupt(what, "it does not begin with its magic")
    if version != SNAPSHOT_VERSION:
        raise UnknownFormat(what, version, SNAPSHOT_VERSION)
    body = memoryview(data)[SNAPSHOT_HEADER_BYTES:]
    if len(body) != length:
        raise Corrupt(what, f"{len(body)} bytes of body, not {length}")
    if crc32c(body) != crc:
        raise Corrupt(what, "its checksum")
    try:
        return _snapshot_decoder.decode(body)
    except MALFORMED as error:
        raise Corrupt(what, str(error)) from error


def _body(content: bytes, what: str) -> memoryview:
    if not content:
        raise Corrupt(what, "it is empty")
    if content[0] != RECORD_VERSION:
        raise UnknownFormat(what, content[0], RECORD_VERSION)
    return memoryview(content)[1:]
