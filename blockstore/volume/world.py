"""What an owner needs of the node it runs on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from blockstore.chunk.chunk_shell import ChunkReader, NodeTable
from blockstore.control.control_shell import Control
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, DiskId, NodeId
from blockstore.runtime.interfaces import Caller, Clock, Network

OnRead = Callable[[bytes | BlockStoreError], None]


class LocalReader(Protocol):
    """The fragments on this node's own disks."""

    def read(self, disk: DiskId, chunk: ChunkId, offset: int, length: int, on_done: OnRead) -> None:
        """Verified bytes, or why not. `on_done` may be called before this returns."""
        ...

    def read_now(self, disk: DiskId, chunk: ChunkId, offset: int, length: int) -> memoryview | None:
        """Verified bytes, if they are here, sound, and can be had without waiting."""
        ...


@dataclass(frozen=True, slots=True)
class World:
    me: NodeId
    clock: Clock
    rng: random.Random
    control: Control
    network: Network
    caller: Caller
    nodes: NodeTable
    reader: ChunkReader
    local: LocalReader

    def own_disks(self) -> frozenset[DiskId]:
        return frozenset(disk.disk for disk in self.control.views.disks_of(self.me))

    def live_disks(self) -> frozenset[DiskId]:
        """Disks of live nodes, which may take new chunks."""
        control = self.control
        return frozenset(
            disk.disk
            for disk in control.views.disks()
            if disk.state == "active" and control.may_live(disk.node)
        )

    def suspect_disks(self) -> frozenset[DiskId]:
        """Disks that failed a write, a sync or a read since their node started: other ones are chosen where
        there are enough."""
        return self.control.suspect_disks()

    def full_disks(self) -> frozenset[DiskId]:
        """Disks that take nothing new but what is needed to delete."""
        return self.control.full_disks()
