"""Every message that travels on a lane or on the bus.

Each is a frozen MessagePack array `[tag, field, …]`; what is not exactly that is refused by the decoder,
and a tag we do not know is answered with an error. A message acts under the epoch or term that it carries;
one that changes something carries the id that makes applying it twice applying it once. Raw bytes travel as
the frame's payload, never inside the message. Tags are never reused; fields are only ever added at the end,
with a default.

Encoding and decoding are in `codec/frame.py`; docs/formats/wire.md is checked against this file by a test.
"""

# ruff: noqa: F403, F405

from __future__ import annotations

import msgspec

from blockstore.codec.control_messages import *
from blockstore.ids import ChunkId, DiskId, NodeId, RequestId, VolumeId


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False, gc=False):
    """The common form."""


# --- general answers


class Ok(_Message, frozen=True, tag=1):
    """Done; nothing more to say."""


class Failed(_Message, frozen=True, tag=2):
    """The request failed: `errors.to_wire`."""

    name: str
    fields: tuple[str | int, ...]


class Hello(_Message, frozen=True, tag=3):
    """First frame on a connection without TLS, from the client; the answer is `Ok` or `Failed`."""

    name: str
    release: str


class Ping(_Message, frozen=True, tag=4):
    """Answered with `Ok` by whoever serves the lane."""


# --- fragments: what a node's disks do


class FragmentSpec(_Message, frozen=True, tag=10):
    """How to create a fragment; rides on the first append to it."""

    shard_index: int  # position in the chunk's placement
    k: int  # data shards; 1 for a replica
    m: int  # parity shards; n_replicas - 1 for replicas
    capacity: int  # user bytes that this fragment may hold


class AppendFragment(_Message, frozen=True, tag=11):
    """Payload: the bytes. Answered with `Appended` once they are on the disk."""

    disk: DiskId
    chunk: ChunkId
    epoch: int
    offset: int  # in the fragment
    crc: int  # crc32c of the payload
    create: FragmentSpec | None = None  # only with offset 0
    grant: bytes = b""  # from a client: the token that came with the chunk


class Appended(_Message, frozen=True, tag=12):
    length: int  # of the fragment, durable


class FragmentRange(_Message, frozen=True):
    """Not a message by itself."""

    disk: DiskId
    chunk: ChunkId
    offset: int
    length: int


class ReadFragments(_Message, frozen=True, tag=13):
    """Vectored read: answered with `FragmentData`; the ranges that failed have an error in it."""

    ranges: tuple[FragmentRange, ...]


class FragmentData(_Message, frozen=True, tag=14):
    """Payload: the ranges' bytes, one after the other; a failed one has no bytes there."""

    crcs: tuple[int, ...]  # crc32c of each range's bytes; 0 for a failed one
    failed: dict[int, Failed] = {}  # by index in the request


class Fence(_Message, frozen=True, tag=15):
    """Refuse every epoch of `volume` below `epoch` from now on, durably. Answered with `Fenced`."""

    volume: VolumeId
    epoch: int
    chunks: tuple[ChunkId, ...] = ()  # whose state the asker wants to know


class FragmentState(_Message, frozen=True):
    disk: DiskId
    chunk: ChunkId
    length: int
    sealed: bool
    doubtful: bool = False  # its tail was cut at a bad checksum: it may once have been longer


class Fenced(_Message, frozen=True, tag=16):
    """The state of each asked chunk's fragment that this node has; a chunk not there is not named."""

    states: tuple[FragmentState, ...]


class SealFragment(_Message, frozen=True, tag=17):
    disk: DiskId
    chunk: ChunkId
    epoch: int
    length: int


class DeleteFragment(_Message, frozen=True, tag=18):
    disk: DiskId
    chunk: ChunkId
    epoch: int


class ListFragments(_Message, frozen=True, tag=19):
    """A page of a disk's fragments in order of chunk id, after `after`. Answered with `FragmentList`."""

    disk: DiskId
    after: ChunkId | None = None
    limit: int = 1_000


class FragmentList(_Message, frozen=True, tag=20):
    states: tuple[FragmentState, ...]
    complete: bool  # nothing follows, and every fragment of the disk could be examined


# --- placement of a chunk, as it travels


class Placement(_Message, frozen=True):
    """Where a chunk's fragments are: `disks[i]` holds shard (or replica) i; 0 where there is none."""

    k: int
    m: int
    disks: tuple[DiskId, ...]


class Extent(_Message, frozen=True):
    """A run of a value's bytes in a chunk.

    Replica (k = 1): `length` bytes at `offset`. Stripe: k x `unit` bytes, the value's bytes running through
    shard 0, then shard 1, …; each shard's part at `offset` of its fragment; `length` ≤ k x unit of them are
    the value's. A small value shares a stripe with others and lies in one of its data shards, `shard`. Codes
    work byte by byte, so the same bytes of all shards are a stripe as well: `offset` and `unit` are of that
    one, which is as wide as the value."""

    chunk: ChunkId
    offset: int
    length: int
    unit: int  # shard unit; equals `length` for a replica, and for what shares a stripe
    crc: int  # crc32c of the `length` bytes
    shard: int = -1  # -1: the stripe is all its own


# --- volume requests: client to owner


class VolumeCall(_Message, frozen=True, tag=30):
    """What every request to an owner says first. `op` decides the answer."""

    volume: VolumeId
    epoch: int  # that the client believes; 0 if it does not know
    request: RequestId
    settled: int  # every number of this session below it was answered: their results may be forgotten
    op: (
        Put
        | Delete
        | Lookup
        | LookupMany
        | ListKeys
        | SnapshotCreate
        | SnapshotDelete
        | SnapshotList
        | Grant
        | VolumeInfo
        | ListChanges
        | KeyHistory
        | Restore
        | SnapshotHold
        | Batch
        | SnapshotClone
    )


ANY = -1
ABSENT = 0


class Put(_Message, frozen=True, tag=31):
    """Set `key`. The value is the frame's payload, or `extents` already durable. Answered with `Written`."""

    key: bytes
    meta: bytes  # opaque to the engine; kinds/ give it a meaning
    size: int
    crc: int  # crc32c of the whole value
    extents: tuple[Extent, ...] = ()
    expected: int = ANY  # ANY, ABSENT, or the sequence that the present version must have


class Delete(_Message, frozen=True, tag=32):
    """Answered with `Written`; NotFound when there is none."""

    key: bytes
    expected: int = ANY


class Written(_Message, frozen=True, tag=33):
    sequence: int


class Lookup(_Message, frozen=True, tag=34):
    """Answered with `Found`. `at`: 0 for the head, else a snapshot's sequence."""

    key: bytes
    at: int = 0
    start: int = 0  # range of interest; `end` -1 is the end of the value
    end: int = -1
    want_data: bool = True


class Entry(_Message, frozen=True):
    """One version of one key. When the owner answers with its bytes, `inline` says how many of the
    payload."""

    key: bytes
    sequence: int
    meta: bytes
    size: int
    crc: int
    extents: tuple[Extent, ...]
    inline: int = -1  # bytes of [start, end) in the payload; -1: fetch `extents`


class Found(_Message, frozen=True, tag=35):
    entry: Entry
    placements: dict[ChunkId, Placement] = {}  # of every chunk that must be read


class LookupMany(_Message, frozen=True, tag=36):
    """Up to 1,000 keys (and ranges). Answered with `FoundMany`."""

    keys: tuple[bytes, ...]
    at: int = 0
    ranges: tuple[tuple[int, int], ...] = ()  # empty: whole values; else one (start, end) a key
    want_data: bool = True  # False: only where the values are


class FoundMany(_Message, frozen=True, tag=37):
    """In the order asked, so without key and metadata; None where there is no such key. Entries past the
    payload bound are not inlined."""

    entries: tuple[Entry | None, ...]
    placements: dict[ChunkId, Placement] = {}


class ListKeys(_Message, frozen=True, tag=38):
    """A page in key order: keys with `prefix`, after `after`; with `delimiter` common prefixes are folded.
    `limit` is the most; the owner may answer with fewer, so that the page fits a frame. `start`, if given, is
    the `next` of another page, and this one goes on there."""

    prefix: bytes = b""
    after: bytes = b""
    delimiter: bytes = b""
    limit: int = 1_000
    at: int = 0
    start: bytes = b""
    with_places: bool = False  # entries with extents, but for values of more than 1,000


class KeyPage(_Message, frozen=True, tag=39):
    """`entries` without extents, unless asked for. A folded prefix is an entry with sequence 0. A page may
    have none, when many keys were looked at that are not visible, and yet more follow."""

    entries: tuple[Entry, ...]
    more: bool
    at: int  # the sequence that this page shows: pass it on with the next page for as long as it is retained
    next: bytes = b""  # where the rest starts
    placements: dict[ChunkId, Placement] = {}  # of every chunk that the entries name


class SnapshotCreate(_Message, frozen=True, tag=40):
    name: str


class SnapshotDelete(_Message, frozen=True, tag=41):
    """SnapshotHeld when it is held."""

    name: str


class SnapshotList(_Message, frozen=True, tag=42):
    pass


class SnapshotRecord(_Message, frozen=True, tag=43):
    """Also the answer to `SnapshotCreate` and `SnapshotHold`."""

    name: str
    sequence: int
    created: float  # wall clock, seconds since 1970
    held: bool = False  # it cannot be deleted until it is released
    keys: int = -1  # that it sees; -1: it was taken before they were counted


class SnapshotRecords(_Message, frozen=True, tag=44):
    snapshots: tuple[SnapshotRecord, ...]


class Grant(_Message, frozen=True, tag=45):
    """Open a data chunk for this session to append to. Answered with `Granted`.

    `finished` are this session's chunks that it will not append to again, with the length it had
    acknowledged. `avoid` are disks that it could not reach just now."""

    finished: tuple[tuple[ChunkId, int], ...] = ()
    avoid: tuple[DiskId, ...] = ()


class Granted(_Message, frozen=True, tag=46):
    chunk: ChunkId
    epoch: int
    placement: Placement
    capacity: int  # user bytes of one fragment
    token: bytes = b""  # `codec/grant.py`: goes with each append; made anew for each answer, never stored


class VolumeInfo(_Message, frozen=True, tag=47):
    pass


class VolumeFacts(_Message, frozen=True, tag=48):
    """Answer to `VolumeInfo`: numbers by name (keys, sequence, journal_bytes, chunks, …)."""

    facts: dict[str, int | float | str]


class ListChanges(_Message, frozen=True, tag=49):
    """A page, in key order, of the keys in [start, end) whose visible version is another one at `until`
    than at `since`: retained sequences, or 0 for the head. `end` empty: there is none. Answered with
    `ChangePage`."""

    since: int
    until: int
    start: bytes = b""
    end: bytes = b""
    limit: int = 1_000


class KeyChange(_Message, frozen=True):
    """What a key was and what it became; None where it did not exist. The entries have neither key nor
    extents."""

    key: bytes
    old: Entry | None
    new: Entry | None


class ChangePage(_Message, frozen=True, tag=50):
    """May have no changes, when many keys were looked at that are alike, and yet more follow."""

    changes: tuple[KeyChange, ...]
    next: bytes = b""  # where the rest starts; empty: this was all


class KeyHistory(_Message, frozen=True, tag=51):
    """The versions of one key that the head or a snapshot sees, newest first; NotFound when there are none.
    Answered with `KeyVersions`. `before`: the `next` of another page, and this one goes on there."""

    key: bytes
    before: int = 0


class KeyVersion(_Message, frozen=True):
    """One version, and who sees it. `first` and `last` are the oldest and the newest snapshot that do."""

    sequence: int
    deleted: bool
    meta: bytes
    size: int
    crc: int
    is_head: bool
    n_snapshots: int
    first: SnapshotRecord | None = None
    last: SnapshotRecord | None = None


class KeyVersions(_Message, frozen=True, tag=52):
    versions: tuple[KeyVersion, ...]
    next: int = 0  # 0: this was all


class Restore(_Message, frozen=True, tag=53):
    """Each of up to 1,000 keys becomes what it was at `at`, a snapshot's sequence, all or none: by
    reference, and deleted if it was not there. With `targets`, one for each key, these become it instead.
    Answered with `Written`."""

    keys: tuple[bytes, ...]
    at: int
    targets: tuple[bytes, ...] = ()


class SnapshotHold(_Message, frozen=True, tag=54):
    """Hold a snapshot, or release it; either may be repeated. Answered with `SnapshotRecord`."""

    name: str
    held: bool


class KeyWrite(_Message, frozen=True):
    """One change of a batch: a small value, or one whose `extents` are already durable, or with `meta` None a
    delete."""

    key: bytes
    meta: bytes | None
    size: int
    crc: int  # crc32c of the value
    expected: int  # as in `Put`
    extents: tuple[Extent, ...] = ()


class Batch(_Message, frozen=True, tag=55):
    """Up to 1,000 puts and deletes of distinct keys, all or none. Payload: the values without extents, one
    after the other. `conditions`: keys that must be as said, besides those that change. Answered with
    `Written`; with PreconditionFailed or NotFound for the first that stands in the way."""

    changes: tuple[KeyWrite, ...]
    conditions: tuple[tuple[bytes, int], ...] = ()  # key, and `expected` as in `Put`


class SnapshotClone(_Message, frozen=True, tag=56):
    """Make a new volume called `clone` of a snapshot: of the same kind, under the same policy, with what the
    snapshot shows. Answered with `Ok`; NotFound, AlreadyExists."""

    name: str
    clone: str


# --- bus


class Heartbeat(_Message, frozen=True, tag=90):
    """Node to control leader (and to all, so that anyone can say who lives). `asked` is the sender's
    clock."""

    node: NodeId
    incarnation: int
    asked: float
    used_bytes: tuple[tuple[DiskId, int], ...] = ()
    suspect: tuple[DiskId, ...] = ()
    owned: tuple[VolumeId, ...] = ()  # that it serves
    under_protected: tuple[tuple[VolumeId, int, int], ...] = ()
    """Volume, its chunks with fewer fragments than promised, failures that the worst of them still
    survives."""
    damaged: tuple[tuple[DiskId, int], ...] = ()
    """Disk, fragments on it of which something was found that cannot be read."""
    full: tuple[DiskId, ...] = ()
    """They take no new chunks, but for what is needed to delete."""


class LeaseGranted(_Message, frozen=True, tag=91):
    """Control leader to node: your lease runs `seconds` from `asked` on your own clock, once your copy of the
    control state is at `revision`."""

    asked: float
    seconds: float
    term: int
    revision: int = 0


class RaftEnvelope(_Message, frozen=True, tag=92):
    """A Raft message, as `consensus/` spells it."""

    body: bytes


class EventNotice(_Message, frozen=True, tag=93):
    """An event, told to every node."""

    when: float
    code: str
    text: str


WireMessage = (
    Ok | Failed | Hello | Ping
    | FragmentSpec | AppendFragment | Appended | ReadFragments | FragmentData | Fence | Fenced | SealFragment
    | DeleteFragment | ListFragments | FragmentList
    | VolumeCall | Put | Delete | Written | Lookup | Found | LookupMany | FoundMany | ListKeys | KeyPage
    | SnapshotCreate | SnapshotDelete | SnapshotList | SnapshotRecord | SnapshotRecords | Grant | Granted
    | VolumeInfo | VolumeFacts | ListChanges | ChangePage | KeyHistory | KeyVersions
    | Restore | SnapshotHold | Batch | SnapshotClone
    | FetchView | View | CreateVolume | DeleteVolume | ListVolumes | Volumes | Transact | Transacted
    | JoinNode | Joined | FetchControlSnapshot | ControlSnapshot | FetchStatus | Status | FetchEvents | Events
    | CreateCredential | RevokeCredential | ListCredentials | Credentials | FlattenVolume
)  # fmt: skip
"""What a lane carries."""

BusMessage = Heartbeat | LeaseGranted | RaftEnvelope | EventNotice
"""What the bus carries, one to a message."""
