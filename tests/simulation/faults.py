"""What goes wrong in a simulated cluster, carried out by plan, one kind after the other, and how it ends
again."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Literal

import trio

from blockstore.errors import DiskFailed
from blockstore.node.slots_shell import file_name
from blockstore.runtime.interfaces import Message
from blockstore.runtime.sim.bus import BusFaults
from blockstore.runtime.sim.disk import USUAL_LATENCY_SECONDS, SimDisk
from blockstore.runtime.sim.disk_content import SECTOR_BYTES
from blockstore.runtime.sim.net import LinkFaults
from blockstore.runtime.sim.world import Machine
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.plan import (
    CLOCK_RATES,
    CLOCK_STOP_SECONDS,
    MOMENT_SECONDS_MAX,
    MOMENTS,
    NODE_KINDS,
    ROT_KINDS,
    Fault,
    Kind,
    Plan,
)
from tests.simulation.watch import Watch

ROTTEN_FOLDERS = ("fragments", "raft")
STEPS_MAX = 60
"""Of a disk, until power fails in the middle of one: a second or less of a busy node."""
CLOCK_STOP_PAUSE_SECONDS = 1.0


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
        self._stopping: dict[SimNode, None] = {}  # whose clocks stand still now and then
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
            for one in self._cluster.nodes:
                for disk in one.machine.disks.values():
                    disk.heal()

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
            "power at a write": self._stop_at_a_write,
            "freeze": self._freeze,
            "isolate": self._isolate,
            "deaf": self._isolate,
            "mute": self._isolate,
            "flapping": self._flap,
            "pair": self._cut_pair,
            "slow link": self._slow_link,
            "lossy": self._lose,
            "reset": self._reset,
            "stall": self._stall,
            "slow disk": self._slow_disk,
            "write error": self._fail_disk,
            "sync error": self._fail_disk,
            "read error": self._fail_read,
            "full": self._fill,
            "drift": self._drift,
            "clock stops": self._stop_clock,
            "wall clock": self._set_wall,
            "rot": self._rot,
            "misdirected": self._misplace,
            "lost write": self._misplace,
            "bad sector": self._make_unreadable,
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

    async def _stop_at_a_write(self, one: SimNode, fault: Fault) -> None:
        """Between two steps of a disk: a write, a sync, a rename."""
        if one in self._hurt:
            return
        self._hurt[one] = None
        disk, n_steps = self._some_disk(one), fault.index % STEPS_MAX
        is_off = trio.Event()

        def cut() -> None:
            self._tell(one, f"power fails at a step of {disk.path}")
            self._cluster.kill(one, power=True)
            is_off.set()

        self._tell(one, f"power will fail {n_steps} steps of {disk.path} from now")
        disk.cut_after(n_steps, cut)
        with trio.move_on_after(MOMENT_SECONDS_MAX):
            await is_off.wait()
        if one.is_wanted:  # the disk did not so much
            cut()
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

    async def _reset(self, one: SimNode, fault: Fault) -> None:
        until = trio.current_time() + fault.hold
        self._tell(one, f"loses all its connections again and again for {fault.hold:.1f} s")
        while trio.current_time() < until:
            for other in self._others(one):
                if self._rng.random() < 0.7:
                    self._world.break_lanes(one.machine, other)
            await trio.sleep(self._rng.uniform(0.02, 0.4))

    async def _stall(self, one: SimNode, fault: Fault) -> None:
        self._tell(one, f"has disks that do nothing for {fault.hold:.1f} s")
        for disk in one.machine.disks.values():
            disk.stall(fault.hold)
        await trio.sleep(fault.hold)

    async def _slow_disk(self, one: SimNode, fault: Fault) -> None:
        seconds = self._rng.choice((0.01, 0.05, 0.2))
        self._tell(one, f"has disks that take {seconds * 1_000:.0f} ms for everything")
        for disk in one.machine.disks.values():
            disk.latency_seconds = (seconds / 2, seconds)
        await trio.sleep(fault.hold)
        for disk in one.machine.disks.values():
            disk.latency_seconds = USUAL_LATENCY_SECONDS
        self._tell(one, "has quick disks again")

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

    # --- clocks

    async def _drift(self, one: SimNode, fault: Fault) -> None:
        rate = self._rng.choice(CLOCK_RATES)
        self._tell(one, f"has a clock that runs {rate} as fast as time")
        one.machine.clock.rate = rate
        await trio.sleep(fault.hold)

    async def _stop_clock(self, one: SimNode, fault: Fault) -> None:
        if one in self._stopping:
            return  # twice as often would be more than clocks may differ
        self._stopping[one] = None
        until = trio.current_time() + fault.hold
        self._tell(one, f"has a clock that stands still for {CLOCK_STOP_SECONDS} s now and then")
        while trio.current_time() < until:
            one.machine.clock.stand_still(CLOCK_STOP_SECONDS)
            await trio.sleep(CLOCK_STOP_PAUSE_SECONDS)
        del self._stopping[one]

    async def _set_wall(self, one: SimNode, fault: Fault) -> None:
        seconds = self._rng.choice((-1e7, -3_600.0, 1.0, 86_400.0, 1e8))
        self._tell(one, f"has its wall clock set by {seconds:+.0f} s")
        one.machine.clock.set_wall(seconds)

    # --- bytes: on the victim alone

    def _rotten_file(self, one: SimNode) -> tuple[SimDisk, str] | None:
        """One of those that a node must be able to lose bytes of."""
        files = [
            (disk, f"{folder}/{name}")
            for disk in one.machine.disks.values()
            for folder in ROTTEN_FOLDERS
            for name in disk.names(folder)
        ]
        return self._rng.choice(files) if files else None

    def _file_in_use(self, one: SimNode) -> tuple[SimDisk, str] | None:
        """A fragment that is still written, if there is one."""
        shells = one.node.disks.values() if one.node is not None else ()
        slots = [
            fragment.slot for shell in shells for fragment in shell._fragments.values() if not fragment.sealed
        ]
        if not slots:
            return self._rotten_file(one)
        return one.machine.disk(one.facts.disks[0].directory), file_name(self._rng.choice(slots))

    async def _rot(self, one: SimNode, fault: Fault) -> None:
        found = self._rotten_file(one)
        if found is not None:
            disk, name = found
            offset = disk.random_place(name, self._rng)
            self._tell(one, f"a bit flips at {offset} of {disk.path}/{name}")
            disk.flip(name, offset, 1 << self._rng.randrange(8))

    async def _make_unreadable(self, one: SimNode, fault: Fault) -> None:
        found = self._rotten_file(one)
        if found is not None:
            disk, name = found
            offset = disk.random_place(name, self._rng)
            self._tell(one, f"the sector at {offset} of {disk.path}/{name} cannot be read any more")
            disk.make_unreadable(name, offset)

    async def _misplace(self, one: SimNode, fault: Fault) -> None:
        """A write that is acknowledged is nowhere, or in another place of the same disk."""
        found = self._file_in_use(one)
        if found is None:
            return
        disk, name = found
        to: tuple[str, int] | None = None
        if fault.kind == "misdirected":
            folder = name.partition("/")[0]
            other = f"{folder}/{self._rng.choice(disk.names(folder))}"
            to = other, disk.random_place(other, self._rng) // SECTOR_BYTES * SECTOR_BYTES
        self._tell(
            one, f"a write to {disk.path}/{name} will go {f'to {to[0]} at {to[1]}' if to else 'nowhere'}"
        )
        disk.misplace(name, fault.nth, to)
