"""Raft's state on one disk: what is written, in which order, and what is still known after a crash or damage.

The formats, and why a torn write can be told from a damaged one, are in `codec/raft_file.py`. Rules kept
here:

- One batch is under way at a time, and one slot of the vote record. That is what makes the difference
  visible.
- After a restart the last batch is written once more and synced before it counts as durable: what we read may
  come from pages that were never synced, or whose sync failed and whose dirt the kernel dropped (Rebello et
  al., ATC 2020).
- A torn batch is overwritten. A damaged one never is, nor what follows it: the log goes on in a new segment,
  anew from the snapshot on, and `load` says that this node is in doubt (`consensus/raft.py` says what that
  means). The word of doubt is durable before the new segment exists.
- A full disk is waited for: an append that needs a new segment is not done before there is room for one, so
  this member promises nothing meanwhile, and goes on from there.
- A snapshot is durable, twice, before the entries it replaces are removed. A snapshot from another member is
  durable before the log is begun anew behind it; a crash between the two leaves a log that does not contain
  the snapshot's last entry, and then `load` does what was left undone.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from blockstore.codec.raft_file import (
    FIRST_BATCH_OFFSET,
    VOTE_FILE_BYTES,
    Batch,
    HardState,
    SegmentHeader,
    Snapshot,
    batch_bytes,
    decode_snapshot,
    decode_vote_slots,
    encode_batch,
    encode_segment_header,
    encode_snapshot,
    encode_vote_slot,
    scan_segment,
)
from blockstore.codec.raft_messages import Entry
from blockstore.config import RAFT_SEGMENT_BYTES
from blockstore.consensus.raft_replay import Replay, runs
from blockstore.errors import AlreadyExists, BlockStoreError, Corrupt, NoSpace, NotAStore
from blockstore.runtime.interfaces import Disk, File, Write
from blockstore.runtime.unreadable import read_or_nothing

FOLDER = "raft"
VOTE_NAME = f"{FOLDER}/vote"
SNAPSHOT_NAMES = (f"{FOLDER}/snapshot-0", f"{FOLDER}/snapshot-1")
_SEGMENT_PREFIX = "segment-"

OnDone = Callable[[BlockStoreError | None], None]


def segment_name(number: int) -> str:
    return f"{FOLDER}/{_SEGMENT_PREFIX}{number:012d}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What this node knew when it last stopped. The entry at `base_index` is known by its term alone."""

    hard_state: HardState
    snapshot: Snapshot
    base_index: int
    base_term: int
    entries: tuple[Entry, ...]
    damage: str  # what was found damaged just now; "" if nothing


def create(disk: Disk, snapshot: Snapshot, term: int, rng: random.Random) -> None:
    """A log that begins at `snapshot`. Blocking. Made whole by its last write, the snapshot's; before that,
    or if it was cut short, it can be made again. Raises AlreadyExists."""
    if is_created(disk):
        raise AlreadyExists(f"control log in {disk.path}")
    for name in disk.names(FOLDER):
        disk.remove(f"{FOLDER}/{name}")
    log = RaftLog(disk, rng)
    log.begin_segment_now(1, Batch(1, snapshot.index + 1, anew=True))
    log.save_vote_now(HardState(term))
    log.close()
    log.save_snapshot(snapshot)


def is_created(disk: Disk) -> bool:
    return any(name in disk.names(FOLDER) for name in ("snapshot-0", "snapshot-1"))


@dataclass(slots=True)
class _Segment:
    header: SegmentHeader
    file: File
    first_index: int = 0  # the log continued here when this segment was begun
    offset: int = FIRST_BATCH_OFFSET  # of the next batch


class RaftLog:
    """The writer. After an error it is of no use; load the log again."""

    def __init__(self, disk: Disk, rng: random.Random) -> None:
        self._disk, self._rng = disk, rng
        self._vote: File | None = None
        self._generation = 0
        self._sequence = 0  # of the last batch
        self._last_is_mark = True
        self._segments: list[tuple[int, int]] = []  # (number, first index) of each that is in use, in order
        self._superseded: list[
            int
        ] = []  # numbers of those that are kept only because something in them is bad
        self._current: _Segment | None = None
        self._spare: _Segment | None = None
        self._making_spare = False
        self._waits_for_spare = False
        self._error: BlockStoreError | None = None
        self._queue: deque[Batch] = deque()
        self._on_done: OnDone | None = None
        self._closed = False

    # --- writing

    @property
    def is_idle(self) -> bool:
        return self._on_done is None

    @property
    def wants_mark(self) -> bool:
        """The last batch has nothing behind it that would show that it was durable."""
        return not self._last_is_mark

    @property
    def waits_for_room(self) -> bool:
        """The disk is full, and the batch under way cannot be written before it is not."""
        return self._waits_for_spare and not self._making_spare

    def try_again(self) -> None:
        """There may be room now."""
        if self.waits_for_room:
            self._make_spare()

    def append(self, entries: Sequence[Entry], on_done: OnDone) -> None:
        """Make them durable. Each voids what the log has from its index on."""
        self._start([Batch(0, run[0].index, run) for run in runs(entries)], on_done)

    def begin_anew(self, next_index: int, on_done: OnDone) -> None:
        """A snapshot up to `next_index - 1` has taken the place of everything."""
        self._start([Batch(0, next_index, anew=True)], on_done)

    def mark(self, next_index: int, on_done: OnDone) -> None:
        """Write an empty batch, so that damage to the one before is not mistaken for a torn write."""
        self._start([Batch(0, next_index)], on_done)

    def _start(self, batches: Iterable[Batch], on_done: OnDone) -> None:
        assert self._on_done is None
        self._queue.extend(batches)
        self._on_done = on_done
        self._write_next()

    def _write_next(self) -> None:
        if self._error is not None or not self._queue:
            on_done, self._on_done = self._on_done, None
            assert on_done is not None
            on_done(self._error)
            return
        batch = replace(self._queue[0], sequence=self._sequence + 1)
        assert self._current is not None
        if self._current.offset + batch_bytes(batch.entries) > RAFT_SEGMENT_BYTES:
            if self._spare is None:
                self._waits_for_spare = True
                self._make_spare()
                return
            self._current.file.close()
            self._current, self._spare = self._spare, None
            self._current.first_index = batch.next_index
            self._segments.append((self._current.header.number, batch.next_index))
        content = encode_batch(self._current.header, self._current.offset, batch)
        self._current.file.submit([Write(self._current.offset, [content])], self._on_written)

    def _on_written(self, error: BlockStoreError | None) -> None:
        if self._closed:
            return
        self._error = self._error or error
        if error is None:
            batch = self._queue.popleft()
            assert self._current is not None
            self._current.offset += batch_bytes(batch.entries)
            self._sequence += 1
            self._last_is_mark = not batch.entries
            if self._current.offset > RAFT_SEGMENT_BYTES // 2 and self._spare is None:
                self._make_spare()
        self._write_next()

    def _make_spare(self) -> None:
        """The next segment, before it is needed: creating one takes the file system milliseconds."""
        if self._making_spare:
            return
        self._making_spare = True
        assert self._current is not None
        header = SegmentHeader(self._current.header.number + 1, self._rng.getrandbits(64))

        def on_open(file: File | BlockStoreError) -> None:
            if isinstance(file, BlockStoreError):
                on_header(file)
            elif self._closed:
                file.close()
            else:
                self._spare = _Segment(header, file)
                file.submit([Write(0, [encode_segment_header(header)])], on_header)

        def on_header(error: BlockStoreError | None) -> None:
            self._making_spare = False
            if error is not None:
                self._spare = None  # asked for again when it is needed
            if isinstance(error, NoSpace):
                return  # until `try_again`
            if self._waits_for_spare and not self._closed:
                self._waits_for_spare = False
                self._error = self._error or error
                self._write_next()

        self._disk.submit_open(segment_name(header.number), RAFT_SEGMENT_BYTES, on_open)

    def save_vote(self, hard_state: HardState, on_done: OnDone) -> None:
        """Durable in both slots, one after the other, when `on_done` is called."""
        assert self._vote is not None
        file, generation = self._vote, self._generation + 1
        self._generation = generation

        def on_first(error: BlockStoreError | None) -> None:
            if error is not None:
                on_done(error)
            else:
                file.submit([_vote_write(1, generation, hard_state)], on_done)

        file.submit([_vote_write(0, generation, hard_state)], on_first)

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Blocking: a few megabytes, every ten thousand entries. Two copies, for rot."""
        content = encode_snapshot(snapshot)
        for name in SNAPSHOT_NAMES:
            self._disk.replace_file(name, content)

    def drop_below(self, index: int) -> None:
        """Remove what holds only entries below `index`, which a durable snapshot covers."""
        drop, self._superseded = self._superseded, []
        while len(self._segments) > 1 and self._segments[1][1] <= index:
            drop.append(self._segments.pop(0)[0])
        for number in drop:
            self._disk.submit_remove(
                segment_name(number), lambda error: None
            )  # left over, it is dropped later

    def close(self) -> None:
        self._closed = True
        if self._vote is not None:
            self._vote.close()
        for segment in (self._current, self._spare):
            if segment is not None:
                segment.file.close()

    # --- starting: blocking

    def load(self) -> Loaded:
        """Read everything, repair what can be, and be ready to write. What cannot be read is damaged.

        Raises NotAStore (nothing was ever here), Corrupt (no whole snapshot is left), UnknownFormat,
        DiskFailed."""
        snapshot = self._load_snapshot()
        hard_state, vote_is_whole = self._load_vote()
        replay = Replay(snapshot.index)
        scanned = self._scan_segments(replay)
        base_index, base_term, entries = replay.above(snapshot)
        damage = replay.damage
        if hard_state is None:
            damage = damage or "vote record"
            hard_state = HardState(max((entry.term for entry in entries), default=snapshot.term))
        last_term = entries[-1].term if entries else base_term
        if hard_state.term < last_term:
            damage = damage or "vote record older than the log"
        if damage:
            # A new doubt for each damage: what a leader believes of the old one is not true any more.
            doubt = self._rng.getrandbits(63) | 1
            hard_state = HardState(max(hard_state.term, last_term), hard_state.vote, doubt)
        if damage or not vote_is_whole:
            self.save_vote_now(hard_state)
        self._sequence = replay.sequence
        if scanned is None or replay.damage or not replay.contains_snapshot:
            self._superseded = [number for number, _ in self._segments]
            if replay.damage:  # the log anew begins at the snapshot
                entries = tuple(entry for entry in entries if entry.index > snapshot.index)
                base_index, base_term = snapshot.index, snapshot.term
            self._rewrite(snapshot.index + 1, entries)
        else:
            self._reopen(scanned, entries[-1].index + 1 if entries else base_index + 1)
        if self._vote is None:
            self._vote = self._disk.open(VOTE_NAME, VOTE_FILE_BYTES)
        return Loaded(hard_state, snapshot, base_index, base_term, entries, damage)

    def _load_snapshot(self) -> Snapshot:
        found: list[Snapshot | None] = []
        contents = [read_or_nothing(self._disk, name) for name in SNAPSHOT_NAMES]
        for content in contents:
            try:
                found.append(decode_snapshot(content) if content is not None else None)
            except Corrupt:
                found.append(None)
        whole = [snapshot for snapshot in found if snapshot is not None]
        if not whole:
            if any(content is not None for content in contents) or self._disk.names(FOLDER):
                raise Corrupt("control's snapshot", f"both copies in {self._disk.path}/{FOLDER}")
            raise NotAStore(self._disk.path, "it has no control log")
        newest = max(whole, key=lambda snapshot: snapshot.index)
        if any(snapshot != newest for snapshot in found):
            with suppress(NoSpace):  # it is whole once, and written twice again with the next
                self.save_snapshot(newest)
        return newest

    def _load_vote(self) -> tuple[HardState | None, bool]:
        """The newest state, and whether both slots have it."""
        content = read_or_nothing(self._disk, VOTE_NAME)
        generations, hard_state = decode_vote_slots(content or b"")
        self._generation = max(0, *generations)
        return hard_state, generations[0] == generations[1]

    def _scan_segments(self, replay: Replay) -> _Tail | None:
        """Replay every segment; where to go on writing, or None if there is no such place."""
        tail: _Tail | None = None
        names = [name for name in self._disk.names(FOLDER) if name.startswith(_SEGMENT_PREFIX)]
        for name in names:
            if not name.removeprefix(_SEGMENT_PREFIX).isdecimal():
                self._disk.remove(f"{FOLDER}/{name}")  # being made when the process was killed
                continue
            number = int(name.removeprefix(_SEGMENT_PREFIX))
            content = read_or_nothing(self._disk, segment_name(number)) or b""
            scanned = scan_segment(content, number)
            if scanned.header is None or not scanned.batches:
                if scanned.damaged or not content:
                    replay.on_damage(f"segment {number}")
                    self._segments.append((number, 0))
                else:
                    self._disk.remove(segment_name(number))  # made in advance and never used
                continue
            for batch in scanned.batches:
                replay.on_batch(batch, number)
            if scanned.damaged:
                replay.on_damage(f"segment {number} at {scanned.end}")
            self._segments.append((number, scanned.batches[0].next_index))
            last = content[scanned.last_offset : scanned.end]
            tail = _Tail(
                scanned.header, scanned.end, scanned.last_offset, last, not scanned.batches[-1].entries
            )
        if not replay.sequence:
            replay.on_damage("log, which is missing")
        return tail

    def _reopen(self, tail: _Tail, next_index: int) -> None:
        file = self._disk.open(segment_name(tail.header.number))
        file.write([Write(tail.last_offset, [tail.last])])
        self._current = _Segment(tail.header, file, self._segments[-1][1], tail.offset)
        self._last_is_mark = tail.last_is_mark
        if not tail.last_is_mark and tail.offset + batch_bytes(()) <= RAFT_SEGMENT_BYTES:
            self._write_now(Batch(self._sequence + 1, next_index))
            self._last_is_mark = True

    def _rewrite(self, next_index: int, entries: tuple[Entry, ...]) -> None:
        number = max(self._superseded, default=0) + 1
        self._segments = []
        self.begin_segment_now(number, Batch(self._sequence + 1, next_index, anew=True))
        for run in runs(entries):
            self._write_now(Batch(self._sequence + 1, run[0].index, run))
        if entries:
            self._write_now(Batch(self._sequence + 1, entries[-1].index + 1))

    def begin_segment_now(self, number: int, first: Batch) -> None:
        header = SegmentHeader(number, self._rng.getrandbits(64))
        file = self._disk.open(segment_name(number), RAFT_SEGMENT_BYTES)
        file.write([Write(0, [encode_segment_header(header)])])
        self._current = _Segment(header, file, first.next_index)
        self._segments.append((number, first.next_index))
        self._write_now(first)

    def _write_now(self, batch: Batch) -> None:
        current = self._current
        assert current is not None
        length = batch_bytes(batch.entries)
        if current.offset + length > RAFT_SEGMENT_BYTES:
            current.file.close()
            self.begin_segment_now(current.header.number + 1, batch)
            return
        current.file.write([Write(current.offset, [encode_batch(current.header, current.offset, batch)])])
        current.offset += length
        self._sequence = batch.sequence

    def save_vote_now(self, hard_state: HardState) -> None:
        self._vote = self._vote or self._disk.open(VOTE_NAME, VOTE_FILE_BYTES)
        self._generation += 1
        for slot in (0, 1):
            self._vote.write([_vote_write(slot, self._generation, hard_state)])


def _vote_write(slot: int, generation: int, hard_state: HardState) -> Write:
    return Write(slot * VOTE_FILE_BYTES // 2, [encode_vote_slot(slot, generation, hard_state)])


@dataclass(frozen=True, slots=True)
class _Tail:
    """The last batch of the last segment in use."""

    header: SegmentHeader
    offset: int  # of the next batch
    last_offset: int
    last: bytes  # as it is in the file
    last_is_mark: bool
