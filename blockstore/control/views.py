"""What the control state says, as typed records.

Pure reading. A record is decoded once for each revision of its key: who asks often (every client's view
names every node) pays for a dictionary look-up.
"""

from __future__ import annotations

from typing import TypeVar

from blockstore.codec.control_record import (
    CloneRecord,
    ClusterRecord,
    CounterRecord,
    CredentialRecord,
    DeletedVolumeRecord,
    DiskRecord,
    NameRecord,
    NodeRecord,
    PolicyRecord,
    Record,
    VolumeRecord,
    decode_record,
)
from blockstore.control.state import ControlState, Versioned
from blockstore.errors import NotFound
from blockstore.ids import DiskId, NodeId, VolumeId

R = TypeVar("R", bound=Record)

CLUSTER = "cluster"


def node_key(node: NodeId) -> str:
    return f"node/{node:08d}"


def disk_key(disk: DiskId) -> str:
    return f"disk/{disk:08d}"


def policy_key(text: str) -> str:
    return f"policy/{text}"


def volume_key(volume: VolumeId) -> str:
    return f"volume/{volume:08d}"


def deleted_key(volume: VolumeId) -> str:
    return f"deleted/{volume:08d}"


def clone_key(volume: VolumeId) -> str:
    return f"clone/{volume:08d}"


def name_key(name: str) -> str:
    return f"name/{name}"


def credential_key(name: str) -> str:
    return f"credential/{name}"


def counter_key(what: str) -> str:
    return f"counter/{what}"


def is_to_flatten(views: Views, clone: CloneRecord) -> bool:
    """Whether it is to become independent: somebody asked for it, or a volume that it refers to was
    deleted and takes space for it alone."""
    return clone.flatten or any(views.deleted_volume(base.volume) is not None for base in clone.bases)


class Views:
    """Typed readers over one state, live: each answer is of the state as it is now."""

    def __init__(self, state: ControlState) -> None:
        self.state = state
        self._decoded: dict[str, tuple[Versioned, Record]] = {}
        self._lists: dict[str, tuple[int, tuple[Record, ...]]] = {}

    @property
    def revision(self) -> int:
        return self.state.revision

    def modified(self, key: str) -> int:
        """What a transaction compares `key` with: its last change, 0 when there is no such key."""
        return self.state.modified(key)

    # --- one

    def cluster(self) -> ClusterRecord:
        record = self._find(CLUSTER, ClusterRecord)
        if record is None:
            raise NotFound("cluster record: this node has not received the control state yet")
        return record

    def node(self, node: NodeId) -> NodeRecord | None:
        return self._find(node_key(node), NodeRecord)

    def disk(self, disk: DiskId) -> DiskRecord | None:
        return self._find(disk_key(disk), DiskRecord)

    def policy(self, text: str) -> PolicyRecord | None:
        return self._find(policy_key(text), PolicyRecord)

    def volume(self, volume: VolumeId) -> VolumeRecord | None:
        return self._find(volume_key(volume), VolumeRecord)

    def volume_by_name(self, name: str) -> VolumeRecord | None:
        record = self._find(name_key(name), NameRecord)
        return None if record is None else self.volume(record.volume)

    def clone(self, volume: VolumeId) -> CloneRecord | None:
        """Of what it is a clone; None when it depends on no other volume."""
        return self._find(clone_key(volume), CloneRecord)

    def deleted_volume(self, volume: VolumeId) -> DeletedVolumeRecord | None:
        return self._find(deleted_key(volume), DeletedVolumeRecord)

    def credential(self, name: str) -> CredentialRecord | None:
        return self._find(credential_key(name), CredentialRecord)

    def next_id(self, what: str) -> int:
        record = self._find(counter_key(what), CounterRecord)
        return 1 if record is None else record.next

    # --- all

    def nodes(self) -> tuple[NodeRecord, ...]:
        return self._all("node/", NodeRecord)

    def disks(self) -> tuple[DiskRecord, ...]:
        return self._all("disk/", DiskRecord)

    def disks_of(self, node: NodeId) -> tuple[DiskRecord, ...]:
        return tuple(disk for disk in self.disks() if disk.node == node)

    def policies(self) -> tuple[PolicyRecord, ...]:
        return self._all("policy/", PolicyRecord)

    def volumes(self) -> tuple[VolumeRecord, ...]:
        return self._all("volume/", VolumeRecord)

    def deleted_volumes(self) -> tuple[DeletedVolumeRecord, ...]:
        return self._all("deleted/", DeletedVolumeRecord)

    def clones(self) -> tuple[CloneRecord, ...]:
        return self._all("clone/", CloneRecord)

    def bases(self) -> frozenset[VolumeId]:
        """Volumes whose chunks some clone may refer to."""
        return frozenset(base.volume for clone in self.clones() for base in clone.bases)

    def anchors_of(self, volume: VolumeId) -> frozenset[int]:
        """Those of its anchors that some clone needs."""
        return frozenset(
            base.anchor for clone in self.clones() for base in clone.bases if base.volume == volume
        )

    def volumes_of(self, owner: NodeId) -> tuple[VolumeRecord, ...]:
        return tuple(volume for volume in self.volumes() if volume.owner == owner)

    def credentials(self) -> tuple[CredentialRecord, ...]:
        return self._all("credential/", CredentialRecord)

    def node_of_disk(self, disk: DiskId) -> NodeId:
        """0 when there is no such disk."""
        record = self.disk(disk)
        return NodeId(0) if record is None else record.node

    def node_by_fingerprint(self, fingerprint: str) -> NodeRecord | None:
        return next((node for node in self.nodes() if node.fingerprint == fingerprint), None)

    def credential_by_fingerprint(self, fingerprint: str) -> CredentialRecord | None:
        return next((one for one in self.credentials() if one.fingerprint == fingerprint), None)

    # --- decoding

    def _find(self, key: str, kind: type[R]) -> R | None:
        item = self.state.find(key)
        if item is None:
            self._decoded.pop(key, None)
            return None
        return self._decode(key, item, kind)

    def _decode(self, key: str, item: Versioned, kind: type[R]) -> R:
        known = self._decoded.get(key)
        if known is not None and known[0] is item and isinstance(known[1], kind):
            return known[1]
        record = decode_record(item.value, kind, key)
        self._decoded[key] = (item, record)
        return record

    def _all(self, prefix: str, kind: type[R]) -> tuple[R, ...]:
        known, modified = self._lists.get(prefix), self.state.folder_modified(prefix)
        if known is not None and known[0] == modified:
            return known[1]  # type: ignore[return-value]  # the prefix decides the kind
        records = tuple(self._decode(key, item, kind) for key, item in self.state.prefixed(prefix))
        self._lists[prefix] = (modified, records)
        return records
