"""What a checkpoint holds.

Pure; `checkpoint_shell.py` writes the bytes into chunks and commits the root. The state is frozen at one
instant, between two applied records: the memtable as it is, the rest by value. It becomes a run; a run that
others were merged into meanwhile (`compaction.py`) takes their place at the same time. Only when all is
durable does the root change, in one control commit together with the journal's new beginning. Crash before
that: the old root and the whole journal are still named, and the new chunks are garbage that the next
checkpoint of a later owner does not need. Crash after: nothing is left to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from blockstore.codec.control_record import JournalChunk
from blockstore.codec.messages import Extent, Placement
from blockstore.codec.run_file import (
    HEAD_VERSION,
    NO_JOURNAL,
    Anchor,
    CheckpointHead,
    ForeignChunk,
    Root,
    RunIndex,
    RunInfo,
    encode_head,
)
from blockstore.ids import ChunkId, VolumeId
from blockstore.volume.chunk_table import RUN
from blockstore.volume.memtable import Memtable
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import RUN_BLOCK_BYTES, SortedRun
from blockstore.volume.state import VolumeState

ENTRIES_AT_ONCE = 500
"""Put into a run between two looks at what else there is to do: some 2 ms."""


@dataclass(frozen=True, slots=True)
class Written:
    """Where some bytes of a checkpoint are."""

    extents: tuple[Extent, ...]
    placements: dict[ChunkId, Placement]
    size: int


@dataclass(frozen=True, slots=True)
class Merged:
    """One run in place of `inputs`, from the newest to the oldest; None when nothing is left of them."""

    inputs: tuple[SortedRun, ...]
    run: SortedRun | None


@dataclass(slots=True)
class Draft:
    """A checkpoint in the making, of the state as it was when it was begun."""

    volume: VolumeId
    frozen: Memtable
    head: CheckpointHead
    merged: Merged | None
    _builder: RunBuilder = field(repr=False)
    _index: RunIndex | None = None
    run: SortedRun | None = None
    """Once it is written; None when nothing had changed."""

    def blocks(self, n_entries: int = ENTRIES_AT_ONCE) -> Iterator[bytes]:
        """The bytes of the new run, some at a time, so that others can run between them. None when nothing
        changed."""
        entries = self.frozen.entries_from(b"")
        while batch := list(islice(entries, n_entries)):
            self._builder.note_chunks_of(batch)
            yield self._builder.add(batch)
        if self._builder.n_keys:
            rest, self._index = self._builder.finish()
            yield rest

    def on_written(self, written: Written, state: VolumeState) -> None:
        """All that `blocks` gave is there."""
        if self._index is not None:
            self.run = written_run(self.volume, written, self._builder, self._index, state)


def written_run(
    volume: VolumeId, written: Written, builder: RunBuilder, index: RunIndex, state: VolumeState
) -> SortedRun:
    info = RunInfo(
        written.extents, written.placements, written.size, builder.sequence, builder.n_keys, builder.size
    )
    return SortedRun(volume, info, index, state.map.cache)


class Checkpoints:
    """The last checkpoint of a volume, and the next."""

    def __init__(self, root: Root | None, runs: tuple[RunInfo, ...]) -> None:
        """`runs` from the oldest to the newest."""
        self.root, self.runs = root, runs
        self.merged: Merged | None = None
        """For the next checkpoint to name."""
        self._doubtful: frozenset[ChunkId] = frozenset()

    def needed_chunks(self) -> frozenset[ChunkId]:
        """Chunks that the present checkpoint is made of, or one that may be the present one."""
        return _chunks_of(self.root, self.runs) | self._doubtful

    def begin(
        self,
        state: VolumeState,
        journal_chunk: ChunkId,
        journal_offset: int,
        block_bytes: int = RUN_BLOCK_BYTES,
    ) -> Draft:
        """Freeze the state as it is now, with the journal applied up to there."""
        head = state.head(journal_chunk, journal_offset, ())
        frozen = state.map.freeze()
        builder = RunBuilder(state.volume, head.sequence, len(frozen), block_bytes)
        return Draft(state.volume, frozen, head, self.merged, builder)

    def runs_with(self, draft: Draft) -> tuple[RunInfo, ...]:
        runs = self.runs
        merged = draft.merged
        if merged is not None:
            infos = tuple(run.info for run in reversed(merged.inputs))
            at = runs.index(infos[0])
            assert runs[at : at + len(infos)] == infos
            runs = (*runs[:at], *(() if merged.run is None else (merged.run.info,)), *runs[at + len(infos) :])
        return runs if draft.run is None else (*runs, draft.run.info)

    def encode_head(self, draft: Draft, runs: tuple[RunInfo, ...]) -> bytes:
        return encode_head(draft.volume, msgspec.structs.replace(draft.head, runs=runs))

    def root_of(self, draft: Draft, head: Written) -> Root:
        return Root(
            HEAD_VERSION, draft.head.sequence, head.size, head.extents, head.placements,
            draft.head.journal_chunk, draft.head.journal_offset,
        )  # fmt: skip

    def on_committing(self, root: Root, runs: tuple[RunInfo, ...]) -> None:
        """From here until a commit is known to have succeeded, this root may be the one that control names,
        also when the commit seems to have failed."""
        self._doubtful |= _chunks_of(root, runs)

    def on_committed(self, state: VolumeState, draft: Draft, root: Root, runs: tuple[RunInfo, ...]) -> None:
        """A commit compares the record's revision, so none that was tried before can succeed any more."""
        self.root, self.runs = root, runs
        self._doubtful = frozenset()
        state.map.on_run_written(draft.run)
        if draft.merged is not None:
            state.map.on_merged(draft.merged.inputs, draft.merged.run)
            self.merged = None

    def on_failed(self, state: VolumeState) -> None:
        """Its keys count as changed again."""
        state.map.unfreeze()


# --- clones


def serves_clone(state: VolumeState, root: Root | None, anchor: Anchor) -> bool:
    """Whether the last checkpoint's runs show the map as of the snapshot, with bytes that the anchor keeps.
    They do if it was begun after the anchor was set. An older one may say that a value is where it was
    before it moved: it does if it has the snapshot and all chunks are there that its runs refer to."""
    if root is None or root.sequence >= anchor.anchor:
        return root is not None
    return root.sequence >= anchor.at and all(
        state.chunks.find_placement(chunk) is not None for run in state.map.runs for chunk in run.chunks
    )


def head_of_clone(state: VolumeState, runs: tuple[RunInfo, ...], anchor: Anchor) -> CheckpointHead:
    """What a clone begins with: these runs, read as of the snapshot, and where the chunks are that they refer
    to; no snapshots, sessions or journal. A run that is read as of a sequence already is of a volume that
    this one is a clone of."""
    volume, chunks, at = state.volume, state.chunks, anchor.at
    own = (
        ForeignChunk(stored.chunk, stored.placement) for stored in chunks.to_stored() if stored.purpose != RUN
    )
    return CheckpointHead(
        at,
        NO_JOURNAL,
        0,
        tuple(run if run.as_of else msgspec.structs.replace(run, volume=volume, as_of=at) for run in runs),
        (),
        (),
        (),
        anchor.keys,
        foreign=(*chunks.foreign_to_stored(), *own),
    )


def root_of_clone(volume: VolumeId, at: int, head: Written) -> Root:
    """`volume` is the parent, whose chunks hold the head."""
    return Root(HEAD_VERSION, at, head.size, head.extents, head.placements, NO_JOURNAL, 0, volume)


def _chunks_of(root: Root | None, runs: tuple[RunInfo, ...]) -> frozenset[ChunkId]:
    extents = [extent for run in runs for extent in run.extents]
    if root is not None:
        extents += root.extents
    return frozenset(extent.chunk for extent in extents)


def journal_from(journal: tuple[JournalChunk, ...], first: ChunkId) -> tuple[JournalChunk, ...]:
    """The journal without what lies before `first`."""
    chunks = [one.chunk for one in journal]
    return journal[chunks.index(first) :] if first in chunks else journal
