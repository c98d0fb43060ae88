"""Nodes and clients of one simulated cluster: the code that daemons and programs run, on machines that a
test may hurt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio

from blockstore.api.cluster import ClusterSession
from blockstore.api.store import Opened, Store
from blockstore.daemon.node_directory import NodeFile
from blockstore.daemon.node_shell import Node, open_node
from blockstore.daemon.sim_doors_shell import SimDoors
from blockstore.errors import BlockStoreError
from blockstore.runtime.interfaces import Address, Peer
from blockstore.runtime.sim.world import Machine, World
from blockstore.runtime.trio_caller import TrioCaller
from tests.simulation.genesis import make_machines

T = TypeVar("T")

REVIVE_SECONDS = 1.0
"""Whoever watches over daemons starts one that ended by itself again, after so long."""


@dataclass(eq=False)
class SimNode:
    """One node: its machine, and the program on it."""

    machine: Machine
    facts: NodeFile
    node: Node | None = None
    n_starts: int = 0
    is_wanted: bool = False

    @property
    def number(self) -> int:
        return self.facts.node


class SimCluster:
    def __init__(self, world: World, nursery: trio.Nursery, n_nodes: int) -> None:
        self.world, self._nursery = world, nursery
        self.nodes = [SimNode(machine, facts) for machine, facts in make_machines(world, n_nodes)]
        self.n_own_ends = 0
        self._n_clients = 0

    def node(self, number: int) -> SimNode:
        return self.nodes[number - 1]

    @property
    def running(self) -> list[Node]:
        return [one.node for one in self.nodes if one.node is not None]

    # --- life and death

    def start(self, one: SimNode) -> None:
        if not one.is_wanted:
            one.is_wanted = True
            one.n_starts += 1
            self._nursery.start_soon(self._watch_over, one, one.n_starts)

    def kill(self, one: SimNode, *, power: bool) -> None:
        one.is_wanted, one.node = False, None
        if power:
            one.machine.power_off()
        else:
            one.machine.kill()

    async def _watch_over(self, one: SimNode, start: int) -> None:
        """Until it is killed: a later start has another watcher."""
        await one.machine.ended()
        while one.is_wanted and one.n_starts == start:
            try:
                await one.machine.live(lambda: self._run(one))
            except BlockStoreError as error:
                self.n_own_ends += 1
                self.world.tell(f"ends by itself: {type(error).__name__}: {error}", one.machine.name)
                await trio.sleep(REVIVE_SECONDS)

    async def _run(self, one: SimNode) -> None:
        life = one.machine.life
        self.world.tell("starts", one.machine.name)
        try:
            async with open_node(one.facts, SimDoors(one.machine, one.facts)) as node:
                if one.machine.is_on:
                    one.node = node
                    self.world.tell("serves", one.machine.name)
                await trio.sleep_forever()
        finally:
            if one.machine.life == life:
                one.node = None

    # --- clients

    def new_client_machine(self) -> Machine:
        self._n_clients += 1
        return self.world.machine(f"client {self._n_clients}")

    def open_store(self, machine: Machine) -> Store:
        """The store as a program on that machine opens it."""
        return Store(self._opened(machine))

    @asynccontextmanager
    async def _opened(self, machine: Machine) -> AsyncGenerator[Opened]:
        seeds = [Address(one.facts.host, one.facts.port) for one in self.nodes]
        peer = Peer("client", machine.name, "admin")
        async with machine.open_network() as network:
            caller = TrioCaller(network.seen_as(peer, machine.name), machine.clock)
            yield Opened(ClusterSession(caller, seeds, machine.fork()), _inline, None, machine.clock.wall)


async def _inline(work: Callable[[], T]) -> T:
    return work()
