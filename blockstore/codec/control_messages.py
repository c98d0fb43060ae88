"""Messages about control: any node answers them from its copy of the state, or passes them to the leader.

A part of `messages.py`, which has the rules for all messages, and from which these are imported as well."""

from __future__ import annotations

import msgspec

from blockstore.ids import DiskId, NodeId, RequestId, VolumeId


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False, gc=False):
    """The common form."""


class FetchView(_Message, frozen=True, tag=60):
    """What a client needs to find its way. Answered with `View`. `at_least`: wait briefly for this
    revision."""

    volume: str = ""  # name of the volume of interest; "" for none
    at_least: int = 0


class NodeView(_Message, frozen=True):
    node: NodeId
    host: str
    port: int
    unix: str
    host_id: str
    zone: tuple[str, ...]
    live: bool
    disks: tuple[DiskId, ...]


class VolumeView(_Message, frozen=True):
    volume: VolumeId
    name: str
    kind: str
    policy: str
    epoch: int
    owner: NodeId
    clone_of: str = ""  # "parent@snapshot", until it is independent
    is_flattening: bool = False  # it becomes so


class View(_Message, frozen=True, tag=61):
    cluster: str
    revision: int
    leader: NodeId  # 0: none known
    nodes: tuple[NodeView, ...]
    volume: VolumeView | None


class CreateVolume(_Message, frozen=True, tag=62):
    """Answered with `View` of the new volume; AlreadyExists unless `exist_ok` and kind and policy agree."""

    name: str
    kind: str
    policy: str  # "" for the cluster's default
    exist_ok: bool
    request: RequestId


class DeleteVolume(_Message, frozen=True, tag=63):
    name: str
    request: RequestId


class ListVolumes(_Message, frozen=True, tag=64):
    kind: str = ""


class Volumes(_Message, frozen=True, tag=65):
    volumes: tuple[VolumeView, ...]


class Compare(_Message, frozen=True):
    """The key's modification revision must be this; 0: the key must not exist."""

    key: str
    revision: int


class Transact(_Message, frozen=True, tag=66):
    """A control transaction, node to leader: all compares hold, or nothing happens. Answered with
    `Transacted`."""

    request: RequestId
    compares: tuple[Compare, ...]
    puts: tuple[tuple[str, bytes], ...]
    deletes: tuple[str, ...] = ()


class Transacted(_Message, frozen=True, tag=67):
    revision: int


class JoinNode(_Message, frozen=True, tag=68):
    """An administrator brings a machine in. Answered with `Joined`."""

    certificate: bytes  # DER, signed by the cluster's CA
    host: str
    port: int
    bus_port: int
    unix: str
    host_id: str
    curve_public: bytes  # Z85
    zone: tuple[str, ...]
    disk_bytes: tuple[int, ...]  # capacity of each disk it brings
    request: RequestId


class Joined(_Message, frozen=True, tag=69):
    """Payload: a control snapshot (`codec/raft_file.py`) to start from."""

    cluster: str
    node: NodeId
    disks: tuple[DiskId, ...]


class FetchControlSnapshot(_Message, frozen=True, tag=70):
    """A voter or learner too far behind. Answered with `ControlSnapshot`; payload: the snapshot."""

    at_least: int


class ControlSnapshot(_Message, frozen=True, tag=71):
    index: int
    term: int


class FetchStatus(_Message, frozen=True, tag=72):
    """Answered with `Status`."""


class Fact(_Message, frozen=True):
    """One thing about health: what, since when, what it means for the data, what is being done, what one
    may do."""

    code: str
    severity: str  # "info", "warning", "danger"
    what: str
    since: float  # wall clock; 0 if not known
    meaning: str
    doing: str
    advice: str


class NodeStatus(_Message, frozen=True):
    node: NodeId
    live: bool
    voter: bool
    incarnation: int
    address: str
    zone: tuple[str, ...]
    disks: tuple[tuple[DiskId, int, int, str], ...]  # id, capacity bytes, used bytes, state


class Status(_Message, frozen=True, tag=73):
    cluster: str
    revision: int
    leader: NodeId
    term: int
    nodes: tuple[NodeStatus, ...]
    volumes: tuple[VolumeView, ...]
    facts: tuple[Fact, ...]
    sentence: str
    severity: int  # 0 healthy, 1 degraded, 2 data at risk or unreachable


class FetchEvents(_Message, frozen=True, tag=74):
    """Events numbered above `after`; waits up to `wait` seconds for one. Answered with `Events`."""

    after: int
    wait: float


class Event(_Message, frozen=True):
    number: int
    when: float
    node: NodeId  # who tells
    code: str
    text: str


class Events(_Message, frozen=True, tag=75):
    events: tuple[Event, ...]
    next: int  # pass as `after`


class CreateCredential(_Message, frozen=True, tag=76):
    """List a certificate's fingerprint with a role."""

    name: str
    role: str
    fingerprint: str
    request: RequestId


class RevokeCredential(_Message, frozen=True, tag=77):
    name: str
    request: RequestId


class ListCredentials(_Message, frozen=True, tag=78):
    pass


class CredentialView(_Message, frozen=True):
    name: str
    role: str
    fingerprint: str
    revoked: bool


class Credentials(_Message, frozen=True, tag=79):
    credentials: tuple[CredentialView, ...]


class FlattenVolume(_Message, frozen=True, tag=80):
    """A clone is to copy what it still has in common with others. Answered with `View` at once: its owner
    does so in the background, and `VolumeView.clone_of` is empty when it is done. A volume that is no clone
    stays what it is."""

    name: str
    request: RequestId
