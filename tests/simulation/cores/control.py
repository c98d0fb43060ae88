"""Control on one node: its copy of the state, its lease, its way to change the state of all, and its turn
to lead.

The cores are the product's: state, views, commands, liveness, assignment, tables of groups, voters. What
they stand on is the nodes' Raft group (raft_control.py) or, where Raft is not the subject, one register
(register.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blockstore import config
from blockstore.codec.control_record import Transaction
from blockstore.codec.messages import (
    Compare,
    FetchView,
    Heartbeat,
    NodeView,
    View,
    VolumeView,
)
from blockstore.control import commands
from blockstore.control.assignment import Move, Mover
from blockstore.control.commands import Listening
from blockstore.control.liveness import LeaseGranter, LeaseHolder, LiveSet
from blockstore.control.state import ControlState
from blockstore.control.views import CLUSTER, Views
from blockstore.errors import (
    BlockStoreError,
    DeadlineExceeded,
    NotLeader,
    TransactionConflict,
    Unavailable,
)
from blockstore.ids import DiskId, NodeId, RequestId, SessionId
from blockstore.runtime.interfaces import Address
from tests.simulation.cores.network import Endpoint, Incoming, Network
from tests.simulation.cores.tasks import Promise

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node

DiskFacts = tuple[tuple[DiskId, ...], tuple[DiskId, ...]]
"""Of a node's disks, those that are suspect, and those that are full."""
OnOutcome = Callable[[int | BlockStoreError], None]
ROUND_SECONDS = config.HEARTBEAT_SECONDS / 2


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
