"""Which chunks does the volume have, where are they, and how many of their bytes does anything still refer
to?

Invariants: an extent may be committed only into a chunk that is in the table, below its seal; a chunk is
never sealed below what was committed in it, and leaves the table only when it is sealed, nothing refers to
it, and nobody can still commit a reference into it (DESIGN invariant 9: the owner alone says what is
garbage). An anchor keeps for a clone every chunk that was opened up to a sequence: none of them is dropped,
nor emptied, while it is there.

A clone refers to chunks of other volumes too. It knows where they are and nothing else: they are sealed, or
end where their owner says; counting, ending and dropping them is not this table's business."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blockstore.codec.messages import Extent, Placement
from blockstore.codec.run_file import ForeignChunk, StoredChunk
from blockstore.errors import InvalidRequest, Unavailable
from blockstore.ids import ChunkId, SessionId

OPEN = -1
DATA = "data"
PACKED = "packed"
JOURNAL = "journal"
RUN = "run"
DROPPED_REMEMBERED = 100_000
"""Chunks whose fragments are to be deleted: 6 TiB. What is forgotten beyond them stays on its disks."""


@dataclass(slots=True)
class ChunkEntry:
    placement: Placement
    capacity: int
    purpose: str  # "journal", "data", "packed" or "run"
    session: SessionId  # who was granted it; the owner's own session otherwise
    length: int = OPEN  # of each fragment, once sealed
    live_bytes: int = 0
    committed: int = 0  # of each fragment: the end of what was ever referred to; it is never sealed below
    named: int = 0  # of each fragment: how many bytes Puts have named, whatever became of the Puts
    opened: int = 0  # sequence of the record that opened it

    @property
    def stored_bytes(self) -> int:
        """Of users' bytes that its data shards, or each copy, take; 0 while it is open."""
        return max(self.length, 0) * self.placement.k

    @property
    def is_all_named(self) -> bool:
        """Every byte has had its Put: no reference will come any more that is not there already."""
        return self.named >= self.length


EVERY_CHUNK = 1 << 64
"""`ChunkTable.kept_to` while a clone is being made: those that are opened yet as well."""


class ChunkTable:
    def __init__(self) -> None:
        self.kept_to = -1
        """Chunks that were opened up to this sequence are kept for clones."""
        self.foreign: dict[ChunkId, Placement] = {}
        """Of other volumes; this one refers to them, or did."""
        self._chunks: dict[ChunkId, ChunkEntry] = {}
        self._open: dict[ChunkId, ChunkEntry] = {}
        self._dropped: deque[tuple[ChunkId, Placement]] = deque(maxlen=DROPPED_REMEMBERED)

    def find(self, chunk: ChunkId) -> ChunkEntry | None:
        return self._chunks.get(chunk)

    def find_placement(self, chunk: ChunkId) -> Placement | None:
        """Of this volume's own chunk, or of another's that it refers to."""
        entry = self._chunks.get(chunk)
        return self.foreign.get(chunk) if entry is None else entry.placement

    def placements_of(self, extents: Iterable[Extent]) -> dict[ChunkId, Placement]:
        """Raise Unavailable when a chunk is gone: what referred to it was replaced meanwhile."""
        found: dict[ChunkId, Placement] = {}
        for extent in extents:
            placement = self.find_placement(extent.chunk)
            if placement is None:
                raise Unavailable("The value was replaced while it was being read; read it again.")
            found[extent.chunk] = placement
        return found

    def check_granted(self, extents: Iterable[Extent], session: SessionId) -> None:
        """InvalidRequest for an extent outside of what this session was granted: into a journal or a run, or
        into another's chunk, whose end it must not move."""
        for extent in extents:
            entry = self._chunks.get(extent.chunk)
            if entry is None:
                continue  # of an epoch whose grants are lost: `may_refer` judges that
            if entry.session != session or entry.purpose != DATA:
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
        if chunk not in self._chunks:
            self._chunks[chunk] = entry
            if entry.length == OPEN:
                self._open[chunk] = entry

    def seal(self, chunk: ChunkId, length: int) -> None:
        """`length` may be an older truth than a reference that was committed since: that one stands."""
        entry = self._open.pop(chunk, None)
        if entry is not None:
            entry.length = max(length, entry.committed)

    def drop(self, chunk: ChunkId) -> None:
        self._open.pop(chunk, None)
        entry = self._chunks.pop(chunk, None)
        if entry is not None:
            self._dropped.append((chunk, entry.placement))

    def take_dropped(self) -> list[tuple[ChunkId, Placement]]:
        """Those dropped since the last call: their fragments are to be deleted. After a replay, those that
        it dropped again: whoever dropped them may have died before the members heard of it."""
        dropped = list(self._dropped)
        self._dropped.clear()
        return dropped

    def note_named(self, extents: Iterable[Extent]) -> None:
        """A Put names these extents; it will be carried out or refused, and no other Put names them."""
        for extent in extents:
            entry = self._chunks.get(extent.chunk)
            if entry is not None:
                entry.named += extent.unit

    def add_live(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            if extent.chunk in self.foreign:
                continue
            entry = self._chunks[extent.chunk]
            entry.live_bytes += extent.length
            entry.committed = max(entry.committed, extent.offset + extent.unit)

    def free(self, extents: Iterable[Extent]) -> None:
        for extent in extents:
            entry = self._chunks.get(extent.chunk)
            if entry is not None:
                entry.live_bytes -= extent.length

    def open_chunks(self, purpose: str | None = None) -> list[tuple[ChunkId, ChunkEntry]]:
        return [(chunk, entry) for chunk, entry in self._open.items() if purpose in (None, entry.purpose)]

    def n_open(self, session: SessionId) -> int:
        """How many open chunks the session has."""
        return sum(entry.session == session for entry in self._open.values())

    def dead_chunks(
        self, needed: frozenset[ChunkId], is_gone: Callable[[SessionId], bool] = lambda _: False
    ) -> list[tuple[ChunkId, ChunkEntry]]:
        """Sealed, nothing refers to them, and not among `needed` (journal, checkpoint, and what requests
        under way refer to). A large value is committed when all of it is written, long after its first
        chunks were full: so a client's chunk is dead only when every byte has had its Put, or the client
        `is_gone`."""
        return [
            (chunk, entry)
            for chunk, entry in self._chunks.items()
            if entry.live_bytes <= 0
            and entry.length != OPEN
            and entry.opened > self.kept_to
            and chunk not in needed
            and (entry.purpose != DATA or entry.is_all_named or is_gone(entry.session))
        ]

    def to_empty(
        self, needed: frozenset[ChunkId], is_gone: Callable[[SessionId], bool], *, journals_too: bool
    ) -> list[tuple[ChunkId, ChunkEntry]]:
        """Chunks whose live values belong elsewhere, those first that give back most for what is moved:
        mostly dead ones and, with `journals_too`, what the journal has left behind."""
        found = [
            (chunk, entry)
            for chunk, entry in self._chunks.items()
            if entry.length != OPEN
            and entry.live_bytes > 0
            and entry.opened > self.kept_to
            and chunk not in needed
            and (
                (entry.purpose == JOURNAL and journals_too)
                or (entry.purpose != RUN and 2 * entry.live_bytes < entry.stored_bytes)
            )
            and (entry.purpose != DATA or entry.is_all_named or is_gone(entry.session))
        ]
        return sorted(found, key=lambda one: (one[1].live_bytes / one[1].stored_bytes, one[0]))

    def kept_for_clones(self) -> tuple[int, int]:
        """Chunks that are kept for clones, and how many of their bytes nothing here refers to."""
        kept = [entry for entry in self._chunks.values() if entry.opened <= self.kept_to]
        return len(kept), sum(max(0, entry.stored_bytes - max(entry.live_bytes, 0)) for entry in kept)

    def __len__(self) -> int:
        return len(self._chunks)

    def totals(self) -> dict[str, int]:
        """Numbers for `VolumeInfo`."""
        return {
            "chunks": len(self._chunks),
            "chunks_open": len(self._open),
            "live_bytes": sum(max(entry.live_bytes, 0) for entry in self._chunks.values()),
            "stored_bytes": sum(entry.stored_bytes for entry in self._chunks.values()),
            "disk_bytes": sum(
                max(entry.length, 0) * sum(disk != 0 for disk in entry.placement.disks)
                for entry in self._chunks.values()
            ),
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
                entry.named,
                entry.opened,
            )
            for chunk, entry in self._chunks.items()
        )

    def load(self, stored: Iterable[StoredChunk]) -> None:
        for item in stored:
            entry = ChunkEntry(
                item.placement,
                item.capacity,
                item.purpose,
                item.session,
                item.length,
                item.live_bytes,
                item.committed,
                item.named,
                item.opened,
            )
            self.open_chunk(item.chunk, entry)

    def foreign_to_stored(self) -> tuple[ForeignChunk, ...]:
        return tuple(ForeignChunk(chunk, placement) for chunk, placement in self.foreign.items())

    def load_foreign(self, stored: Iterable[ForeignChunk]) -> None:
        self.foreign = {item.chunk: item.placement for item in stored}
