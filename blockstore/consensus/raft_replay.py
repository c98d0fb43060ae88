"""From batches to a log and back: how a log is cut into batches, and what a list of found batches means.

Pure; `raft_log.py` reads and writes them. A batch continues the log at its `next_index`: what the log had
from there on is void. What was lost between two batches does no harm if the later begins at or below the
entry after the snapshot's, since everything that counts above the snapshot was then said again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from blockstore.codec.raft_file import Batch, Snapshot
from blockstore.codec.raft_messages import ENTRY_OVERHEAD_BYTES, Entry
from blockstore.config import RAFT_BATCH_BYTES_MAX


def runs(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    """Cut where the index does not ascend by one, and where a batch would be too long."""
    if not entries:
        return []
    cut: list[list[Entry]] = [[entries[0]]]
    length = len(entries[0].payload) + ENTRY_OVERHEAD_BYTES
    for before, entry in pairwise(entries):
        length += len(entry.payload) + ENTRY_OVERHEAD_BYTES
        if entry.index != before.index + 1 or length > RAFT_BATCH_BYTES_MAX:
            cut.append([])
            length = len(entry.payload) + ENTRY_OVERHEAD_BYTES
        cut[-1].append(entry)
    return [tuple(run) for run in cut]


class Replay:
    """Puts batches together again, in the order they were written."""

    def __init__(self, snapshot_index: int) -> None:
        self.damage = ""  # what is missing above the snapshot
        self.sequence = 0  # of the last batch
        self.contains_snapshot = False
        self._snapshot_index = snapshot_index
        self._start = 0  # index of the first of:
        self._entries: list[Entry] = []

    def on_batch(self, batch: Batch, number: int) -> None:
        if self.sequence and batch.sequence != self.sequence + 1:
            self.on_damage(f"segment {number}: batch {self.sequence + 1}")
        begins = batch.anew or self.damage != "" or self.sequence == 0
        self.sequence = batch.sequence
        if begins:
            if batch.next_index <= self._snapshot_index + 1:  # what was before it, and is lost, is not needed
                self.damage, self._start, self._entries = "", batch.next_index, list(batch.entries)
            else:
                self.on_damage(f"what was before entry {batch.next_index}")
        elif batch.next_index > self._start + len(self._entries):
            self.on_damage(f"what was before entry {batch.next_index}")
        else:
            del self._entries[max(0, batch.next_index - self._start) :]
            self._start = min(self._start, batch.next_index)
            self._entries += batch.entries

    def on_damage(self, what: str) -> None:
        self.damage = self.damage or what

    def above(self, snapshot: Snapshot) -> tuple[int, int, tuple[Entry, ...]]:
        """Base index, base term and entries; none but the snapshot's own if the log does not go with it."""
        at = snapshot.index - self._start
        if at == -1 and self._start:
            self.contains_snapshot = True
            return snapshot.index, snapshot.term, tuple(self._entries)
        if not 0 <= at < len(self._entries) or self._entries[at].term != snapshot.term:
            return snapshot.index, snapshot.term, ()
        self.contains_snapshot = True
        first = self._entries[0]
        return first.index, first.term, tuple(self._entries[1:])
