"""Which chunks does the volume have, where are they, and how many of their bytes does anything still refer
to?

Invariants: an extent may be committed only into a chunk that is in the table, below its seal; a chunk
leaves the table only when it is sealed and nothing refers to it (DESIGN invariant 9: the owner alone says
what is garbage)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blockstore.codec.messages import Extent, Placement
from blockstore.codec.run_file import StoredChunk
from blockstore.errors import InvalidRequest
from blockstore.ids import ChunkId, SessionId

OPEN = -1


@dataclass(slots=True)
class ChunkEntry:
    placement: Placement
    capacity: int
    purpose: str  # "journal", "data" or "run"
    session: SessionId  # who was granted it; the owner's own session otherwise
    length: int = OPEN  # of each fragment, once sealed
    live_bytes: int = 0
    committed: int = 0  # of each fragment: the end of what was ever referred to; it is never sealed below


class ChunkTable:
    def __init__(self) -> None:
        self._chunks: dict[ChunkId, ChunkEntry] = {}

    def find(self, chunk: ChunkId) -> ChunkEntry | None:
        return self._chunks.get(chunk)

    def placements_of(self, extents: Iterable[Extent]) -> dict[ChunkId, Placement]:
        return {extent.chunk: self._chunks[extent.chunk].placement for extent in extents}

    def check_granted(self, extents: Iterable[Extent], session: SessionId) -> None:
        """InvalidRequest for an extent outside of what this session was granted: into a journal or a run, or
        into another's chunk, whose end it must not move."""
        for extent in extents:
            entry = self._chunks.get(extent.chunk)
            if entry is None:
                continue  # of an epoch whose grants are lost: `may_refer` judges that
            if entry.session != session or entry.purpose != "data":
                raise InvalidRequest(f"Chunk {extent.chunk} was not granted to this session.")
            if extent.length > entry.placement.k * extent.unit:
                raise InvalidRequest(f"An extent of {extent.length} bytes does not fit its stripe.")

    def may_refer(self, extents: Iterable[Extent], epoch: int) -> bool:
        """Whether every extent lies in a known chunk, below the length at which it is sealed. A chunk of an
        earlier epoch whose end could not be found out (none of its members answered) takes nothing more."""
        for extent in extents:
            entry = self._chunks.get(extent.chunk)
            if entry is None or (entry.length == OPEN and extent.chunk.epoch < epoch):
                return False
            limit = entry.capacity if entry.length == OPEN else entry.length
            if extent.offset < 0 or extent.unit < 0 or extent.offset + extent.unit > limit:
                return False
        return True

    def open_chunk(self, chunk: ChunkId, entry: ChunkEntry) -> None:
        self._chunks.setdefault(chunk, entry)

    def seal(self, chunk: ChunkId, length: int) -> None:
        entry = self._chunks.get(chunk)
        if entry is not None and entry.length == OPEN:
            entry.length = length

    def drop(self, chunk: ChunkId) -> None:
        self._chunks.pop(chunk, None)

    def add_live(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            entry = self._chunks[extent.chunk]
            entry.live_bytes += extent.length
            entry.committed = max(entry.committed, extent.offset + extent.unit)

    def free(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            entry = self._chunks.get(extent.chunk)
            if entry is not None:
                entry.live_bytes -= extent.length

    def open_chunks(self, purpose: str | None = None) -> list[tuple[ChunkId, ChunkEntry]]:
        return [
            (chunk, entry)
            for chunk, entry in self._chunks.items()
            if entry.length == OPEN and purpose in (None, entry.purpose)
        ]

    def dead_chunks(self, needed: frozenset[ChunkId]) -> list[tuple[ChunkId, ChunkEntry]]:
        """Sealed, nothing refers to them, and not among `needed` (journal and checkpoint)."""
        return [
            (chunk, entry)
            for chunk, entry in self._chunks.items()
            if entry.length != OPEN and entry.live_bytes <= 0 and chunk not in needed
        ]

    def __len__(self) -> int:
        return len(self._chunks)

    def totals(self) -> dict[str, int]:
        """Numbers for `VolumeInfo`."""
        return {
            "chunks": len(self._chunks),
            "chunks_open": sum(entry.length == OPEN for entry in self._chunks.values()),
            "live_bytes": sum(max(entry.live_bytes, 0) for entry in self._chunks.values()),
        }

    def under_protected(self) -> tuple[int, int]:
        """How many chunks were opened on fewer disks than their group has, and how many further failures
        the worst of them survives."""
        holes = [
            (placement.m - placement.disks.count(0))
            for placement in (entry.placement for entry in self._chunks.values())
            if 0 in placement.disks
        ]
        return len(holes), min(holes, default=0)

    def to_stored(self) -> tuple[StoredChunk, ...]:
        return tuple(
            StoredChunk(
                chunk,
                entry.placement,
                entry.capacity,
                entry.purpose,
                entry.session,
                entry.length,
                entry.live_bytes,
                entry.committed,
            )
            for chunk, entry in self._chunks.items()
        )

    def load(self, stored: Iterable[StoredChunk]) -> None:
        for item in stored:
            self._chunks[item.chunk] = ChunkEntry(
                item.placement,
                item.capacity,
                item.purpose,
                item.session,
                item.length,
                item.live_bytes,
                item.committed,
            )
