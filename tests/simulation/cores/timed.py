"""One seed of the timed swarm: faults and clients until both were enough, then peace, then the verdict."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from blockstore.ids import ChunkId
from tests.simulation.cores.client import Client
from tests.simulation.cores.faults import Faults
from tests.simulation.cores.history import Violation
from tests.simulation.cores.settings import details, draw_settings, in_words
from tests.simulation.cores.world import World, with_small_files
from tests.simulation.heap import Heap, Schedule

FAULTS_MIN = 25
ACKNOWLEDGED_MIN = 300
SECONDS_MAX = 120.0
"""Of simulated time, in which both must be reached; else the seed has not tried enough, and is red."""
RECOVERY_SECONDS = 30.0
"""When faults end, everything is whole and writable within this."""
FAULT_EVERY_SECONDS = 0.5
SLICE_SECONDS = 0.01
AHEAD_MAX = 3
PATIENCE_SECONDS = 4.0
SNAPSHOT_READS_MAX = 15


@dataclass
class Report:
    seed: int
    n_faults: int
    n_acknowledged: int
    n_applied: int
    n_replayed: int
    n_packed: int
    n_merged: int
    n_blocks_fetched: int
    n_steps: int
    sim_seconds: float
    cpu_seconds: float
    faults: dict[str, int] = field(default_factory=dict[str, int])


@with_small_files()
def run_timed(seed: int, trace: list[str] | None = None) -> Report:
    """Raise AssertionError (a `Violation` or a core's) when a promise was broken."""
    started = time.process_time()
    rng = random.Random(seed)
    settings = draw_settings(rng)
    heap = Heap()
    if trace is not None:
        trace += [f"seed {seed}: {in_words(settings)}", f"{'':14}{details(settings)}"]
    world = World(settings, heap, rng, register=False, trace=trace)
    faults = Faults(world, random.Random(rng.getrandbits(64)))
    _run_with_faults(world, heap, faults)
    faults.end_all()
    recover(world, heap)
    world.check_disks()
    world.witness.check_replicas(replicated_chunks(world))
    world.check_history()
    witness = world.witness
    return Report(
        seed, world.n_faults, world.n_acknowledged, witness.n_applied, witness.n_replayed,
        witness.n_packed, witness.n_merged, witness.n_blocks_fetched, heap.n_steps,
        heap.now, time.process_time() - started, faults.counts,
    )  # fmt: skip


def _run_with_faults(world: World, heap: Heap, faults: Faults) -> None:
    """A fault after every dozen acknowledged operations, or when none is acknowledged for a while; but when
    faults are far ahead of the operations, the store gets time to come back from them."""
    per_fault = ACKNOWLEDGED_MIN / FAULTS_MIN
    while heap.now < 5.0 and world.n_acknowledged < per_fault:
        heap.run_until(heap.now + 0.05)
    due = heap.now + FAULT_EVERY_SECONDS
    n_looks = 0
    patient_until = heap.now + PATIENCE_SECONDS
    while world.n_faults < FAULTS_MIN or world.n_acknowledged < ACKNOWLEDGED_MIN:
        if heap.now > SECONDS_MAX:
            raise AssertionError(
                f"only {world.n_faults} faults and {world.n_acknowledged} acknowledged operations "
                f"in {heap.now:.0f} s"
            )
        heap.run_until(heap.now + SLICE_SECONDS)
        n_wanted = world.n_acknowledged / per_fault
        is_ahead = world.n_faults > n_wanted + AHEAD_MAX and heap.now < patient_until
        if world.n_faults < n_wanted or (heap.now >= due and not is_ahead):
            faults.inject()
            patient_until = heap.now + PATIENCE_SECONDS
            due = heap.now + FAULT_EVERY_SECONDS * faults.rng.uniform(0.5, 1.5)
            n_looks += 1
            if n_looks % 6 == 0:
                world.check_disks()
                world.check_bounds()


def recover(world: World, schedule: Schedule) -> None:
    """Every client ends what it does, and a new one finds everything readable and writable."""
    world.is_draining = True
    until = schedule.now + RECOVERY_SECONDS
    verifiers: list[Client] = []
    for number, volume in enumerate(world.histories):
        client = Client(world, 1000 + number, random.Random(world.rng.getrandbits(64)), volume)
        world.clients.append(client)
        verifiers.append(client)
        client.start()
        client.begin(_verify(world, client))
    n_clients = len(world.clients)
    while world.n_clients_done < n_clients + len(verifiers):
        if schedule.now >= until:
            raise Violation(
                f"{RECOVERY_SECONDS:.0f} s after all faults ended, "
                f"{n_clients + len(verifiers) - world.n_clients_done} clients still wait"
            )
        schedule.step()
    while schedule.now < until and not _is_whole(world):
        schedule.step()
    if not _is_whole(world):
        raise Violation(
            f"{RECOVERY_SECONDS:.0f} s after all faults ended, not every volume has its one owner"
        )


async def _verify(world: World, client: Client) -> None:
    """Read everything, write everything, read it again; patiently, as long as nobody can answer."""
    rng = client.rng
    for key in world.settings.keys:
        await _read(client, key)
        await _write(client, key)
    for key in world.settings.keys:
        await _read(client, key)
    live = world.live_snapshots[client.volume]
    pairs = [(snapshot, key) for snapshot in live.values() for key in world.settings.keys]
    for snapshot, key in rng.sample(pairs, min(len(pairs), SNAPSHOT_READS_MAX)):
        while not await client.read_snapshot(snapshot, key):
            await client.sleep(0.1)
    world.on_client_done(client)


async def _read(client: Client, key: bytes) -> None:
    n_before = len(client.history.reads)
    while len(client.history.reads) == n_before:
        await client.get(key)


async def _write(client: Client, key: bytes) -> None:
    n_before = client.history.n_acknowledged
    while client.history.n_acknowledged == n_before:
        await client.put(key, -1, large=client.rng.random() < 0.3)


def _is_whole(world: World) -> bool:
    """Every node lives, and every volume is served by the one that control names."""
    for volume in range(1, len(world.histories) + 1):
        serving = [
            node for node in world.up() for run in node.runs.values()
            if run.record.volume == volume and run.is_serving
        ]  # fmt: skip
        if len(serving) != 1:
            return False
    return len(world.up()) == len(world.nodes)


def replicated_chunks(world: World) -> Callable[[ChunkId], bool]:
    """Whether every fragment of a chunk is a copy of the whole."""

    def is_replicated(chunk: ChunkId) -> bool:
        for node in world.up():
            for shell in node.shells.values():
                fragment = shell._fragments.get(chunk)
                if fragment is not None:
                    return fragment.header.k == 1
        return False

    return is_replicated
