"""The names of things, and the units of bytes.

A node, disk or volume id is given out once by control and never reused. A chunk's id is used once, ever
(DESIGN invariant 4): its volume, the epoch of the owner that opened it, and a number counted by that owner.
"""

from __future__ import annotations

from typing import NamedTuple, NewType

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB

NodeId = NewType("NodeId", int)
DiskId = NewType("DiskId", int)
VolumeId = NewType("VolumeId", int)
SessionId = NewType("SessionId", int)
"""One client's (or owner's) run, drawn at random from 64 bits."""


class ChunkId(NamedTuple):
    """Append-only container; used once, ever."""

    volume: VolumeId
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.volume}.{self.epoch}.{self.number}"


class RequestId(NamedTuple):
    """Applying a request twice is applying it once: this is how it is recognised."""

    session: SessionId
    number: int
