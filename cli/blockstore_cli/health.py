"""Nodes and their disks as `cluster status` and `node list` show them."""

from __future__ import annotations

from typing import Any

import blockstore
from blockstore_cli.output import size, table


def node_facts(node: blockstore.NodeStatus, status: blockstore.Status) -> dict[str, Any]:
    return {
        "id": node.node,
        "live": node.live,
        "leader": node.node == status.leader,
        "voter": node.voter,
        "incarnation": node.incarnation,
        "address": node.address,
        "zone": list(node.zone),
        "disks": [
            {"id": disk, "capacity_bytes": capacity, "used_bytes": used, "state": state}
            for disk, capacity, used, state in node.disks
        ],
        "owns": [volume.name for volume in status.volumes if volume.owner == node.node],
    }


def node_table(status: blockstore.Status) -> str:
    rows = [
        (
            node.node,
            "live" if node.live else "silent",
            "leader" if node.node == status.leader else "voter" if node.voter else "learner",
            node.address,
            "/".join(node.zone) or "-",
            len(node.disks),
            size(sum(used for _, _, used, _ in node.disks)),
            size(sum(capacity for _, capacity, _, _ in node.disks)),
        )
        for node in status.nodes
    ]
    return table(
        ("NODE", "STATE", "ROLE", "ADDRESS", "ZONE", "DISKS", "USED", "CAPACITY"),
        rows,
        right="NODE,DISKS,USED,CAPACITY",
    )
