"""Which epochs a disk refuses, and which chunks were deleted from it.

Pure. DESIGN invariant 2: an epoch lower than the highest seen for a volume is refused, after a restart too.
Raising a fence refuses at once; it may be *told* only when the fact is durable (`on_durable`).

Deleted for ever (invariant 4: a chunk id is used once). A fragment is created only by an append that
carries the epoch in its chunk's own id. So after a delete a late append can be of two kinds: of an epoch
that is fenced by now, which the fence refuses; or of the same epoch, which the chunk's tombstone refuses.
Tombstones are needed only as long as their epoch is the volume's highest, and go when a fence passes it.
Past TOMBSTONES_MAX the older half of the largest set is replaced by a floor: every chunk of that epoch
numbered not above it, and not here, counts as deleted. Numbers are given in order by the owner, so what the
floor could wrongly refuse is the first append to a chunk opened 4,096 deleted chunks ago.
"""

from __future__ import annotations

from collections.abc import Iterable

from blockstore.codec.fence_file import Fact, Kind
from blockstore.errors import StaleEpoch
from blockstore.ids import ChunkId, VolumeId

TOMBSTONES_MAX = 8_192
"""Half of what a fence file holds: half a tebibyte of full chunks deleted under one epoch."""


class Fences:
    def __init__(self) -> None:
        self._highest: dict[VolumeId, int] = {}
        self._durable: dict[VolumeId, int] = {}
        self._tombstones: dict[tuple[VolumeId, int], set[int]] = {}
        self._floors: dict[tuple[VolumeId, int], int] = {}
        self._n_tombstones = 0

    def highest(self, volume: VolumeId) -> int:
        return self._highest.get(volume, 0)

    def all_highest(self) -> dict[VolumeId, int]:
        return dict(self._highest)

    def check(self, volume: VolumeId, epoch: int) -> None:
        highest = self._highest.get(volume, 0)
        if epoch < highest:
            raise StaleEpoch(volume, epoch, highest)

    def raise_to(self, volume: VolumeId, epoch: int) -> None:
        """Refuse lower epochs from now on."""
        if epoch <= self._highest.get(volume, 0):
            return
        self._highest[volume] = epoch
        for key in [key for key in self._tombstones if key[0] == volume and key[1] < epoch]:
            self._n_tombstones -= len(self._tombstones.pop(key))
        for key in [key for key in self._floors if key[0] == volume and key[1] < epoch]:
            del self._floors[key]

    def is_durable(self, volume: VolumeId, epoch: int) -> bool:
        """Whether a restart would still refuse what is below `epoch`."""
        return self._durable.get(volume, 0) >= epoch

    def on_durable(self, volume: VolumeId, epoch: int) -> None:
        self._durable[volume] = max(self._durable.get(volume, 0), epoch)

    def bury(self, chunk: ChunkId) -> tuple[Fact, ...]:
        """`chunk` is deleted: the facts that must be durable before anybody is told."""
        volume, epoch, number = chunk
        if self.is_buried(chunk):
            return (
                Fact(Kind.TOMBSTONE, volume, epoch, number),
            )  # perhaps not durable yet: once more is harmless
        self._tombstones.setdefault((volume, epoch), set()).add(number)
        self._n_tombstones += 1
        facts = [Fact(Kind.TOMBSTONE, volume, epoch, number)]
        if self._n_tombstones > TOMBSTONES_MAX:
            facts.append(self._raise_floor())
        return tuple(facts)

    def _raise_floor(self) -> Fact:
        key = max(self._tombstones, key=lambda key: len(self._tombstones[key]))
        numbers = sorted(self._tombstones[key])
        floor = numbers[len(numbers) // 2]
        self._set_floor(key, floor)
        return Fact(Kind.FLOOR, *key, floor)

    def _set_floor(self, key: tuple[VolumeId, int], floor: int) -> None:
        self._floors[key] = max(floor, self._floors.get(key, 0))
        tombstones = self._tombstones.get(key, set())
        kept = {number for number in tombstones if number > floor}
        self._n_tombstones -= len(tombstones) - len(kept)
        if kept:
            self._tombstones[key] = kept
        else:
            self._tombstones.pop(key, None)

    def is_buried(self, chunk: ChunkId) -> bool:
        """Whether `chunk`, which is not here, was here and was deleted."""
        key = (chunk.volume, chunk.epoch)
        return (
            chunk.epoch < self.highest(chunk.volume)
            or chunk.number in self._tombstones.get(key, ())
            or chunk.number <= self._floors.get(key, -1)
        )

    def is_tombstoned(self, chunk: ChunkId) -> bool:
        """Whether `chunk` itself is remembered as deleted; if it is found on the disk, its delete was cut
        short."""
        return chunk.number in self._tombstones.get((chunk.volume, chunk.epoch), ())

    def facts(self) -> list[Fact]:
        """All there is to remember, for a fresh file."""
        facts = [Fact(Kind.FENCE, volume, epoch) for volume, epoch in self._highest.items()]
        facts += [Fact(Kind.FLOOR, *key, floor) for key, floor in self._floors.items()]
        for key, numbers in self._tombstones.items():
            facts += [Fact(Kind.TOMBSTONE, *key, number) for number in sorted(numbers)]
        return facts

    def recall(self, facts: Iterable[Fact]) -> None:
        """Facts read from a file: durable already, in any order."""
        facts = tuple(facts)
        for fact in facts:  # a chunk that was deleted shows as well that its epoch was there
            self.raise_to(fact.volume, fact.epoch)
            self.on_durable(fact.volume, fact.epoch)
        for fact in facts:
            key = (fact.volume, fact.epoch)
            if fact.epoch < self.highest(fact.volume):
                continue  # the fence refuses it
            if fact.kind is Kind.FLOOR:
                self._set_floor(key, fact.number)
            elif fact.kind is Kind.TOMBSTONE and fact.number > self._floors.get(key, -1):
                tombstones = self._tombstones.setdefault(key, set())
                self._n_tombstones += fact.number not in tombstones
                tombstones.add(fact.number)
