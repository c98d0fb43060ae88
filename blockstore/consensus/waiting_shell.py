"""Who waits for what: commands for their entry to be applied, reads for their index."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from blockstore.codec.raft_messages import Entry
from blockstore.errors import BlockStoreError, DeadlineExceeded, NotLeader
from blockstore.ids import NodeId

Wish = bytes | tuple[frozenset[NodeId], frozenset[NodeId]] | int
"""A command, (voters, learners) to be, or a read's number."""


class Waiter:
    __slots__ = ("done", "error", "index", "term", "wish")

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.index = self.term = 0
        self.error: BlockStoreError | None = None
        self.done = trio.Event()

    def fail(self, error: BlockStoreError) -> None:
        self.error = error
        self.done.set()


class Waiting:
    """Those whose wish the core has taken. Bounded by what it takes: RAFT_UNCOMMITTED_MAX and
    RAFT_READS_MAX."""

    def __init__(self) -> None:
        self._entries: dict[int, Waiter] = {}  # by index, ascending
        self._reads: dict[int, Waiter] = {}  # by number
        self._safe_reads: list[Waiter] = []  # their index is known, and not applied yet

    @property
    def n_reads(self) -> int:
        return len(self._reads) + len(self._safe_reads)

    def add_entries(self, waiters: Sequence[Waiter], entries: Sequence[Entry]) -> None:
        for waiter, entry in zip(waiters, entries, strict=True):
            waiter.index, waiter.term = entry.index, entry.term
            self._entries[entry.index] = waiter

    def add_read(self, number: int, waiter: Waiter) -> None:
        self._reads[number] = waiter

    def forget_read(self, number: int) -> None:
        waiter = self._reads.pop(number, None)
        if waiter is None:
            self._safe_reads = [waiter for waiter in self._safe_reads if waiter.wish != number]

    def on_applied(self, entry: Entry, leader: NodeId) -> None:
        while self._entries:
            index, waiter = next(iter(self._entries.items()))
            if (index, waiter.term) == (entry.index, entry.term):
                waiter.done.set()
            elif waiter.term < entry.term:
                # Terms never fall along the log: what waits for an older one cannot be committed any more.
                waiter.fail(NotLeader(leader))
            else:
                break
            del self._entries[index]

    def on_safe_read(self, number: int, index: int) -> None:
        waiter = self._reads.pop(number, None)
        if waiter is not None:
            waiter.index = index
            self._safe_reads.append(waiter)

    def finish_reads(self, applied_index: int) -> None:
        if not self._safe_reads:
            return
        for waiter in self._safe_reads:
            if waiter.index <= applied_index:
                waiter.done.set()
        self._safe_reads = [waiter for waiter in self._safe_reads if not waiter.done.is_set()]

    def on_snapshot(self, index: int) -> None:
        """It took the place of entries; whose commands are in it cannot be told."""
        for at in [at for at in self._entries if at <= index]:
            error = DeadlineExceeded("Another leader came; whether the command was carried out is not known.")
            self._entries.pop(at).fail(error)

    def fail_entries(self, error: BlockStoreError) -> None:
        for waiter in self._entries.values():
            waiter.fail(error)
        self._entries.clear()

    def fail_all(self, error: BlockStoreError) -> None:
        self.fail_entries(error)
        for waiter in (*self._reads.values(), *self._safe_reads):
            waiter.fail(error)
        self._reads.clear()
        self._safe_reads.clear()
