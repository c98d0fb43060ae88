"""The doors of a node on a simulated machine: the same node, with nothing real around it."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from blockstore.daemon.doors import Admission, NodeBus
from blockstore.daemon.node_directory import NodeFile
from blockstore.errors import AlreadyExists
from blockstore.runtime.interfaces import (
    Address,
    Clock,
    Disk,
    Handler,
    Listener,
    Network,
    OnBusMessage,
    Peer,
)
from blockstore.runtime.memory_net import MemoryNetwork
from blockstore.runtime.sim.world import Machine


class SimDoors:
    """For one life of the node's machine."""

    host_id = ""
    curve_public = b""
    waits_for_state = False

    def __init__(self, machine: Machine, facts: NodeFile) -> None:
        self.clock: Clock = machine.clock
        self.rng: random.Random = machine.fork()
        self.address = Address(facts.host, facts.port)
        self._machine, self._facts = machine, facts
        self._me = Peer("node", str(facts.node), "node")
        self._network: MemoryNetwork | None = None

    @asynccontextmanager
    async def open_disk(self, directory: str) -> AsyncGenerator[Disk]:
        yield self._machine.disk(directory)

    @asynccontextmanager
    async def open_network(self, admission: Admission) -> AsyncGenerator[Network]:
        async with self._machine.open_network() as network:
            self._network = network
            yield network.seen_as(self._me, self._machine.name)

    @asynccontextmanager
    async def open_bus(self, on_message: OnBusMessage, admission: Admission) -> AsyncGenerator[NodeBus]:
        async with self._machine.open_bus(on_message) as bus:
            yield bus

    @asynccontextmanager
    async def listen(self, handler: Handler, admission: Admission) -> AsyncGenerator[Listener]:
        if self._network is None:
            raise AlreadyExists("the network is opened before anybody listens")
        listener = self._network.attach(self.address, handler, self._me)
        try:
            yield listener
        finally:
            listener.close()
