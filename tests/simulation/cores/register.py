"""Control over one register that is always right and never gone, for worlds whose subject is not Raft. The
nodes' copies lag behind it all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockstore import config
from blockstore.codec.control_record import Transaction
from blockstore.codec.messages import Heartbeat, LeaseGranted, Transact, Transacted
from blockstore.control.assignment import Move
from blockstore.control.liveness import LiveSet
from blockstore.control.state import ControlState
from blockstore.control.views import Views
from blockstore.errors import BlockStoreError, DeadlineExceeded, TransactionConflict
from blockstore.ids import NodeId, RequestId, SessionId
from blockstore.runtime.interfaces import Answer
from tests.simulation.cores.control import ROUND_SECONDS, Leading, NodeControl, OnOutcome, address_of
from tests.simulation.cores.network import Endpoint, Incoming, Network
from tests.simulation.cores.tasks import Promise

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node


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
