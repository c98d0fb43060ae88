"""A run that breaks a promise, or does not try enough, is red: each check of a run, shown a world where it
must say so."""

from __future__ import annotations

import random

import pytest

from blockstore.errors import Corrupt
from blockstore.ids import VolumeId
from blockstore.volume.memtable import GONE
from tests.simulation.cores import timed
from tests.simulation.cores.history import Violation
from tests.simulation.cores.node import Node
from tests.simulation.cores.pool import run_here, tell
from tests.simulation.cores.settings import draw_settings
from tests.simulation.cores.timed import recover, run_timed
from tests.simulation.cores.world import World
from tests.simulation.heap import Heap


def serving_world() -> tuple[World, Heap]:
    """Three nodes without faults, until every volume has something."""
    rng = random.Random(1)
    settings = draw_settings(rng)
    settings.n_nodes, settings.policies = 3, ("replicated(3)",)
    settings.n_clients = 2
    heap = Heap()
    world = World(settings, heap, rng, register=False, trace=[])
    while world.n_acknowledged < 30:
        heap.run_until(heap.now + 0.05)
    return world, heap


def owner_of(world: World) -> Node:
    return next(node for node in world.owners() if node.runs[VolumeId(1)].is_serving)


def test_a_world_without_faults_recovers() -> None:
    world, heap = serving_world()
    recover(world, heap)
    world.check_disks()
    world.check_bounds()
    world.check_history()
    assert not [line for line in world.trace or () if "damaged" in line or "failed" in line]


def test_a_store_that_does_not_come_back_is_found() -> None:
    world, heap = serving_world()
    for node in list(world.nodes.values())[:2]:
        node.crash()
    with pytest.raises(Violation, match="30 s after all faults ended, 1 clients still wait"):
        recover(world, heap)


def test_a_node_that_does_not_come_back_is_found() -> None:
    world, heap = serving_world()
    owner = owner_of(world)
    next(node for node in world.nodes.values() if node is not owner).crash()
    with pytest.raises(Violation, match="not every volume has its one owner"):
        recover(world, heap)


def test_a_value_that_is_gone_is_found_when_all_is_read_again() -> None:
    world, heap = serving_world()
    state = owner_of(world).runs[VolumeId(1)].state
    key = next(write.key for write in world.histories["v1"].writes if write.is_certain and write.value)
    newest = state.map.find(key, 0)
    assert newest is not None
    state.map._set(key, GONE)  # the owner's memory alone; the journal has it
    recover(world, heap)
    with pytest.raises(Violation):
        world.check_history()


def test_queues_and_caches_that_grow_are_found() -> None:
    world, heap = serving_world()
    world.check_bounds()
    owner = owner_of(world)
    run = owner.runs[VolumeId(1)]
    run.cache.size += run.cache.bytes_max + 1
    with pytest.raises(Violation, match="bytes of a value cache"):
        world.check_bounds()
    run.cache.size = 0
    shell = next(iter(owner.shells.values()))
    shell._n_queued += 5_000
    with pytest.raises(Violation, match="calls queued at a disk"):
        world.check_bounds()
    shell._n_queued -= 5_000
    for _ in range(50_001):
        heap.after(1.0, lambda: None)
    with pytest.raises(Violation, match="something piles up"):
        world.check_bounds()


def test_damaged_bytes_are_told_only_when_something_was_damaged() -> None:
    world, _ = serving_world()
    client = world.clients[0]
    world.has_rot = True
    world.on_read_failed(client, b"k", Corrupt("a chunk", "bad checksum"))
    world.has_rot = False
    with pytest.raises(AssertionError, match="client 1 read"):
        world.on_read_failed(client, b"k", Corrupt("a chunk", "bad checksum"))


def test_a_seed_that_does_not_try_enough_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "SECONDS_MAX", 2.0)
    with pytest.raises(AssertionError, match=r"only \d+ faults and \d+ acknowledged operations in 2 s"):
        run_timed(4)


def broken(seed: int) -> int:
    if seed == 3:
        raise Violation("a value was lost")
    return seed


def test_a_seed_that_fails_is_told_with_the_command_that_replays_it() -> None:
    outcome = run_here(broken, range(5))
    assert outcome.reports == [0, 1, 2, 4]
    told = tell(outcome, " --walk")
    assert "seed 3: Violation at test_verdicts.py" in told
    assert "a value was lost" in told
    assert "replay: python -m tests.simulation.cores 3 --walk" in told


def test_the_trace_says_when_where_and_what() -> None:
    trace: list[str] = []
    run_timed(4, trace)
    assert trace[0].startswith("seed 4: ")
    assert all(line[10:14] == " s  " for line in trace[2:])
    for words in ("starts", "claims volume 1 under epoch", "taken over at sequence", "all faults end"):
        assert any(words in line for line in trace), words
