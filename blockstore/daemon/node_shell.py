"""One node, put together: its disks, its place in control, the volumes that it owns, and what it answers.

The order of starting is that of trust: first the disks are recovered, then this node's copy of control is
loaded, then it listens, so that nobody is answered from what is not yet known; last it says to control that
it lives, and only then can it be named owner of anything. Stopping is cancelling: every acknowledged byte
is durable by then, so there is nothing to save."""

from __future__ import annotations

import logging
import random
import resource
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from blockstore.chunk.chunk_shell import ChunkReader, NodeTable
from blockstore.codec.credential import Bundle, identity_of, read_bundle
from blockstore.codec.frame import FrameWire
from blockstore.codec.messages import Hello, NodeView, Ok, Ping, View
from blockstore.control.commands import Listening
from blockstore.control.control_shell import Control
from blockstore.control.health import NodeFacts
from blockstore.daemon.node_directory import LOOPBACK, NodeDirectory, address_of, host_id
from blockstore.daemon.node_directory import NodeFacts as NodeFile
from blockstore.errors import (
    BlockStoreError,
    InvalidRequest,
    PermissionDenied,
    ProtocolViolation,
)
from blockstore.ids import ChunkId, DiskId, NodeId
from blockstore.node.disk_shell import DiskShell, open_disk_shell
from blockstore.node.server_shell import FragmentServer
from blockstore.runtime.interfaces import (
    Address,
    BusPeer,
    Caller,
    Clock,
    IncomingCall,
    Message,
    Network,
    Peer,
)
from blockstore.runtime.lane_server import RealListener
from blockstore.runtime.memory_bus import MemoryBus, MemoryCarrier
from blockstore.runtime.memory_net import MemoryNetwork, RoutedNetwork
from blockstore.runtime.real_bus import BusKeys, RealBus
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.real_disk import open_real_disk
from blockstore.runtime.real_net import RealNetwork
from blockstore.runtime.secret_file import read_secret_file
from blockstore.runtime.tls import client_context, fingerprint_of, server_context
from blockstore.runtime.trio_caller import TrioCaller
from blockstore.version import RELEASE
from blockstore.volume.host_shell import VolumeHost
from blockstore.volume.world import OnRead, World

log = logging.getLogger("blockstore.daemon")

DESCRIPTORS_WANTED = 16_384


NodeBus = RealBus | MemoryBus


@dataclass(frozen=True, slots=True)
class RunningNode:
    """What the process that runs a node may do with it."""

    node: NodeId
    address: Address
    caller: Caller  # as the program that runs the node: its administrator


@asynccontextmanager
async def open_node(path: str) -> AsyncGenerator[RunningNode]:
    """The node in this directory, running until the block is left. Raise NotAStore, UnknownFormat,
    StoreLocked, AddressInUse, … before anything was changed."""
    directory = NodeDirectory(path)
    facts = directory.read()
    if facts.security == "plain" and facts.host not in LOOPBACK:
        raise InvalidRequest(f"A plain cluster listens on loopback only, not on {facts.host}.")
    raise_descriptor_limit()
    clock = RealClock()
    rng = random.Random(random.SystemRandom().getrandbits(128))
    try:
        async with AsyncExitStack() as stack:
            node = _Node(directory, facts, clock, rng)
            await node.open(stack)
            yield RunningNode(facts.node, node.address, node.program_caller())
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


class _Node:
    """The parts of a running node, in the order in which `open` makes them."""

    def __init__(self, directory: NodeDirectory, facts: NodeFile, clock: Clock, rng: random.Random) -> None:
        self._directory, self._facts, self._clock, self._rng = directory, facts, clock, rng
        self._disks: dict[DiskId, DiskShell] = {}
        self._bus_public = b""
        self._me = Peer("node", str(facts.node), "node")
        self.address = address_of(facts, directory)

    async def open(self, stack: AsyncExitStack) -> None:
        facts = self._facts
        for place in facts.disks:
            disk = await stack.enter_async_context(open_real_disk(self._directory.disk(place)))
            self._disks[place.disk] = await stack.enter_async_context(
                open_disk_shell(disk, place.disk, facts.cluster, self._on_disk_event)
            )
        control_disk = await stack.enter_async_context(open_real_disk(self._directory.control))
        self._own = own = await stack.enter_async_context(MemoryNetwork(self._clock))
        listens = facts.security != "embedded"
        bundle = read_bundle(str(self._directory.bundle)) if facts.security == "tls" else None
        self.network: Network = await self._open_network(stack, own, bundle) if listens else own
        caller = TrioCaller(self.network, self._clock)
        bus = await self._open_bus(stack)
        self.control = Control(
            me=facts.node,
            disk=control_disk,
            clock=self._clock,
            rng=random.Random(self._rng.getrandbits(64)),
            bus=bus,
            network=self.network,
            release=RELEASE,
            facts=self._tell_facts,
        )
        self._server = FragmentServer(self._disks, self._clock)
        nodes = NodeTable(host_id())
        reader = ChunkReader(caller, nodes, random.Random(self._rng.getrandbits(64)))
        world = World(
            facts.node, self._clock, self._rng, self.control, self.network, caller, nodes, reader,
            _LocalFragments(self._disks),
        )  # fmt: skip
        self.host = VolumeHost(world)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        listening = Listening(
            facts.host, facts.port, facts.bus_port, self.address.unix, self.address.host_id, self._bus_public
        )
        capacities = {disk: shell.facts().capacity_bytes for disk, shell in self._disks.items()}
        await nursery.start(partial(self.control.run, listening, capacities))
        own.attach(self.address, self._handle, self._me)
        if listens:
            await self._listen(stack, bundle)
        self._follow(nodes, bus)
        nursery.start_soon(self._keep_following, nodes, bus)
        nursery.start_soon(self._own_volumes)
        if not listens:
            # Until its one voter leads again, its copy of control lacks what was committed before it was
            # closed, and the program would be told that its buckets do not exist.
            await self.control.started()

    def program_caller(self) -> Caller:
        return TrioCaller(self._own.seen_as(Peer("local", "program", "admin"), "program"), self._clock)

    async def _open_network(
        self, stack: AsyncExitStack, own: MemoryNetwork, bundle: Bundle | None
    ) -> Network:
        real = RealNetwork(
            self._clock,
            FrameWire(),
            ssl_context=_tls(client_context, bundle),
            hello=Hello(f"node {self._facts.node}", RELEASE) if bundle is None else None,
            host_id=host_id(),
            check_server=None if bundle is None else self._check_server,
        )
        return RoutedNetwork(own, await stack.enter_async_context(real))

    async def _open_bus(self, stack: AsyncExitStack) -> NodeBus:
        facts = self._facts
        if facts.security == "embedded":
            return MemoryCarrier().bus(facts.node, self._on_bus)
        keys = None
        if facts.security == "tls":
            keys = BusKeys.from_secret(read_secret_file(str(self._directory.bus_key), "bus key"))
            self._bus_public = keys.public
        bus = RealBus(
            facts.node,
            self._on_bus,
            keys,
            self._node_of_key,
            self._clock,
            host=facts.host,
            port=facts.bus_port,
        )
        return await stack.enter_async_context(bus)

    async def _listen(self, stack: AsyncExitStack, bundle: Bundle | None) -> None:
        listener = RealListener(
            self.address,
            self._handle,
            self._authorize,
            clock=self._clock,
            wire=FrameWire(),
            ssl_context=None
            if bundle is None
            else server_context(bundle.ca_certificate, bundle.certificate, bundle.key),
        )
        await stack.enter_async_context(listener)

        def drop(fingerprints: frozenset[str]) -> None:
            for fingerprint in fingerprints:
                listener.drop(fingerprint, PermissionDenied("This credential has been revoked."))

        self.control.on_credentials_changed = drop

    # --- who is let in

    def _authorize(self, certificate: bytes | None, hello: Message | None) -> Peer:
        if certificate is not None:
            return self._peer_of(certificate)
        if self._facts.security != "plain" or not isinstance(hello, Hello):
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
        control = getattr(self, "control", None)
        if control is not None:
            control.event(code, text)

    # --- what control hears of this node, and this node of control

    def _tell_facts(self) -> NodeFacts:
        used = tuple((disk, shell.facts().used_bytes) for disk, shell in self._disks.items())
        suspect = tuple(disk for disk, shell in self._disks.items() if shell.suspect)
        return NodeFacts(used, suspect, self.host.owned(), self.host.under_protected())

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
            if node.node != self._facts.node:
                peers[node.node] = BusPeer(node.host, node.bus_port, node.curve_public)
        nodes.update(View("", known.revision, self.control.leader, tuple(seen), None))
        bus.set_peers(peers)

    async def _keep_following(self, nodes: NodeTable, bus: NodeBus) -> None:
        """Addresses change with the state; who lives changes with time."""
        while True:
            revision = self.control.revision
            self._follow(nodes, bus)
            with trio.move_on_after(0.2):
                await self.control.changed(revision)

    async def _own_volumes(self) -> None:
        await self.control.started()
        await self.host.run()


class _LocalFragments:
    """`volume.world.LocalReader` over this node's disks."""

    def __init__(self, disks: dict[DiskId, DiskShell]) -> None:
        self._disks = disks

    def read(self, disk: DiskId, chunk: ChunkId, offset: int, length: int, on_done: OnRead) -> None:
        shell = self._disks[disk]
        try:
            data = shell.read_now(chunk, offset, length)
        except BlockStoreError as error:
            on_done(error)
            return
        if data is not None:
            on_done(bytes(data))
            return
        shell.submit_read(
            chunk,
            offset,
            length,
            lambda found: on_done(found if isinstance(found, BlockStoreError) else bytes(found)),
        )


def _tls(make: Callable[[str, str, str], ssl.SSLContext], bundle: Bundle | None) -> ssl.SSLContext | None:
    return None if bundle is None else make(bundle.ca_certificate, bundle.certificate, bundle.key)


def raise_descriptor_limit() -> None:
    """A node of many disks and clients holds more files than a shell's usual 1,024 (KILLERS 14)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
