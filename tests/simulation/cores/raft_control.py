"""Control over the nodes' Raft group (`raft_member.py`): proposing, leading, and the bus that beats and
leases travel on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockstore import config
from blockstore.codec.control_record import Transaction, decode_command, encode_command
from blockstore.codec.messages import Heartbeat, LeaseGranted, Transact, Transacted
from blockstore.codec.raft_messages import RaftMessage
from blockstore.control.group_table import table_transaction, tables_due
from blockstore.control.voters import Candidate, Membership, next_membership
from blockstore.errors import BlockStoreError, DeadlineExceeded, NotLeader, TransactionConflict
from blockstore.ids import NodeId
from blockstore.runtime.interfaces import Answer
from tests.simulation.cores.control import ROUND_SECONDS, Leading, NodeControl, OnOutcome, address_of
from tests.simulation.cores.network import Incoming, Network
from tests.simulation.cores.raft_member import RaftDisk, RaftMember, RaftWitness, Saved
from tests.simulation.cores.tasks import Promise

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node

PAUSE_SECONDS = (0.01, 0.1)


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
