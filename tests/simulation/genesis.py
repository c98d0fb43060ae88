"""A cluster's first disks, as if its nodes had joined and come to rest: where most seeds begin.

Joining takes seconds of simulated time and a tenth of a second of ours; it is simulated where it is the
subject (`control/` has tests of it), and skipped here by writing the state that it leads to."""

from __future__ import annotations

from blockstore.codec.control_record import (
    ClusterRecord,
    CounterRecord,
    CredentialRecord,
    DiskRecord,
    NodeRecord,
    Record,
    Transaction,
    encode_record,
    encode_snapshot,
)
from blockstore.codec.raft_file import Snapshot
from blockstore.codec.raft_file import encode_snapshot as encode_raft_snapshot
from blockstore.codec.raft_messages import Members
from blockstore.consensus.raft_shell import bootstrap_joined
from blockstore.control.replica_shell import write_members
from blockstore.control.state import ControlState
from blockstore.control.views import CLUSTER, counter_key, credential_key, disk_key, node_key
from blockstore.control.voters import voters_wanted
from blockstore.daemon.node_directory import CONTROL, DiskPlace, NodeFile
from blockstore.ids import DiskId, GiB, NodeId, RequestId, SessionId
from blockstore.node.disk_shell import format_disk
from blockstore.runtime.interfaces import Address
from blockstore.runtime.sim.clock import WALL_SECONDS
from blockstore.runtime.sim.world import Machine, World

CLUSTER_ID = "c0ffee"
NAME = "simulated"
DISK = "disk-1"


def node_facts(number: int) -> NodeFile:
    """Node `number` has the disk of that number."""
    return NodeFile(
        CLUSTER_ID,
        NAME,
        NodeId(number),
        "plain",
        f"10.0.0.{number}",
        7440,
        7441,
        (f"host-{number}",),
        (DiskPlace(DiskId(number), DISK),),
    )


def make_machines(world: World, n_nodes: int) -> list[tuple[Machine, NodeFile]]:
    """Formatted disks for nodes 1 to `n_nodes`, each of which knows of all others."""
    facts = [node_facts(number) for number in range(1, n_nodes + 1)]
    records: dict[str, Record] = {
        CLUSTER: ClusterRecord(CLUSTER_ID, NAME, WALL_SECONDS, "plain"),
        counter_key("node"): CounterRecord(n_nodes + 1),
        counter_key("disk"): CounterRecord(n_nodes + 1),
        credential_key("root"): CredentialRecord("root", "admin", "f" * 64),
    }
    for one in facts:
        records[node_key(one.node)] = NodeRecord(
            one.node, 0, one.host, one.port, one.bus_port, "", "", b"", one.zone, ""
        )
        for place in one.disks:
            records[disk_key(place.disk)] = DiskRecord(place.disk, one.node, GiB)
    state = ControlState()
    state.apply(
        Transaction(
            RequestId(SessionId(0), 0), (), tuple((key, encode_record(one)) for key, one in records.items())
        )
    )
    nodes = [one.node for one in facts]
    n_voters = voters_wanted(n_nodes)
    members = Members(tuple(nodes[:n_voters]), tuple(nodes[n_voters:]))
    image = encode_raft_snapshot(Snapshot(0, 0, members, encode_snapshot(state.to_snapshot())))
    made: list[tuple[Machine, NodeFile]] = []
    for one in facts:
        machine = world.machine(f"node {one.node}", node=one.node, address=Address(one.host, one.port))
        for place in one.disks:
            format_disk(machine.disk(place.directory), place.disk, CLUSTER_ID)
        bootstrap_joined(machine.disk(CONTROL), image, machine.fork())
        write_members(machine.disk(CONTROL), state)
        made.append((machine, one))
    return made
