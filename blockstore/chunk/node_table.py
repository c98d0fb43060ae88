"""Where disks are, which of them to believe in, and whom to ask first.

Learned from control's views and corrected by what is seen on the wire: a node that hung up or was slow is
passed over for a moment, long before control calls it dead. Time is handed in."""

from __future__ import annotations

import random
from collections.abc import Iterable

from blockstore.codec.messages import View
from blockstore.ids import DiskId, NodeId
from blockstore.runtime.interfaces import Address

SUSPECT_SECONDS = 1.0
"""Ten heartbeats: by then control knows whether the node is gone, and a slow disk has had its pause."""


class _Node:
    __slots__ = ("address", "live", "load_bytes", "local", "suspect_until")

    def __init__(self) -> None:
        self.address = Address("", 0)
        self.live = False
        self.local = False
        self.load_bytes = 0
        self.suspect_until = 0.0


_STRANGER = _Node()
"""Stands for the node of a disk that no view named; nothing changes it."""


class NodeTable:
    """`host_id` is this machine's, if known: nodes on it are the nearest."""

    def __init__(self, host_id: str = "") -> None:
        self._host_id = host_id
        self._nodes: dict[NodeId, _Node] = {}
        self._by_disk: dict[DiskId, _Node] = {}

    # --- what control says

    def update(self, view: View) -> None:
        """Take over a view. Nodes that stay keep what was seen of them."""
        nodes: dict[NodeId, _Node] = {}
        by_disk: dict[DiskId, _Node] = {}
        for seen in view.nodes:
            node = nodes[seen.node] = self._nodes.get(seen.node) or _Node()
            node.address = Address(seen.host, seen.port, seen.unix, seen.host_id)
            node.live = seen.live
            node.local = bool(self._host_id) and seen.host_id == self._host_id
            for disk in seen.disks:
                by_disk[disk] = node
        self._nodes, self._by_disk = nodes, by_disk

    def address_of_disk(self, disk: DiskId) -> Address | None:
        node = self._by_disk.get(disk)
        return None if node is None else node.address

    def address_of_node(self, node: NodeId) -> Address | None:
        found = self._nodes.get(node)
        return None if found is None else found.address

    def is_live(self, disk: DiskId) -> bool:
        """Whether control calls the disk's node live."""
        node = self._by_disk.get(disk)
        return node is not None and node.live

    # --- what we see ourselves

    def is_sound(self, disk: DiskId, now: float) -> bool:
        """Live, and nothing bad seen just now."""
        node = self._by_disk.get(disk)
        return node is not None and node.live and node.suspect_until <= now

    def suspect(self, disk: DiskId, now: float) -> None:
        """Its node hung up or was late: others are asked first for a while."""
        node = self._by_disk.get(disk)
        if node is not None:
            node.suspect_until = now + SUSPECT_SECONDS

    def add_load(self, disk: DiskId, n_bytes: int) -> None:
        """Bytes that were asked of the disk's node (negative: came, or are no longer waited for)."""
        node = self._by_disk.get(disk)
        if node is not None:
            node.load_bytes = max(0, node.load_bytes + n_bytes)

    def in_order(
        self, members: Iterable[tuple[int, DiskId]], now: float, rng: random.Random
    ) -> list[tuple[int, DiskId]]:
        """Members, the one to ask first at the front: sound, near, with the least to do; chance among
        equals."""
        by_disk, chance = self._by_disk, rng.random
        ranked: list[tuple[bool, bool, float, tuple[int, DiskId]]] = []
        for member in members:
            node = by_disk.get(member[1], _STRANGER)
            bad = node.suspect_until > now or not node.live
            ranked.append((bad, not node.local, node.load_bytes + chance(), member))
        ranked.sort()
        return [entry[3] for entry in ranked]
