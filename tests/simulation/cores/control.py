"""Control on one node: its copy of the state, its lease, its way to change the state of all, and its turn
to lead.

The cores are the product's: state, views, commands, liveness, assignment, tables of groups, voters. What
they stand on is the Raft group of `raft_member.py` (`RaftControl`), or, where Raft is not the subject, one
register that is always right and never gone (`Register`, `RegisterControl`), whose copies lag all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blockstore import config
from blockstore.codec.control_record import Transaction, decode_command, encode_command
from blockstore.codec.messages import (
    Compare,
    FetchView,
    Heartbeat,
    LeaseGranted,
    NodeView,
    Transact,
    Transacted,
    View,
    VolumeView,
)
from blockstore.codec.raft_messages import RaftMessage
from blockstore.control import commands
from blockstore.control.assignment import Move, Mover
from blockstore.control.commands import Listening
from blockstore.control.group_table import table_transaction, tables_due
from blockstore.control.liveness import LeaseGranter, LeaseHolder, LiveSet
from blockstore.control.state import ControlState
from blockstore.control.views import CLUSTER, Views
from blockstore.control.voters import Candidate, Membership, next_membership
from blockstore.errors import (
    BlockStoreError,
    DeadlineExceeded,
    NotLeader,
    TransactionConflict,
    Unavailable,
)
from blockstore.ids import DiskId, NodeId, RequestId, SessionId
from blockstore.runtime.interfaces import Address, Answer
from tests.simulation.cores.network import Endpoint, Incoming, Network
from tests.simulation.cores.raft_member import RaftDisk, RaftMember, RaftWitness, Saved
from tests.simulation.cores.tasks import Promise

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node

DiskFacts = tuple[tuple[DiskId, ...], tuple[DiskId, ...]]
"""Of a node's disks, those that are suspect, and those that are full."""
OnOutcome = Callable[[int | BlockStoreError], None]
ROUND_SECONDS = config.HEARTBEAT_SECONDS / 2
PAUSE_SECONDS = (0.01, 0.1)


def address_of(number: int) -> Address:
    return Address(str(number), 1, "", f"host-{number}")


def listening(number: int) -> Listening:
    return Listening(str(number), 1, 2, "", f"host-{number}", b"")


class Leading:
    """What a leader does: leases for those it hears, owners for volumes. Decisions of `Mover`,
    `LeaseGranter`."""

    def __init__(
        self,
        process: Endpoint,
        views: Views,
        live: LiveSet,
        propose: Callable[[Transaction, OnOutcome], None],
        next_request: Callable[[], RequestId],
        on_moved: Callable[[tuple[Move, ...]], None],
        on_moving: Callable[[tuple[Move, ...]], None],
    ) -> None:
        self._on_moving = on_moving
        self.granter = LeaseGranter()
        self._mover = Mover(self.granter)
        self._process, self._views, self._live = process, views, live
        self._propose, self._next_request, self._on_moved = propose, next_request, on_moved
        self._term = 0  # counts leaderships: what was begun in an earlier one is not heard any more
        self._moving = False

    def on_elected(self) -> None:
        self._term += 1
        self._moving = False
        self.granter.on_elected(self._process.now())

    def on_deposed(self) -> None:
        self._term += 1
        self.granter.on_deposed()

    def assign(self) -> None:
        """Begin to move what must be moved, unless a move is under way."""
        now = self._process.now()
        if not self._moving:
            planned = self._mover.begin(self._views, self._live.live(now), self._next_request(), now)
            if planned is not None:
                self._moving = True
                self._on_moving(planned[0])
                self._settle(self._term, *planned)

    def _settle(self, term: int, moves: tuple[Move, ...], transaction: Transaction) -> None:
        """Until it is certain what became of the transaction."""

        def on_outcome(outcome: int | BlockStoreError) -> None:
            if term != self._term or isinstance(outcome, NotLeader):
                return  # deposed: that cleared all bars
            if isinstance(outcome, BlockStoreError) and not isinstance(outcome, TransactionConflict):
                self._process.after(ROUND_SECONDS, self._settle, term, moves, transaction)
                return
            if isinstance(outcome, int):
                self._on_moved(moves)
            self._mover.end(moves)
            self._moving = False

        if term == self._term:
            self._propose(transaction, on_outcome)


class NodeControl:
    """The copy, and what every node does with it; `propose`, `transact` and the beats' ways are the
    subclass's."""

    def __init__(self, node: Node, network: Network) -> None:
        self.node, self.network = node, network
        self.me = node.me
        self.state = ControlState()
        self.views = Views(self.state)
        self.live = LiveSet(self.me, node.now(), node.wall())
        self.holder = LeaseHolder()
        self.incarnation = 0
        self.is_started = False
        self.announced = Promise[None]()
        self._session = SessionId(node.rng.getrandbits(62))
        self._n_requests = 0
        self._waiting: list[Promise[None]] = []
        self._told: dict[NodeId, DiskFacts] = {}
        self._node_views: tuple[object, object, frozenset[NodeId], tuple[NodeView, ...]] | None = None

    # --- what the node asks

    @property
    def revision(self) -> int:
        return self.state.revision

    def lease_valid(self, now: float) -> bool:
        return bool(self.incarnation) and self.holder.is_valid(now, self.revision)

    def is_live(self, node: NodeId) -> bool:
        return self.live.is_live(node, self.node.now())

    def next_request(self) -> RequestId:
        self._n_requests += 1
        return RequestId(self._session, self._n_requests)

    def live_disks(self) -> frozenset[DiskId]:
        live = self.live.live(self.node.now())
        return frozenset(
            disk.disk for disk in self.views.disks() if disk.state == "active" and disk.node in live
        )

    def told_disks(self) -> tuple[frozenset[DiskId], frozenset[DiskId]]:
        """Disks that are suspect, and that are full, as the nodes that live told last."""
        live = self.live.live(self.node.now())
        told = [self.node.disk_facts(), *(facts for node, facts in self._told.items() if node in live)]
        suspect = frozenset(disk for facts in told for disk in facts[0])
        return suspect, frozenset(disk for facts in told for disk in facts[1])

    async def changed(self, after_revision: int) -> None:
        while self.revision <= after_revision:
            promise = Promise[None]()
            self._waiting.append(promise)
            await promise

    async def submit(self, transaction: Transaction, deadline: float) -> int:
        """As `Replica.submit`: this copy has it when it returns."""
        raise NotImplementedError

    async def transact(
        self,
        compares: Sequence[Compare],
        puts: Sequence[tuple[str, bytes]],
        *,
        request: RequestId,
        deadline: float,
    ) -> int:
        return await self.submit(Transaction(request, tuple(compares), tuple(puts)), deadline)

    async def reached(self, revision: int, deadline: float) -> None:
        while self.revision < revision:
            if self.node.now() >= deadline:
                raise DeadlineExceeded("this copy of control is behind")
            promise = Promise[None]()
            self._waiting.append(promise)
            self.node.after(0.1, promise.keep, None)
            await promise

    def on_changed(self, keys: Sequence[str] = ("node/", "volume/")) -> None:
        """These keys have changed; without any, all may have."""
        if not self.is_started:
            return
        waiting, self._waiting = self._waiting, []
        for promise in waiting:
            promise.keep(None)
        if any(key.startswith(("node/", "disk/")) for key in keys):
            self.node.update_table()
        if any(key.startswith("volume/") for key in keys):
            self.node.on_volumes_changed()

    # --- announcing, and time

    def start(self) -> None:
        self.is_started = True
        self.node.begin(self._announce())
        self._keep_time()

    def stop(self) -> None:
        """A crash."""

    async def _announce(self) -> None:
        request = self.next_request()
        node = self.node
        while not self.incarnation:
            revision = self.revision
            if self.views.node(self.me) is None:
                await self.changed(revision)
                continue
            start = commands.node_started(
                self.views, node=self.me, listening=listening(self.me), capacities={}, request=request
            )
            try:
                await self.submit(start, node.now() + config.OPERATION_SECONDS)
            except BlockStoreError:
                await node.sleep(config.HEARTBEAT_SECONDS)
            else:
                mine = self.views.node(self.me)
                assert mine is not None
                self.incarnation = mine.incarnation
                self.announced.keep(None)

    def _keep_time(self) -> None:
        if self.incarnation:
            self.beat()
        self.node.after(config.HEARTBEAT_SECONDS, self._keep_time)

    def beat(self) -> None:
        raise NotImplementedError

    def hear(self, sender: NodeId, message: Any) -> None:
        """What came over the bus."""
        raise NotImplementedError

    def heartbeat(self, now: float) -> Heartbeat:
        self.holder.on_asked(now)
        suspect, full = self.node.disk_facts()
        return Heartbeat(self.me, self.incarnation, now, suspect=suspect, full=full)

    def counts(self, sender: NodeId, beat: Heartbeat) -> bool:
        record = self.views.node(sender)
        if record is None or beat.node != sender or beat.incarnation < record.incarnation:
            return False
        node = self.node
        if not self.live.on_heartbeat(sender, beat.incarnation, node.now(), node.wall()):
            return False
        self._told[sender] = (beat.suspect, beat.full)
        return True

    # --- requests of others

    def handle(self, call: Incoming) -> bool:
        message = call.message
        if isinstance(message, FetchView):
            call.answer(self.view(message.volume))
            return True
        return False

    @property
    def leader(self) -> NodeId:
        return NodeId(0)

    def view(self, volume: str) -> View:
        views = self.views
        if not views.modified(CLUSTER):
            raise Unavailable("this copy of control is empty")
        live, all_nodes, all_disks = self.live.live(self.node.now()), views.nodes(), views.disks()
        known = self._node_views  # a revision that changed volumes alone leaves it as it is
        if known is None or known[0] is not all_nodes or known[1] is not all_disks or known[2] != live:
            nodes = tuple(
                NodeView(
                    one.node, one.host, one.port, "", one.host_id, one.zone, one.node in live,
                    tuple(disk.disk for disk in all_disks if disk.node == one.node),
                )
                for one in all_nodes
            )  # fmt: skip
            known = self._node_views = (all_nodes, all_disks, live, nodes)
        record = views.volume_by_name(volume) if volume else None
        found = None
        if record is not None:
            found = VolumeView(
                record.volume, record.name, record.kind, record.policy, record.epoch, record.owner
            )
        return View("sim", views.revision, self.leader, known[3], found)


# --- over Raft


class RaftControl(NodeControl):
    def __init__(
        self,
        node: Node,
        network: Network,
        disk: RaftDisk,
        witness: RaftWitness,
        others: Callable[[], list[Node]],
        sync_seconds: float,
        log_max: int,
    ) -> None:
        super().__init__(node, network)
        self._others = others
        self._outcomes: dict[int, int | TransactionConflict] = {}
        self.leads = Leading(
            node,
            self.views,
            self.live,
            self.commit_here,
            self.next_request,
            node.on_moved,
            node.world.on_moving,
        )
        self._is_leading = False
        self._rounds = 0
        self.raft = RaftMember(
            self.me, node, disk, witness,
            send=self._send_raft, apply=self._apply, install=self._install, capture=self.state.to_snapshot,
            fetch=self._fetch, on_leadership=self._on_leadership,
            sync_seconds=sync_seconds, log_max=log_max,
        )  # fmt: skip

    def start(self) -> None:
        self.raft.start()
        super().start()

    def stop(self) -> None:
        self.raft.stop()

    @property
    def leader(self) -> NodeId:
        return self.raft.core.leader

    # --- Raft

    def _send_raft(self, to: NodeId, message: RaftMessage) -> None:
        target = self.network.endpoints.get(address_of(to).host)
        if target is not None:
            self.network.tell(self.node, target, self.me, message)

    def _apply(self, index: int, command: bytes) -> None:
        try:
            applied = self.state.apply(decode_command(command))
        except TransactionConflict as conflict:
            self._outcomes[index] = conflict
        else:
            self._outcomes[index] = applied.revision
            if applied.changed:
                self.on_changed(applied.changed)
        if len(self._outcomes) > 100:
            del self._outcomes[next(iter(self._outcomes))]

    def _install(self, state: Any) -> None:
        self.state.restore(state)
        self.on_changed()

    def _fetch(self, source: NodeId, index: int, on_fetched: Callable[[Saved | None], None]) -> None:
        node, cut = self.node, self.network.cut
        target = next((other for other in self._others() if other.me == source), None)

        def ask() -> None:
            found: Saved | None = None
            if target is not None and (node.name, target.name) not in cut and target.is_up:
                control = target.control
                if isinstance(control, RaftControl) and not target.is_paused:
                    found = control.raft.snapshot()
            if found is not None and found.index < index:
                found = None
            node.arrive(0.01 if found else 0.1, on_fetched, found)

        node.arrive(0.005, ask)

    def commit_here(self, transaction: Transaction, on_outcome: OnOutcome) -> None:
        def on_committed(committed: int | BlockStoreError) -> None:
            if isinstance(committed, int):
                found = self._outcomes.get(committed)
                on_outcome(NotLeader(self.leader) if found is None else found)
            else:
                on_outcome(committed)

        self.raft.propose(encode_command(transaction), on_committed)

    async def submit(self, transaction: Transaction, deadline: float) -> int:
        node = self.node
        leader = self.leader
        while node.now() < deadline:
            if not leader:
                leader = self.leader or node.rng.choice([one.node for one in self.views.nodes()])
            outcome = await self._attempt(leader, transaction, deadline)
            if isinstance(outcome, int):
                await self.reached(outcome, deadline)
                return outcome
            if isinstance(outcome, TransactionConflict):
                raise outcome
            leader = NodeId(int(outcome.fields[0])) if isinstance(outcome, NotLeader) else NodeId(0)
            await node.sleep(node.rng.uniform(*PAUSE_SECONDS))
        raise DeadlineExceeded("control could not be changed in time")

    async def _attempt(
        self, leader: NodeId, transaction: Transaction, deadline: float
    ) -> int | BlockStoreError:
        node = self.node
        until = min(deadline, node.now() + config.ATTEMPT_SECONDS)
        if leader == self.me:
            promise = Promise[int | BlockStoreError]()
            self.commit_here(transaction, promise.keep)
            node.after(until - node.now(), promise.keep, DeadlineExceeded("too late"))
            return await promise
        answered = Promise[Answer | BlockStoreError]()
        message = Transact(transaction.request, transaction.compares, transaction.puts, transaction.deletes)
        self.network.post(node, address_of(leader), message, (), until, answered.keep)
        answer = await answered
        return answer if isinstance(answer, BlockStoreError) else int(answer.message.revision)

    def handle(self, call: Incoming) -> bool:
        message = call.message
        if not isinstance(message, Transact):
            return super().handle(call)

        def on_outcome(outcome: int | BlockStoreError) -> None:
            if isinstance(outcome, int):
                call.answer(Transacted(outcome))
            else:
                call.fail(outcome)

        self.commit_here(
            Transaction(message.request, message.compares, message.puts, message.deletes), on_outcome
        )
        return True

    # --- leading

    def _on_leadership(self, leads: bool) -> None:
        self._is_leading = leads
        if leads:
            self.node.say("leads control in term {}", self.raft.core.term)
            self.leads.on_elected()
            self._rounds += 1
            self._lead(self._rounds)
        else:
            self.leads.on_deposed()

    def _lead(self, rounds: int) -> None:
        if not self._is_leading or rounds != self._rounds:
            return
        self.leads.assign()
        if self.node.rng.random() < 0.2:
            self._keep_members()
            self._keep_tables()
        self.node.after(ROUND_SECONDS, self._lead, rounds)

    def _keep_members(self) -> None:
        core, now = self.raft.core, self.node.now()
        candidates = [
            Candidate(
                record,
                self.live.is_live(record.node, now),
                self.live.silent_seconds(record.node, now),
                max(0, self.raft.lag_of(record.node)),
            )
            for record in self.views.nodes()
        ]
        now_in_force = Membership(core.membership.voters, core.membership.learners)
        wanted = next_membership(now_in_force, candidates, self.me)
        if wanted is not None:
            self.raft.change_members(wanted.voters, wanted.learners)

    def _keep_tables(self) -> None:
        for text in tables_due(self.views):
            self.commit_here(table_transaction(self.views, text, self.next_request()), lambda _: None)

    # --- the bus

    def beat(self) -> None:
        now = self.node.now()
        beat = self.heartbeat(now)
        for other in self._others():
            if other is not self.node:
                self.network.tell(self.node, other, self.me, beat)
        self._grant(self.me, now, now)

    def _grant(self, to: NodeId, asked: float, now: float) -> None:
        seconds = self.leads.granter.grant(to, now, self.raft.lease_until)
        if seconds is None:
            return
        if to == self.me:
            self.holder.on_granted(asked, seconds, self.revision)
        else:
            granted = LeaseGranted(asked, seconds, self.raft.core.term, self.revision)
            self.network.tell(self.node, self.network.endpoints[address_of(to).host], self.me, granted)

    def hear(self, sender: NodeId, message: Any) -> None:
        if isinstance(message, Heartbeat):
            if self.counts(sender, message) and self.raft.is_leader:
                self._grant(sender, message.asked, self.node.now())
        elif isinstance(message, LeaseGranted):
            self.holder.on_granted(message.asked, message.seconds, message.revision)
        else:
            self.raft.receive(sender, message)


# --- over one register


class Register(Endpoint):
    """Control as if it were one process that never dies: the state, its log for the copies, and the leader's
    work. `forget` is a change of leader: the new one knows of no lease."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.is_up = True
        self.address = address_of(0)
        self.state = ControlState()
        self.views = Views(self.state)
        self.log: list[Transaction] = []
        self.n_first = 0  # of them, those that every copy has from the beginning
        self.live = LiveSet(NodeId(0), self.now(), 0.0)
        self._n_requests = 0
        self.on_moving: Callable[[tuple[Move, ...]], None] = lambda moves: None
        self.network: Network | None = None
        self.leads = Leading(
            self, self.views, self.live, self.commit, self._next_request, lambda _: None, self._on_moving
        )

    def _next_request(self) -> RequestId:
        self._n_requests += 1
        return RequestId(SessionId(1), self._n_requests)

    def _on_moving(self, moves: tuple[Move, ...]) -> None:
        self.on_moving(moves)

    def begin_leading(self) -> None:
        self.n_first = len(self.log)
        self.leads.on_elected()
        self._round()

    def forget(self) -> None:
        self.leads.on_elected()

    def _round(self) -> None:
        self.leads.assign()
        self.after(2 * ROUND_SECONDS, self._round)

    def commit(self, transaction: Transaction, on_outcome: OnOutcome) -> None:
        try:
            applied = self.state.apply(transaction)
        except TransactionConflict as conflict:
            on_outcome(conflict)
            return
        if applied.changed:
            self.log.append(transaction)
        on_outcome(applied.revision)

    def receive(self, call: Incoming) -> None:
        message = call.message
        assert isinstance(message, Transact)

        def on_outcome(outcome: int | BlockStoreError) -> None:
            if isinstance(outcome, int):
                call.answer(Transacted(outcome))
            else:
                call.fail(outcome)

        self.commit(Transaction(message.request, message.compares, message.puts, message.deletes), on_outcome)

    def hear(self, sender: NodeId, message: Heartbeat) -> None:
        record = self.views.node(sender)
        now = self.now()
        if record is None or message.incarnation < record.incarnation:
            return
        if not self.live.on_heartbeat(sender, message.incarnation, now, 0.0):
            return
        seconds = self.leads.granter.grant(sender, now, now + 1.0)
        if seconds is not None and self.network is not None:
            target = self.network.endpoints[address_of(sender).host]
            granted = LeaseGranted(message.asked, seconds, 1, self.state.revision)
            self.network.tell(self, target, NodeId(0), granted)


class RegisterControl(NodeControl):
    """A copy that is brought up to date now and then; between two runs of a node nothing of it is kept."""

    def __init__(
        self, node: Node, network: Network, register: Register, others: Callable[[], list[Node]]
    ) -> None:
        super().__init__(node, network)
        self._register, self._others = register, others
        self._n_applied = 0
        self._follows = False
        n_first = register.n_first
        self.catch_up(node.rng.randint(n_first, max(n_first, len(register.log))))

    @property
    def leader(self) -> NodeId:
        return NodeId(0)

    def catch_up(self, n: int) -> None:
        """Learn up to `n` more transactions."""
        log = self._register.log
        until = min(len(log), self._n_applied + n)
        if until == self._n_applied:
            return
        while self._n_applied < until:
            self.state.apply(log[self._n_applied])
            self._n_applied += 1
        self.on_changed()

    @property
    def is_behind(self) -> bool:
        return self._n_applied < len(self._register.log)

    def follow(self) -> None:
        """Something is new: hear of it some time."""
        if not self._follows:
            self._follows = True
            self.node.arrive(0.01, self._learn)

    def _learn(self) -> None:
        self._follows = False
        self.catch_up(self.node.rng.choice((1, 1, 100)))
        if self.is_behind:
            self.follow()

    async def submit(self, transaction: Transaction, deadline: float) -> int:
        node = self.node
        message = Transact(transaction.request, transaction.compares, transaction.puts, transaction.deletes)
        while node.now() < deadline:
            answered = Promise[Answer | BlockStoreError]()
            until = min(deadline, node.now() + config.ATTEMPT_SECONDS)
            self.network.post(node, self._register.address, message, (), until, answered.keep)
            answer = await answered
            if isinstance(answer, Answer):
                revision = int(answer.message.revision)
                self.catch_up(revision)
                await self.reached(revision, deadline)
                return revision
            if isinstance(answer, TransactionConflict):
                raise answer
        raise DeadlineExceeded("control could not be changed in time")

    def beat(self) -> None:
        now = self.node.now()
        beat = self.heartbeat(now)
        self.network.tell(self.node, self._register, self.me, beat)
        for other in self._others():
            if other is not self.node and self.node.rng.random() < 0.3:
                self.network.tell(self.node, other, self.me, beat)

    def _keep_time(self) -> None:
        if self.is_behind:
            self.follow()
        super()._keep_time()

    def hear(self, sender: NodeId, message: Any) -> None:
        if isinstance(message, Heartbeat):
            self.counts(sender, message)
        elif isinstance(message, LeaseGranted):
            self.holder.on_granted(message.asked, message.seconds, message.revision)
