"""One seed: a cluster, clients at work, faults by plan, checkers all along; then peace, and the verdict."""

from __future__ import annotations

import logging
import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from blockstore import aio
from blockstore.errors import BlockStoreError
from blockstore.kinds.block import BLOCK_BYTES
from blockstore.runtime.sim.bus import BusFaults
from blockstore.runtime.sim.net import LinkFaults
from blockstore.runtime.sim.scheduler import run_simulated
from blockstore.runtime.sim.world import Listener, Machine, World
from chaos.history import History
from chaos.numbering import NumberingClients
from chaos.workload import Load
from tests.simulation import settings
from tests.simulation.clones import Cloner
from tests.simulation.cluster import SimCluster
from tests.simulation.faults import Faults
from tests.simulation.plan import CLOCK_RATES, Plan, draw_plan
from tests.simulation.watch import Watch
from tests.simulation.workload import PROMISED, BucketBook, Tally, Workload

N_FAULTS = 26
LOOK_SECONDS = 0.05
LOOK_AT_SEALED_SECONDS = 1.0
RECOVERY_SECONDS = 30.0
"""After the last fault everything answers and writes by then: the promise. Then everything is verified."""
LIFE_SECONDS_MAX = 600.0
"""A seed takes about a minute of its own time; one that takes so long is stuck."""
OPERATIONS_MIN = 300
SEEDS_TO_ONE_WITH_CLONES = 4
"""Each clone has an owner of its own: such a seed costs a third more."""
DEVICES_IN = 2
"""And those seeds that leave this remainder have block devices in place of clones."""
DEVICE_PACE_SECONDS = 0.05


@dataclass
class Outcome:
    seed: int
    violations: list[str] = field(default_factory=list[str])
    trace_sum: int = 0
    n_events: int = 0
    n_faults: int = 0
    faults: dict[str, int] = field(default_factory=dict[str, int])
    mishaps: dict[str, int] = field(default_factory=dict[str, int])
    """What the faults did: messages lost, operations of disks failed, …"""
    seen: dict[str, int] = field(default_factory=dict[str, int])
    """What the checkers looked at."""
    n_acknowledged: int = 0
    n_given_up: int = 0
    n_reads: int = 0
    n_checked: int = 0
    n_sealed: int = 0
    n_own_ends: int = 0
    recovery_seconds: float = 0.0
    longest_gap: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    description: str = ""


def run_seed(
    seed: int,
    listener: Listener | None = None,
    *,
    n_faults: int = N_FAULTS,
    n_operations: int = OPERATIONS_MIN,
) -> Outcome:
    """Everything that happens in it, told to `listener` in words. It goes on until clients were told of so
    many operations, and all the faults are over."""
    rng = random.Random(f"plan {seed}")
    n_nodes = rng.choice((5, 6, 6, 7))
    plan = draw_plan(rng, n_nodes, n_faults)
    drawn = settings.draw(rng)
    if _has_devices(seed) and "INLINE_BYTES_MAX" in drawn:
        drawn["INLINE_BYTES_MAX"] = max(BLOCK_BYTES, drawn["INLINE_BYTES_MAX"])  # a block is written inline
    outcome = Outcome(seed)
    mode = "storm" if plan.is_storm else "one node away at a time"
    outcome.description = (
        f"{n_nodes} nodes; {mode}; faults: {', '.join(plan.kinds)}"
        + (f"; bytes rot on node {plan.victim}" if plan.victim else "")
        + f"; settings: {', '.join(f'{name}={value}' for name, value in drawn.items()) or 'as in daemons'}"
    )
    with settings.applied(drawn), _logs(listener) as logs:
        run_simulated(
            seed, lambda: _Seed(seed, rng, n_nodes, plan, n_operations, outcome, listener, logs).run()
        )
    return outcome


def _has_devices(seed: int) -> bool:
    return seed % SEEDS_TO_ONE_WITH_CLONES == DEVICES_IN


class _Logs(logging.Handler):
    """Puts what the product logs into the trace."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.world is not None:
            try:
                task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
            except RuntimeError:
                task = None
            machine = "" if task is None else self.world.machine_of(task)
            listener = self.world.trace.listener
            if listener is not None:
                listener(
                    self.world.clock.now(), machine, f"  {record.levelname.lower()}: {record.getMessage()}"
                )


@contextmanager
def _logs(listener: Listener | None) -> Generator[_Logs]:
    """With a listener, all that is logged; without one, logging is off: it would cost more than the rest."""
    logger, handler = logging.getLogger("blockstore"), _Logs()
    level, propagate, disabled = logger.level, logger.propagate, logging.root.manager.disable
    logger.propagate = False
    if listener is None:
        logging.disable(logging.CRITICAL)
    else:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        logging.disable(disabled)
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)


class _Seed:
    def __init__(
        self,
        seed: int,
        rng: random.Random,
        n_nodes: int,
        plan: Plan,
        n_operations: int,
        outcome: Outcome,
        listener: Listener | None,
        logs: _Logs,
    ) -> None:
        self._seed, self._rng, self._plan, self._outcome = seed, rng, plan, outcome
        self._n_nodes, self._n_operations = n_nodes, n_operations
        self.world = World(seed)
        self.world.trace.listener = listener
        logs.world = self.world
        self._tally = Tally()
        self._workloads: list[tuple[Workload, aio.Bucket]] = []
        self._cloners: list[Cloner] = []
        self._numbering: NumberingClients | None = None
        self._devices_unused = trio.Event()

    async def run(self) -> None:
        world = self.world
        world.lanes.faults = LinkFaults(0.000_2, self._rng.choice((0.001, 0.005)))
        world.bus.faults = BusFaults(delay_min=0.000_2, delay_max=self._rng.choice((0.001, 0.01)))
        async with trio.open_nursery() as nursery:
            self._cluster = SimCluster(world, nursery, self._n_nodes)
            self._watch = Watch(self._cluster)
            with self._watch.listening_to_owners():
                for one in self._cluster.nodes:
                    one.machine.clock.rate = self._rng.choice((1.0, 1.0, 1.0, *CLOCK_RATES))
                    self._cluster.start(one)
                nursery.start_soon(self._look)
                with trio.move_on_after(LIFE_SECONDS_MAX) as life:
                    await self._cluster.new_client_machine().live(self._direct)
                if life.cancelled_caught:
                    self._watch.accuse(f"the seed did not come to its end in {LIFE_SECONDS_MAX:.0f} s")
                self._watch.look_at_sealed(again=True)
                self._sum_up()
            nursery.cancel_scope.cancel()

    def _sum_up(self) -> None:
        outcome, watch, tally = self._outcome, self._watch, self._tally
        outcome.violations = watch.violations
        outcome.trace_sum, outcome.n_events = self.world.trace.sum, self.world.trace.n_events
        outcome.mishaps = self._mishaps()
        outcome.n_acknowledged, outcome.n_given_up = tally.n_acknowledged, tally.n_given_up
        outcome.n_reads, outcome.n_checked = tally.n_reads, tally.n_checked
        outcome.longest_gap = tally.longest_gap
        outcome.n_sealed = watch.claims.n_sealed
        outcome.seen = {
            "terms": watch.claims.n_terms,
            "epochs": watch.claims.n_epochs,
            "sealed fragments": watch.claims.n_sealed,
            "records applied": watch.witness.n_applied,
            "records replayed": watch.witness.n_replayed,
            "chunks dropped": watch.n_dropped,
            "records of moved values": watch.n_moved,
            "clones": sum(cloner.n_made for cloner in self._cloners),
        }
        if self._numbering is not None:
            outcome.seen["numbers on devices"] = self._numbering.numbering.acknowledged
            outcome.seen["snapshots of devices"] = self._numbering.n_snapshots
        outcome.n_own_ends = self._cluster.n_own_ends
        outcome.seconds = trio.current_time()

    def _mishaps(self) -> dict[str, int]:
        world = self.world
        disks = [disk for one in self._cluster.nodes for disk in one.machine.disks.values()]
        return {
            "messages lost": world.bus.n_lost + world.lanes.n_lost,
            "messages doubled": world.bus.n_doubled + world.lanes.n_repeated,
            "messages reordered": world.bus.n_reordered,
            "disk operations failed": sum(disk.n_failed for disk in disks),
            "writes gone astray": sum(disk.n_astray for disk in disks),
        }

    async def _look(self) -> None:
        due = 0.0
        while True:
            self._watch.look()
            if trio.current_time() >= due:
                due = trio.current_time() + LOOK_AT_SEALED_SECONDS
                self._watch.look_at_sealed(again=False)
            await self._pause(LOOK_SECONDS)

    # --- the course of a seed, as the client "director" directs it

    async def _direct(self) -> None:
        world, outcome = self.world, self._outcome
        director = world.machines["client 1"]
        async with self._cluster.open_store(director) as store, trio.open_nursery() as nursery:
            books = await self._make_buckets(store)
            machines = [self._cluster.new_client_machine() for _ in books for _ in range(2)]
            for index, book in enumerate(books):
                workload = Workload(book, self._tally, self._watch.accuse, self._rng.choice((0.5, 1.0)))
                self._workloads.append((workload, await store.bucket(book.name)))
                for one in machines[2 * index : 2 * index + 2]:
                    nursery.start_soon(partial(self._client, one, workload))
            if _has_devices(self._seed):
                policies = {f"disk-{book.name}": book.policy for book in books}
                self._numbering = await NumberingClients.create(
                    store, self._seed, Load(pace=DEVICE_PACE_SECONDS), policies, PROMISED
                )
                nursery.start_soon(self._use_devices, self._numbering)
            faults = Faults(self._cluster, self._plan, self._watch, world.fork())
            await faults.run()
            outcome.n_faults, outcome.faults = faults.n_begun, faults.counts
            world.tell("all faults are over")
            await self._recover(store, nursery)

    async def _make_buckets(self, store: aio.Store) -> list[BucketBook]:
        coded = self._rng.choice(("ec(2,1)", "ec(4,2)"))
        if self._n_nodes < 6:
            coded = "ec(2,1)"
        elif self._plan.victim:
            coded = "ec(4,2)"  # which bears its damage, and another node's absence
        books: list[BucketBook] = []
        for name, policy in (("copies", "replicated(3)"), ("coded", coded)):
            await store.create_bucket(name, policy=policy)
            books.append(BucketBook(name, policy, History(self._seed)))
        return books

    async def _client(self, machine: Machine, workload: Workload) -> None:
        """A program with several clients of one bucket, on one machine."""
        await machine.live(partial(self._work, machine, workload))

    async def _work(self, machine: Machine, workload: Workload) -> None:
        number = int(machine.name.split()[1])
        fork = machine.fork
        async with self._cluster.open_store(machine) as store, trio.open_nursery() as nursery:
            bucket = await store.bucket(workload.book.name)
            acts = [
                (fork(), workload.writer(bucket, number, fork())),
                (fork(), workload.reader(bucket, fork())),
                (fork(), workload.racer(bucket, f"client {number}", fork())),
                (fork(), workload.counter(bucket, f"client {number}", fork())),
            ]
            if number % 2 == 0:
                acts.append((fork(), workload.snapshotter(bucket, fork())))
                if self._seed % SEEDS_TO_ONE_WITH_CLONES == 0:
                    cloner = Cloner(workload, store, bucket, fork())
                    self._cloners.append(cloner)
                    acts.append((fork(), cloner.act))
            for rng, act in acts:
                nursery.start_soon(workload.repeat, rng, act)

    async def _use_devices(self, numbering: NumberingClients) -> None:
        """One writer of numbers; every few seconds a snapshot of both."""
        rng, n_asked = self.world.fork(), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(numbering.run)
            while not numbering.is_stopping:
                await self._pause(rng.uniform(0.5, 4.0))
                n_asked += 1
                await numbering.snapshot(f"snapshot-{n_asked}")
        self._devices_unused.set()

    async def _recover(self, store: aio.Store, nursery: trio.Nursery) -> None:
        """Nothing is wrong any more: soon everything answers and writes, and all that was told is true."""
        world, watch = self.world, self._watch
        seconds = await self._seconds_until_well(store)
        if seconds is None:
            watch.accuse(f"not everything answers and writes {RECOVERY_SECONDS:.0f} s after the last fault")
            nursery.cancel_scope.cancel()
            return
        self._outcome.recovery_seconds = seconds
        world.tell(f"everything answers and writes after {seconds:.1f} s")
        while self._tally.n_acknowledged < self._n_operations:
            await self._pause(0.5)
        for workload, _ in self._workloads:
            workload.stop()
        if self._numbering is not None:
            self._numbering.stop()
            await self._devices_unused.wait()
        if self._rng.random() < 0.5:
            await self._cut_power_everywhere(store)
        for workload, bucket in self._workloads:
            await workload.verify(bucket)
        for cloner in self._cloners:
            await cloner.verify(store, self._pause)
        if self._numbering is not None:
            await self._numbering.verify()
            for violation in self._numbering.violations:
                watch.accuse(violation)
        if self._cloners and self._rng.random() < 0.5:
            await self._delete_parents(store)

    async def _delete_parents(self, store: aio.Store) -> None:
        self.world.tell("what there are clones of is deleted")
        for workload, _ in self._workloads:
            await store.delete_bucket(workload.book.name)
        for cloner in self._cloners:
            await cloner.outlive(store, self._pause)

    async def _cut_power_everywhere(self, store: aio.Store) -> None:
        self.world.tell("power fails everywhere")
        for one in self._cluster.nodes:
            self._cluster.kill(one, power=True)
        await trio.sleep(0.5)
        for one in self._cluster.nodes:
            self._cluster.start(one)
        if await self._seconds_until_well(store) is None:
            self._watch.accuse(f"not everything answers {RECOVERY_SECONDS:.0f} s after power came back")

    async def _seconds_until_well(self, store: aio.Store) -> float | None:
        """None when it takes longer than it may."""
        began = trio.current_time()
        with trio.move_on_after(RECOVERY_SECONDS):
            while not await self._is_well(store):
                await self._pause(0.2)
            return trio.current_time() - began
        return None

    async def _pause(self, seconds: float) -> None:
        await self.world.clock.sleep_until(trio.current_time() + seconds)

    async def _is_well(self, store: aio.Store) -> bool:
        """Every node is live in the eyes of the others, and every bucket takes a write and gives it back."""
        try:
            status = await store.status(timeout=2.0)
            if not all(node.live for node in status.nodes):
                return False
            for workload, bucket in self._workloads:
                await bucket.put("probe", b"probe", timeout=2.0)
                if await bucket.get("probe", timeout=2.0) != b"probe":
                    self._watch.accuse(f"{workload.book.name}: the probe shows something else")
        except BlockStoreError as error:
            self.world.tell(f"not yet: {type(error).__name__}: {error}")
            return False
        return True
