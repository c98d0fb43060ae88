"""What goes wrong in a simulated cluster, carried out by plan, one kind after the other, and how it ends
again."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from blockstore.errors import DiskFailed
from blockstore.runtime.interfaces import Message
from blockstore.runtime.sim.bus import BusFaults
from blockstore.runtime.sim.disk import SECTOR_BYTES, SimDisk
from blockstore.runtime.sim.net import LinkFaults
from blockstore.runtime.sim.world import Machine
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.plan import MOMENT_SECONDS_MAX, MOMENTS, NODE_KINDS, ROT_KINDS, Fault, Kind, Plan
from tests.simulation.watch import Watch


class Faults:
    """Carries out the plan of one seed."""

    def __init__(self, cluster: SimCluster, plan: Plan, watch: Watch, rng: random.Random) -> None:
        self.n_begun = 0
        self.counts: dict[str, int] = {}
        self._cluster, self._plan, self._watch, self._rng = cluster, plan, watch, rng
        self._world = cluster.world
        self._usual = (cluster.world.lanes.faults, cluster.world.bus.faults)
        self._full: dict[SimDisk, tuple[int, int]] = {}  # for how many reasons, and what it really holds
        self._one_at_a_time = trio.CapacityLimiter(len(cluster.nodes) if plan.is_storm else 1)
        self._waiting: list[tuple[SimNode, type, int, trio.Event]] = []
        self._hurt: dict[SimNode, None] = {}  # those that are away, or restarting
        if plan.victim:
            victim = cluster.node(plan.victim)
            watch.rotten_disks.update(place.disk for place in victim.facts.disks)

    async def run(self) -> None:
        """Return when all faults have begun and ended."""
        self._world.spy = self._hear
        try:
            async with trio.open_nursery() as nursery:
                for fault in self._plan.faults:
                    await trio.sleep(fault.pause)
                    if fault.kind in NODE_KINDS:
                        # Waits for its turn here, so that a pause is kept between two.
                        await self._one_at_a_time.acquire_on_behalf_of(fault)
                    nursery.start_soon(self._carry_out, fault)
        finally:
            self._world.spy = None

    async def _carry_out(self, fault: Fault) -> None:
        try:
            one = self._choose(fault)
            if fault.moment >= 0:
                await self._wait_for(one, MOMENTS[fault.moment], fault.nth)
            self.n_begun += 1
            self.counts[fault.kind] = self.counts.get(fault.kind, 0) + 1
            await self._acts()[fault.kind](one, fault)
        finally:
            if fault.kind in NODE_KINDS:
                self._one_at_a_time.release_on_behalf_of(fault)

    def _choose(self, fault: Fault) -> SimNode:
        nodes = self._cluster.nodes
        if fault.kind in ROT_KINDS:
            return self._cluster.node(self._plan.victim)
        found: list[SimNode] = []
        if fault.aim == "leader":
            found = [one for one in nodes if one.node is not None and one.node.control.is_leader]
        elif fault.aim == "owner":
            found = [one for one in nodes if one.node is not None and one.node.host.owned()]
        found = found or nodes
        return found[fault.index % len(found)]

    # --- moments

    async def _wait_for(self, one: SimNode, kind: type, nth: int) -> None:
        event = trio.Event()
        entry = (one, kind, nth, event)
        self._waiting.append(entry)
        with trio.move_on_after(MOMENT_SECONDS_MAX):
            await event.wait()
        self._waiting = [waiting for waiting in self._waiting if waiting[3] is not event]

    def _hear(self, sender: Machine, receiver: Machine, message: Message) -> None:
        if not self._waiting:
            return
        for index, (one, kind, nth, event) in enumerate(self._waiting):
            if one.machine in (sender, receiver) and isinstance(message, kind) and not event.is_set():
                if nth:
                    self._waiting[index] = (one, kind, nth - 1, event)
                else:
                    event.set()

    # --- the kinds

    def _acts(self) -> dict[Kind, Callable[[SimNode, Fault], Awaitable[None]]]:
        return {
            "kill": self._stop,
            "power": self._stop,
            "freeze": self._freeze,
            "isolate": self._isolate,
            "deaf": self._isolate,
            "mute": self._isolate,
            "flapping": self._flap,
            "pair": self._cut_pair,
            "slow link": self._slow_link,
            "lossy": self._lose,
            "stall": self._stall,
            "write error": self._fail_disk,
            "sync error": self._fail_disk,
            "read error": self._fail_read,
            "full": self._fill,
            "rot": self._rot,
            "misdirected": self._misdirect,
        }

    def _tell(self, one: SimNode, words: str) -> None:
        self._world.tell(f"FAULT {words}", one.machine.name)

    async def _stop(self, one: SimNode, fault: Fault) -> None:
        if one in self._hurt:
            return
        self._hurt[one] = None
        power = fault.kind == "power"
        self._tell(one, "power fails" if power else "is killed")
        self._cluster.kill(one, power=power)
        await trio.sleep(fault.hold)
        self._cluster.start(one)
        del self._hurt[one]

    async def _freeze(self, one: SimNode, fault: Fault) -> None:
        if one in self._hurt:
            return
        self._tell(one, "is frozen")
        one.machine.freeze()
        await trio.sleep(fault.hold)
        if one.machine.is_frozen:
            self._tell(one, "thaws")
            one.machine.thaw()

    async def _isolate(self, one: SimNode, fault: Fault) -> None:
        self._tell(
            one, {"isolate": "is cut off", "deaf": "hears nothing", "mute": "is not heard"}[fault.kind]
        )
        self._cut_off(one, fault.kind)
        await trio.sleep(fault.hold)
        self._join_again(one)
        self._tell(one, "is connected again")

    def _others(self, one: SimNode) -> list[Machine]:
        return [machine for machine in self._world.machines.values() if machine is not one.machine]

    def _cut_off(self, one: SimNode, kind: str) -> None:
        for other in self._others(one):
            if kind != "mute":
                self._world.cut(other, one.machine)
            if kind != "deaf":
                self._world.cut(one.machine, other)

    def _join_again(self, one: SimNode) -> None:
        for other in self._others(one):
            self._world.mend(other, one.machine)
            self._world.mend(one.machine, other)

    async def _flap(self, one: SimNode, fault: Fault) -> None:
        self._tell(one, "has a link that comes and goes")
        until = trio.current_time() + fault.hold
        while trio.current_time() < until:
            self._cut_off(one, self._rng.choice(("isolate", "deaf", "mute")))
            await trio.sleep(self._rng.uniform(0.05, 0.4))
            self._join_again(one)
            await trio.sleep(self._rng.uniform(0.05, 0.3))
        self._tell(one, "has a steady link again")

    async def _cut_pair(self, one: SimNode, fault: Fault) -> None:
        other = self._rng.choice(self._others(one))
        self._tell(one, f"has no link with {other.name}")
        self._world.cut(other, one.machine)
        if fault.index % 2:
            self._world.cut(one.machine, other)
        await trio.sleep(fault.hold)
        self._world.mend(other, one.machine)
        self._world.mend(one.machine, other)
        self._tell(one, f"has its link with {other.name} again")

    async def _slow_link(self, one: SimNode, fault: Fault) -> None:
        delay = self._rng.choice((0.02, 0.1, 0.3, 0.7))
        self._tell(one, f"is {delay * 1_000:.0f} ms away")
        lanes, bus = LinkFaults(delay / 2, delay), BusFaults(delay_min=delay / 2, delay_max=delay)
        for other in self._others(one):
            self._world.set_link(one.machine, other, lanes, bus)
            self._world.set_link(other, one.machine, lanes, bus)
        await trio.sleep(fault.hold)
        for other in self._others(one):
            self._world.set_link(one.machine, other, None, None)
            self._world.set_link(other, one.machine, None, None)
        self._tell(one, "is near again")

    async def _lose(self, one: SimNode, fault: Fault) -> None:
        world, share = self._world, self._rng.choice((0.01, 0.05, 0.2))
        world.tell(f"FAULT {share:.0%} of all messages are lost, as many come twice, some late")
        world.lanes.faults = LinkFaults(0.0, 0.03, share / 4, share)
        world.bus.faults = BusFaults(share, share, 0.0, 0.1)
        await trio.sleep(fault.hold)
        world.lanes.faults, world.bus.faults = self._usual
        world.tell("the network is sound again")

    async def _stall(self, one: SimNode, fault: Fault) -> None:
        self._tell(one, f"has disks that do nothing for {fault.hold:.1f} s")
        for disk in one.machine.disks.values():
            disk.stall(fault.hold)
        await trio.sleep(fault.hold)

    def _some_disk(self, one: SimNode) -> SimDisk:
        return self._rng.choice(list(one.machine.disks.values()))

    async def _fail_disk(self, one: SimNode, fault: Fault) -> None:
        if one in self._hurt:
            return
        self._hurt[one] = None
        disk = self._some_disk(one)
        operation: Literal["write", "sync"] = "write" if fault.kind == "write error" else "sync"
        self._tell(one, f"the next {operation} on {disk.path} fails")
        disk.inject(operation, DiskFailed(disk.path, "Input/output error"), after=fault.nth)
        await trio.sleep(fault.hold)
        disk.heal()
        self._tell(one, "is restarted after its disk failed")
        self._cluster.kill(one, power=False)
        self._cluster.start(one)
        del self._hurt[one]

    async def _fail_read(self, one: SimNode, fault: Fault) -> None:
        disk = self._some_disk(one)
        self._tell(one, f"the next reads on {disk.path} fail")
        for _ in range(1 + fault.nth):
            disk.inject("read", DiskFailed(disk.path, "Input/output error"))
        await trio.sleep(fault.hold)
        disk.heal()

    async def _fill(self, one: SimNode, fault: Fault) -> None:
        self._tell(one, "has full disks")
        disks = list(one.machine.disks.values())
        for disk in disks:
            if disk not in self._full:
                self._full[disk] = (0, disk.capacity_bytes)
                disk.capacity_bytes -= disk.free_bytes()
            n_reasons, capacity = self._full[disk]
            self._full[disk] = (n_reasons + 1, capacity)
        await trio.sleep(fault.hold)
        for disk in disks:
            n_reasons, capacity = self._full.pop(disk)
            if n_reasons > 1:
                self._full[disk] = (n_reasons - 1, capacity)
            else:
                disk.capacity_bytes = capacity
        self._tell(one, "has room on its disks, unless it is full for another reason")

    def _rotten_file(self, one: SimNode) -> tuple[SimDisk, str] | None:
        """One of those that a node must be able to lose bytes of."""
        files = [
            (disk, f"{folder}/{name}")
            for disk in one.machine.disks.values()
            for folder in ("fragments", "raft")
            for name in disk.names(folder)
        ]
        return self._rng.choice(files) if files else None

    async def _rot(self, one: SimNode, fault: Fault) -> None:
        found = self._rotten_file(one)
        if found is not None:
            disk, name = found
            offset = disk.random_place(name, self._rng)
            self._tell(one, f"a bit flips at {offset} of {disk.path}/{name}")
            disk.flip(name, offset, 1 << self._rng.randrange(8))

    async def _misdirect(self, one: SimNode, fault: Fault) -> None:
        """A sector of one place is written over another."""
        source, target = self._rotten_file(one), self._rotten_file(one)
        if source is None or target is None:
            return
        start = source[0].random_place(source[1], self._rng) // SECTOR_BYTES * SECTOR_BYTES
        end = target[0].random_place(target[1], self._rng) // SECTOR_BYTES * SECTOR_BYTES
        data = source[0].peek(source[1], start, SECTOR_BYTES)
        self._tell(one, f"a write to {source[1]} at {start} goes to {target[0].path}/{target[1]} at {end}")
        target[0].overwrite(target[1], end, data)
