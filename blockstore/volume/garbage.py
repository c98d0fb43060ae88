"""Which fragments of dropped chunks must their members still delete?

Pure. A chunk is dropped by a record of the journal; from then on its fragments are garbage, and each member
is told to delete its own. One that does not answer is told again, later, for as long as this owner lives:
what is forgotten takes disk space and nothing else. A few for each disk at a time, since thousands of chunks
may die with one snapshot, and deleting yields to clients."""

from __future__ import annotations

from collections.abc import Iterable

from blockstore.ids import ChunkId, DiskId

DELETES_PER_DISK = 64
"""Under way at one disk. With a round every two seconds: 2 GiB/s of space that comes back."""
WAITING_PER_DISK_MAX = 50_000
"""Fragments that wait for one disk: 3 TiB of chunks. Of a disk that is away for long, later ones are
forgotten."""


class Garbage:
    def __init__(self) -> None:
        self._waiting: dict[DiskId, dict[ChunkId, None]] = {}
        self._under_way: dict[DiskId, set[ChunkId]] = {}

    def add(self, chunk: ChunkId, disks: Iterable[DiskId]) -> None:
        """The chunk was dropped; `disks` hold its fragments (0: nobody)."""
        for disk in disks:
            waiting = self._waiting.setdefault(disk, {})
            if disk and len(waiting) < WAITING_PER_DISK_MAX:
                waiting[chunk] = None

    def next(self, disks: Iterable[DiskId]) -> list[tuple[DiskId, ChunkId]]:
        """What to delete now, at those disks that can be reached."""
        found: list[tuple[DiskId, ChunkId]] = []
        for disk in disks:
            waiting = self._waiting.get(disk)
            if not waiting:
                continue
            under_way = self._under_way.setdefault(disk, set())
            n_more = DELETES_PER_DISK - len(under_way)
            chosen = [chunk for chunk, _ in zip(waiting, range(n_more), strict=False)]
            for chunk in chosen:
                del waiting[chunk]
            under_way.update(chosen)
            found += [(disk, chunk) for chunk in chosen]
        return found

    def on_deleted(self, disk: DiskId, chunk: ChunkId) -> None:
        self._under_way[disk].discard(chunk)

    def on_failed(self, disk: DiskId, chunk: ChunkId) -> None:
        """It is tried again, after the others."""
        self._under_way[disk].discard(chunk)
        self._waiting[disk][chunk] = None

    @property
    def n_fragments(self) -> int:
        waiting = sum(len(chunks) for chunks in self._waiting.values())
        return waiting + sum(len(chunks) for chunks in self._under_way.values())
