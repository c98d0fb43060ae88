"""A group of Raft cores under an event heap: one seed decides network, disks, clocks and faults.

Messages are lost, doubled, delayed and reordered; links are cut, in one direction too; members stop and lose
what was not synced, pause, find their log or vote damaged, take snapshots, join and leave. Each clock has its
own rate. While it runs, every claim of the Raft paper's figure 3 is checked over all members; a read must see
what was committed before it was asked for; and nobody is elected while another holds a lease.

The disk is a model: what was synced, and at most one write under way, of which a crash leaves a prefix.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from blockstore.codec.raft_file import HardState
from blockstore.codec.raft_messages import (
    COMMAND,
    MEMBERS,
    NOBODY,
    AppendAnswer,
    Entry,
    Members,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    VoteAnswer,
    decode_message,
    encode_message,
)
from blockstore.consensus.log_view import LogView
from blockstore.consensus.membership import Membership
from blockstore.consensus.raft import Raft, Ready
from blockstore.errors import Busy, InvalidRequest, NotLeader
from blockstore.ids import NodeId

FAULTS = (
    *("crash", "start", "start", "cut", "one-way", "heal", "pause", "compact", "resign"),
    *("damage", "betray", "betray", "member", "all"),
)

State = tuple[tuple[int, bytes], ...]
"""The state machine: every command it was given, with its index."""


@dataclass(frozen=True)
class Saved:
    index: int
    term: int
    members: Members
    state: State


@dataclass
class ModelDisk:
    hard: HardState
    saved: Saved
    entries: list[Entry] = field(default_factory=list[Entry])  # consecutive; the first follows the base
    base_index: int = 0
    base_term: int = 0
    damaged: bool = False

    def write(self, hard: HardState | None, entries: list[Entry]) -> None:
        if hard is not None:
            self.hard = hard
        for entry in entries:
            del self.entries[entry.index - self.base_index - 1 :]
            assert entry.index == self.base_index + len(self.entries) + 1
            self.entries.append(entry)

    def membership(self) -> Membership:
        return Membership(self.saved.index, self.saved.members, self.entries)

    def begin_anew(self, saved: Saved) -> None:
        self.entries, self.base_index, self.base_term = [], saved.index, saved.term

    def compact(self, index: int) -> None:
        if index > self.base_index:
            self.base_term = self.entries[index - self.base_index - 1].term
            del self.entries[: index - self.base_index]
            self.base_index = index


class SimNode:
    def __init__(self, world: World, me: NodeId, disk: ModelDisk) -> None:
        self.world, self.me, self.disk = world, me, disk
        self.rate = 1 + world.rng.uniform(-0.004, 0.004)
        self.offset = world.rng.uniform(0, 100)
        self.core: Raft | None = None
        self.life = 0
        self.paused: deque[Callable[[], None]] | None = None

    def clock(self) -> float:
        return self.world.now * self.rate + self.offset

    def start(self) -> None:
        disk, rng = self.disk, self.world.rng
        if disk.damaged:
            disk.damaged = False
            disk.hard = HardState(disk.hard.term, disk.hard.vote, rng.getrandbits(60) | 1)
        self.life += 1
        self.state = disk.saved.state
        self.applied = disk.saved.index
        self.hard: HardState | None = None
        self.entries: list[Entry] = []
        self.writing: tuple[HardState | None, list[Entry]] | None = None
        self.fetched: Saved | None = None
        self.fetching = False
        self.reads: dict[int, int] = {}
        self.proposed: dict[int, tuple[int, bytes]] = {}
        log = LogView(disk.base_index, disk.base_term, disk.entries)
        membership = disk.membership()
        self.core = Raft(
            self.me, disk.hard, log, membership, disk.saved.index, random.Random(rng.random()), self.clock()
        )
        self.was_leading = False
        self.carry_out(self.core.start(self.clock()))
        self.wake()

    def start_if_down(self) -> None:
        if self.core is None:
            self.start()

    def crash(self) -> None:
        """What was being written is there in part, in order; what was not begun is not."""
        rng = self.world.rng
        if self.writing is not None and rng.random() < 0.7:
            hard, entries = self.writing
            self.disk.write(hard, entries[: rng.randint(0, len(entries))])
        self.core, self.paused = None, None
        self.life += 1

    def run(self, step: Callable[[], None]) -> None:
        """Unless we are down; later, if we are paused."""
        if self.core is None:
            return
        if self.paused is not None:
            self.paused.append(step)
        else:
            step()

    def resume(self) -> None:
        waiting, self.paused = self.paused, None
        for step in waiting or ():
            self.run(step)

    def wake(self) -> None:
        core, life = self.core, self.life
        assert core is not None

        def tick() -> None:
            if life == self.life:
                if self.clock() >= core.next_tick:
                    self.carry_out(core.tick(self.clock()))
                self.wake()

        wait = max(0.001, min(0.1, core.next_tick - self.clock())) / self.rate
        self.world.after(wait, lambda: self.run(tick))

    def receive(self, sender: NodeId, body: bytes) -> None:
        assert self.core is not None
        self.carry_out(self.core.receive(sender, decode_message(body), self.clock()))

    def propose(self, commands: list[bytes]) -> None:
        assert self.core is not None
        try:
            ready = self.core.propose(commands, self.clock())
        except (NotLeader, Busy):
            return
        self.proposed |= {entry.index: (entry.term, entry.payload) for entry in ready.persist}
        self.carry_out(ready)

    def read(self) -> None:
        assert self.core is not None
        number = self.world.rng.getrandbits(62)
        self.reads[number] = self.world.committed
        self.carry_out(self.core.read([number], self.clock()))

    def resign(self) -> None:
        assert self.core is not None
        self.carry_out(self.core.resign(self.clock()))

    def change(self, voters: frozenset[NodeId], learners: frozenset[NodeId]) -> bool:
        assert self.core is not None
        try:
            self.carry_out(self.core.change_members(voters, learners, self.clock()))
        except (NotLeader, Busy, InvalidRequest):
            return False
        return True

    def check_promise(self, to: NodeId, message: RaftMessage) -> None:
        """Nothing is said that is not on our disk."""
        disk = self.disk
        if isinstance(message, PreVote | PreVoteAnswer):
            return
        assert message.term <= disk.hard.term
        if isinstance(message, VoteAnswer) and message.granted:
            assert disk.hard.vote == to
        if isinstance(message, AppendAnswer):
            assert message.match <= disk.base_index + len(disk.entries)

    def check_self(self) -> None:
        core, disk = self.core, self.disk
        assert core is not None
        at = core.log.persisted - disk.base_index
        assert at >= 0
        assert core.log.term_at(core.log.persisted) == (disk.entries[at - 1].term if at else disk.base_term)
        entries = core.log.entries_from(core.log.base_index + 1)
        last = next((entry.index for entry in reversed(entries) if entry.kind == MEMBERS), 0)
        assert last in (0, core.membership.index) or last < self.disk.saved.index
        assert core.membership.index <= core.log.last_index

    # --- what the shell does

    def carry_out(self, ready: Ready) -> None:
        core, world = self.core, self.world
        assert core is not None
        for to, message in ready.send:
            self.check_promise(to, message)
            world.carry(self.me, to, encode_message(message))
        self.hard = ready.hard_state or self.hard
        self.entries += ready.persist
        for entry in ready.persist:
            world.check_log_matching(core, entry)
        for index in ready.commit:
            entry = core.log.entry(index)
            assert index == self.applied + 1
            assert index <= self.disk.base_index + len(self.disk.entries), "applied what is not durable here"
            self.applied = index
            if entry.kind == COMMAND:
                self.state = (*self.state, (index, entry.payload))
            world.check_state_machine_safety(core.term, entry)
            if index in self.proposed:
                term, payload = self.proposed.pop(index)
                if term == entry.term:
                    world.acknowledged[index] = payload
        for number, index in ready.reads:
            if number in self.reads:
                assert index >= self.reads.pop(number), "stale read"
                world.n_reads += 1
        if ready.fetch_snapshot is not None and not self.fetching:
            self.fetch(*ready.fetch_snapshot)
        if (core.leading is not None) and not self.was_leading:
            world.check_elected(self)
        self.was_leading = core.leading is not None
        self.check_self()
        self.write()

    def write(self) -> None:
        core, life = self.core, self.life
        assert core is not None
        if self.writing is not None:
            return
        if self.fetched is not None and self.hard is None and not self.entries:
            fetched, self.fetched = self.fetched, None
            self.install(fetched)
            return
        if self.hard is None and not self.entries:
            return
        self.writing = (self.hard, self.entries)
        self.hard, self.entries = None, []

        def done() -> None:
            if life != self.life or self.writing is None:
                return
            hard, entries = self.writing
            self.writing = None
            self.disk.write(hard, entries)
            assert self.core is not None
            self.carry_out(self.core.persisted(hard, entries[-1] if entries else None, self.clock()))

        slow = self.world.rng.random() < 0.02
        wait = self.world.rng.uniform(0.0005, 0.4 if slow else 0.005)
        self.world.after(wait, lambda: self.run(done))
        self.world.after(self.world.rng.uniform(0, 2 * wait), lambda: self.world.mishap(self, life))

    def fetch(self, source: NodeId, index: int) -> None:
        life = self.life
        self.fetching = True

        def arrive(saved: Saved) -> None:
            if life == self.life:
                self.fetching = False
                self.fetched = saved
                self.write()

        def fail() -> None:
            if life == self.life:
                self.fetching = False

        found = self.world.nodes[source]
        if found.core is None or not self.world.connected(self.me, source):
            self.world.after(0.1, lambda: self.run(fail))
            return
        saved = found.snapshot()
        assert saved.index >= index
        self.world.after(self.world.rng.uniform(0.001, 0.3), lambda: self.run(lambda: arrive(saved)))

    def snapshot(self) -> Saved:
        assert self.core is not None
        term = self.core.log.term_at(self.applied)
        assert term is not None
        return Saved(self.applied, term, self.core.membership.at(self.applied), self.state)

    def install(self, saved: Saved) -> None:
        core = self.core
        assert core is not None
        if not core.wants_snapshot(saved.index, saved.term):
            return
        self.disk.saved = saved
        ready, kept = core.snapshot_saved(saved.index, saved.term, saved.members, self.clock())
        if kept:
            self.disk.compact(saved.index)
        else:
            self.disk.begin_anew(saved)
        self.state, self.applied = saved.state, saved.index
        self.carry_out(ready)

    def compact(self) -> None:
        core = self.core
        assert core is not None
        if self.applied > self.disk.saved.index and self.writing is None and not self.entries:
            self.disk.saved = self.snapshot()
            keep = max(core.log.base_index, self.applied - self.world.rng.randint(0, 5))
            core.compact(keep)
            self.disk.compact(keep)


class World:
    def __init__(self, seed: int, n_voters: int, *, faults: bool = True) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.loss = self.rng.choice((0.0, 0.02, 0.2))
        self.doubling = self.rng.choice((0.0, 0.1))
        self.delay = self.rng.choice((0.001, 0.01, 0.05))
        self.very_late = self.rng.choice((0.0, 0.01))
        self.crashes = self.rng.choice((0.0, 0.003, 0.02))
        self.damages = self.rng.choice((0.0, 0.3))
        self.flaps = self.rng.choice((False, False, True))
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.committed = 0
        self.chosen: dict[int, tuple[int, Entry]] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.followed: dict[tuple[int, int], tuple[int, Entry]] = {}
        self.leaders: dict[int, NodeId] = {}
        self.n_reads = 0
        self.n_proposed = 0
        self.faults = faults
        voters = tuple(NodeId(n) for n in range(1, n_voters + 1))
        self.nodes: dict[NodeId, SimNode] = {}
        for node in voters:
            self.add(node, Saved(0, 0, Members(voters), ()), HardState())
        for sim in self.nodes.values():
            sim.start()

    def add(self, node: NodeId, saved: Saved, hard: HardState) -> SimNode:
        disk = ModelDisk(hard, saved, [], saved.index, saved.term)
        self.nodes[node] = SimNode(self, node, disk)
        return self.nodes[node]

    # --- time and network

    def after(self, wait: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + wait, next(self.order), what))

    def run_until(self, when: float) -> None:
        while self.events and self.events[0][0] <= when:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = when

    def connected(self, sender: NodeId, to: NodeId) -> bool:
        return (sender, to) not in self.cut

    def carry(self, sender: NodeId, to: NodeId, body: bytes) -> None:
        assert len(body) < 64 * 1024
        copies = 2 if self.rng.random() < self.doubling else 1

        def arrive() -> None:
            target = self.nodes[to]
            target.run(lambda: target.receive(sender, body))

        for _ in range(copies):
            if to in self.nodes and self.connected(sender, to) and self.rng.random() >= self.loss:
                late = self.rng.uniform(0.1, 2.0) if self.rng.random() < self.very_late else 0.0
                self.after(self.rng.expovariate(1 / self.delay) + late, arrive)

    # --- what must always hold

    def check_log_matching(self, core: Raft, entry: Entry) -> None:
        """Entries with one index and term are equal and follow equals: by induction, so are all before."""
        before = core.log.term_at(entry.index - 1)
        assert before is not None
        known = self.followed.setdefault((entry.index, entry.term), (before, entry))
        assert known == (before, entry), "log matching"

    def check_state_machine_safety(self, term: int, entry: Entry) -> None:
        """`term` is that of the member which applies it: it was committed in this one or before."""
        assert self.chosen.setdefault(entry.index, (term, entry))[1] == entry, "state machine safety"
        self.committed = max(self.committed, entry.index)

    def check_elected(self, node: SimNode) -> None:
        core = node.core
        assert core is not None
        assert self.leaders.setdefault(core.term, node.me) == node.me, "election safety"
        assert core.doubt == 0
        for index, (term, entry) in self.chosen.items():
            if term < core.term and index >= core.log.base_index:
                assert core.log.term_at(index) == entry.term, "leader completeness"
        for other in self.nodes.values():
            if other.core is not None and other.core.term < core.term:
                assert other.clock() >= other.core.lease_until, "elected while another held the lease"

    # --- faults and clients

    def live(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.core is not None]

    def leader(self) -> SimNode | None:
        """The leader of the latest term."""
        leading = [node for node in self.live() if node.core is not None and node.core.leading is not None]
        return max(leading, key=lambda node: node.core.term if node.core else 0, default=None)

    def unsound(self) -> set[NodeId]:
        return {n.me for n in self.nodes.values() if n.disk.damaged or n.disk.hard.doubt}

    def mishap(self, node: SimNode, life: int) -> None:
        """Just before or after a write ends: the moments at which forgetting hurts most."""
        if not self.faults or life != node.life or self.rng.random() >= self.crashes:
            return
        node.crash()
        if self.rng.random() < self.damages:
            self.damage(node)
        self.after(self.rng.choice((0.01, 0.1, 0.5)), node.start_if_down)

    def flap(self, node: NodeId, other: NodeId, times: int) -> None:
        """A link that comes and goes."""
        if times and self.faults:
            self.cut ^= {(node, other), (other, node)}
            self.after(self.rng.uniform(0.1, 0.8), lambda: self.flap(node, other, times - 1))

    def betray(self) -> None:
        """One member misses what the others commit; one of those forgets it; then the leader is cut off."""
        leader = self.leader()
        voters = sorted(leader.core.membership.voters - {leader.me}) if leader and leader.core else []
        if leader is None or len(voters) < 2:
            return
        forgetful, behind = (self.nodes[node] for node in self.rng.sample(voters, 2))
        self.cut |= {(leader.me, behind.me), (behind.me, leader.me)}

        def strike() -> None:
            if self.faults:
                self.damage(forgetful)
                self.cut = {
                    (a, b) for a in self.nodes for b in self.nodes if (a == leader.me) != (b == leader.me)
                }
                self.after(self.rng.uniform(0.0, 0.2), forgetful.start_if_down)

        self.after(self.rng.uniform(0.2, 1.5), strike)

    def one_fault(self) -> None:
        rng = self.rng
        if self.flaps and rng.random() < 0.5:
            leader = self.leader()
            if leader is not None:
                self.flap(leader.me, rng.choice(list(self.nodes)), 4)
            return
        node = rng.choice(list(self.nodes.values()))
        other = rng.choice(list(self.nodes.values()))
        match rng.choice(FAULTS):
            case "crash":
                if node.core is not None:
                    node.crash()
            case "all":
                if rng.random() < 0.3:
                    for each in self.live():
                        each.crash()
                        each.start()
            case "start":
                for each in self.nodes.values():
                    if each.core is None:
                        each.start()
                        break
            case "cut":
                side = {n for n in self.nodes if rng.random() < 0.5}
                self.cut |= {(a, b) for a in self.nodes for b in self.nodes if (a in side) != (b in side)}
            case "one-way":
                self.cut.add((node.me, other.me))
            case "heal":
                self.cut.clear()
            case "pause":
                if node.core is not None and node.paused is None:
                    node.paused = deque()
                    self.after(rng.uniform(0.05, 2.0), node.resume)
            case "compact":
                if node.core is not None and node.paused is None:
                    node.compact()
            case "resign":
                for each in self.live():
                    each.resign()
            case "damage":
                self.damage(node)
            case "betray":
                self.betray()
            case _:
                for _ in range(rng.choice((1, 1, 3))):
                    self.change_members()

    def damage(self, node: SimNode) -> None:
        """Part of its log rots, or its vote record: found when it starts. A majority stays sound."""
        leader = self.leader()
        if leader is None or leader.core is None:
            return
        voters = leader.core.membership.voters
        if len(voters - self.unsound() - {node.me}) * 2 <= len(voters):
            return
        known = [each.disk.membership() for each in self.nodes.values()]
        known += [each.core.membership for each in self.nodes.values() if each.core is not None]
        if any(membership.voters != voters for membership in known):
            return  # a change may be under way, to fewer
        if node.core is not None:
            node.crash()
        node.disk.damaged = True
        if self.rng.random() < 0.5:
            keep = self.rng.randint(0, len(node.disk.entries))
            lost = node.disk.entries[keep:]
            del node.disk.entries[keep:]
            if lost and node.disk.saved.index > node.disk.base_index + keep:
                node.disk.begin_anew(node.disk.saved)
        else:
            last = node.disk.entries[-1].term if node.disk.entries else node.disk.base_term
            node.disk.hard = HardState(last, NOBODY, node.disk.hard.doubt)

    def has_sound_majority(self, voters: frozenset[NodeId]) -> bool:
        """Otherwise the group would be lost for good, whatever Raft does."""
        return len(voters - self.unsound()) * 2 > len(voters)

    def change_members(self) -> None:
        leader = self.leader()
        if leader is None or leader.core is None or leader.paused is not None:
            return
        membership = leader.core.membership
        voters, learners = membership.voters, membership.learners
        choices: list[tuple[str, NodeId]] = [("promote", node) for node in sorted(learners)]
        if len(voters) > 2:
            choices += [("remove", node) for node in sorted(voters)]
        if len(self.nodes) < 7:
            choices.append(("join", NodeId(len(self.nodes) + 1)))
        what, node = self.rng.choice(choices) if choices else ("", NOBODY)
        match what:
            case "promote" if len(voters) < 5 and self.has_sound_majority(voters | {node}):
                leader.change(voters | {node}, learners - {node})
            case "remove" if self.has_sound_majority(voters - {node}):
                leader.change(voters - {node}, learners)
            case "join":
                if leader.applied and leader.change(voters, learners | {node}):
                    saved = leader.snapshot()
                    self.add(node, saved, HardState(saved.term)).start()
            case _:
                pass

    def client(self) -> None:
        for node in self.live():
            if node.paused is not None:
                continue
            if node.core is not None and node.core.leading is not None:
                n = self.rng.randint(1, 3)
                node.propose([b"%d" % (self.n_proposed + i) for i in range(n)])
                self.n_proposed += n
            elif self.rng.random() < 0.3:
                node.read()
            if self.rng.random() < 0.1:
                node.read()

    def run(self, seconds: float) -> None:
        """With clients and faults."""
        end = self.now + seconds
        while self.now < end:
            self.run_until(self.now + self.rng.uniform(0.02, 0.2))
            self.client()
            if self.faults and self.rng.random() < 0.35:
                self.one_fault()

    def recover(self, seconds: float) -> None:
        """All faults end; within `seconds` everything must be as it should."""
        self.faults = False
        self.cut.clear()
        self.loss = 0.0
        for node in list(self.nodes.values()):
            if node.paused is not None:
                node.resume()
            if node.core is None:
                node.start()
        end = self.now + seconds
        while self.now < end:
            self.run_until(self.now + 0.25)
            leader = self.leader()
            if leader is not None and leader.core is not None:
                leader.propose([b"last"])
            if self.is_whole():
                return
        raise AssertionError("no progress after the faults ended")

    def is_whole(self) -> bool:
        """One leader, and everything that was acknowledged is in every member, once and in order."""
        leader = self.leader()
        if leader is None or leader.core is None or leader.me not in leader.core.membership.voters:
            return False
        members = leader.core.membership.everybody
        state = dict(leader.state)
        if b"last" not in state.values() or any(state.get(i) != p for i, p in self.acknowledged.items()):
            return False
        everybody = [self.nodes[node] for node in sorted(members)]
        return all(
            node.core is not None
            and node.core.doubt == 0
            and node.core.leader == leader.me
            and node.state == leader.state[: len(node.state)]
            and node.applied >= leader.applied - 5
            for node in everybody
        )
