"""A member of the Raft group that keeps control: the real core, and in place of its shell a model of its
log's disk.

What is written is durable one write after the other, the vote before the entries that follow it; a crash
leaves a prefix of the write under way. (`tests/properties/raft_world.py` tries Raft alone, with damage to
the log; here it carries what the rest stands on.)"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blockstore.codec.raft_file import HardState
from blockstore.codec.raft_messages import COMMAND, Entry, Members, RaftMessage
from blockstore.consensus.log_view import LogView
from blockstore.consensus.membership import Membership
from blockstore.consensus.raft import Raft, Ready
from blockstore.errors import BlockStoreError, DeadlineExceeded, NotLeader, ProtocolViolation, QuorumLost
from blockstore.ids import NodeId
from tests.simulation.cores.process import Process

OnCommitted = Callable[[int | BlockStoreError], None]


@dataclass(frozen=True)
class Saved:
    """A snapshot of the state machine, and where in the log it belongs."""

    index: int
    term: int
    members: Members
    state: Any


@dataclass
class RaftDisk:
    hard: HardState
    saved: Saved
    base_index: int = 0
    base_term: int = 0
    entries: list[Entry] = field(default_factory=list[Entry])

    def write(self, hard: HardState | None, entries: list[Entry]) -> None:
        if hard is not None:
            self.hard = hard
        for entry in entries:
            del self.entries[entry.index - self.base_index - 1 :]
            assert entry.index == self.base_index + len(self.entries) + 1
            self.entries.append(entry)

    def compact(self, index: int) -> None:
        if index > self.base_index:
            self.base_term = self.entries[index - self.base_index - 1].term
            del self.entries[: index - self.base_index]
            self.base_index = index


class RaftWitness:
    """What the Raft paper's figure 3 claims, looked at over all members of one group."""

    def __init__(self) -> None:
        self.leaders: dict[int, NodeId] = {}
        self.chosen: dict[int, Entry] = {}
        self.committed = 0

    def on_elected(self, term: int, node: NodeId) -> None:
        assert self.leaders.setdefault(term, node) == node, (
            f"two leaders in term {term}: nodes {self.leaders[term]} and {node}"
        )

    def on_applied(self, entry: Entry) -> None:
        assert self.chosen.setdefault(entry.index, entry) == entry, (
            f"control applied two entries at index {entry.index}"
        )
        self.committed = max(self.committed, entry.index)


class RaftMember:
    """One run. The node calls `stop` when it crashes, and makes another to start again."""

    def __init__(
        self,
        me: NodeId,
        process: Process,
        disk: RaftDisk,
        witness: RaftWitness,
        *,
        send: Callable[[NodeId, RaftMessage], None],
        apply: Callable[[int, bytes], None],
        install: Callable[[Any], None],
        capture: Callable[[], Any],
        fetch: Callable[[NodeId, int, Callable[[Saved | None], None]], None],
        on_leadership: Callable[[bool], None],
        sync_seconds: float,
        log_max: int,
    ) -> None:
        self.me, self.process, self.disk, self.witness = me, process, disk, witness
        self._send, self._apply, self._install_state, self._capture = send, apply, install, capture
        self._fetch, self._on_leadership = fetch, on_leadership
        self._sync_seconds, self._log_max = sync_seconds, log_max
        self.applied = disk.saved.index
        self.is_leader = False
        self._waiting: dict[int, tuple[int, OnCommitted]] = {}
        self._hard: HardState | None = None
        self._entries: list[Entry] = []
        self._writing: tuple[HardState | None, list[Entry]] | None = None
        self._fetching = False
        self._fetched: Saved | None = None
        self._woken_for = 0.0
        install(disk.saved.state)
        log = LogView(disk.base_index, disk.base_term, disk.entries)
        membership = Membership(disk.saved.index, disk.saved.members, disk.entries)
        rng = random.Random(process.rng.getrandbits(64))
        self.core = Raft(me, disk.hard, log, membership, disk.saved.index, rng, process.now())

    def start(self) -> None:
        self._carry_out(self.core.start(self.process.now()))

    def stop(self) -> None:
        """A crash: part of what was being written is there."""
        rng = self.process.rng
        if self._writing is not None and rng.random() < 0.7:
            hard, entries = self._writing
            self.disk.write(hard, entries[: rng.randint(0, len(entries))])

    # --- what others see

    @property
    def lease_until(self) -> float:
        return self.core.lease_until if self.is_leader else 0.0

    def lag_of(self, node: NodeId) -> int:
        leading = self.core.leading
        if leading is None:
            return 0
        if node == self.me:
            return max(0, self.applied - self.core.log.persisted)
        progress = leading.progress.get(node)
        return self.applied - (0 if progress is None or progress.doubt else progress.match)

    def receive(self, sender: NodeId, message: RaftMessage) -> None:
        try:
            ready = self.core.receive(sender, message, self.process.now())
        except ProtocolViolation as violation:
            raise AssertionError(
                f"node {self.me} refused a message of node {sender}: {violation}"
            ) from violation
        self._carry_out(ready)

    def propose(self, command: bytes, on_committed: OnCommitted) -> None:
        try:
            ready = self.core.propose([command], self.process.now())
        except BlockStoreError as error:  # NotLeader, Busy
            on_committed(error)
            return
        (entry,) = ready.persist
        self._waiting[entry.index] = (entry.term, on_committed)
        self._carry_out(ready)

    def change_members(self, voters: frozenset[NodeId], learners: frozenset[NodeId]) -> None:
        try:
            ready = self.core.change_members(voters, learners, self.process.now())
        except BlockStoreError:
            return
        self._carry_out(ready)

    def snapshot(self) -> Saved:
        term = self.core.log.term_at(self.applied)
        assert term is not None
        return Saved(self.applied, term, self.core.membership.at(self.applied), self._capture())

    # --- what the shell does

    def _carry_out(self, ready: Ready) -> None:
        core = self.core
        for to, message in ready.send:
            self._send(to, message)
        self._hard = ready.hard_state or self._hard
        self._entries += ready.persist
        for index in ready.commit:
            self._apply_entry(core.log.entry(index))
        if ready.fetch_snapshot is not None and not self._fetching:
            self._fetching = True
            self._fetch(*ready.fetch_snapshot, self._on_fetched)
        self._notice_leadership()
        self._write()
        self._compact_if_due()
        self._wake()

    def _apply_entry(self, entry: Entry) -> None:
        assert entry.index == self.applied + 1, "applied out of order"
        assert entry.index <= self.disk.base_index + len(self.disk.entries), (
            "applied what is not durable here"
        )
        self.witness.on_applied(entry)
        if entry.kind == COMMAND:
            self._apply(entry.index, entry.payload)
        self.applied = entry.index
        waiting = self._waiting
        while waiting:
            index, (term, on_committed) = next(iter(waiting.items()))
            if (index, term) == (entry.index, entry.term):
                del waiting[index]
                on_committed(index)
            elif term < entry.term:
                del waiting[index]
                on_committed(NotLeader(self.core.leader))
            else:
                break

    def _notice_leadership(self) -> None:
        leading = self.core.leading
        if leading is not None:
            self.witness.on_elected(self.core.term, self.me)
        elif self.core.resigned_silent is not None and self._waiting:
            waiting, self._waiting = self._waiting, {}
            for _, on_committed in waiting.values():
                on_committed(QuorumLost("Control", *self.core.resigned_silent))
        leads = leading is not None and self.applied >= leading.first_index
        if leads != self.is_leader:
            self.is_leader = leads
            self._on_leadership(leads)

    def _write(self) -> None:
        if self._writing is not None:
            return
        if self._fetched is not None and self._hard is None and not self._entries:
            fetched, self._fetched = self._fetched, None
            self._install(fetched)
            return
        if self._hard is None and not self._entries:
            return
        self._writing = (self._hard, self._entries)
        self._hard, self._entries = None, []
        self.process.arrive(self._sync_seconds * (0.5 + self.process.rng.random()), self._written)

    def _written(self) -> None:
        assert self._writing is not None
        hard, entries = self._writing
        self._writing = None
        self.disk.write(hard, entries)
        self._carry_out(self.core.persisted(hard, entries[-1] if entries else None, self.process.now()))

    def _on_fetched(self, saved: Saved | None) -> None:
        self._fetching = False
        self._fetched = saved
        self._write()

    def _install(self, saved: Saved) -> None:
        core, disk = self.core, self.disk
        if not core.wants_snapshot(saved.index, saved.term):
            return
        disk.saved = saved
        ready, kept = core.snapshot_saved(saved.index, saved.term, saved.members, self.process.now())
        if kept:
            disk.compact(saved.index)
        else:
            disk.entries, disk.base_index, disk.base_term = [], saved.index, saved.term
        self._install_state(saved.state)
        self.applied = saved.index
        for index in [index for index in self._waiting if index <= saved.index]:
            self._waiting.pop(index)[1](DeadlineExceeded("another leader came"))
        self._carry_out(ready)

    def _compact_if_due(self) -> None:
        if self.applied - self.core.log.base_index <= self._log_max or self._writing or self._entries:
            return
        self.disk.saved = self.snapshot()
        self.core.compact(self.applied)
        self.disk.compact(self.applied)

    # --- time

    def _wake(self) -> None:
        """One timer is under way, for the earliest tick that was ever announced."""
        due = self.core.next_tick
        now = self.process.now()
        if self._woken_for <= now or due < self._woken_for:
            self._woken_for = max(due, now + 0.001)
            self.process.after(self._woken_for - now, self._tick, self._woken_for)

    def _tick(self, woken_for: float) -> None:
        if woken_for != self._woken_for:
            return  # a later timer stands for this one
        now = self.process.now()
        self._woken_for = 0.0
        if now >= self.core.next_tick:
            self._carry_out(self.core.tick(now))
        else:
            self._wake()


def first_disk(members: Members, state: Any) -> RaftDisk:
    return RaftDisk(HardState(), Saved(0, 0, members, state))


def joined_disk(saved: Saved) -> RaftDisk:
    """Of a node that was given a snapshot when it joined."""
    return RaftDisk(HardState(saved.term), saved, saved.index, saved.term)
