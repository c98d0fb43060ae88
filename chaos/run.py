"""One run: a cluster of real daemons, clients at work, faults by schedule, and at the end the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import trio

from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster, LocalNode
from blockstore.errors import BlockStoreError
from chaos.history import History
from chaos.schedule import Aim, Fault
from chaos.workload import Gaps, Workload

POLICIES = {"copies": "replicated(3)", "coded": "ec(4,2)"}
N_WRITERS = 3
SETTLE_SECONDS_MAX = 30.0

Tell = Callable[[str], None]


@dataclass(slots=True)
class Verdict:
    """What is believed after the run, and why. `gaps`: for each fault, the longest time without a write."""

    seed: int
    gaps: list[tuple[Fault, int, float]] = field(default_factory=list[tuple[Fault, int, float]])
    violations: list[str] = field(default_factory=list[str])
    n_writes: int = 0
    n_reads: int = 0
    n_bytes: int = 0
    n_snapshots: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.violations

    def longest_gap(self, kind: str) -> float:
        return max((gap for fault, _, gap in self.gaps if fault.kind == kind), default=0.0)


async def run(
    directory: Path, seed: int, faults: Sequence[Fault], *, n_nodes: int, plain: bool, tell: Tell
) -> Verdict:
    """Make the cluster in `directory`, run the schedule, stop the cluster. Raise Unavailable when the
    daemons do not even start."""
    verdict = Verdict(seed)
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        cluster = await trio.to_thread.run_sync(
            lambda: LocalCluster.create(directory, n_nodes, security="plain" if plain else "tls")
        )
        stack.enter_context(cluster)
        store = await stack.enter_async_context(
            aio.connect(cluster.location, credentials=None if plain else cluster.credentials)
        )
        tell(f"{n_nodes} daemons run after {time.monotonic() - began:.1f} s.")
        await _Run(cluster, store, seed, verdict, tell).carry_out(faults)
    verdict.seconds = time.monotonic() - began
    return verdict


class _Run:
    def __init__(
        self, cluster: LocalCluster, store: aio.Store, seed: int, verdict: Verdict, tell: Tell
    ) -> None:
        self._cluster, self._store, self._seed = cluster, store, seed
        self._verdict, self._tell = verdict, tell
        self._histories: dict[str, History] = {}
        self._workloads: dict[str, Workload] = {}

    async def carry_out(self, faults: Sequence[Fault]) -> None:
        await self._until_whole()
        for name, policy in POLICIES.items():
            bucket = await self._store.create_bucket(name, policy=policy)
            history = self._histories[name] = History(self._seed)
            self._workloads[name] = Workload(bucket, history, Gaps(), self._seed, N_WRITERS)
        async with trio.open_nursery() as nursery:
            for workload in self._workloads.values():
                nursery.start_soon(workload.run)
            for number, fault in enumerate(faults):
                await self._hurt(number, fault)
            for workload in self._workloads.values():
                workload.stop()
        self._tell("All faults are over; every object, now and in every snapshot, is read back.")
        await self._until_whole()
        for name, workload in self._workloads.items():
            await workload.verify()
            history = self._histories[name]
            self._verdict.violations += [f"{name}: {violation}" for violation in history.violations]
            self._verdict.n_writes += history.n_writes
            self._verdict.n_reads += history.n_reads
            self._verdict.n_bytes += history.n_bytes
            self._verdict.n_snapshots += len(workload.snapshots)

    async def _hurt(self, number: int, fault: Fault) -> None:
        await trio.sleep(fault.pause)
        for workload in self._workloads.values():
            await workload.snapshot(f"before-{number}")
        node = await self._find(fault.aim, fault.index)
        for workload in self._workloads.values():
            workload.gaps.begin_fault()
        if fault.kind == "kill":
            await trio.to_thread.run_sync(node.kill)
        else:
            node.freeze()
        async with trio.open_nursery() as nursery:
            for workload in self._workloads.values():
                nursery.start_soon(workload.snapshot, f"during-{number}")
            await trio.sleep(fault.hold)
        if fault.kind == "kill":
            await trio.to_thread.run_sync(node.start)
        else:
            node.thaw()
        await self._until_whole()
        gap = max(workload.gaps.longest_now() for workload in self._workloads.values())
        self._verdict.gaps.append((fault, node.node, gap))
        self._tell(f"{number + 1}. {fault}: node {node.node}; longest gap between writes {gap:.2f} s")

    async def _find(self, aim: Aim, index: int) -> LocalNode:
        """The daemon that has the role now; any, where the role is not found."""
        status = await self._store.status()
        owners = sorted({volume.owner for volume in status.volumes})
        wanted = {"leader": [status.leader], "owner": owners, "anyone": []}[aim]
        nodes = [node for node in self._cluster.nodes if node.node in wanted] or self._cluster.nodes
        return nodes[index % len(nodes)]

    async def _until_whole(self) -> None:
        """Until every daemon is live in the eyes of the others; if that takes too long, it is a violation."""
        with trio.move_on_after(SETTLE_SECONDS_MAX):
            while True:
                try:
                    status = await self._store.status(timeout=2.0)
                    if all(node.live for node in status.nodes) and len(status.nodes) == len(
                        self._cluster.nodes
                    ):
                        return
                except BlockStoreError as error:
                    self._tell(f"status waits: {error}")
                await trio.sleep(0.1)
        self._verdict.violations.append(f"the cluster is not whole after {SETTLE_SECONDS_MAX:.0f} s")
