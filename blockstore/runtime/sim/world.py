"""A world of machines from one seed: their clocks, disks and links, and everything that can happen to them.

A machine is what survives the programs that run on it: a name, disks, a clock. A program lives on it until it
is killed or the power fails; of a life that is over nothing reaches anybody any more, neither its messages
nor what its disks had still to do. A frozen machine is a stopped process: disks and links go on, but nothing
of it runs, and what came meanwhile is there, all at once, when it thaws.

All that moves goes through one agenda and is drawn from one chance; `trace` sums it up, so that two runs are
the same run if and only if their sums agree.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio

from blockstore.errors import BlockStoreError, ConnectionLost
from blockstore.ids import NodeId
from blockstore.runtime.interfaces import Address, Message, OnBusMessage
from blockstore.runtime.memory_bus import MemoryBus
from blockstore.runtime.memory_net import MemoryListener, MemoryNetwork
from blockstore.runtime.sim.bus import BusFaults
from blockstore.runtime.sim.bus import SimCarrier as BusCarrier
from blockstore.runtime.sim.clock import MachineClock
from blockstore.runtime.sim.disk import PowerLost, SimDisk
from blockstore.runtime.sim.net import LinkFaults
from blockstore.runtime.sim.net import SimCarrier as LaneCarrier
from blockstore.runtime.sim.scheduler import Freezer, simulated_time

HELD_MAX = 20_000
"""What waits for a frozen machine: seconds of a busy cluster. Its kernel would drop the rest as well."""

HANG_UP_SECONDS = (0.000_2, 0.002)
"""Until others learn that a process is gone: its kernel closes its connections."""


class Listener(Protocol):
    """Who follows what happens. `machine` is "" for what happens to the world."""

    def __call__(self, when: float, machine: str, words: str) -> None: ...


Spy = Callable[["Machine", "Machine", Message], None]
"""Hears each request before it is on its way: from whom, to whom, what."""


class Trace:
    """The sum of all that happened, and for who listens what it was in words."""

    def __init__(self) -> None:
        self.sum = 0
        self.n_events = 0
        self.listener: Listener | None = None

    def add(self, when: float, what: bytes) -> None:
        self.n_events += 1
        self.sum = zlib.crc32(what, zlib.crc32(b"%.9f " % when, self.sum))

    def tell(self, when: float, machine: str, words: str) -> None:
        self.add(when, f"{machine} {words}".encode())
        if self.listener is not None:
            self.listener(when, machine, words)


class World:
    """Made within `scheduler.run_simulated`."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        time = simulated_time()
        self.clock = MachineClock(time)
        self.agenda = time.agenda
        self.trace = Trace()
        self.freezer = Freezer()
        self.machines: dict[str, Machine] = {}
        self.listeners: dict[Address, MemoryListener] = {}
        self.lanes = LaneCarrier(self.clock, self.fork(), LinkFaults(), agenda=self.agenda)
        self.bus = BusCarrier(self.fork(), self.clock, BusFaults(), agenda=self.agenda)
        self.spy: Spy | None = None
        self._at: dict[str, Machine] = {}  # by name and by address
        self._by_node: dict[NodeId, Machine] = {}

    def fork(self) -> random.Random:
        return random.Random(self.chance.getrandbits(64))

    def machine(self, name: str, *, node: NodeId | None = None, address: Address | None = None) -> Machine:
        """A new one. Its clock shows what it likes."""
        clock = MachineClock(simulated_time(), self.chance.uniform(10.0, 100_000.0))
        machine = Machine(self, name, clock)
        self.machines[name] = self._at[name] = machine
        if address is not None:
            self._at[str(address)] = machine
        if node is not None:
            machine.node = node
            self._by_node[node] = machine
        return machine

    def tell(self, words: str, machine: str = "") -> None:
        self.trace.tell(self.clock.now(), machine, words)

    def machine_of(self, task: trio.lowlevel.Task) -> str:
        """The name of the machine that the task runs on; "" for one of the world."""
        above: trio.lowlevel.Task | None = task
        while above is not None:
            for machine in self.machines.values():
                if machine.root is above:
                    return machine.name
            nursery = above.parent_nursery
            above = None if nursery is None else nursery.parent_task
        return ""

    # --- links

    def cut(self, source: Machine, target: Machine) -> None:
        """From now on nothing from `source` arrives at `target`."""
        self.lanes.cut(source.name, target.name)
        if source.node and target.node:
            self.bus.cut((source.node,), (target.node,), both_ways=False)

    def mend(self, source: Machine, target: Machine) -> None:
        self.lanes.mend(source.name, target.name)
        if source.node and target.node:
            self.bus.mend(source.node, target.node)

    def mend_all(self) -> None:
        self.lanes.mend_all()
        self.bus.heal()

    def set_link(
        self, source: Machine, target: Machine, lanes: LinkFaults | None, bus: BusFaults | None
    ) -> None:
        """One link, in one direction, is worse than the others; None: like them again."""
        self.lanes.set_link(source.name, target.name, lanes)
        if source.node and target.node:
            self.bus.set_link(source.node, target.node, bus)

    # --- what machines send: `memory_net.Carrier` and `memory_bus.Carrier`

    def carry_lane(
        self, source: str, target: str, deliver: Callable[[], None], may_repeat: bool, about: Message
    ) -> None:
        sender, receiver = self._at[source], self._at[target]
        if not sender.is_on:
            return
        if may_repeat and self.spy is not None:
            self.spy(sender, receiver, about)
            if not sender.is_on:
                return
        self.trace.add(self.clock.now(), f"{sender.name} {receiver.name} {type(about).__name__}".encode())
        if receiver.is_silent:
            return
        self.lanes.carry(
            sender.name, receiver.name, receiver.guard(deliver, even_off=may_repeat), may_repeat=may_repeat
        )

    def carry_bus(self, sender: NodeId, to: NodeId, message: bytes) -> bool:
        if not self._by_node[sender].is_on:
            return False
        self.trace.add(self.clock.now(), message)
        return self.bus.carry(sender, to, message)

    def hang_up(self, machine: Machine) -> None:
        """Everybody who has a connection to this machine learns that it is closed."""
        error = ConnectionLost(f"{machine.name}: the peer hung up")
        for other in self.machines.values():
            if other is not machine and other.is_on:
                delay = self.chance.uniform(*HANG_UP_SECONDS)
                for network in other.networks:
                    self.agenda.at(
                        self.clock.now() + delay, other.guard(partial(self._lose, network, machine, error))
                    )

    def break_lanes(self, one: Machine, other: Machine) -> None:
        """The connections between these two break; both may make new ones at once."""
        for machine, peer in ((one, other), (other, one)):
            error = ConnectionLost(f"{peer.name}: the connection was reset")
            for network in machine.networks:
                self.agenda.at(self.clock.now(), machine.guard(partial(self._lose, network, peer, error)))

    def _lose(self, network: MemoryNetwork, machine: Machine, error: BlockStoreError) -> None:
        for address in list(network.addresses):
            if self._at.get(str(address)) is machine:
                network.lose(address, error)


class Machine:
    def __init__(self, world: World, name: str, clock: MachineClock) -> None:
        self.world, self.name, self.clock = world, name, clock
        self.node = NodeId(0)  # set for one that is on the bus
        self.life = 0  # counts the programs that ran here
        self.is_on = False
        self.is_frozen = False
        self.is_silent = False  # off, and its operating system with it: nobody is told
        self.disks: dict[str, SimDisk] = {}
        self.networks: list[MemoryNetwork] = []
        self._bus: MemoryBus | None = None
        self._chance = world.fork()
        self.root: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._held: list[Callable[[], None]] = []

    def __str__(self) -> str:
        return self.name

    # --- what a program finds here

    def fork(self) -> random.Random:
        return random.Random(self._chance.getrandbits(64))

    def disk(self, directory: str) -> SimDisk:
        """The disk mounted there, made when it is first asked for."""
        disk = self.disks.get(directory)
        if disk is None:
            path = f"{self.name}/{directory}"
            disk = self.disks[directory] = SimDisk(self.fork(), self.clock, path=path, after=self._after)
        return disk

    def open_network(self) -> MemoryNetwork:
        """For the program that runs now, to be entered by it; use it through `seen_as(…, machine.name)`."""
        network = MemoryNetwork(
            self.clock, carrier=_Port(self.world), listeners=self.world.listeners, soon=self.soon
        )
        self.networks.append(network)
        return network

    def open_bus(self, on_message: OnBusMessage) -> MemoryBus:
        """For the program that runs now."""
        life = self.life

        def heard(sender: NodeId, message: bytes) -> None:
            self._reach(life, False, partial(on_message, sender, message))

        self._bus = self.world.bus.join(MemoryBus(self.node, heard, _BusPort(self.world)))
        return self._bus

    # --- what reaches it

    def guard(self, call: Callable[[], None], *, even_off: bool = False) -> Callable[[], None]:
        """`call`, which does nothing once this life is over, and waits while the machine is frozen."""
        return partial(self._reach, 0 if even_off else self.life, even_off, call)

    def _reach(self, life: int, even_off: bool, call: Callable[[], None]) -> None:
        if not self.is_on:
            if even_off and not self.is_silent:
                call()  # nobody listens there, and that is said
            return
        if life and life != self.life:
            return
        if self.is_frozen:
            if len(self._held) < HELD_MAX:
                self._held.append(partial(self._reach, life or self.life, False, call))
            return
        try:
            call()
        except PowerLost:
            if self.is_on:
                raise

    def soon(self, call: Callable[[], None]) -> None:
        self.world.agenda.at(self.world.clock.now(), self.guard(call))

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self.world.agenda.at(self.world.clock.now() + seconds / self.clock.rate, self.guard(call))

    # --- life and death

    async def live(self, program: Callable[[], Awaitable[None]]) -> None:
        """Run `program` until it ends, or is stopped from outside. What it raises is raised, unless it was
        stopped: a program that is cut short may end anyhow."""
        assert not self.is_on
        self.life += 1
        self.is_on, self.is_silent = True, False
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        self.root = trio.lowlevel.current_task()
        for disk in self.disks.values():
            disk.power_on()
        try:
            with self._scope:
                await program()
        except Exception:
            if self.is_on:
                raise
        finally:
            if self.is_on:
                self.kill()
            self.root = None
            self._ended.set()

    async def ended(self) -> None:
        """Return when nothing of the last life is left."""
        if self.life:
            await self._ended.wait()

    def kill(self) -> None:
        """The process is gone (kill -9). Its operating system keeps what was written, and closes its
        connections."""
        if self.is_on:
            self.is_silent = False
            self._stop()
            for disk in self.disks.values():
                disk.process_ended()
            self.world.hang_up(self)

    def power_off(self) -> None:
        """The machine is gone, and what its disks had not synced."""
        if self.is_on:
            self.is_silent = True
            self._stop()
        for disk in self.disks.values():
            disk.power_off()

    def _stop(self) -> None:
        self.thaw()
        self.is_on = False
        for network in self.networks:
            network.vanish()
        self.networks.clear()
        if self._bus is not None:
            self._bus.close()
            self._bus = None
        self._held.clear()
        self._scope.cancel()

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.is_on and not self.is_frozen:
            assert self.root is not None
            self.is_frozen = True
            self.world.freezer.freeze(self.root)

    def thaw(self) -> None:
        """SIGCONT."""
        if self.is_frozen:
            assert self.root is not None
            self.is_frozen = False
            self.world.freezer.thaw(self.root)
            held, self._held = self._held, []
            now = self.world.clock.now()
            for call in held:
                self.world.agenda.at(now, call)


class _Port:
    """A machine's end of the wires."""

    __slots__ = ("_world",)

    def __init__(self, world: World) -> None:
        self._world = world

    def carry(
        self,
        source: str,
        target: str,
        deliver: Callable[[], None],
        *,
        may_repeat: bool,
        about: Message = None,
    ) -> None:
        self._world.carry_lane(source, target, deliver, may_repeat, about)

    async def run(self) -> None:
        await trio.sleep_forever()  # the agenda does the work


class _BusPort:
    __slots__ = ("_world",)

    def __init__(self, world: World) -> None:
        self._world = world

    def carry(self, sender: NodeId, to: NodeId, message: bytes) -> bool:
        return self._world.carry_bus(sender, to, message)

    def leave(self, bus: MemoryBus) -> None:
        self._world.bus.leave(bus)
