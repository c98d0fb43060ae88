"""The Raft log under the explorer: appends, replaced entries, votes, snapshots taken and installed, marks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from unittest.mock import patch

from blockstore.codec.raft_file import HardState, Snapshot
from blockstore.codec.raft_messages import COMMAND, Entry, Members
from blockstore.consensus import raft_log
from blockstore.consensus.raft_log import Loaded, RaftLog, create
from blockstore.errors import BlockStoreError
from blockstore.ids import KiB, NodeId
from tests.crash.losses import DiskState, WatchedDisk

MEMBERS = Members((NodeId(1), NodeId(2), NodeId(3)))
SEGMENT_BYTES = 32 * KiB
"""Room for six batches of one block."""
TRAILING = 1
"""Entries kept below a snapshot."""


@dataclass(frozen=True, slots=True)
class Log:
    """Entries from `start` on; the one before `start` is known by a snapshot."""

    start: int = 1
    entries: tuple[Entry, ...] = ()

    @property
    def next_index(self) -> int:
        return self.start + len(self.entries)

    def with_entry(self, entry: Entry) -> Log:
        """`entry` voids what there is from its index on."""
        return Log(self.start, (*self.entries[: entry.index - self.start], entry))


@dataclass(frozen=True, slots=True)
class Known:
    """What a load finds."""

    hard_state: HardState
    snapshot: Snapshot
    entries: tuple[Entry, ...]  # above the snapshot


@dataclass(frozen=True, slots=True)
class RaftFacts:
    """What a load may find: one of each. The last of each is the newest."""

    hard_states: tuple[HardState, ...]
    snapshots: tuple[Snapshot, ...]
    logs: tuple[Log, ...]

    def allowed(self) -> set[Known]:
        return {
            Known(hard_state, snapshot, _above(log, snapshot))
            for hard_state in self.hard_states
            for snapshot in self.snapshots
            for log in self.logs
        }


def _above(log: Log, snapshot: Snapshot) -> tuple[Entry, ...]:
    """A log that does not contain the snapshot's last entry is not this snapshot's."""
    at = snapshot.index - log.start
    if at == -1 or (0 <= at < len(log.entries) and log.entries[at].term == snapshot.term):
        return log.entries[at + 1 :]
    return ()


class RaftStory:
    """At most one write to the log or the vote is under way, as in `consensus/raft_shell.py`; what is asked
    for meanwhile waits. Snapshots are written at once, whatever is under way."""

    def __init__(self, disk: WatchedDisk, facts: RaftFacts | None = None) -> None:
        self.disk = disk
        self.log = RaftLog(disk, Random(1))
        loaded = self.log.load()
        known = _known(loaded)
        self.term = known.hard_state.term
        if facts is None:
            facts = RaftFacts(
                (known.hard_state,), (known.snapshot,), (Log(known.snapshot.index + 1, known.entries),)
            )
        self.now = facts
        self._waiting = list[Callable[[Callable[[BlockStoreError | None], None]], None]]()
        self._writing = False

    def ask(self, operation: str) -> None:
        OPERATIONS[operation](self)

    def facts(self) -> RaftFacts:
        return self.now

    # --- writes, one at a time

    def _write(self, write: Callable[[Callable[[BlockStoreError | None], None]], None]) -> None:
        self._waiting.append(write)
        if not self._writing:
            self._next()

    def _next(self) -> None:
        self._writing = bool(self._waiting)
        if self._writing:
            self._waiting.pop(0)(self._on_done)

    def _on_done(self, error: BlockStoreError | None) -> None:
        assert error is None, error
        now = self.now
        self.now = RaftFacts(now.hard_states[-1:], now.snapshots, now.logs[-1:])
        self._next()

    def vote(self, term: int, vote: int) -> None:
        self.term = term
        hard_state = HardState(term, NodeId(vote))

        def write(done: Callable[[BlockStoreError | None], None]) -> None:
            self.now = replace(self.now, hard_states=(*self.now.hard_states, hard_state))
            self.log.save_vote(hard_state, done)

        self._write(write)

    def append(self, n: int, payload_bytes: int = 1, again: bool = False) -> None:
        """`n` entries behind the last; `again`: and the last of them once more, which makes two batches."""

        def write(done: Callable[[BlockStoreError | None], None]) -> None:
            log = self.now.logs[-1]
            term = self.now.hard_states[-1].term
            first = log.next_index
            run = [_entry(index, term, payload_bytes) for index in range(first, first + n)]
            if again:
                run.append(replace_payload(run[-1]))
            self._append(run, done, n)

        self._write(write)

    def replace(self, n: int) -> None:
        """A new leader's entries take the place of the last `n`."""
        self.vote(self.term + 1, 0)

        def write(done: Callable[[BlockStoreError | None], None]) -> None:
            log = self.now.logs[-1]
            first = max(log.next_index - n, self.now.snapshots[-1].index + 1)
            self._append([_entry(first, self.now.hard_states[-1].term, 1)], done, 1)

        self._write(write)

    def _append(self, run: list[Entry], done: Callable[[BlockStoreError | None], None], n_first: int) -> None:
        log = self.now.logs[-1]
        logs = list[Log]()
        for number, entry in enumerate(run, 1):
            log = log.with_entry(entry)
            if number >= n_first:  # a batch is all or nothing
                logs.append(log)
        self.now = replace(self.now, logs=(self.now.logs[-1], *logs))
        self.log.append(run, done)

    def mark(self) -> None:
        self._write(lambda done: self.log.mark(self.now.logs[-1].next_index, done))

    # --- snapshots

    def snapshot(self, back: int) -> None:
        """Of all but the last `back` entries that were asked for."""
        log = self.now.logs[-1]
        index = log.next_index - 1 - back
        if index <= self.now.snapshots[-1].index or index < log.start:
            return
        entry = log.entries[index - log.start]
        self._save(Snapshot(index, entry.term, MEMBERS, b"taken"))
        self.log.drop_below(max(1, index - TRAILING))

    def install(self, ahead: int) -> None:
        """One from another member, at a new term; the log has nothing of it."""
        self.vote(self.term + 1, 0)

        def write(done: Callable[[BlockStoreError | None], None]) -> None:
            index = self.now.logs[-1].next_index - 1 + ahead
            self._save(Snapshot(index, self.now.hard_states[-1].term, MEMBERS, bytes(1000)))
            self.log.drop_below(index + 1)
            self.now = replace(self.now, logs=(*self.now.logs, Log(index + 1)))
            self.log.begin_anew(index + 1, done)

        self._write(write)

    def _save(self, snapshot: Snapshot) -> None:
        self.now = replace(self.now, snapshots=(*self.now.snapshots, snapshot))
        self.log.save_snapshot(snapshot)
        self.now = replace(self.now, snapshots=(snapshot,))


def replace_payload(entry: Entry) -> Entry:
    return Entry(entry.index, entry.term, entry.kind, b"again")


def _entry(index: int, term: int, payload_bytes: int) -> Entry:
    return Entry(index, term, COMMAND, Random(index).randbytes(payload_bytes))


OPERATIONS: dict[str, Callable[[RaftStory], None]] = {
    "append": lambda story: story.append(1),
    "append-long": lambda story: story.append(2, 700),
    "append-twice": lambda story: story.append(2, again=True),
    "append-blocks": lambda story: story.append(1, 5 * KiB),
    "replace": lambda story: story.replace(2),
    "vote": lambda story: story.vote(story.term, 2),
    "vote-higher": lambda story: story.vote(story.term + 1, 3),
    "snapshot": lambda story: story.snapshot(1),
    "snapshot-of-all": lambda story: story.snapshot(0),
    "install": lambda story: story.install(3),
    "install-in-place": lambda story: story.install(0),
    "mark": lambda story: story.mark(),
}


class RaftSubject:
    name = "raft"
    operations = tuple(OPERATIONS)
    starts = ("one-segment", "segment-almost-full", "two-segments")

    @contextmanager
    def small_files(self) -> Generator[None]:
        with patch.object(raft_log, "RAFT_SEGMENT_BYTES", SEGMENT_BYTES):
            yield

    def begin(self, start: str) -> tuple[WatchedDisk, RaftStory]:
        state, facts = _start(start)
        disk = WatchedDisk(state)
        return disk, RaftStory(disk, facts)

    def is_worth(self, start: str, operations: Sequence[str]) -> bool:
        """Segments matter where two batches are written."""
        return any(name not in ("vote", "vote-higher") for name in operations)

    def recover(self, disk: WatchedDisk, facts: RaftFacts) -> RaftFacts:
        log = RaftLog(disk, Random(2))
        known = _known(log.load())
        log.close()
        allowed = facts.allowed()
        assert known in allowed, f"found {known}, which is none of {allowed}"
        return RaftFacts(
            (known.hard_state,), (known.snapshot,), (Log(known.snapshot.index + 1, known.entries),)
        )

    def go_on(self, disk: WatchedDisk, facts: RaftFacts) -> RaftFacts:
        story = RaftStory(disk, facts)
        story.append(1)
        story.vote(story.term + 1, 1)
        story.append(2, 700)
        disk.settle()
        story.log.close()
        assert len(story.now.logs) == len(story.now.hard_states) == 1
        return story.facts()


@cache
def _start(start: str) -> tuple[DiskState, RaftFacts]:
    disk = WatchedDisk()
    create(disk, Snapshot(0, 0, MEMBERS, b"start"), 0, Random(0))
    story = RaftStory(disk)
    story.vote(1, 2)
    for _ in range({"one-segment": 2, "segment-almost-full": 4, "two-segments": 8}[start]):
        story.append(1)
    disk.settle()
    story.log.close()
    return disk.freeze(), story.facts()


def _known(loaded: Loaded) -> Known:
    assert not loaded.damage, f"called damaged: {loaded.damage}"
    assert not loaded.hard_state.doubt
    above = tuple(entry for entry in loaded.entries if entry.index > loaded.snapshot.index)
    return Known(loaded.hard_state, loaded.snapshot, above)
