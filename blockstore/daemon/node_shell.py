"""One node, put together: its disks, its place in control, the volumes that it owns, and what it answers.

The order of starting is that of trust: first the disks are recovered, then this node's copy of control is
loaded, then it listens, so that nobody is answered from what is not yet known; last it says to control that
it lives, and only then can it be named owner of anything. Stopping is cancelling: every acknowledged byte
is durable by then, so there is nothing to save. A node that has time hands over first (`Node.hand_over`), so
that nobody waits until it is missed."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from blockstore.chunk.chunk_shell import ChunkReader, NodeTable
from blockstore.codec.credential import identity_of
from blockstore.codec.messages import Hello, NodeView, Ok, Ping, View
from blockstore.control.commands import Listening
from blockstore.control.control_shell import Control
from blockstore.control.health import NodeFacts
from blockstore.daemon.doors import Admission, Doors, NodeBus
from blockstore.daemon.node_directory import CONTROL, NodeFile
from blockstore.daemon.reclaim_shell import reclaim
from blockstore.errors import BlockStoreError, InvalidRequest, PermissionDenied, ProtocolViolation
from blockstore.ids import DiskId, NodeId
from blockstore.node.disk_shell import DiskShell, open_disk_shell
from blockstore.node.local_fragments import LocalFragments
from blockstore.node.server_shell import FragmentServer
from blockstore.runtime.interfaces import Address, BusPeer, IncomingCall, Message, Peer
from blockstore.runtime.tls import fingerprint_of
from blockstore.runtime.trio_caller import TrioCaller
from blockstore.version import RELEASE
from blockstore.volume.host_shell import VolumeHost
from blockstore.volume.world import World

log = logging.getLogger("blockstore.daemon")

HAND_OVER_SECONDS_MAX = 2.0
"""A control commit and an election take a tenth of it. After so long the others notice by themselves."""

FOLLOW_SECONDS = 0.2
"""How often the table of nodes looks at who lives, when nothing else changes it."""


@asynccontextmanager
async def open_node(facts: NodeFile, doors: Doors) -> AsyncGenerator[Node]:
    """The node, running until the block is left. Raise NotAStore, UnknownFormat, StoreLocked, AddressInUse, …
    before anything was changed."""
    try:
        async with AsyncExitStack() as stack:
            node = Node(facts, doors)
            await node.open(stack)
            yield node
    except BaseExceptionGroup as group:
        raise _first_own(group) from group


def _first_own(group: BaseExceptionGroup) -> BaseException:
    """What a person should be told: the store's own error, if that is all there is inside the tasks'
    groups."""
    own, other = group.split(BlockStoreError)
    if own is None or other is not None:
        return group
    error: BaseException = own
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Node:
    """The parts of a running node, in the order in which `open` makes them."""

    def __init__(self, facts: NodeFile, doors: Doors) -> None:
        self.facts, self.doors = facts, doors
        self.disks: dict[DiskId, DiskShell] = {}
        self._early_events: list[tuple[str, str]] | None = []
        self._admission = Admission(self._authorize, self._check_server, self._node_of_key)

    async def open(self, stack: AsyncExitStack) -> None:
        facts, doors = self.facts, self.doors
        enter = stack.enter_async_context
        for place in facts.disks:
            disk = await enter(doors.open_disk(place.directory))
            self.disks[place.disk] = await enter(
                open_disk_shell(disk, place.disk, facts.cluster, self._on_disk_event)
            )
        control_disk = await enter(doors.open_disk(CONTROL))
        network = await enter(doors.open_network(self._admission))
        bus = await enter(doors.open_bus(self._on_bus, self._admission))
        self.control = Control(
            me=facts.node,
            disk=control_disk,
            clock=doors.clock,
            rng=self._fork_rng(),
            bus=bus,
            network=network,
            release=RELEASE,
            facts=self._tell_facts,
        )
        self._server = FragmentServer(self.disks, doors.clock, lambda: self.control.views.cluster().grant_key)
        caller = TrioCaller(network, doors.clock)
        nodes = NodeTable(doors.host_id)
        reader = ChunkReader(caller, nodes, self._fork_rng())
        self.host = VolumeHost(
            World(
                facts.node,
                doors.clock,
                doors.rng,
                self.control,
                network,
                caller,
                nodes,
                reader,
                LocalFragments(self.disks),
            )
        )
        nursery = await enter(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        await nursery.start(partial(self.control.run, self._listening(), self._capacities()))
        self._tell_early_events()
        for shell in self.disks.values():
            shell.make_spares()
        self._listener = await enter(doors.listen(self._handle, self._admission))
        self.control.on_credentials_changed = self._drop_revoked
        self._follow(nodes, bus)
        nursery.start_soon(self._keep_following, nodes, bus)
        nursery.start_soon(self._own_volumes)
        nursery.start_soon(reclaim, self.control, self.disks)
        if doors.waits_for_state:
            # Until its one voter leads again, its copy of control lacks what was committed before it was
            # closed, and the program would be told that its buckets do not exist.
            await self.control.started()

    async def hand_over(self) -> None:
        """Before leaving: let others own the volumes and lead control, within HAND_OVER_SECONDS_MAX.
        Fragments are served until the end; a chunk that is open here goes on elsewhere at its next append."""
        with trio.move_on_after(HAND_OVER_SECONDS_MAX):
            try:
                await self.host.hand_over()
                await self.control.resign()
            except BlockStoreError as error:
                log.warning("not_handed_over why=%s", error)

    def _fork_rng(self) -> random.Random:
        return random.Random(self.doors.rng.getrandbits(64))

    def _listening(self) -> Listening:
        facts, at = self.facts, self.doors.address
        return Listening(facts.host, facts.port, facts.bus_port, at.unix, at.host_id, self.doors.curve_public)

    def _capacities(self) -> dict[DiskId, int]:
        return {disk: shell.facts().capacity_bytes for disk, shell in self.disks.items()}

    # --- who is let in

    def _authorize(self, certificate: bytes | None, hello: Message | None) -> Peer:
        if certificate is not None:
            return self._peer_of(certificate)
        if self.facts.security != "plain" or not isinstance(hello, Hello):
            raise PermissionDenied("This cluster talks only to holders of a listed key.")
        kind, _, name = hello.name.partition(" ")
        if kind == "node" and name.isdecimal():
            return Peer("node", name, "node")
        return Peer("client", hello.name[:64], "admin")

    def _peer_of(self, certificate: bytes) -> Peer:
        try:
            kind, name = identity_of(certificate)
        except InvalidRequest as error:
            raise PermissionDenied(str(error)) from error
        return self.control.peer_of_certificate(fingerprint_of(certificate), kind, name)

    def _check_server(self, address: Address, certificate: bytes) -> None:
        """What answers where a node should must be a node that control lists, at this address."""
        peer = self._peer_of(certificate)
        record = self.control.known.node(NodeId(int(peer.name))) if peer.kind == "node" else None
        if record is None or (record.host, record.port) != (address.host, address.port):
            raise PermissionDenied(f"{peer} answers where another node should be.")

    def _node_of_key(self, public_key: bytes) -> NodeId | None:
        nodes = self.control.known.nodes()
        return next((node.node for node in nodes if node.curve_public == public_key), None)

    def _drop_revoked(self, fingerprints: frozenset[str]) -> None:
        for fingerprint in fingerprints:
            self._listener.drop(fingerprint, PermissionDenied("This credential has been revoked."))

    # --- what comes in

    def _handle(self, call: IncomingCall) -> None:
        if self._server.handle(call) or self.host.handle(call) or self.control.handle(call):
            return
        if isinstance(call.message, Ping):
            call.answer(Ok())
        else:
            call.fail(ProtocolViolation(f"A node does not answer {type(call.message).__name__}."))

    def _on_bus(self, sender: NodeId, message: bytes) -> None:
        self.control.on_bus(sender, message)

    def _on_disk_event(self, code: str, text: str) -> None:
        log.warning("disk_event code=%s text=%r", code, text)
        if self._early_events is None:
            self.control.event(code, text)
        else:
            self._early_events.append((code, text))

    def _tell_early_events(self) -> None:
        """What the disks' recovery found, before there was anybody to tell."""
        events, self._early_events = self._early_events or [], None
        for code, text in events:
            self.control.event(code, text)

    # --- what control hears of this node, and this node of control

    def _tell_facts(self) -> NodeFacts:
        facts = {disk: shell.facts() for disk, shell in self.disks.items()}
        return NodeFacts(
            used_bytes=tuple((disk, one.used_bytes) for disk, one in facts.items()),
            suspect=tuple(disk for disk, one in facts.items() if one.suspect),
            owned=self.host.owned(),
            under_protected=self.host.under_protected(),
            full=tuple(disk for disk, one in facts.items() if one.is_full),
            damaged=tuple((disk, one.n_damaged) for disk, one in facts.items() if one.n_damaged),
        )

    def _follow(self, nodes: NodeTable, bus: NodeBus) -> None:
        """Where everybody is, by the copy of control, or by what it last said when the copy is not there
        yet."""
        known = self.control.known
        seen: list[NodeView] = []
        peers: dict[NodeId, BusPeer] = {}
        for node in known.nodes():
            disks = tuple(disk.disk for disk in known.disks_of(node.node))
            live = self.control.is_live(node.node)
            seen.append(
                NodeView(node.node, node.host, node.port, node.unix, node.host_id, node.zone, live, disks)
            )
            if node.node != self.facts.node:
                peers[node.node] = BusPeer(node.host, node.bus_port, node.curve_public)
        nodes.update(View("", known.revision, self.control.leader, tuple(seen), None))
        bus.set_peers(peers)

    async def _keep_following(self, nodes: NodeTable, bus: NodeBus) -> None:
        """Addresses change with the state; who lives changes with time."""
        while True:
            revision = self.control.revision
            self._follow(nodes, bus)
            with trio.move_on_after(FOLLOW_SECONDS):
                await self.control.changed(revision)

    async def _own_volumes(self) -> None:
        await self.control.started()
        await self.host.run()
