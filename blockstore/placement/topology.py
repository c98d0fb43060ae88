"""What there is to place data on: disks, whose they are, where they stand, how much they hold.

A frozen picture of the control state; equal pictures give equal groups, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from blockstore.ids import DiskId, NodeId

DiskState = Literal["active", "suspect", "leaving", "gone"]
"""`suspect` had an I/O error but keeps its places until somebody decides: one bad answer must not move a
disk's worth of data. `leaving` is drained: readable, in no new group. `gone` has nothing any more."""


@dataclass(frozen=True, slots=True)
class Disk:
    disk: DiskId
    node: NodeId
    zone: tuple[str, ...]
    """From the outside in: `("hall-2", "rack-7")`."""
    capacity: int
    """Bytes; what it is given grows with it."""
    state: DiskState = "active"

    @property
    def takes_data(self) -> bool:
        return self.capacity > 0 and self.state in ("active", "suspect")


@dataclass(frozen=True, slots=True)
class Topology:
    """Disks in order of their ids, whatever order they were given in."""

    disks: tuple[Disk, ...]

    def __init__(self, disks: Iterable[Disk]) -> None:
        ordered = tuple(sorted(disks, key=lambda disk: disk.disk))
        assert len({disk.disk for disk in ordered}) == len(ordered), "a disk's id is its own"
        object.__setattr__(self, "disks", ordered)
