"""Answers what is asked of control over lanes, at any node.

Reads are answered from this node's copy at once; a view of a later revision than it has is parked until it
has it, events until there are some. A change is built from this copy and submitted; when the leader finds
that something changed meanwhile, it is built anew, within the caller's deadline. What this copy would refuse
(a name that is taken, a volume that is missing) it refuses only after it has caught up with the leader: it
may be a moment behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, assert_never, cast

import trio

from blockstore import config
from blockstore.codec.control_record import NodeRecord, Transaction, VolumeRecord
from blockstore.codec.credential import identity_of
from blockstore.codec.messages import (
    ControlSnapshot,
    CreateCredential,
    CreateVolume,
    Credentials,
    CredentialView,
    DeleteVolume,
    FetchControlSnapshot,
    FetchEvents,
    FetchStatus,
    FetchView,
    FlattenVolume,
    Joined,
    JoinNode,
    ListCredentials,
    ListVolumes,
    NodeStatus,
    NodeView,
    Ok,
    RevokeCredential,
    Status,
    Transact,
    Transacted,
    View,
    Volumes,
    VolumeView,
    WireMessage,
)
from blockstore.control import commands
from blockstore.control.admission import ALLOWED, check_allowed
from blockstore.control.commands import Listening
from blockstore.control.events import EventLog
from blockstore.control.group_table import parity_of
from blockstore.control.health import Observed, assess
from blockstore.control.replica_shell import Replica
from blockstore.control.views import Views, is_to_flatten
from blockstore.errors import (
    BlockStoreError,
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    TransactionConflict,
    Unavailable,
)
from blockstore.ids import NodeId, RequestId
from blockstore.runtime.interfaces import Buffer, Clock, IncomingCall
from blockstore.runtime.tls import fingerprint_of

log = logging.getLogger("blockstore.control")

VIEW_WAIT_SECONDS_MAX = 1.0
"""A view of a revision that does not come is answered with what there is; the client judges."""

EVENTS_WAIT_SECONDS_MAX = 30.0

ANSWER_SECONDS = 0.05
"""Before a call's deadline: so that the answer of a parked one still arrives in time."""

REBUILD_SECONDS = 0.1
"""After a conflict: how long this copy may take to learn what changed."""

ControlRequest = (
    FetchView
    | ListVolumes
    | FetchStatus
    | FetchEvents
    | CreateVolume
    | DeleteVolume
    | FlattenVolume
    | JoinNode
    | CreateCredential
    | RevokeCredential
    | ListCredentials
    | Transact
    | FetchControlSnapshot
)


_Answered = tuple[WireMessage, tuple[Buffer, ...]]
_Serve = Callable[[], Coroutine[Any, Any, _Answered]]


class Surroundings(Protocol):
    """What this node sees around it."""

    def observed(self) -> Observed: ...

    def live_nodes(self) -> frozenset[NodeId]: ...

    def event(self, code: str, text: str) -> None: ...


@dataclass(slots=True)
class _Parked:
    call: IncomingCall
    until: float
    is_ready: Callable[[], bool]
    answer: Callable[[], WireMessage]


class Calls:
    def __init__(self, replica: Replica, clock: Clock, events: EventLog, surroundings: Surroundings) -> None:
        self._replica, self._clock, self._events, self._surroundings = replica, clock, events, surroundings
        self._parked: list[_Parked] = []
        self._n_under_way = 0
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def handle(self, call: IncomingCall) -> bool:
        """Take the call if it is for control, and answer it now or later."""
        if type(call.message) not in ALLOWED:
            return False
        try:
            check_allowed(call.peer, call.message)
            if not self._replica.has_state and type(call.message) not in (Transact, FetchControlSnapshot):
                raise Unavailable("This node has just started and does not know the cluster's state yet.")
            self._dispatch(call, cast(ControlRequest, call.message))
        except BlockStoreError as error:
            call.fail(error)
        return True

    def wake(self) -> None:
        """Something that parked calls may wait for has happened, or time has passed."""
        if not self._parked:
            return
        now = self._clock.now()
        waiting: list[_Parked] = []
        for parked in self._parked:
            if parked.is_ready() or now >= parked.until:
                parked.call.answer(parked.answer())
            else:
                waiting.append(parked)
        self._parked = waiting

    def _dispatch(self, call: IncomingCall, message: ControlRequest) -> None:
        match message:
            case FetchView():
                self._fetch_view(call, message)
            case FetchEvents():
                self._fetch_events(call, message)
            case ListVolumes():
                volumes = self._replica.views.volumes()
                kinds = (volume for volume in volumes if message.kind in ("", volume.kind))
                call.answer(Volumes(tuple(_volume_view(self._replica.views, one) for one in kinds)))
            case FetchStatus():
                call.answer(self._status())
            case ListCredentials():
                call.answer(Credentials(tuple(
                    CredentialView(one.name, one.role, one.fingerprint, one.revoked)
                    for one in self._replica.views.credentials()
                )))  # fmt: skip
            case FetchControlSnapshot():
                self._fetch_snapshot(call, message)
            case Transact():
                self._start(call, lambda: self._transact(call, message))
            case CreateVolume():
                self._start(call, lambda: self._create_volume(call, message))
            case DeleteVolume():
                self._start(call, lambda: self._delete_volume(call, message))
            case FlattenVolume():
                self._start(call, lambda: self._flatten_volume(call, message))
            case JoinNode():
                self._start(call, lambda: self._join(call, message))
            case CreateCredential():
                self._start(call, lambda: self._create_credential(call, message))
            case RevokeCredential():
                self._start(call, lambda: self._revoke_credential(call, message))
            case _:
                assert_never(message)

    # --- answered from this copy

    def _fetch_view(self, call: IncomingCall, message: FetchView) -> None:
        def is_ready() -> bool:
            return self._replica.revision >= message.at_least

        if is_ready():
            call.answer(self._view(message.volume))
        else:
            self._park(call, VIEW_WAIT_SECONDS_MAX, is_ready, lambda: self._view(message.volume))

    def _fetch_events(self, call: IncomingCall, message: FetchEvents) -> None:
        def is_ready() -> bool:
            return self._events.has_after(message.after)

        if is_ready() or not message.wait > 0:  # NaN is no time to wait either
            call.answer(self._events.after(message.after))
        else:
            wait = min(message.wait, EVENTS_WAIT_SECONDS_MAX)
            self._park(call, wait, is_ready, lambda: self._events.after(message.after))

    def _park(
        self, call: IncomingCall, wait: float, is_ready: Callable[[], bool], answer: Callable[[], WireMessage]
    ) -> None:
        if len(self._parked) >= config.CONTROL_CALLS_MAX:
            raise Busy("this node's control, with waiting readers")
        until = min(self._clock.now() + wait, call.deadline - ANSWER_SECONDS)
        self._parked.append(_Parked(call, until, is_ready, answer))

    def _fetch_snapshot(self, call: IncomingCall, message: FetchControlSnapshot) -> None:
        index, term, data = self._replica.raft.current_snapshot()
        if index < message.at_least:
            raise Unavailable(f"This node's snapshot is of index {index}, not yet of {message.at_least}.")
        call.answer(ControlSnapshot(index, term), (data,))

    def _view(self, volume_name: str) -> View:
        replica = self._replica
        views, live = replica.views, self._surroundings.live_nodes()
        volume = views.volume_by_name(volume_name) if volume_name else None
        return View(
            views.cluster().name,
            views.revision,
            replica.leader,
            tuple(_node_view(replica, node, node.node in live) for node in views.nodes()),
            None if volume is None else _volume_view(views, volume),
        )

    def _status(self) -> Status:
        replica = self._replica
        views, raft, observed = replica.views, replica.raft, self._surroundings.observed()
        health = assess(views, observed, parity_of)
        nodes: list[NodeStatus] = []
        for node in views.nodes():
            told = observed.told.get(node.node)
            used = dict(told.used_bytes) if told is not None else {}
            suspect = told.suspect if told is not None else ()
            disks = tuple(
                (
                    disk.disk,
                    disk.capacity,
                    used.get(disk.disk, 0),
                    "suspect" if disk.disk in suspect else disk.state,
                )
                for disk in views.disks_of(node.node)
            )
            nodes.append(
                NodeStatus(
                    node.node, node.node in observed.live, node.node in raft.voters, node.incarnation,
                    f"tcp://{node.host}:{node.port}", node.zone, disks,
                )
            )  # fmt: skip
        return Status(
            views.cluster().name, views.revision, replica.leader, raft.term, tuple(nodes),
            tuple(_volume_view(views, one) for one in views.volumes()),
            health.facts, health.sentence, health.severity,
        )  # fmt: skip

    # --- changes

    def _start(self, call: IncomingCall, serve: _Serve) -> None:
        if self._nursery is None:
            raise Unavailable("This node's control is not running.")
        if self._n_under_way >= config.CONTROL_CALLS_MAX:
            raise Busy("this node's control, with changes under way")
        self._n_under_way += 1
        self._nursery.start_soon(self._serve, call, serve)

    async def _serve(self, call: IncomingCall, serve: _Serve) -> None:
        try:
            message, payload = await serve()
        except BlockStoreError as error:
            call.fail(error)
        else:
            call.answer(message, payload)
        finally:
            self._n_under_way -= 1

    async def _transact(self, call: IncomingCall, message: Transact) -> _Answered:
        transaction = Transaction(message.request, message.compares, message.puts, message.deletes)
        return Transacted(await self._replica.commit_here(transaction, call.deadline)), ()

    async def _change(
        self, call: IncomingCall, request: RequestId, build: Callable[[], Transaction | None]
    ) -> bool:
        """Build and submit until it is applied, or need not be. False if it had been before, under this
        request."""
        replica, caught_up = self._replica, False
        while self._clock.now() < call.deadline:
            if replica.state.find_request(request) is not None:
                return False
            revision = replica.revision
            try:
                transaction = build()
            except BlockStoreError:
                if caught_up:
                    raise
                await replica.catch_up(call.deadline)
                caught_up = True
                continue
            if transaction is None:
                return False
            try:
                await replica.submit(transaction, call.deadline)
            except TransactionConflict:
                caught_up = False
                with trio.move_on_after(REBUILD_SECONDS):
                    await replica.changed(revision)
            else:
                return True
        raise DeadlineExceeded("Control kept changing under this request until its time was over.")

    async def _create_volume(self, call: IncomingCall, message: CreateVolume) -> _Answered:
        views = self._replica.views

        def build() -> Transaction | None:
            return commands.create_volume(
                views,
                self._surroundings.live_nodes(),
                name=message.name,
                kind=message.kind,
                policy=message.policy,
                exist_ok=message.exist_ok,
                created=self._clock.wall(),
                request=message.request,
            )

        if await self._change(call, message.request, build):
            self._surroundings.event(
                "volume-created", f"{message.kind.capitalize()} {message.name!r} exists."
            )
        return self._view(message.name), ()

    async def _delete_volume(self, call: IncomingCall, message: DeleteVolume) -> _Answered:
        def build() -> Transaction:
            return commands.delete_volume(self._replica.views, name=message.name, request=message.request)

        if await self._change(call, message.request, build):
            self._surroundings.event("volume-deleted", f"Volume {message.name!r} was deleted by {call.peer}.")
        return Ok(), ()

    async def _flatten_volume(self, call: IncomingCall, message: FlattenVolume) -> _Answered:
        def build() -> Transaction | None:
            return commands.flatten_volume(self._replica.views, name=message.name, request=message.request)

        await self._change(call, message.request, build)
        return self._view(message.name), ()

    async def _join(self, call: IncomingCall, message: JoinNode) -> _Answered:
        views = self._replica.views
        fingerprint = ""
        if message.certificate:
            kind, _ = identity_of(message.certificate)
            if kind != "node":
                raise InvalidRequest("The certificate of a node that joins must be a node's.")
            fingerprint = fingerprint_of(message.certificate)
        listening = Listening(
            message.host, message.port, message.bus_port, message.unix, message.host_id, message.curve_public
        )

        def build() -> Transaction | None:
            known = views.node_by_fingerprint(fingerprint) if fingerprint else None
            if known is not None and known.incarnation == 0:
                return None  # it has not run yet, and asks again: its first answer was lost
            return commands.join_node(
                views,
                listening=listening,
                zone=message.zone,
                fingerprint=fingerprint,
                disk_bytes=message.disk_bytes,
                request=message.request,
            )

        is_new = await self._change(call, message.request, build)
        node = commands.find_joined(views, listening, fingerprint)
        if node is None:
            raise Unavailable("The node had joined and was removed since; join it again.")
        if is_new:
            self._surroundings.event("node-joined", f"Node {node.node} ({node.host}:{node.port}) joined.")
        disks = tuple(disk.disk for disk in views.disks_of(node.node))
        return Joined(views.cluster().id, node.node, disks), (self._replica.raft.current_snapshot()[2],)

    async def _create_credential(self, call: IncomingCall, message: CreateCredential) -> _Answered:
        def build() -> Transaction:
            return commands.create_credential(
                self._replica.views,
                name=message.name,
                role=message.role,
                fingerprint=message.fingerprint,
                request=message.request,
            )

        if await self._change(call, message.request, build):
            self._surroundings.event("credential-created", f"{message.name!r} may {message.role}.")
        return Ok(), ()

    async def _revoke_credential(self, call: IncomingCall, message: RevokeCredential) -> _Answered:
        def build() -> Transaction | None:
            return commands.revoke_credential(self._replica.views, name=message.name, request=message.request)

        if await self._change(call, message.request, build):
            self._surroundings.event("credential-revoked", f"{message.name!r} was revoked by {call.peer}.")
        return Ok(), ()


def _node_view(replica: Replica, node: NodeRecord, is_live: bool) -> NodeView:
    disks = tuple(disk.disk for disk in replica.views.disks_of(node.node))
    return NodeView(node.node, node.host, node.port, node.unix, node.host_id, node.zone, is_live, disks)


def _volume_view(views: Views, volume: VolumeRecord) -> VolumeView:
    clone = views.clone(volume.volume)
    return VolumeView(
        volume.volume, volume.name, volume.kind, volume.policy, volume.epoch, NodeId(volume.owner),
        "" if clone is None else f"{clone.parent}@{clone.snapshot}",
        clone is not None and is_to_flatten(views, clone),
    )  # fmt: skip
