"""What a checkpoint holds, and when it may write less than everything.

Pure; `checkpoint_shell.py` writes the bytes into chunks and commits the root. The state is frozen at one
instant, between two applied records: the map by copying references, the rest by value. Only when everything
is durable does the root change, in one control commit together with the journal's new beginning. Crash
before that: the old root and the whole journal are still named, and the new chunks are garbage that the next
checkpoint of a later owner does not need. Crash after: nothing is left to do.

A checkpoint writes what changed since the last one; when the runs hold more than twice the map's keys, or
are many, it writes the whole map instead, and earlier runs are no longer needed. So a key is rewritten a
bounded number of times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from blockstore.codec.control_record import JournalChunk
from blockstore.codec.messages import Extent, Placement
from blockstore.codec.run_file import (
    VERSION,
    CheckpointHead,
    Root,
    RunInfo,
    encode_block,
    encode_head,
    split_blocks,
)
from blockstore.ids import ChunkId, VolumeId
from blockstore.volume.state import VolumeState
from blockstore.volume.versioned_map import Frozen

RUNS_MAX = 8
SMALL_MAP_KEYS = 1_000
"""Maps up to this are not worth writing whole for being small."""
BLOCK_ENTRIES = 500
"""Some 60 KB and half a millisecond."""


@dataclass(frozen=True, slots=True)
class Written:
    """Where some bytes of a checkpoint are."""

    extents: tuple[Extent, ...]
    placements: dict[ChunkId, Placement]
    size: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A checkpoint in the making, of the state as it was when it was begun."""

    volume: VolumeId
    frozen: Frozen
    head: CheckpointHead
    whole: bool

    def blocks(self, n_entries: int = BLOCK_ENTRIES) -> Iterator[bytes]:
        """The new run, block by block, so that others can run between them; first, while its keys are being
        sorted, empty ones."""
        while self.frozen.sort_some():
            yield b""
        for index, entries in enumerate(split_blocks(self.frozen.entries(), n_entries)):
            yield encode_block(self.volume, self.head.sequence, index, entries)


class Checkpoints:
    """The last checkpoint of a volume, and the next."""

    def __init__(self, root: Root | None, runs: tuple[RunInfo, ...]) -> None:
        self.root, self.runs = root, runs
        self._doubtful: frozenset[ChunkId] = frozenset()

    def needed_chunks(self) -> frozenset[ChunkId]:
        """Chunks that the present checkpoint is made of, or one that may be the present one."""
        return _chunks_of(self.root, self.runs) | self._doubtful

    def begin(
        self, state: VolumeState, journal_chunk: ChunkId, journal_offset: int, small: int = SMALL_MAP_KEYS
    ) -> Draft:
        """Freeze the state as it is now, with the journal applied up to there."""
        n_in_runs = sum(run.n_keys for run in self.runs)
        whole = len(self.runs) >= RUNS_MAX or n_in_runs + state.map.n_changed > 2 * len(state.map) + small
        frozen = state.map.freeze(whole=whole)
        return Draft(state.volume, frozen, state.head(journal_chunk, journal_offset, ()), whole)

    def runs_with(self, draft: Draft, run: Written) -> tuple[RunInfo, ...]:
        info = RunInfo(
            run.extents, run.placements, run.size, draft.head.sequence, draft.frozen.n_keys, draft.whole
        )
        return (info,) if draft.whole else (*self.runs, info)

    def encode_head(self, draft: Draft, runs: tuple[RunInfo, ...]) -> bytes:
        return encode_head(draft.volume, msgspec.structs.replace(draft.head, runs=runs))

    def root_of(self, draft: Draft, head: Written) -> Root:
        return Root(
            VERSION, draft.head.sequence, head.size, head.extents, head.placements,
            draft.head.journal_chunk, draft.head.journal_offset,
        )  # fmt: skip

    def on_committing(self, root: Root, runs: tuple[RunInfo, ...]) -> None:
        """From here until a commit is known to have succeeded, this root may be the one that control names,
        also when the commit seems to have failed."""
        self._doubtful |= _chunks_of(root, runs)

    def on_committed(self, root: Root, runs: tuple[RunInfo, ...]) -> None:
        """A commit compares the record's revision, so none that was tried before can succeed any more."""
        self.root, self.runs = root, runs
        self._doubtful = frozenset()

    def on_failed(self, state: VolumeState, draft: Draft) -> None:
        """Its keys count as changed again."""
        state.map.unfreeze(draft.frozen)


def _chunks_of(root: Root | None, runs: tuple[RunInfo, ...]) -> frozenset[ChunkId]:
    extents = [extent for run in runs for extent in run.extents]
    if root is not None:
        extents += root.extents
    return frozenset(extent.chunk for extent in extents)


def journal_from(journal: tuple[JournalChunk, ...], first: ChunkId) -> tuple[JournalChunk, ...]:
    """The journal without what lies before `first`."""
    chunks = [one.chunk for one in journal]
    return journal[chunks.index(first) :] if first in chunks else journal
