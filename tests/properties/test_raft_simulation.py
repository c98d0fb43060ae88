"""Raft's claims under every fault it must survive; see `raft_world.py`. Replay a seed: `-k 'seed-17-'`."""

from __future__ import annotations

import pytest

from tests.properties.raft_world import World

SEEDS = range(300)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}-")
def test_a_group_keeps_its_promises_and_recovers(seed: int) -> None:
    world = World(seed, n_voters=(1, 2, 3, 3, 3, 5)[seed % 6])
    world.run(6.0)
    world.recover(20.0)


def test_one_seed_always_gives_the_same_run() -> None:
    def run() -> tuple[int, dict[int, bytes], int]:
        world = World(3, n_voters=3)
        world.run(4.0)
        return world.committed, world.acknowledged, next(world.order)

    assert run() == run()
