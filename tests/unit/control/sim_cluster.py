"""Several nodes' control in one process, on simulated disks, bus, lanes and clock, under a checker."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from blockstore.codec.control_record import ClusterRecord, CredentialRecord, NodeRecord, VolumeRecord
from blockstore.codec.messages import CreateVolume, Joined, JoinNode, View, WireMessage
from blockstore.control.bootstrap import bootstrap_cluster, bootstrap_node
from blockstore.control.commands import Listening
from blockstore.control.control_shell import Control
from blockstore.control.health import NodeFacts
from blockstore.errors import BlockStoreError
from blockstore.ids import GiB, NodeId, RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import Address, BusPeer, IncomingCall, Peer
from blockstore.runtime.memory_bus import MemoryBus
from blockstore.runtime.memory_net import MemoryListener, MemoryNetwork
from blockstore.runtime.sim.bus import SimCarrier as BusCarrier
from blockstore.runtime.sim.disk import SimDisk
from blockstore.runtime.sim.net import SimCarrier as LaneCarrier

ADMIN = Peer("client", "root", "admin", "f" * 64)
WALL = 1_700_000_000.0
LOOK_SECONDS = 0.005


class MockedClock:
    """trio's clock, which a test's `autojump_clock` drives."""

    def now(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return WALL + trio.current_time()

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)


@dataclass
class Machine:
    """One node: what survives its death, and its present run."""

    node: NodeId
    disk: SimDisk
    listening: Listening
    facts: NodeFacts = field(default_factory=NodeFacts)  # what it tells besides the volumes that it owns
    control: Control | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    bus: MemoryBus | None = None
    listener: MemoryListener | None = None

    @property
    def address(self) -> Address:
        return Address(self.listening.host, self.listening.port)

    @property
    def running(self) -> Control:
        assert self.control is not None
        return self.control


class SimCluster:
    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork, seed: int) -> None:
        self.clock = MockedClock()
        self.rng = random.Random(seed)
        self.network = network
        self.bus_carrier = BusCarrier(random.Random(seed + 1), self.clock)
        self.machines: dict[int, Machine] = {}
        self._nursery = nursery
        self._n_requests = 0

    def _machine(self, number: int) -> Machine:
        disk = SimDisk(random.Random(self.rng.random()), self.clock)
        listening = Listening("10.0.0.1", 7000 + number, 8000 + number, "", "", b"")
        return Machine(NodeId(number), disk, listening)

    def request(self) -> RequestId:
        self._n_requests += 1
        return RequestId(SessionId(99), self._n_requests)

    # --- life and death

    async def init(self) -> None:
        machine = self._machine(1)
        at = machine.listening
        bootstrap_cluster(
            machine.disk,
            cluster=ClusterRecord("c0ffee", "test", WALL, "plain"),
            node=NodeRecord(NodeId(1), 0, at.host, at.port, at.bus_port, "", "", b"", (), ""),
            disk_bytes=(GiB,),
            admin=CredentialRecord("root", "admin", "f" * 64),
            rng=self.rng,
        )
        self.machines[1] = machine
        await self.start(1)

    async def join(self, number: int, through: int = 1) -> None:
        machine = self._machine(number)
        at = machine.listening
        message = JoinNode(b"", at.host, at.port, at.bus_port, "", "", b"", (), (GiB,), self.request())
        lane = self.network.seen_as(ADMIN, "admin").lane(self.machines[through].address)
        answer = await lane.call(message, (), self.clock.now() + 10)
        assert isinstance(answer.message, Joined)
        assert answer.message.node == number
        bootstrap_node(machine.disk, bytes(answer.payload.view), self.rng)
        self.machines[number] = machine
        await self.start(number)

    async def start(self, number: int) -> None:
        machine = self.machines[number]
        peer = Peer("node", str(number), "node")
        machine.scope = trio.CancelScope()
        machine.bus = self.bus_carrier.bus(
            machine.node, lambda sender, data: machine.running.on_bus(sender, data)
        )

        def facts() -> NodeFacts:
            owned = machine.running.views.volumes_of(machine.node)
            return replace(machine.facts, owned=tuple(volume.volume for volume in owned))

        def handle(call: IncomingCall) -> None:
            assert machine.running.handle(call)

        machine.control = Control(
            me=machine.node,
            disk=machine.disk,
            clock=self.clock,
            rng=random.Random(self.rng.random()),
            bus=machine.bus,
            network=self.network.seen_as(peer, str(machine.address)),
            release="test",
            facts=facts,
        )
        machine.listener = self.network.attach(machine.address, handle, ADMIN)
        await self._nursery.start(self._run, machine)

    async def _run(
        self, machine: Machine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with machine.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.disk.serve)
                await nursery.start(machine.running.run, machine.listening)
                nursery.start_soon(self._know_peers, machine)
                task_status.started()

    async def _know_peers(self, machine: Machine) -> None:
        control = machine.running
        while True:
            revision = control.revision
            assert machine.bus is not None
            machine.bus.set_peers(
                {node.node: BusPeer(node.host, node.bus_port) for node in control.known.nodes()}
            )
            await control.changed(revision, "node/")

    def kill(self, number: int) -> None:
        machine = self.machines[number]
        assert machine.bus is not None
        assert machine.listener is not None
        machine.scope.cancel()
        machine.bus.close()
        machine.listener.close()
        machine.disk.crash()
        machine.control = None

    def cut(self, number: int) -> None:
        """Take a node off the network; it goes on running."""
        others = [NodeId(other) for other in self.machines if other != number]
        self.bus_carrier.cut([NodeId(number)], others)
        carrier = self.network.carrier
        assert isinstance(carrier, LaneCarrier)
        for other in others:
            for pair in ((number, other), (other, number)):
                carrier.cut(*(str(self.machines[int(one)].address) for one in pair))

    def heal(self) -> None:
        self.bus_carrier.heal()
        carrier = self.network.carrier
        assert isinstance(carrier, LaneCarrier)
        carrier.mend_all()

    # --- looking and asking

    @property
    def running(self) -> list[Control]:
        return [machine.control for machine in self.machines.values() if machine.control is not None]

    @property
    def leader(self) -> int:
        """0 while nobody leads."""
        return next((control.me for control in self.running if control.is_leader), 0)

    def other_than(self, *numbers: int) -> Control:
        return next(control for control in self.running if control.me not in numbers)

    async def until(self, holds: Callable[[], bool], seconds: float = 20.0) -> float:
        """How long it took."""
        began = self.clock.now()
        while not holds():
            assert self.clock.now() < began + seconds, "it did not happen in time"
            await trio.sleep(LOOK_SECONDS)
        return self.clock.now() - began

    async def ask(self, number: int, message: WireMessage, seconds: float = 10.0) -> WireMessage:
        """As an administrator, of that node."""
        lane = self.network.seen_as(ADMIN, "admin").lane(self.machines[number].address)
        answer = await lane.call(message, (), self.clock.now() + seconds)
        reply: WireMessage = answer.message
        return reply

    async def create_volume(self, number: int, name: str) -> VolumeRecord:
        answer = await self.ask(number, CreateVolume(name, "bucket", "", False, self.request()))
        assert isinstance(answer, View)
        record = self.machines[number].running.views.volume_by_name(name)
        assert record is not None
        return record

    def owner_of(self, control: Control, name: str) -> tuple[int, int]:
        record = control.views.volume_by_name(name)
        assert record is not None
        return record.owner, record.epoch

    # --- what must hold at every instant

    async def check(self) -> None:
        """No two nodes may hold one volume: each by its own copy and its own lease."""
        while True:
            self.check_now()
            await trio.sleep(LOOK_SECONDS)

    def check_now(self) -> None:
        holders: dict[VolumeId, list[NodeId]] = {}
        for control in self.running:
            if control.lease_valid(self.clock.now()):
                for volume in control.views.volumes_of(control.me):
                    holders.setdefault(volume.volume, []).append(control.me)
        twice = {volume: nodes for volume, nodes in holders.items() if len(nodes) > 1}
        assert not twice, f"held twice: {twice}"
        leaders = [control.me for control in self.running if control.is_leader and self._certain(control)]
        assert len(leaders) <= 1, f"certain to lead: {leaders}"

    def _certain(self, control: Control) -> bool:
        return control._replica.raft.lease_until > self.clock.now()


@asynccontextmanager
async def sim_cluster(n_nodes: int, seed: int = 1) -> AsyncGenerator[SimCluster]:
    """A cluster that has come to rest, under the checker."""
    clock = MockedClock()
    carrier = LaneCarrier(clock, random.Random(seed + 2))
    async with MemoryNetwork(clock, carrier=carrier) as network, trio.open_nursery() as nursery:
        cluster = SimCluster(nursery, network, seed)
        nursery.start_soon(cluster.bus_carrier.run)
        await cluster.init()
        for number in range(2, n_nodes + 1):
            await cluster.join(number)
        wanted = 1 if n_nodes < 3 else 3 if n_nodes < 5 else 5
        await cluster.until(
            lambda: all(
                len(control.voters) == wanted and control.lease_valid(clock.now())
                for control in cluster.running
            )
        )
        nursery.start_soon(cluster.check)
        yield cluster
        nursery.cancel_scope.cancel()


async def refused(cluster: SimCluster, number: int, message: WireMessage) -> BlockStoreError:
    try:
        answer = await cluster.ask(number, message)
    except BlockStoreError as error:
        return error
    raise AssertionError(f"answered {answer}")
