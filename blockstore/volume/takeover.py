"""Taking over a volume: whom to fence, when enough have answered, where chunks end, what is replayed.

Pure; `takeover_shell.py` carries the messages. Control has committed `epoch + 1, owner = me` before this
begins. Then, in this order, and why a crash between any two steps is harmless:

1. Fence the write set of the journal's open chunk. One fenced member is enough: no append of an earlier
   epoch can be acknowledged any more, since acknowledging needs all members. Crash: a later owner fences
   again, with a higher epoch.
2. The chunk ends at the smallest length of the members that answered (`chunk/sealing.py`): whatever was
   acknowledged is on all of them. Control records the length by compare-and-set on the volume's record; if
   that fails, somebody else owns the volume by now, and this owner stops. Crash: the length is recorded or
   found again, the same or longer; what is between was never acknowledged to anyone, and may be kept.
3. Load the checkpoint that the root names, replay the journal from there. Reads only.
4. Fence the members of open data chunks and find their ends, so that references to what clients wrote
   before the takeover can still be committed, and nothing beyond. Said in the new journal's first batch,
   with the ends of the journal's chunks, which are those that control has: found anew, from other members'
   answers, an end could be smaller than the one that an owner between has recorded and replayed to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blockstore.chunk.sealing import seal_length
from blockstore.codec.control_record import JournalChunk
from blockstore.codec.journal_record import (
    HEADER_BYTES,
    decode_header,
    decode_records,
    value_offsets,
    work_of,
)
from blockstore.codec.messages import Extent, FragmentState, Placement
from blockstore.codec.run_file import NO_JOURNAL, Root
from blockstore.errors import Corrupt
from blockstore.ids import ChunkId, DiskId, MiB, NodeId
from blockstore.volume.chunk_table import OPEN
from blockstore.volume.sorted_run import BlocksMissing, Held
from blockstore.volume.state import VolumeState, keys_of

REPLAY_WINDOW_BYTES = 4 * MiB
YIELD_RECORDS = 500
"""Replayed between two looks at what else there is to do: heartbeats must go on."""

JournalList = tuple[JournalChunk, ...]


# --- fencing


@dataclass(frozen=True, slots=True)
class Sought:
    """A chunk whose end is sought: who may have it, and up to where it is known to have been acknowledged."""

    disks: tuple[DiskId, ...]
    floor: int


def open_tail(journal: JournalList, root: Root | None) -> dict[ChunkId, Sought]:
    """The journal's chunks that have no end yet. Up to where the checkpoint covers one, all was
    acknowledged."""

    def floor(chunk: ChunkId) -> int:
        return root.journal_offset if root is not None and root.journal_chunk == chunk else 0

    return {one.chunk: Sought(one.disks, floor(one.chunk)) for one in journal if one.length == OPEN}


def open_data(state: VolumeState, journal: JournalList) -> dict[ChunkId, Sought]:
    """The open chunks that the replayed volume knows besides its journal's."""
    of_journal = {one.chunk for one in journal}
    return {
        chunk: Sought(entry.placement.disks, entry.committed)
        for chunk, entry in state.chunks.open_chunks()
        if chunk not in of_journal
    }


def journal_ends(state: VolumeState, journal: JournalList) -> dict[ChunkId, int]:
    """Of the journal's chunks that the volume does not know to have ended."""
    still_open = {chunk for chunk, _ in state.chunks.open_chunks()}
    return {one.chunk: one.length for one in journal if one.chunk in still_open}


def ended_journal(journal: JournalList, ends: Mapping[ChunkId, int]) -> JournalList:
    return tuple(
        JournalChunk(one.chunk, one.disks, ends[one.chunk]) if one.length == OPEN else one for one in journal
    )


class Fencing:
    """Who is asked to refuse earlier epochs, and what their answers say of the chunks' ends."""

    def __init__(self, sought: Mapping[ChunkId, Sought], node_of_disk: Callable[[DiskId], NodeId]) -> None:
        self._sought = sought
        self._node_of_disk = node_of_disk
        self._told: dict[ChunkId, dict[DiskId, FragmentState]] = {chunk: {} for chunk in sought}
        self._answered: set[NodeId] = set()

    def to_ask(self) -> dict[NodeId, tuple[ChunkId, ...]]:
        """Nodes that hold a member and have not answered, with the chunks to ask them about."""
        asked: dict[NodeId, dict[ChunkId, None]] = {}
        for chunk, one in self._sought.items():
            for disk in one.disks:
                if disk and (node := self._node_of_disk(disk)) not in self._answered:
                    asked.setdefault(node, {})[chunk] = None
        return {node: tuple(chunks) for node, chunks in asked.items()}

    def on_fenced(self, node: NodeId, states: Iterable[FragmentState]) -> None:
        """The node refuses earlier epochs from now on; `states` are of the fragments that it has."""
        self._answered.add(node)
        for state in states:
            if state.chunk in self._sought and state.disk in self._sought[state.chunk].disks:
                self._told[state.chunk][state.disk] = state
        for chunk, one in self._sought.items():
            for disk in one.disks:  # a member without the fragment has acknowledged nothing of it
                if disk and self._node_of_disk(disk) == node:
                    self._told[chunk].setdefault(disk, FragmentState(disk, chunk, 0, sealed=False))

    @property
    def all_told(self) -> bool:
        """Of each chunk at least one member has answered: others can only shorten it."""
        return all(self._told.values())

    @property
    def is_settled(self) -> bool:
        """Every chunk has its end."""
        return len(self.ends()) == len(self._sought)

    def ends(self) -> dict[ChunkId, int]:
        """Where the chunks end of which at least one member told. One that has less than what is known to
        have been acknowledged has lost something (its disk was emptied, its file is unreadable) and decides
        nothing."""
        ends: dict[ChunkId, int] = {}
        for chunk, by_disk in self._told.items():
            telling = [state for state in by_disk.values() if state.length >= self._sought[chunk].floor]
            if telling:
                ends[chunk] = seal_length(telling)
        return ends


# --- replaying


@dataclass(frozen=True, slots=True)
class Wanted:
    """Bytes of a journal chunk to read, as `ChunkReader.read` is asked for them."""

    extent: Extent
    placements: dict[ChunkId, Placement]
    start: int
    end: int


class Replay:
    """Applies the journal to a state that has the checkpoint (or nothing), batch after batch."""

    def __init__(self, state: VolumeState, journal: JournalList, root: Root | None) -> None:
        self.n_records = self.n_bytes = 0
        self.held: Held = {}
        """Where fetched blocks belong."""
        self._state = state
        self._left = deque(journal)
        self._position = 0
        if root is not None and root.journal_chunk != NO_JOURNAL:
            while self._left and self._left[0].chunk != root.journal_chunk:
                self._left.popleft()
            if not self._left:
                what = f"its journal does not hold chunk {root.journal_chunk}"
                raise Corrupt(f"Volume {state.volume}", what)
            self._position = root.journal_offset

    def wanted(self) -> Wanted | None:
        """What to read next; None when all is replayed."""
        while self._left and self._position >= self._left[0].length:
            self._left.popleft()
            self._position = 0
        if not self._left:
            return None
        one = self._left[0]
        # One byte more than there is: the whole, for which no writer gave a checksum, is then never read.
        extent = Extent(one.chunk, 0, one.length + 1, one.length + 1, 0)
        placements = {one.chunk: Placement(1, len(one.disks) - 1, one.disks)}
        end = min(self._position + REPLAY_WINDOW_BYTES, one.length)
        return Wanted(extent, placements, self._position, end)

    def take(self, data: memoryview) -> Iterator[BlocksMissing | None]:
        """Apply the batches whose records are in `data`, the bytes wanted last. Yields what must be fetched
        before it can go on; and None now and then, to let others run. Raise Corrupt when the journal does not
        go on here."""
        chunk = self._left[0].chunk
        start = self._position
        while self._position == start or _has_block(data[self._position - start :], chunk, self._position):
            yield from self._take_batch(data[self._position - start :], chunk)

    def _take_batch(self, view: memoryview, chunk: ChunkId) -> Iterator[BlocksMissing | None]:
        state, position = self._state, self._position
        header = decode_header(view, chunk, position)
        if header.base_sequence != state.sequence + 1:
            raise Corrupt(
                f"The journal of volume {state.volume}",
                f"sequence {header.base_sequence} in {chunk} follows {state.sequence}",
            )
        block = view[HEADER_BYTES : HEADER_BYTES + header.n_block]
        records = decode_records(header, block, f"journal chunk {chunk} at {position}")
        keys = [key for record in records for key in keys_of(record)]
        yield from self._pin(keys)
        for i, (record, value_offset) in enumerate(zip(records, value_offsets(header, records), strict=True)):
            state.apply(record, header.base_sequence + i, chunk, position + value_offset)
            work = work_of(record)
            self.n_records += work
            if self.n_records % YIELD_RECORDS < work:
                yield None
        state.map.unpin(keys)
        self._position = position + header.length
        self.n_bytes += header.length

    def _pin(self, keys: Sequence[bytes]) -> Iterator[BlocksMissing]:
        self.held.clear()
        while True:
            try:
                with self._state.map.cache.holding(self.held):
                    self._state.map.pin(keys)
            except BlocksMissing as missing:
                yield missing
            else:
                return


def _has_block(view: memoryview, chunk: ChunkId, position: int) -> bool:
    """Whether the window reaches over the header and the records of the batch that begins here."""
    if view.nbytes < HEADER_BYTES:
        return False
    return view.nbytes >= HEADER_BYTES + decode_header(view, chunk, position).n_block
