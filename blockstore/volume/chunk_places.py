"""Where this owner's next chunk goes, and under which number. State of one owner in one epoch, in memory
alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence

from blockstore.codec.messages import Placement
from blockstore.errors import QuorumLost
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.placement.policy import Policy
from blockstore.volume.chunk_choice import choose_placement

AVOID_SECONDS = 5.0
"""A disk that just failed a write is not chosen again for so long, unless there are not enough others."""


class ChunkPlaces:
    def __init__(self, volume: VolumeId, epoch: int, rng: random.Random) -> None:
        self._volume = volume
        self._epoch = epoch
        self._rng = rng
        self._n_chunks = 0
        self._used: Counter[DiskId] = Counter()
        self._avoided: dict[DiskId, float] = {}

    def next_chunk(self) -> ChunkId:
        """A chunk id that nobody had before: the epoch is this owner's alone."""
        self._n_chunks += 1
        return ChunkId(self._volume, self._epoch, self._n_chunks)

    def avoid(self, disk: DiskId, now: float) -> None:
        self._avoided[disk] = now + AVOID_SECONDS

    def choose(
        self,
        policy: Policy,
        groups: Sequence[tuple[DiskId, ...]],
        live: Collection[DiskId],
        preferred: Collection[DiskId],
        now: float,
        avoid: Collection[DiskId] = (),
    ) -> Placement:
        """`avoid`: disks that failed something, and what a client could not reach just now. A client speaks
        for itself alone: its word must not keep others from sound disks."""
        sound = frozenset(disk for disk in live if disk not in avoid and self._avoided.get(disk, 0.0) <= now)
        try:
            return choose_placement(policy, groups, sound, preferred, self._used, self._rng)
        except QuorumLost:
            return choose_placement(policy, groups, live, preferred, self._used, self._rng)
