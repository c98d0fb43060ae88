"""Control on one node: its copy of the state, its heartbeat and lease, and, while it leads, what a leader
does.

`Control` is what the rest of a daemon holds. It wires the parts and decides nothing: the copy and its
changes are in
`replica_shell.py`, answers in `calls_shell.py`, a leader's work in `supervisor_shell.py`, and what is
decided in
`liveness.py`, `assignment.py`, `voters.py`, `health.py` and `commands.py`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence

import trio

from blockstore import config
from blockstore.codec.frame import BusWire
from blockstore.codec.messages import Compare, EventNotice, Heartbeat, LeaseGranted, RaftEnvelope
from blockstore.control import commands
from blockstore.control.admission import admit, listed_fingerprints
from blockstore.control.calls_shell import Calls
from blockstore.control.commands import Listening
from blockstore.control.events import EventLog
from blockstore.control.health import NodeFacts, Observed
from blockstore.control.liveness import LeaseHolder, LiveSet
from blockstore.control.replica_shell import Replica
from blockstore.control.supervisor_shell import Supervisor
from blockstore.control.views import Views, node_key
from blockstore.errors import BlockStoreError, TransactionConflict
from blockstore.ids import DiskId, NodeId, RequestId
from blockstore.runtime.interfaces import Bus, Clock, Disk, IncomingCall, Network, Peer

log = logging.getLogger("blockstore.control")

RESIGN_SECONDS_MAX = 0.5
"""Three messages and two syncs take a tenth of it; if one is lost, the others elect as after a crash."""
RESIGN_LOOK_SECONDS = 0.01

OnCredentials = Callable[[frozenset[str]], None]


class Control:
    def __init__(
        self,
        *,
        me: NodeId,
        disk: Disk,
        clock: Clock,
        rng: random.Random,
        bus: Bus,
        network: Network,
        release: str,
        facts: Callable[[], NodeFacts],
    ) -> None:
        self.me = me
        self.release = release
        self.on_credentials_changed: OnCredentials | None = None
        """Called with the fingerprints that are let in no more; their connections should be dropped."""
        self._clock, self._bus, self._facts = clock, bus, facts
        self._told_last: NodeFacts | None = None
        self._wire = BusWire()
        self._replica = Replica(
            me=me, disk=disk, clock=clock, rng=rng, network=network, send=self._send_raft,
            on_changed=self._on_changed, on_leadership=self._on_leadership,
        )  # fmt: skip
        self._live = LiveSet(me, clock.now(), clock.wall())
        self._holder = LeaseHolder()
        self._told: dict[NodeId, NodeFacts] = {}
        self._events = EventLog(me, clock.wall())
        self._supervisor = Supervisor(self._replica, clock, self._live, self.event)
        self._calls = Calls(self._replica, clock, self._events, self)
        self._incarnation = 0  # of this run; 0 until it is announced
        self._started = trio.Event()
        self._listed: frozenset[str] = frozenset()
        self._leading: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None

    # --- reading

    @property
    def views(self) -> Views:
        """This node's copy of the state, live."""
        return self._replica.views

    @property
    def known(self) -> Views:
        """The same, or before the copy has anything, the members as they were known when this node last
        ran."""
        return self._replica.known

    @property
    def revision(self) -> int:
        return self._replica.revision

    @property
    def leader(self) -> NodeId:
        """0: none known."""
        return self._replica.leader

    @property
    def is_leader(self) -> bool:
        return self._replica.raft.is_leader

    @property
    def voters(self) -> frozenset[NodeId]:
        return self._replica.raft.voters

    async def changed(self, after_revision: int, prefix: str = "") -> int:
        """Return the revision once something under `prefix` changed, or may have, after `after_revision`."""
        return await self._replica.changed(after_revision, prefix)

    async def catch_up(self, deadline: float) -> None:
        """Return once this copy has all that was committed before the call."""
        await self._replica.catch_up(deadline)

    async def started(self) -> None:
        """Return once this run of the node is announced: from then on it may hold a lease and own volumes."""
        await self._started.wait()

    # --- changing

    def next_request(self) -> RequestId:
        return self._replica.next_request()

    async def transact(
        self,
        compares: Sequence[Compare],
        puts: Sequence[tuple[str, bytes]],
        deletes: Sequence[str] = (),
        *,
        request: RequestId,
        deadline: float,
    ) -> int:
        """The revision that has the transaction, and so has this copy. TransactionConflict: nothing happened.
        DeadlineExceeded: it is not known whether it did; the same request may be submitted again."""
        return await self._replica.transact(compares, puts, deletes, request=request, deadline=deadline)

    async def resign(self) -> None:
        """Before this node stops: if it leads, let another lead first. Returns when one does, or after a
        moment."""
        if self.is_leader:
            self._replica.raft.resign()
            until = self._clock.now() + RESIGN_SECONDS_MAX
            while self.leader in (0, self.me) and self._clock.now() < until:
                await self._clock.sleep_until(self._clock.now() + RESIGN_LOOK_SECONDS)

    # --- who lives

    def lease_valid(self, now: float) -> bool:
        """Whether no other node can have been named owner of what this node's copy says it owns."""
        if not self._incarnation:
            return False
        if self._holder.is_valid(now, self.revision):
            return True
        return self.is_leader and len(self.views.nodes()) == 1  # there is nobody else

    def is_live(self, node: NodeId) -> bool:
        return self._live.is_live(node, self._clock.now())

    def may_live(self, node: NodeId) -> bool:
        """Live, or not yet heard of because this process has only just begun to listen."""
        return self._live.may_live(node, self._clock.now())

    def live_nodes(self) -> frozenset[NodeId]:
        return self._live.live(self._clock.now())

    def suspect_disks(self) -> frozenset[DiskId]:
        """Those that answered with an I/O error in the present run of their node."""
        return frozenset(disk for facts in self._all_facts() for disk in facts.suspect)

    def full_disks(self) -> frozenset[DiskId]:
        """Those that take no new chunks, but for what is needed to delete."""
        return frozenset(disk for facts in self._all_facts() for disk in facts.full)

    def _all_facts(self) -> list[NodeFacts]:
        """Of this node and the others alike, as of the last heartbeat: every volume asks many times a
        second."""
        own = self._told_last if self._told_last is not None else self._facts()
        return [own, *(self._told[node] for node in self.live_nodes() & self._told.keys())]

    def observed(self) -> Observed:
        """What this node sees around it, for status."""
        live = self.live_nodes()
        told = {**self._told, self.me: self._facts()}
        return Observed(live, told, self._live.last_heard_wall, self.leader, self.voters)

    # --- who is let in

    def peer_of_certificate(self, fingerprint: str, kind: str, name: str) -> Peer:
        """Who shows this certificate. PermissionDenied says what is wrong with it."""
        return admit(self.known, fingerprint, kind, name)

    def handle(self, call: IncomingCall) -> bool:
        """Take the call if it is for control, and answer it now or later."""
        return self._calls.handle(call)

    # --- events

    def event(self, code: str, text: str) -> None:
        """Something people want to know of, recorded here and told to every node."""
        log.info("event code=%s text=%r", code, text)
        when = self._clock.wall()
        self._events.add(self.me, when, code, text)
        self._bus.publish(self._wire.encode_bus(EventNotice(when, code, text[: config.EVENT_TEXT_CHARS_MAX])))
        self._calls.wake()

    # --- the bus

    def on_bus(self, sender: NodeId, message: bytes) -> None:
        """A message of an authenticated node."""
        try:
            decoded = self._wire.decode_bus(message)
            match decoded:
                case RaftEnvelope():
                    self._replica.raft.on_message(sender, decoded.body)
                case Heartbeat():
                    self._on_heartbeat(sender, decoded)
                case LeaseGranted():
                    self._holder.on_granted(decoded.asked, decoded.seconds, decoded.revision)
                case EventNotice():
                    self._events.add(sender, decoded.when, decoded.code, decoded.text)
                    self._calls.wake()
        except BlockStoreError as error:
            log.warning("bus_message_refused sender=%d why=%s", sender, error)

    def _send_raft(self, to: NodeId, body: bytes) -> None:
        self._bus.send(to, self._wire.encode_bus(RaftEnvelope(body)))

    def _on_heartbeat(self, sender: NodeId, beat: Heartbeat) -> None:
        now = self._clock.now()
        record = self.views.node(sender)
        if record is None or beat.node != sender or beat.incarnation < record.incarnation:
            return
        if not self._live.on_heartbeat(sender, beat.incarnation, now, self._clock.wall()):
            return
        self._told[sender] = NodeFacts(
            beat.used_bytes, beat.suspect, beat.owned, beat.under_protected, beat.damaged, beat.full
        )
        seconds = self._supervisor.grant(sender, now)
        if seconds is not None:
            granted = LeaseGranted(beat.asked, seconds, self._replica.raft.term, self.revision)
            self._bus.send(sender, self._wire.encode_bus(granted))

    def _beat(self) -> None:
        """Tell all that this node lives, and ask the leader for a lease: of itself, when that is this
        node."""
        now, facts = self._clock.now(), self._facts()
        self._told_last = facts
        self._holder.on_asked(now)
        beat = Heartbeat(
            self.me,
            self._incarnation,
            now,
            facts.used_bytes,
            facts.suspect,
            facts.owned,
            facts.under_protected,
            facts.damaged,
            facts.full,
        )
        self._bus.publish(self._wire.encode_bus(beat))
        seconds = self._supervisor.grant(self.me, now)
        if seconds is not None:
            self._holder.on_granted(now, seconds, self.revision)

    # --- running

    async def run(
        self,
        listening: Listening,
        capacities: Mapping[DiskId, int] | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take part until cancelled. Started when the copy on the disk is loaded; `started` says when the
        others know. Cancelling is a crash: whoever comes next reads the log. `listening`: where others reach
        this node."""
        self._replica.load_members()
        self._listed = listed_fingerprints(self.known)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._calls.run)
                await nursery.start(self._replica.raft.run)
                task_status.started()
                nursery.start_soon(self._announce, listening, dict(capacities or {}))
                await self._keep_time()
            finally:
                self._nursery = None

    async def _keep_time(self) -> None:
        """Heartbeats, and what else is looked at so often."""
        due = self._clock.now()
        while True:
            if self._incarnation:
                self._beat()
            self._calls.wake()
            self._replica.save_members()
            due = max(
                due + config.HEARTBEAT_SECONDS, self._clock.now()
            )  # a stopped process does not make up for it
            await self._clock.sleep_until(due)

    async def _announce(self, listening: Listening, capacities: dict[DiskId, int]) -> None:
        """Commit this run's incarnation and addresses, however long it takes to find a leader."""
        request = self._replica.next_request()
        while not self._started.is_set():
            views = self._replica.known
            revision = self.revision
            record = views.node(self.me)
            if record is None:  # the copy is on its way to the state that has this node
                await self.changed(revision, node_key(self.me))
                continue
            start = commands.node_started(
                views, node=self.me, listening=listening, capacities=capacities, request=request
            )
            try:
                await self._replica.submit(start, self._clock.now() + config.OPERATION_SECONDS)
            except TransactionConflict:
                with trio.move_on_after(config.HEARTBEAT_SECONDS):
                    await self.changed(revision)
            except BlockStoreError as error:
                if not error.retry:
                    raise
                log.warning("announcing_waits why=%s", error)
            else:
                mine = self.views.node(self.me)
                assert mine is not None  # this copy has what was submitted
                self._incarnation = mine.incarnation
                self._started.set()

    def _on_leadership(self, leads: bool) -> None:
        if self._leading is not None:
            self._leading.cancel()
            self._leading = None
        if not leads:
            self._supervisor.on_deposed()
            return
        self._supervisor.on_elected()
        assert self._nursery is not None
        self._leading = trio.CancelScope()
        self._nursery.start_soon(self._lead, self._leading)

    async def _lead(self, scope: trio.CancelScope) -> None:
        with scope:
            await self._supervisor.run()

    def _on_changed(self) -> None:
        """The state is another."""
        self._calls.wake()
        listed = listed_fingerprints(self.views)
        gone = self._listed - listed
        self._listed = listed
        if gone and self.on_credentials_changed is not None and self._replica.has_state:
            self.on_credentials_changed(gone)
