"""What an administrator, a client or a starting node may change in control, each as one transaction.

Pure builders: from the state as it is here to a transaction that compares everything it relied on, or an
error with a sentence. The copy may be old: then a compare fails at the leader, nothing happens, and the
caller builds it anew. None as the answer means that nothing has to change.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from msgspec.structs import replace

from blockstore.codec.control_record import (
    Base,
    CloneRecord,
    CounterRecord,
    CredentialRecord,
    DeletedVolumeRecord,
    DiskRecord,
    NameRecord,
    NodeRecord,
    Record,
    Transaction,
    VolumeRecord,
    encode_record,
)
from blockstore.codec.messages import Compare
from blockstore.control.assignment import choose_owner, owner_load
from blockstore.control.group_table import build_table, choose_policy, is_same_policy
from blockstore.control.views import (
    Views,
    clone_key,
    counter_key,
    credential_key,
    deleted_key,
    disk_key,
    name_key,
    node_key,
    policy_key,
    volume_key,
)
from blockstore.errors import AlreadyExists, InvalidRequest, NotFound, kind_words
from blockstore.ids import DiskId, NodeId, RequestId, VolumeId
from blockstore.placement.policy import Policy

ROLES = ("read", "write", "admin")
DISKS_PER_NODE_MAX = 256
ZONE_LEVELS_MAX = 3  # room, rack, host
BASES_MAX = 16
"""Volumes that a clone may refer to. Each of its runs and chunks is of one of them."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_KIND = re.compile(r"[a-z]{1,16}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[A-Za-z0-9:._%-]{1,255}")
_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a node can be reached."""

    host: str
    port: int
    bus_port: int
    unix: str
    host_id: str
    curve_public: bytes


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a volume depends on, as of the revision that wrote it (0: it is no clone)."""

    bases: tuple[Base, ...]
    revision: int


class _Draft:
    """A transaction in the making."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._compares: dict[str, int] = {}
        self._puts: dict[str, bytes] = {}
        self._deletes: list[str] = []

    def rely_on(self, key: str, revision: int | None = None) -> None:
        """Nothing of this holds if `key` has changed meanwhile, or since a revision."""
        self._compares[key] = self._views.modified(key) if revision is None else revision

    def put(self, key: str, record: Record) -> None:
        self.rely_on(key)
        self._puts[key] = encode_record(record)

    def delete(self, key: str) -> None:
        self._deletes.append(key)

    def take_ids(self, what: str, n: int) -> range:
        first = self._views.next_id(what)
        self.put(counter_key(what), CounterRecord(first + n))
        return range(first, first + n)

    def finish(self, request: RequestId) -> Transaction:
        compares = tuple(Compare(key, revision) for key, revision in self._compares.items())
        return Transaction(request, compares, tuple(self._puts.items()), tuple(self._deletes))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} cannot be a name: 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first."
        )


# --- volumes


def create_volume(
    views: Views,
    live: Collection[NodeId],
    *,
    name: str,
    kind: str,
    policy: str,
    exist_ok: bool,
    created: float,
    request: RequestId,
) -> Transaction | None:
    """A new volume, owned at once by a live node. `policy` "": the cluster's default."""
    _check_name(name)
    if not _KIND.fullmatch(kind):
        raise InvalidRequest(f"{kind!r} is not a kind of volume.")
    existing = views.volume_by_name(name)
    if existing is not None and not exist_ok:
        raise AlreadyExists(f"{kind_words(existing.kind)} {name!r}")
    if existing is not None and existing.kind != kind:
        raise AlreadyExists(f"{kind_words(existing.kind)} {name!r}, which is no {kind_words(kind)}")
    if existing is not None:
        if policy and not is_same_policy(policy, existing.policy):
            raise AlreadyExists(f"{kind_words(kind)} {name!r} with policy {existing.policy}, not {policy}")
        return None
    text = choose_policy(views, policy)
    draft = _Draft(views)
    for one in dict.fromkeys((text, Policy.parse(text).journal_policy().text)):
        if views.policy(one) is None:
            draft.put(policy_key(one), build_table(views, one))
    volume = VolumeId(draft.take_ids("volume", 1)[0])
    owner = choose_owner(views, live, None, owner_load(views))
    draft.put(name_key(name), NameRecord(volume))
    draft.put(volume_key(volume), VolumeRecord(volume, name, kind, text, 1, owner, None, (), created))
    return draft.finish(request)


def delete_volume(views: Views, *, name: str, request: RequestId) -> Transaction:
    """Its record and name go at once; its chunks are garbage as soon as no clone may refer to them, since ids
    are never used again, and every node deletes its fragments of them then."""
    volume = views.volume_by_name(name)
    if volume is None:
        raise NotFound(f"volume {name!r}")
    draft = _Draft(views)
    draft.rely_on(name_key(name))  # not on the record: its owner may move the journal meanwhile
    draft.delete(name_key(name))
    draft.delete(volume_key(volume.volume))
    if views.clone(volume.volume) is not None:
        draft.delete(clone_key(volume.volume))
    draft.put(deleted_key(volume.volume), DeletedVolumeRecord(volume.volume, name))
    return draft.finish(request)


# --- clones


def check_clone(views: Views, *, parent: VolumeId, name: str) -> None:
    """Raise what would stand in the way of a clone under this name."""
    _check_name(name)
    existing = views.volume_by_name(name)
    if existing is not None:
        raise AlreadyExists(f"{kind_words(existing.kind)} {name!r}")
    record = views.clone(parent)
    if record is not None and len(record.bases) >= BASES_MAX:
        raise InvalidRequest(
            f"It would be a clone of a clone, {BASES_MAX + 1} times over; flatten one of those that it is "
            "made of first."
        )


def create_clone(
    views: Views,
    live: Collection[NodeId],
    *,
    parent: VolumeRecord,
    lineage: Lineage,
    snapshot: str,
    anchor: int,
    name: str,
    root: bytes,
    created: float,
    request: RequestId,
) -> Transaction:
    """A new volume that begins at `root`, which the parent's owner wrote, and refers to what its anchor
    keeps. It relies on the parent's record, as it is in these views: whoever owns it then has not been
    followed by another, who would release the anchor; and on the parent's own bases, as they were when the
    anchor was set."""
    check_clone(views, parent=parent.volume, name=name)
    draft = _Draft(views)
    draft.rely_on(volume_key(parent.volume))
    draft.rely_on(clone_key(parent.volume), lineage.revision)
    volume = VolumeId(draft.take_ids("volume", 1)[0])
    owner = choose_owner(views, live, None, owner_load(views))
    draft.put(name_key(name), NameRecord(volume))
    draft.put(
        volume_key(volume),
        VolumeRecord(volume, name, parent.kind, parent.policy, 1, owner, root, (), created),
    )
    bases = (Base(parent.volume, anchor), *lineage.bases)
    draft.put(clone_key(volume), CloneRecord(volume, parent.name, snapshot, bases))
    return draft.finish(request)


def lineage_of(views: Views, volume: VolumeId) -> Lineage:
    record = views.clone(volume)
    return Lineage(() if record is None else record.bases, views.modified(clone_key(volume)))


def flatten_volume(views: Views, *, name: str, request: RequestId) -> Transaction | None:
    """It is to become independent. None: it is, or that was said before."""
    volume = views.volume_by_name(name)
    if volume is None:
        raise NotFound(f"volume {name!r}")
    record = views.clone(volume.volume)
    if record is None or record.flatten:
        return None
    draft = _Draft(views)
    draft.put(clone_key(volume.volume), replace(record, flatten=True))
    return draft.finish(request)


def end_clone(views: Views, *, volume: VolumeId, request: RequestId) -> Transaction | None:
    """It is independent, says its owner, and relies on being it. None: that was said before."""
    if views.clone(volume) is None:
        return None
    draft = _Draft(views)
    draft.rely_on(volume_key(volume))
    draft.rely_on(clone_key(volume))
    draft.delete(clone_key(volume))
    return draft.finish(request)


# --- nodes


def join_node(
    views: Views,
    *,
    listening: Listening,
    zone: tuple[str, ...],
    fingerprint: str,
    disk_bytes: tuple[int, ...],
    request: RequestId,
) -> Transaction:
    """A new node and its disks. Tables of groups take its disks in afterwards (`group_table.tables_due`)."""
    _check_listening(listening)
    if len(zone) > ZONE_LEVELS_MAX or not all(_ZONE.fullmatch(level) for level in zone):
        raise InvalidRequest(
            f"A zone is up to {ZONE_LEVELS_MAX} names (room, rack, host) of letters, digits, '.', '_', '-'."
        )
    if not 0 < len(disk_bytes) <= DISKS_PER_NODE_MAX or min(disk_bytes) <= 0:
        raise InvalidRequest(f"A node brings 1 to {DISKS_PER_NODE_MAX} disks, each with room for something.")
    secure = views.cluster().security != "plain"
    if secure and not _FINGERPRINT.fullmatch(fingerprint):
        raise InvalidRequest("A node of this cluster needs a certificate.")
    for other in views.nodes():
        if secure and other.fingerprint == fingerprint:
            raise AlreadyExists(f"node with this certificate: node {other.node}")
        if other.host == listening.host:
            for port in sorted({other.port, other.bus_port} & {listening.port, listening.bus_port}):
                raise AlreadyExists(f"node at {listening.host}:{port}: node {other.node}")
    draft = _Draft(views)
    node = NodeId(draft.take_ids("node", 1)[0])
    draft.put(node_key(node), _node_record(node, 0, listening, zone, fingerprint, "active"))
    for number, capacity in zip(draft.take_ids("disk", len(disk_bytes)), disk_bytes, strict=True):
        draft.put(disk_key(DiskId(number)), DiskRecord(DiskId(number), node, capacity))
    return draft.finish(request)


def find_joined(views: Views, listening: Listening, fingerprint: str) -> NodeRecord | None:
    """The node that an earlier `join_node` of the same machine made."""
    if fingerprint:
        return views.node_by_fingerprint(fingerprint)
    at = (listening.host, listening.port)
    return next((node for node in views.nodes() if (node.host, node.port) == at), None)


def node_started(
    views: Views, *, node: NodeId, listening: Listening, capacities: dict[DiskId, int], request: RequestId
) -> Transaction:
    """A node tells where it listens now, and that it runs anew. It still owns what it owned; for this run it
    claims each volume itself, with the next epoch."""
    _check_listening(listening)
    record = views.node(node)
    if record is None:
        raise NotFound(f"node {node} in this cluster; it was removed, or it belongs to another")
    draft = _Draft(views)
    draft.put(
        node_key(node),
        _node_record(node, record.incarnation + 1, listening, record.zone, record.fingerprint, record.state),
    )
    for disk in views.disks_of(node):
        capacity = capacities.get(disk.disk, disk.capacity)
        if capacity != disk.capacity:
            draft.put(disk_key(disk.disk), DiskRecord(disk.disk, node, capacity, disk.state))
    return draft.finish(request)


def _check_listening(listening: Listening) -> None:
    if not _HOST.fullmatch(listening.host):
        raise InvalidRequest(f"{listening.host!r} is not a host that others could reach.")
    if not (0 <= listening.port < 65536 and 0 <= listening.bus_port < 65536):
        raise InvalidRequest(f"{listening.port} and {listening.bus_port} are not both port numbers.")
    if (
        len(listening.unix) > 107
        or len(listening.host_id) > 255
        or len(listening.curve_public) not in (0, 40)
    ):
        raise InvalidRequest("The node's Unix socket, host id or public key is malformed.")


def _node_record(
    node: NodeId, incarnation: int, at: Listening, zone: tuple[str, ...], fingerprint: str, state: str
) -> NodeRecord:
    return NodeRecord(
        node, incarnation, at.host, at.port, at.bus_port, at.unix, at.host_id, at.curve_public, zone,
        fingerprint, state,
    )  # fmt: skip


# --- credentials


def create_credential(
    views: Views, *, name: str, role: str, fingerprint: str, request: RequestId
) -> Transaction:
    _check_name(name)
    if role not in ROLES:
        raise InvalidRequest(f"{role!r} is not a role; there are {', '.join(ROLES)}.")
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise InvalidRequest("A fingerprint is the SHA-256 of a certificate in 64 hexadecimal digits.")
    existing = views.credential(name)
    if existing is not None and not existing.revoked:
        raise AlreadyExists(f"credential {name!r}")
    other = views.credential_by_fingerprint(fingerprint)
    if other is not None or views.node_by_fingerprint(fingerprint) is not None:
        whose = f": credential {other.name!r}" if other is not None else ", a node's"
        raise AlreadyExists(f"listed certificate with this fingerprint{whose}")
    draft = _Draft(views)
    draft.put(credential_key(name), CredentialRecord(name, role, fingerprint))
    return draft.finish(request)


def revoke_credential(views: Views, *, name: str, request: RequestId) -> Transaction | None:
    record = views.credential(name)
    if record is None:
        raise NotFound(f"credential {name!r}")
    if record.revoked:
        return None
    draft = _Draft(views)
    if record.role == "admin":
        others = [
            one for one in views.credentials() if one.role == "admin" and not one.revoked and one.name != name
        ]
        if not others:
            raise InvalidRequest(
                f"{name!r} is the last admin credential: without it nobody could administer this cluster. "
                "Create another one first."
            )
        for other in others:  # two admins who revoke each other at one time must not both succeed
            draft.rely_on(credential_key(other.name))
    draft.put(
        credential_key(name), CredentialRecord(record.name, record.role, record.fingerprint, revoked=True)
    )
    return draft.finish(request)
