"""This node's copy of the control state, and the way to change the state of all.

Reading is local and never waits; the copy is a moment behind the leader's. A change is proposed here when
this node leads, and sent to the leader over a lane otherwise. It is repeated under the same request id, by
whoever leads then, until it is known what became of it, for the state applies a request once. When `submit`
returns, this copy has it.

A copy that starts is old or empty until the leader tells it what is committed. So that it can find the
others before that, and knows whom to let in, the members' records are kept in a small file beside the log:
`known` reads that until the copy has come as far itself.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence

import trio

from blockstore import config
from blockstore.codec.control_record import (
    SnapshotContent,
    SnapshotItem,
    Transaction,
    decode_command,
    decode_snapshot,
    encode_command,
    encode_snapshot,
)
from blockstore.codec.messages import (
    Compare,
    ControlSnapshot,
    FetchControlSnapshot,
    Transact,
    Transacted,
)
from blockstore.consensus.raft_shell import RaftNode
from blockstore.control.state import ControlState, check_transaction
from blockstore.control.views import CLUSTER, Views
from blockstore.control.watches import Watches
from blockstore.errors import (
    BlockStoreError,
    Corrupt,
    DeadlineExceeded,
    NoSpace,
    NotLeader,
    PermissionDenied,
    ProtocolViolation,
    TransactionConflict,
    Unavailable,
    UnknownFormat,
)
from blockstore.ids import NodeId, RequestId, SessionId
from blockstore.runtime.interfaces import Address, Clock, Disk, Network
from blockstore.runtime.unreadable import read_or_nothing

log = logging.getLogger("blockstore.control")

MEMBERS_FILES = ("control-members", "control-members-copy")
"""The same in both, for rot: a node that knows no peer hears none, so it would stay alone."""
_MEMBER_PREFIXES = (CLUSTER, "node/", "disk/", "credential/")

PAUSE_SECONDS_MIN = 0.01
PAUSE_SECONDS_MAX = 0.1
"""Between two attempts to find the leader: an election takes at least five of them."""


class Replica:
    def __init__(
        self,
        *,
        me: NodeId,
        disk: Disk,
        clock: Clock,
        rng: random.Random,
        network: Network,
        send: Callable[[NodeId, bytes], None],
        on_changed: Callable[[], None],
        on_leadership: Callable[[bool], None],
    ) -> None:
        self.me = me
        self.state = ControlState()
        self.views = Views(self.state)
        self._disk, self._clock, self._rng, self._network = disk, clock, rng, network
        self._on_changed = on_changed
        self._hints = Views(ControlState())
        self._members_written = 0
        self._members_wait = False  # for space
        self._watches = Watches()
        self._n_proposing = 0
        self._outcomes: dict[int, int | TransactionConflict] = {}  # by log index, while anybody waits
        self._session = SessionId(rng.getrandbits(63))
        self._n_requests = 0
        self.raft = RaftNode(
            me=me,
            disk=disk,
            clock=clock,
            rng=rng,
            send=send,
            fetch_snapshot=self._fetch_snapshot,
            apply=self._apply,
            take_snapshot=self._take_snapshot,
            install_snapshot=self._install_snapshot,
            on_leadership=on_leadership,
        )

    @property
    def leader(self) -> NodeId:
        """0: none known."""
        return self.raft.leader or NodeId(0)

    @property
    def revision(self) -> int:
        return self.state.revision

    @property
    def known(self) -> Views:
        """The copy, or before it has anything the members as they were last known."""
        return self.views if self.has_state else self._hints

    @property
    def has_state(self) -> bool:
        """Whether the leader has told this copy as much as this node knew when it last ran."""
        return self.state.modified(CLUSTER) > 0 and self.state.revision >= self._hints.revision

    def next_request(self) -> RequestId:
        """For a change that this node wants itself."""
        self._n_requests += 1
        return RequestId(self._session, self._n_requests)

    def load_members(self) -> None:
        """Corrupt or UnknownFormat if no copy is whole."""
        found = [read_or_nothing(self._disk, name) for name in MEMBERS_FILES]
        contents = [content for content in found if content is not None]
        whole: list[SnapshotContent] = []
        why: BlockStoreError | None = None
        for content in contents:
            try:
                whole.append(decode_snapshot(content))
            except (Corrupt, UnknownFormat) as error:
                why = error
        if whole:
            self._hints.state.restore(max(whole, key=lambda members: members.revision))
        elif why is not None:
            raise why
        if why is not None:
            log.warning("members_damaged why=%s", why)  # written anew when the leader is heard

    def save_members(self) -> None:
        """Keep the members' records if they have changed. On a full disk the older ones stay, which only make
        the next start slower: a node must not end for them. It is tried again with each call."""
        revision = self.state.revision
        if not self.has_state or not any(
            self._watches.has_changed(prefix, self._members_written) for prefix in _MEMBER_PREFIXES
        ):
            return
        try:
            write_members(self._disk, self.state)
        except NoSpace as error:
            if not self._members_wait:
                log.warning("members_not_kept why=%s", error)
            self._members_wait = True
            return
        self._members_wait = False
        self._members_written = revision

    # --- what Raft asks

    def _apply(self, index: int, command: bytes) -> None:
        try:
            applied = self.state.apply(decode_command(command))
        except TransactionConflict as conflict:
            outcome: int | TransactionConflict = conflict
        else:
            outcome = applied.revision
            if applied.changed:
                self._wake(self._watches.on_change(applied.revision, applied.changed))
                self._on_changed()
        if self._n_proposing:
            self._outcomes[index] = outcome

    def _take_snapshot(self) -> bytes:
        return encode_snapshot(self.state.to_snapshot())

    def _install_snapshot(self, index: int, data: bytes) -> None:
        self.state.restore(decode_snapshot(data))
        self._wake(self._watches.on_snapshot(self.state.revision))
        self._on_changed()

    async def _fetch_snapshot(self, node: NodeId, at_least: int) -> tuple[int, int, bytes]:
        address = self.address_of(node)
        if address is None:
            raise Unavailable(f"The address of node {node} is not known here.")
        deadline = self._clock.now() + config.OPERATION_SECONDS
        answer = await self._network.lane(address).call(FetchControlSnapshot(at_least), (), deadline)
        if not isinstance(answer.message, ControlSnapshot):
            raise ProtocolViolation(f"node {node} answered {type(answer.message).__name__} for a snapshot")
        data = bytes(answer.payload.view)
        answer.payload.release()
        return answer.message.index, answer.message.term, data

    # --- waiting

    async def changed(self, after_revision: int, prefix: str = "") -> int:
        """Return the revision once something under `prefix` changed, or may have, after `after_revision`."""
        await trio.lowlevel.checkpoint()
        while not self._watches.has_changed(prefix, after_revision):
            task = trio.lowlevel.current_task()
            self._watches.add(prefix, task)

            def abort(_: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._watches.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        return self.state.revision

    async def reached(self, revision: int, deadline: float) -> None:
        """Return once this copy is at `revision` or later."""
        if self.state.revision >= revision:
            return
        with trio.move_on_after(max(0.0, deadline - self._clock.now())):
            while self.state.revision < revision:
                await self.changed(self.state.revision)
        if self.state.revision < revision:
            raise DeadlineExceeded(
                f"This node's copy of control is at revision {self.state.revision}, not yet at {revision}."
            )

    async def catch_up(self, deadline: float) -> None:
        """Return once this copy has all that was committed before the call."""
        await self.raft.read_barrier(deadline)

    def _wake(self, waiters: Sequence[object]) -> None:
        for task in waiters:
            assert isinstance(task, trio.lowlevel.Task)
            trio.lowlevel.reschedule(task)

    # --- changing

    async def transact(
        self,
        compares: Sequence[Compare],
        puts: Sequence[tuple[str, bytes]],
        deletes: Sequence[str] = (),
        *,
        request: RequestId,
        deadline: float,
    ) -> int:
        return await self.submit(Transaction(request, tuple(compares), tuple(puts), tuple(deletes)), deadline)

    async def submit(self, transaction: Transaction, deadline: float) -> int:
        """The revision that has the transaction, and so has this copy. TransactionConflict: nothing happened.
        DeadlineExceeded: it is not known whether it did; the same request may be submitted again."""
        check_transaction(transaction)
        revision = await self._commit(transaction, deadline)
        await self.reached(revision, deadline)
        return revision

    async def _commit(self, transaction: Transaction, deadline: float) -> int:
        avoid: set[NodeId] = set()
        leader = self.leader
        last: BlockStoreError | None = None
        while self._clock.now() < deadline:
            if not leader or leader in avoid:
                leader = self.leader
            if not leader or leader in avoid:
                leader = self._some_other(avoid)
            try:
                if self.raft.is_leader or leader == self.me:
                    return await self.commit_here(transaction, deadline)
                return await self._commit_at(leader, transaction, deadline)
            except NotLeader as error:
                avoid.add(leader)
                hinted = NodeId(int(error.fields[0]))
                last, leader = error, NodeId(0)
                if hinted and hinted not in avoid:
                    leader = hinted
                    continue
            except TransactionConflict:
                raise
            except BlockStoreError as error:
                # A member whose copy of control lags does not list a node that just joined: not final either.
                if not error.retry and not isinstance(error, PermissionDenied):
                    raise
                avoid.add(leader)
                last, leader = error, NodeId(0)
            pause = self._rng.uniform(PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX)
            await self._clock.sleep_until(min(deadline, self._clock.now() + pause))
        why = f": {last}" if last is not None else "."
        raise DeadlineExceeded(f"Control could not be changed in time{why}")

    async def _commit_at(self, leader: NodeId, transaction: Transaction, deadline: float) -> int:
        address = self.address_of(leader)
        if address is None:
            raise NotLeader(0)
        until = min(deadline, self._clock.now() + config.ATTEMPT_SECONDS)
        message = Transact(transaction.request, transaction.compares, transaction.puts, transaction.deletes)
        answer = await self._network.lane(address).call(message, (), until)
        answer.payload.release()
        if not isinstance(answer.message, Transacted):
            raise ProtocolViolation(
                f"node {leader} answered {type(answer.message).__name__} to a transaction"
            )
        return answer.message.revision

    async def commit_here(self, transaction: Transaction, deadline: float) -> int:
        """Propose it as the leader; NotLeader when this node is none."""
        check_transaction(transaction)
        self._n_proposing += 1
        try:
            index = await self.raft.propose(encode_command(transaction), deadline)
            outcome = self._outcomes.pop(index, None)
        finally:
            self._n_proposing -= 1
            if not self._n_proposing:
                self._outcomes.clear()
        if outcome is None:
            raise NotLeader(self.leader)  # a snapshot took its place; whoever leads now knows the request
        if isinstance(outcome, TransactionConflict):
            raise TransactionConflict(*outcome.fields)
        return outcome

    def address_of(self, node: NodeId) -> Address | None:
        record = self.known.node(node)
        if record is None:
            return None
        return Address(record.host, record.port, record.unix, record.host_id)

    def _some_other(self, avoid: set[NodeId]) -> NodeId:
        """Any node may know who leads. When all were tried, all are tried again."""
        others = [record.node for record in self.known.nodes() if record.node != self.me]
        fresh = [node for node in others if node not in avoid]
        if not fresh:
            avoid.clear()
            fresh = others
        return self._rng.choice(fresh) if fresh else NodeId(0)


def write_members(disk: Disk, state: ControlState) -> None:
    items = tuple(
        SnapshotItem(key, item.value, item.modified)
        for prefix in _MEMBER_PREFIXES
        for key, item in state.prefixed(prefix)
    )
    content = encode_snapshot(SnapshotContent(state.revision, items, ()))
    for name in MEMBERS_FILES:
        disk.replace_file(name, content)
