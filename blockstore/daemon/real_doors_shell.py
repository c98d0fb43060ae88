"""The doors of a daemon (sockets, disks, the machine's clock) and of a node inside a program (no sockets)."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from blockstore.codec.credential import Bundle, read_bundle
from blockstore.codec.frame import FrameWire
from blockstore.codec.messages import Hello
from blockstore.daemon.doors import Admission, NodeBus
from blockstore.daemon.node_directory import LOOPBACK, NodeDirectory, NodeFile, address_of, host_id
from blockstore.errors import InvalidRequest
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import Caller, Clock, Disk, Handler, Listener, Network, OnBusMessage, Peer
from blockstore.runtime.lane_server import RealListener
from blockstore.runtime.memory_bus import MemoryCarrier
from blockstore.runtime.memory_net import MemoryNetwork, RoutedNetwork
from blockstore.runtime.real_bus import BusKeys, RealBus
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.real_disk import open_real_disk
from blockstore.runtime.real_net import RealNetwork
from blockstore.runtime.secret_file import read_secret_file
from blockstore.runtime.tls import client_context, server_context
from blockstore.runtime.trio_caller import TrioCaller
from blockstore.version import RELEASE

PROGRAM = Peer("local", "program", "admin")
"""Who runs a node inside its own process may do everything with it."""


class _OwnDoors:
    """What both kinds share: real disks and clock, and a lane from the node to itself."""

    def __init__(self, directory: NodeDirectory, facts: NodeFile) -> None:
        self.clock: Clock = RealClock()
        self.rng = random.Random(random.SystemRandom().getrandbits(128))
        self.address = address_of(facts, directory)
        self._directory, self._facts = directory, facts
        self._own = MemoryNetwork(self.clock)
        self._me = Peer("node", str(facts.node), "node")

    def open_disk(self, directory: str) -> AbstractAsyncContextManager[Disk]:
        return open_real_disk(self._directory.path / directory)


class EmbeddedDoors(_OwnDoors):
    """Nothing listens."""

    host_id = ""
    curve_public = b""
    waits_for_state = True

    @property
    def program(self) -> Caller:
        """The node, as the program around it uses it."""
        return TrioCaller(self._own.seen_as(PROGRAM, "program"), self.clock)

    @asynccontextmanager
    async def open_network(self, admission: Admission) -> AsyncGenerator[Network]:
        async with self._own:
            yield self._own

    @asynccontextmanager
    async def open_bus(self, on_message: OnBusMessage, admission: Admission) -> AsyncGenerator[NodeBus]:
        yield MemoryCarrier().bus(self._facts.node, on_message)

    @asynccontextmanager
    async def listen(self, handler: Handler, admission: Admission) -> AsyncGenerator[Listener]:
        yield self._own.attach(self.address, handler, self._me)


class DaemonDoors(_OwnDoors):
    """TCP, a Unix socket beside it, and the bus; with TLS and CURVE unless the cluster is a plain one."""

    waits_for_state = False

    def __init__(self, directory: NodeDirectory, facts: NodeFile) -> None:
        if facts.security == "plain" and facts.host not in LOOPBACK:
            raise InvalidRequest(f"A plain cluster listens on loopback only, not on {facts.host}.")
        super().__init__(directory, facts)
        self.host_id = host_id()
        self._bundle: Bundle | None = None
        self._keys: BusKeys | None = None
        if facts.security != "plain":
            self._bundle = read_bundle(str(directory.bundle))
            self._keys = BusKeys.from_secret(read_secret_file(str(directory.bus_key), "bus key"))
        self.curve_public = b"" if self._keys is None else self._keys.public
        self._pool = BufferPool()

    @asynccontextmanager
    async def open_network(self, admission: Admission) -> AsyncGenerator[Network]:
        real = RealNetwork(
            self.clock,
            FrameWire(),
            ssl_context=_tls(client_context, self._bundle),
            hello=Hello(f"node {self._facts.node}", RELEASE) if self._bundle is None else None,
            host_id=self.host_id,
            check_server=None if self._bundle is None else admission.check_server,
            pool=self._pool,
        )
        async with self._own, real:
            yield RoutedNetwork(self._own, real)

    def open_bus(
        self, on_message: OnBusMessage, admission: Admission
    ) -> AbstractAsyncContextManager[NodeBus]:
        facts = self._facts
        return RealBus(
            facts.node,
            on_message,
            self._keys,
            admission.node_of_key,
            self.clock,
            host=facts.host,
            port=facts.bus_port,
        )

    @asynccontextmanager
    async def listen(self, handler: Handler, admission: Admission) -> AsyncGenerator[Listener]:
        self._own.attach(self.address, handler, self._me)
        async with RealListener(
            self.address,
            handler,
            admission.authorize,
            clock=self.clock,
            wire=FrameWire(),
            ssl_context=_tls(server_context, self._bundle),
            pool=self._pool,
        ) as listener:
            yield listener


def _tls(make: Callable[[str, str, str], ssl.SSLContext], bundle: Bundle | None) -> ssl.SSLContext | None:
    return None if bundle is None else make(bundle.ca_certificate, bundle.certificate, bundle.key)
