"""Where disks are, which of them to believe in, and whom to ask first.

Learned from control's views and corrected by what is seen on the wire: a node that hung up or was slow is
passed over for a moment, long before control calls it dead. Time is handed in."""

from __future__ import annotations

import random
from collections.abc import Iterable

from blockstore.codec.messages import View
from blockstore.ids import DiskId, KiB, NodeId
from blockstore.runtime.interfaces import Address

ALIKE_BYTES = 256 * KiB
"""Nodes whose loads differ by less are alike. A client then always asks the same first: what it asks in one
tick goes to few nodes, and one of the copies is kept in a page cache, not all."""

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


_SPREAD = 0x9E37_79B1
"""2^32 divided by the golden ratio: multiples of it, modulo 2^32, look like chance."""

_FAR, _BAD = 1 << 61, 1 << 62
"""In a rank: above any load."""

_STRANGER = _Node()
"""Stands for the node of a disk that no view named; nothing changes it."""


class NodeTable:
    """`host_id` is this machine's, if known: nodes on it are the nearest."""

    def __init__(self, host_id: str = "") -> None:
        self._host_id = host_id
        self._nodes: dict[NodeId, _Node] = {}
        self._by_disk: dict[DiskId, _Node] = {}
        self._taste: int | None = None  # which of nodes that are alike: another one for each client

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
        """Members, the one to ask first at the front: sound, near, with the least to do; the client's taste
        among equals."""
        ranked = [(self._rank(member[1], now, rng), member) for member in members]
        ranked.sort()
        return [entry[1] for entry in ranked]

    def first_of(self, disks: Iterable[DiskId], now: float, rng: random.Random) -> DiskId:
        """The one to ask first; 0 is none."""
        first, lowest = DiskId(0), -1
        for disk in disks:
            if disk:
                rank = self._rank(disk, now, rng)
                if rank < lowest or lowest < 0:
                    first, lowest = disk, rank
        return first

    def _rank(self, disk: DiskId, now: float, rng: random.Random) -> int:
        """The smaller, the sooner it is asked."""
        taste = self._taste
        if taste is None:
            taste = self._taste = rng.getrandbits(32)
        node = self._by_disk.get(disk, _STRANGER)
        rank = (disk * _SPREAD ^ taste) * _SPREAD & 0xFFFF_FFFF | node.load_bytes // ALIKE_BYTES << 32
        if not node.local:
            rank |= _FAR
        return rank if node.live and node.suspect_until <= now else rank | _BAD
