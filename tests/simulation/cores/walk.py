"""One untimed random walk: any enabled event next, so many steps, then peace, then the verdict.

What is on its way has no time here (`heap.Bag`): a message sent first may arrive last, whatever the delays,
and time passes only when a timer is chosen. A walk is short, so it begins where things happen: volumes are
served, something is written, and faults are steps like any other. Before and after it, time passes only
when nothing is on its way: else nobody could promise anything about how long things take."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from tests.simulation.cores.faults import Faults
from tests.simulation.cores.settings import details, draw_walk_settings, in_words
from tests.simulation.cores.timed import recover, replicated_chunks
from tests.simulation.cores.world import World, with_small_files
from tests.simulation.heap import Bag

STEPS = 400
WARM_UP_STEPS_MAX = 4_000
FAULT_EVERY_STEPS = (15, 40, 80)


@dataclass(frozen=True)
class WalkReport:
    seed: int
    n_steps: int
    n_faults: int
    n_acknowledged: int
    n_applied: int
    n_replayed: int
    cpu_seconds: float


@with_small_files()
def run_walk(seed: int, trace: list[str] | None = None) -> WalkReport:
    """Raise AssertionError when a promise was broken."""
    started = time.process_time()
    rng = random.Random(seed)
    settings = draw_walk_settings(rng)
    bag = Bag(random.Random(rng.getrandbits(64)), p_timer=0.0)
    if trace is not None:
        trace += [f"walk {seed}: {in_words(settings)}", f"{'':14}{details(settings)}"]
    world = World(settings, bag, rng, register=True, trace=trace)
    faults = Faults(world, random.Random(rng.getrandbits(64)))
    faults.is_over = True
    while not all(history.n_acknowledged for history in world.histories.values()):
        assert bag.n_steps < WARM_UP_STEPS_MAX, "nothing was served without any fault"
        bag.step()
    faults.is_over = False
    bag.p_timer = rng.choice((0.0, 0.02, 0.1, 0.3))
    every = rng.choice(FAULT_EVERY_STEPS)
    first = bag.n_steps
    while bag.n_steps < first + STEPS:
        if rng.random() * every < 1:
            faults.inject()
        bag.step()
    n_steps = bag.n_steps - first
    faults.end_all()
    bag.p_timer = 0.0
    recover(world, bag)
    world.check_disks()
    world.check_bounds()
    world.witness.check_replicas(replicated_chunks(world))
    world.check_history()
    witness = world.witness
    return WalkReport(
        seed, n_steps, world.n_faults, world.n_acknowledged, witness.n_applied, witness.n_replayed,
        time.process_time() - started,
    )  # fmt: skip
