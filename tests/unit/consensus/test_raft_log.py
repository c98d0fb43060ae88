"""The log on disk: power cut at every step, and every block of it rotten once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

import pytest

from blockstore.codec.raft_file import BLOCK_BYTES, HardState, Snapshot
from blockstore.codec.raft_messages import COMMAND, NOOP, Entry, Members
from blockstore.consensus import raft_log, raft_replay
from blockstore.consensus.raft_log import Loaded, RaftLog, create, is_created, segment_name
from blockstore.errors import AlreadyExists, BlockStoreError, Corrupt, DiskFailed, NotAStore
from blockstore.ids import KiB, NodeId
from blockstore.runtime.sim.disk import PowerLost, SimDisk

MEMBERS = Members((NodeId(1), NodeId(2), NodeId(3)))
SEGMENT_BYTES = 48 * KiB


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment holds ten batches of one block."""
    monkeypatch.setattr(raft_log, "RAFT_SEGMENT_BYTES", SEGMENT_BYTES)
    monkeypatch.setattr(raft_replay, "RAFT_BATCH_BYTES_MAX", 16 * KiB)


def new_disk(seed: int = 0) -> SimDisk:
    disk = SimDisk(random.Random(seed))
    create(disk, Snapshot(0, 0, MEMBERS, b"start"), 0, random.Random(seed))
    return disk


def opened(disk: SimDisk, seed: int = 0) -> tuple[RaftLog, Loaded]:
    log = RaftLog(disk, random.Random(seed))
    return log, log.load()


def entry(index: int, term: int, payload: bytes = b"x") -> Entry:
    return Entry(index, term, COMMAND, payload)


@dataclass(frozen=True)
class Known:
    """What a log must say: the model."""

    hard_state: HardState
    snapshot: Snapshot
    entries: tuple[Entry, ...] = ()  # above the snapshot

    @property
    def last(self) -> tuple[int, int]:
        return (
            (self.entries[-1].index, self.entries[-1].term)
            if self.entries
            else (self.snapshot.index, self.snapshot.term)
        )


def known(loaded: Loaded) -> Known:
    above = tuple(entry for entry in loaded.entries if entry.index > loaded.snapshot.index)
    return Known(loaded.hard_state, loaded.snapshot, above)


class Driver:
    """Does one random thing after the other. `states` are all that a load may find now."""

    def __init__(self, disk: SimDisk, rng: random.Random) -> None:
        self.disk, self.rng = disk, rng
        self.log, loaded = opened(disk)
        self.now = known(loaded)
        self.states: list[Known] = [self.now]
        self.compacted = 0

    def do(self, then: Known, run: Callable[[Callable[[BlockStoreError | None], None]], None]) -> None:
        outcome: list[BlockStoreError | None] = []
        run(outcome.append)
        self.disk.settle()
        assert outcome == [None]
        self.now, self.states = then, [then]

    def append(self, entries: tuple[Entry, ...]) -> None:
        kept = [old for old in self.now.entries if old.index < entries[0].index]
        lengths = range(len(entries) + 1)
        self.states = [self.now, *(replace(self.now, entries=(*kept, *entries[:n])) for n in lengths)]
        self.do(self.states[-1], lambda done: self.log.append(entries, done))

    def run(self) -> NoReturn:
        while True:
            self.step()

    def step(self) -> None:
        rng, now = self.rng, self.now
        last, term = now.last
        match rng.choice(
            ("append", "append", "append", "long", "replace", "vote", "snapshot", "install", "mark")
        ):
            case "append":
                self.append(tuple(entry(last + n, term) for n in range(1, rng.randint(2, 4))))
            case "long":
                self.append(
                    tuple(entry(last + n, term, rng.randbytes(9_000)) for n in range(1, rng.randint(2, 5)))
                )
            case "replace" if now.entries:
                first = rng.choice(now.entries).index
                hard = replace(now.hard_state, term=term + 1)
                self.states = [now, replace(now, hard_state=hard)]
                self.do(self.states[-1], lambda done: self.log.save_vote(hard, done))
                self.append((Entry(first, term + 1, NOOP), entry(first + 1, term + 1)))
            case "vote":
                hard = HardState(now.hard_state.term + 1, NodeId(rng.randint(0, 3)))
                self.states = [now, replace(now, hard_state=hard)]
                self.do(self.states[-1], lambda done: self.log.save_vote(hard, done))
            case "snapshot" if now.entries:
                at = rng.choice(now.entries)
                taken = Snapshot(at.index, at.term, MEMBERS, rng.randbytes(10))
                then = replace(
                    now, snapshot=taken, entries=tuple(e for e in now.entries if e.index > at.index)
                )
                self.states = [now, then]
                self.log.save_snapshot(taken)
                self.now, self.states = then, [then]
                self.log.drop_below(max(1, at.index - 2))
                self.disk.settle()
            case "install":
                installed = Snapshot(last + rng.randint(-1, 3), term + 1, MEMBERS, b"installed")
                if installed.index <= now.snapshot.index:
                    return
                hard = replace(now.hard_state, term=max(term + 1, now.hard_state.term))
                self.states = [now, replace(now, hard_state=hard)]
                self.do(self.states[-1], lambda done: self.log.save_vote(hard, done))
                then = Known(hard, installed)
                self.states = [self.now, then]
                self.log.save_snapshot(installed)
                self.states = [then]
                self.do(then, lambda done: self.log.begin_anew(installed.index + 1, done))
                self.log.drop_below(installed.index + 1)
                self.disk.settle()
            case _:
                self.do(now, lambda done: self.log.mark(now.last[0] + 1, done))


@pytest.mark.parametrize("seed", range(60))
def test_power_may_fail_at_any_step_and_what_was_acknowledged_is_there(seed: int) -> None:
    """Also while it recovers from the failure before."""
    rng = random.Random(seed)
    disk = new_disk(seed)
    driver = Driver(disk, rng)
    for _ in range(12):
        disk.cut_after(rng.randint(0, 60))
        with pytest.raises(PowerLost):
            driver.run()
        allowed = driver.states
        for _ in range(rng.randint(0, 2)):
            disk.crash(rng)
            disk.cut_after(rng.randint(0, 6))
            try:
                opened(disk, seed)
            except PowerLost:
                continue
            break
        disk.crash(rng)
        driver = Driver(disk, rng)
        assert driver.log.is_idle
        assert driver.now in allowed


def filled() -> tuple[SimDisk, Known]:
    """Three segments, a snapshot, entries below and above it, some replaced; idle, so the last batch is
    marked."""
    disk = new_disk()
    log, _ = opened(disk)

    def wait(error: BlockStoreError | None) -> None:
        assert error is None

    log.save_vote(HardState(1, NodeId(2)), wait)
    disk.settle()
    for index in range(1, 21):
        log.append([entry(index, 1)], wait)
        disk.settle()
    log.save_snapshot(Snapshot(15, 1, MEMBERS, b"fifteen"))
    log.save_vote(HardState(2, NodeId(3)), wait)
    disk.settle()
    log.append([entry(18, 2), entry(19, 2)], wait)
    disk.settle()
    log.append([entry(20, 2)], wait)
    disk.settle()
    log.mark(21, wait)
    disk.settle()
    log.close()
    return disk, known(opened(disk)[1])


def test_after_a_restart_the_log_is_as_it_was() -> None:
    disk, state = filled()
    assert [e.term for e in state.entries] == [1, 1, 2, 2, 2]
    assert state.hard_state == HardState(2, NodeId(3))
    loaded = opened(disk)[1]
    assert loaded.damage == ""
    assert (loaded.base_index, loaded.base_term) == (1, 1)  # what lies below the snapshot is kept for others


def test_any_one_bad_block_is_harmless_or_noticed() -> None:
    """Never is an entry, a vote or the snapshot silently another, or gone."""
    names = [f"raft/{name}" for name in filled()[0].names("raft")]
    noticed = 0
    for name in names:
        size = len(filled()[0].read_file(name) or b"")
        for block in range(0, size, BLOCK_BYTES):
            disk, state = filled()
            for at in range(block, min(block + 64, size)):
                disk.flip(name, at, 0xFF)
            loaded = opened(disk)[1]
            if loaded.damage:
                noticed += 1
                assert loaded.hard_state.doubt
                again = opened(disk)[1]  # and it is not forgotten
                assert (again.hard_state, again.damage) == (loaded.hard_state, "")
            else:
                assert known(loaded) == state, (name, block)
    assert noticed >= 6  # batches above the snapshot; all else has a second copy, or is not needed


def test_the_entries_before_a_bad_batch_are_kept_and_nothing_after_is_believed() -> None:
    disk, state = filled()
    offset = (disk.read_file(segment_name(2)) or b"").find(b"RBAT")
    numbers = [name for name in disk.names("raft") if name.startswith("segment")]
    assert len(numbers) == 3
    disk.flip(segment_name(2), offset + 8 * BLOCK_BYTES + 50)
    loaded = opened(disk)[1]
    assert loaded.damage
    found = known(loaded).entries
    assert found
    assert len(found) < len(state.entries)
    log, loaded = opened(disk)
    outcome: list[BlockStoreError | None] = []
    last = loaded.entries[-1].index
    log.append([entry(last + 1, 2)], outcome.append)
    disk.settle()
    assert outcome == [None]
    assert known(opened(disk)[1]).entries == (*found, entry(last + 1, 2))


def appended(disk: SimDisk, *entries: Entry) -> None:
    """Each with its own sync, and then killed: the log had no time to fall idle."""
    log, _ = opened(disk)
    for one in entries:
        log.append([one], lambda error: None)
        disk.settle()


def test_a_restart_marks_the_last_batch_so_that_its_rot_is_noticed() -> None:
    disk = new_disk()
    appended(disk, entry(1, 1), entry(2, 1))
    opened(disk)
    disk.flip(segment_name(1), entry_offset(disk, 1, 2, 1) + 50)
    assert opened(disk)[1].damage


def test_a_lost_replacement_at_a_segment_s_end_is_noticed() -> None:
    """Without it the entries that it replaced would still fit to those that follow."""
    disk = new_disk()
    hard = HardState(9)
    log, _ = opened(disk)
    log.save_vote(hard, lambda error: None)
    disk.settle()
    appended(disk, *(entry(n, 1) for n in range(1, 9)), entry(8, 2))
    appended(disk, *(entry(n, 2) for n in range(9, 14)))
    assert entry_offset(disk, 1, 8, 2) == SEGMENT_BYTES - BLOCK_BYTES
    disk.overwrite(segment_name(1), SEGMENT_BYTES - BLOCK_BYTES, bytes(BLOCK_BYTES))
    assert opened(disk)[1].damage


def entry_offset(disk: SimDisk, segment: int, index: int, term: int) -> int:
    """Of the batch that holds just this entry; 0 if it is not there."""
    content = disk.read_file(segment_name(segment)) or b""
    wanted = index.to_bytes(8, "little") + term.to_bytes(8, "little")
    for at in range(2 * BLOCK_BYTES, len(content), BLOCK_BYTES):
        if content[at : at + 4] == b"RBAT" and content[at + 40 : at + 56] == wanted:
            return at
    return 0


def test_a_bad_vote_slot_is_mended_and_two_bad_ones_are_doubt() -> None:
    disk, state = filled()
    disk.flip("raft/vote", 20)
    assert opened(disk)[1].hard_state == state.hard_state
    disk.flip("raft/vote", BLOCK_BYTES + 20)
    loaded = opened(disk)[1]
    assert loaded.hard_state == state.hard_state  # the first was written again
    disk.flip("raft/vote", 20)
    disk.flip("raft/vote", BLOCK_BYTES + 20)
    loaded = opened(disk)[1]
    assert loaded.damage == "vote record"
    assert loaded.hard_state.doubt
    assert loaded.hard_state.term == 2  # at least that of the log


def test_a_bad_snapshot_is_mended_from_its_copy_and_two_bad_ones_are_an_error() -> None:
    disk, state = filled()
    for name in raft_log.SNAPSHOT_NAMES:
        disk.flip(name, 50)
        assert known(opened(disk)[1]) == state
    for name in raft_log.SNAPSHOT_NAMES:
        disk.flip(name, 50)
    with pytest.raises(Corrupt):
        opened(disk)


def test_what_cannot_be_read_is_damaged() -> None:
    disk, state = filled()
    disk.make_unreadable(raft_log.SNAPSHOT_NAMES[0], 50)
    assert known(opened(disk)[1]) == state
    disk.make_unreadable("raft/vote", 20)
    loaded = opened(disk)[1]
    assert (loaded.damage, bool(loaded.hard_state.doubt)) == ("vote record", True)
    assert opened(disk)[1].damage == "", "both slots were written anew"
    last = max(name for name in disk.names("raft") if name.startswith("segment"))
    disk.make_unreadable(f"raft/{last}", 0)
    loaded = opened(disk)[1]
    assert loaded.damage == f"segment {int(last.removeprefix('segment-'))}"
    assert loaded.hard_state.doubt


def test_a_missing_log_is_doubt() -> None:
    disk, _ = filled()
    for name in disk.names("raft"):
        if name.startswith("segment"):
            disk.remove(f"raft/{name}")
    loaded = opened(disk)[1]
    assert loaded.damage
    assert loaded.entries == ()


def test_a_missing_segment_is_doubt() -> None:
    disk, _ = filled()
    disk.remove(segment_name(2))
    assert opened(disk)[1].damage


def test_an_empty_directory_is_no_store() -> None:
    disk = SimDisk(random.Random(0))
    assert not is_created(disk)
    with pytest.raises(NotAStore):
        opened(disk)


def test_a_log_is_created_once() -> None:
    with pytest.raises(AlreadyExists):
        create(new_disk(), Snapshot(0, 0, MEMBERS, b""), 0, random.Random(0))


@pytest.mark.parametrize("n_steps", range(14))
def test_creating_it_may_be_cut_short_and_repeated(n_steps: int) -> None:
    disk = SimDisk(random.Random(n_steps))
    disk.cut_after(n_steps)
    try:
        create(disk, Snapshot(5, 2, MEMBERS, b"five"), 2, random.Random(0))
    except PowerLost:
        disk.crash()
    if not is_created(disk):
        create(disk, Snapshot(5, 2, MEMBERS, b"five"), 2, random.Random(0))
    loaded = opened(disk)[1]
    assert (loaded.hard_state, loaded.snapshot.data, loaded.damage) == (HardState(2), b"five", "")


def test_after_a_failed_sync_nothing_more_is_acknowledged() -> None:
    disk = new_disk()
    log, _ = opened(disk)
    outcome: list[BlockStoreError | None] = []
    disk.inject("sync", DiskFailed("sim", "broken"))
    log.append([entry(1, 1)], outcome.append)
    disk.settle()
    log.append([entry(2, 1)], outcome.append)
    disk.settle()
    assert [type(error) for error in outcome] == [DiskFailed, DiskFailed]


def test_the_last_batch_is_durable_before_it_counts_after_a_restart() -> None:
    """A failed sync may leave pages that can be read but were never stored, and that the next sync skips."""
    for seed in range(20):
        disk = new_disk(seed)
        log, _ = opened(disk)
        disk.inject("sync", DiskFailed("sim", "broken"))
        log.append([entry(1, 1)], lambda error: None)
        disk.settle()
        found = opened(disk)[1]
        disk.crash()
        assert opened(disk)[1].entries == found.entries


def test_a_segment_that_was_being_made_does_not_keep_the_log_from_loading() -> None:
    """The real disk makes a file under another name; a process killed then leaves it."""
    disk, state = filled()
    disk.open(f"{segment_name(9)}.new", BLOCK_BYTES).close()
    assert known(opened(disk)[1]) == state
    assert f"{segment_name(9)}.new".removeprefix("raft/") not in disk.names("raft")


def test_on_a_full_disk_the_log_waits_for_room_and_goes_on() -> None:
    disk = new_disk()
    log, _ = opened(disk)
    room = disk.capacity_bytes
    disk.capacity_bytes -= disk.free_bytes()
    written: list[Entry] = []
    outcome: list[BlockStoreError | None] = []
    while not log.waits_for_room:
        written.append(entry(len(written) + 1, 1))
        log.append([written[-1]], outcome.append)
        disk.settle()
    assert outcome == [None] * (len(written) - 1)  # the last is not acknowledged
    log.try_again()
    disk.settle()
    assert log.waits_for_room
    disk.capacity_bytes = room
    log.try_again()
    disk.settle()
    assert not log.waits_for_room
    assert outcome == [None] * len(written)
    disk.crash()
    assert opened(disk)[1].entries == tuple(written)


@pytest.mark.parametrize("n_entries", range(1, 12))
def test_a_full_disk_does_not_keep_the_log_from_loading(n_entries: int) -> None:
    """Wherever in its segment the last batch is: one that ends it has no room for its mark."""
    disk = new_disk()
    log, _ = opened(disk)
    entries = tuple(entry(index, 1) for index in range(1, n_entries + 1))
    for one in entries:
        log.append([one], lambda error: None)
        disk.settle()
    log.close()
    disk.capacity_bytes -= disk.free_bytes()
    for _ in range(3):
        disk.crash()
        log, loaded = opened(disk)
        assert loaded.entries == entries
        log.close()
    disk.capacity_bytes *= 2
    log, _ = opened(disk)
    if log.wants_mark:
        outcome: list[BlockStoreError | None] = []
        log.mark(n_entries + 1, outcome.append)
        disk.settle()
        assert outcome == [None]
    assert opened(disk)[1].entries == entries
