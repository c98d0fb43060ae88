"""One run: a cluster of real daemons, clients at work, faults by schedule, and at the end the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trio

from blockstore import aio
from blockstore.daemon.local_cluster import LocalNode
from blockstore.errors import BlockStoreError
from blockstore.ids import NodeId
from chaos.cluster import Site
from chaos.faults import Faults
from chaos.history import History
from chaos.numbering import NumberingClients
from chaos.schedule import SIGNAL_KINDS, Aim, Fault, Step
from chaos.workload import Gaps, Load, Workload

POLICIES = {"copies": "replicated(3)", "coded": "ec(4,2)"}
SETTLE_SECONDS_MAX = 30.0
USUAL_LOAD = Load()

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Struck:
    """A step that was carried out: its kinds, the nodes, and the longest time without a write from its
    beginning until all daemons were back."""

    kinds: tuple[str, ...]
    nodes: tuple[int, ...]
    roles: tuple[Aim, ...]  # what each node was then; "anyone" also where the role was not found
    longest_gap: float
    gaps: dict[str, float]  # for each bucket


@dataclass(frozen=True, slots=True)
class _Target:
    fault: Fault
    node: LocalNode
    role: Aim


@dataclass(slots=True)
class Verdict:
    """What is believed after the run, and why."""

    seed: int
    struck: list[Struck] = field(default_factory=list[Struck])
    violations: list[str] = field(default_factory=list[str])
    n_writes: int = 0
    n_reads: int = 0
    n_bytes: int = 0
    n_snapshots: int = 0
    n_device_writes: int = 0
    n_device_snapshots: int = 0
    n_kills: int = 0
    n_flips: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.violations

    def n_hits(self, role: Aim) -> int:
        """How many of those that were hurt had this role at that time."""
        return sum(one.roles.count(role) for one in self.struck)

    def longest_gap(self, kind: str) -> float:
        """After a fault of this kind that came alone."""
        return max((one.longest_gap for one in self.struck if one.kinds == (kind,)), default=0.0)


async def run(
    directory: Path,
    seed: int,
    steps: Sequence[Step],
    *,
    n_nodes: int,
    plain: bool,
    tell: Tell,
    load: Load = USUAL_LOAD,
) -> Verdict:
    """Make the cluster in `directory`, run the schedule, stop the cluster; what is made elsewhere is gone
    afterwards, also after an error or when cancelled. Raise Unavailable when the daemons do not start."""
    verdict = Verdict(seed)
    began = time.monotonic()
    needs_hosts = any(fault.kind not in SIGNAL_KINDS for step in steps for fault in step.faults)
    with ExitStack() as outer:
        site = Site(directory, n_nodes, plain=plain, with_hosts=needs_hosts)
        await trio.to_thread.run_sync(lambda: outer.enter_context(site))
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                aio.connect(site.cluster.location, credentials=None if plain else site.cluster.credentials)
            )
            tell(f"{n_nodes} daemons run after {time.monotonic() - began:.1f} s.")
            await _Run(site, store, seed, verdict, tell).carry_out(steps, load)
    verdict.seconds = time.monotonic() - began
    return verdict


class _Run:
    def __init__(self, site: Site, store: aio.Store, seed: int, verdict: Verdict, tell: Tell) -> None:
        self._site, self._store, self._seed = site, store, seed
        self._verdict, self._tell = verdict, tell
        self._faults = Faults(site, seed, self._violate)
        self._histories: dict[str, History] = {}
        self._workloads: dict[str, Workload] = {}

    async def carry_out(self, steps: Sequence[Step], load: Load) -> None:
        await self._until_whole()
        for name, policy in POLICIES.items():
            bucket = await self._store.create_bucket(name, policy=policy)
            history = self._histories[name] = History(self._seed)
            self._workloads[name] = Workload(bucket, history, Gaps(), self._seed, load)
        numbering = await NumberingClients.create(self._store, self._seed, load)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(numbering.run)
            for workload in self._workloads.values():
                nursery.start_soon(workload.run)
            for number, step in enumerate(steps):
                await self._strike(number, step, numbering)
                if self._count_violations() > len(self._verdict.violations):
                    self._tell("   stopped here: something is wrong already")
                    break
            for workload in self._workloads.values():
                workload.stop()
            numbering.stop()
        await self._judge(numbering)

    async def _judge(self, numbering: NumberingClients) -> None:
        self._tell("All faults are over; the daemons start afresh, and all is read back from the disks.")
        await self._faults.kill_all()
        await self._until_whole()
        for name, workload in self._workloads.items():
            await workload.verify()
            history = self._histories[name]
            self._verdict.violations += [f"{name}: {violation}" for violation in history.violations]
            self._verdict.n_writes += history.n_writes
            self._verdict.n_reads += history.n_reads
            self._verdict.n_bytes += history.n_bytes
            self._verdict.n_snapshots += workload.n_snapshots
        try:
            await numbering.verify()
        except BlockStoreError as error:
            self._violate(f"reading the devices failed: {error!r}")
        self._verdict.violations += numbering.violations
        self._verdict.n_device_writes = numbering.numbering.acknowledged
        self._verdict.n_device_snapshots = numbering.n_snapshots
        self._verdict.n_kills, self._verdict.n_flips = self._faults.n_kills, self._faults.n_flips

    async def _strike(self, number: int, step: Step, numbering: NumberingClients) -> None:
        await trio.sleep(step.pause)
        for workload in self._workloads.values():
            await workload.snapshot(f"before-{number}")
        targets = await self._targets(step.faults)
        for workload in self._workloads.values():
            workload.gaps.begin_fault()
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(self._faults.strike, target.fault, target.node)
            for workload in self._workloads.values():
                nursery.start_soon(workload.snapshot, f"during-{number}")
            nursery.start_soon(numbering.snapshot, f"during-{number}")
        await self._faults.start_the_fallen()
        await self._until_whole()
        gaps = {name: workload.gaps.longest_now() for name, workload in self._workloads.items()}
        struck = Struck(
            tuple(sorted(fault.kind for fault in step.faults)),
            tuple(int(target.node.node) for target in targets),
            tuple(target.role for target in targets),
            max(gaps.values()),
            gaps,
        )
        self._verdict.struck.append(struck)
        words = "; ".join(f"{target.fault}: node {target.node.node}" for target in targets)
        self._tell(f"{number + 1}. {words}; longest gap between writes {struck.longest_gap:.2f} s")

    async def _targets(self, faults: Sequence[Fault]) -> list[_Target]:
        """For each fault a daemon of its own that has the role now; any, where the role is not found. Bits
        rot on one node only, the first that was chosen for it."""
        status = await self._store.status()
        owners = {volume.owner for volume in status.volumes}
        roles: dict[Aim, set[NodeId]] = {"leader": {status.leader}, "owner": owners, "anyone": set()}
        targets: list[_Target] = []
        for fault in sorted(faults, key=lambda fault: fault.kind != "rot"):
            taken = [target.node for target in targets]
            free = [node for node in self._site.nodes if node not in taken]
            fitting = [node for node in free if node.node in roles[fault.aim]] or free
            node = fitting[fault.index % len(fitting)]
            if fault.kind == "rot" and self._faults.rotten is not None:
                node = self._faults.rotten
            targets.append(_Target(fault, node, fault.aim if node.node in roles[fault.aim] else "anyone"))
        return targets

    async def _until_whole(self) -> None:
        """Until every daemon is live in the eyes of the others; if that takes too long, it is a violation."""
        with trio.move_on_after(SETTLE_SECONDS_MAX):
            while True:
                try:
                    status = await self._store.status(timeout=2.0)
                    if all(node.live for node in status.nodes) and len(status.nodes) == len(self._site.nodes):
                        return
                except BlockStoreError as error:
                    self._tell(f"status waits: {error}")
                await trio.sleep(0.1)
        self._violate(f"the cluster is not whole after {SETTLE_SECONDS_MAX:.0f} s")

    def _violate(self, text: str) -> None:
        self._verdict.violations.append(text)
        self._tell(f"   VIOLATION: {text}")

    def _count_violations(self) -> int:
        histories = sum(len(history.violations) for history in self._histories.values())
        return histories + len(self._verdict.violations)
