"""The first contents of control's part of a disk: of a new cluster, and of a node that has just joined one.

Blocking; for `init` and `join`, before anything runs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from blockstore.codec import raft_file
from blockstore.codec.control_record import (
    ClusterRecord,
    CounterRecord,
    CredentialRecord,
    DiskRecord,
    NodeRecord,
    Record,
    Transaction,
    decode_snapshot,
    encode_record,
    encode_snapshot,
)
from blockstore.consensus.raft_shell import bootstrap, bootstrap_joined, is_bootstrapped
from blockstore.control.replica_shell import write_members
from blockstore.control.state import ControlState
from blockstore.control.views import CLUSTER, counter_key, credential_key, disk_key, node_key
from blockstore.ids import DiskId, RequestId, SessionId
from blockstore.runtime.interfaces import Disk

__all__ = ["bootstrap_cluster", "bootstrap_node", "is_bootstrapped"]


def bootstrap_cluster(
    disk: Disk,
    *,
    cluster: ClusterRecord,
    node: NodeRecord,
    disk_bytes: Sequence[int],
    admin: CredentialRecord | None,
    rng: random.Random,
) -> tuple[DiskId, ...]:
    """Make a cluster of one node with disks of these capacities; their ids. AlreadyExists if there is one."""
    ids = tuple(DiskId(number) for number in range(1, len(disk_bytes) + 1))
    records: dict[str, Record] = {
        CLUSTER: cluster,
        node_key(node.node): node,
        counter_key("node"): CounterRecord(node.node + 1),
        counter_key("disk"): CounterRecord(len(ids) + 1),
    }
    for one, capacity in zip(ids, disk_bytes, strict=True):
        records[disk_key(one)] = DiskRecord(one, node.node, capacity)
    if admin is not None:
        records[credential_key(admin.name)] = admin
    state = ControlState()
    puts = tuple((key, encode_record(record)) for key, record in records.items())
    state.apply(Transaction(RequestId(SessionId(0), 0), (), puts))
    bootstrap(disk, node.node, encode_snapshot(state.to_snapshot()), rng)
    write_members(disk, state)
    return ids


def bootstrap_node(disk: Disk, joined: bytes, rng: random.Random) -> None:
    """Begin as the member that control has made of this machine; `joined` is the payload of its `Joined`."""
    state = ControlState()
    state.restore(decode_snapshot(raft_file.decode_snapshot(joined).data))
    bootstrap_joined(disk, joined, rng)
    write_members(disk, state)
