"""A few Raft cores by hand: disks are instant unless held, messages wait until they are delivered."""

from __future__ import annotations

import random
from collections.abc import Iterable

from blockstore.codec.raft_file import HardState
from blockstore.codec.raft_messages import COMMAND, Entry, Members, RaftMessage
from blockstore.config import ELECTION_SECONDS_MAX
from blockstore.consensus.log_view import LogView
from blockstore.consensus.membership import Membership
from blockstore.consensus.raft import Raft, Ready
from blockstore.ids import NodeId

A, B, C, D, E = (NodeId(n) for n in range(1, 6))


def entries(*terms: int) -> tuple[Entry, ...]:
    """A log as the papers draw it: the term of each entry from index 1 on."""
    return tuple(Entry(index, term, COMMAND, b"%d.%d" % (index, term)) for index, term in enumerate(terms, 1))


class Group:
    def __init__(
        self, *nodes: NodeId, logs: dict[NodeId, tuple[int, ...]] | None = None, now: float = 0.0
    ) -> None:
        self.now = now
        self.members = Members(nodes)
        self.cores: dict[NodeId, Raft] = {}
        self.wire: list[tuple[NodeId, NodeId, RaftMessage]] = []
        self.hard: dict[NodeId, HardState] = {}
        self.applied: dict[NodeId, list[int]] = {node: [] for node in nodes}
        self.reads: dict[NodeId, dict[int, int]] = {node: {} for node in nodes}
        self.fetches: dict[NodeId, tuple[NodeId, int]] = {}
        self.cut: set[NodeId] = set()
        self.deaf: set[NodeId] = set()
        self.slow: dict[NodeId, list[Ready]] = {}  # nodes whose disk is held, and what it owes
        for node in nodes:
            terms = (logs or {}).get(node, ())
            self.add(node, HardState(max(terms, default=0)), entries(*terms))
        self.now += 1.0  # nobody has just started

    def add(self, node: NodeId, hard: HardState, log: Iterable[Entry] = ()) -> Raft:
        self.hard[node] = hard
        view = LogView(0, 0, log)
        membership = Membership(0, self.members, view.entries_from(1))
        core = Raft(node, hard, view, membership, 0, random.Random(node), self.now)
        self.cores[node] = core
        self.applied.setdefault(node, [])
        self.reads.setdefault(node, {})
        return core

    def restart(self, node: NodeId, hard: HardState | None = None, n_entries: int | None = None) -> Raft:
        """With what is durable, or with less of it."""
        core = self.cores[node]
        log = core.log.entries_from(1)[: core.log.persisted if n_entries is None else n_entries]
        self.applied[node] = []
        return self.add(node, hard or self.hard[node], log)

    def act(self, node: NodeId, ready: Ready) -> Ready:
        core = self.cores[node]
        self.wire += [(node, to, message) for to, message in ready.send]
        self.applied[node] += ready.commit
        self.reads[node] |= dict(ready.reads)
        if ready.fetch_snapshot is not None:
            self.fetches[node] = ready.fetch_snapshot
        if ready.hard_state is not None or ready.persist:
            if node in self.slow:
                self.slow[node].append(ready)
            else:
                self.hard[node] = ready.hard_state or self.hard[node]
                last = ready.persist[-1] if ready.persist else None
                self.act(node, core.persisted(ready.hard_state, last, self.now))
        return ready

    def sync(self, node: NodeId) -> None:
        """A held disk does what it owes."""
        for ready in self.slow.pop(node):
            self.hard[node] = ready.hard_state or self.hard[node]
            last = ready.persist[-1] if ready.persist else None
            self.act(node, self.cores[node].persisted(ready.hard_state, last, self.now))

    def receive(self, node: NodeId, sender: NodeId, message: RaftMessage) -> Ready:
        return self.act(node, self.cores[node].receive(sender, message, self.now))

    def deliver(self, rounds: int = 50) -> None:
        """All messages, and those they cause."""
        for _ in range(rounds):
            wire, self.wire = self.wire, []
            for sender, to, message in wire:
                if not {sender, to} & self.cut and to not in self.deaf and to in self.cores:
                    self.receive(to, sender, message)
            if not self.wire:
                return

    def tick(self, *nodes: NodeId) -> None:
        for node in nodes or tuple(self.cores):
            self.act(node, self.cores[node].tick(self.now))

    def pass_time(self, seconds: float) -> None:
        """In heartbeats, with messages delivered."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.05)
            self.tick()
            self.deliver()

    def elect(self, node: NodeId) -> Raft:
        """`node`'s election timer runs out first."""
        self.now += 2 * ELECTION_SECONDS_MAX
        for other, core in self.cores.items():
            if other != node:
                core.voting.delay_election(self.now)
        self.act(node, self.cores[node].tick(self.now))
        self.deliver()
        return self.cores[node]

    def propose(self, node: NodeId, *commands: bytes) -> Ready:
        return self.act(node, self.cores[node].propose(commands, self.now))

    def sent(self, kind: type[RaftMessage], sender: NodeId) -> list[tuple[NodeId, RaftMessage]]:
        """Waiting on the wire."""
        return [
            (to, message)
            for source, to, message in self.wire
            if source == sender and isinstance(message, kind)
        ]

    def terms(self, node: NodeId) -> tuple[int, ...]:
        return tuple(entry.term for entry in self.cores[node].log.entries_from(1))
