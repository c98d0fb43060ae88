"""What one seed's world is like: sizes, times and limits of our own, and the kinds of fault that may happen
in it.

A seed draws a subset of the kinds ("swarm testing", Groce et al., ISSTA 2012): a world with all faults at
once never gets to what a world with two of them finds."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

from tests.simulation.cores.network import Weather

FAULTS = (
    "crash", "crash-all", "crash-owner", "crash-leader", "crash-member", "pause", "pause-owner",
    "pause-leader", "cut", "one-way", "isolate-owner", "isolate-leader", "flap", "break-lane", "slow-node",
    "slow-disk", "sync-error", "disk-full", "rot", "client-crash", "client-pause", "moment-crash",
    "moment-pause", "moment-cut", "forget-leases", "join",
)  # fmt: skip

POLICIES = {
    1: ("replicated(1)",),
    2: ("replicated(2)", "replicated(2)"),
    3: ("replicated(3)", "replicated(3)", "replicated(2)", "ec(2,1)"),
    4: ("replicated(3)", "replicated(2)", "ec(2,1)", "ec(2,2)"),
    5: ("replicated(3)", "replicated(3)", "ec(2,2)", "ec(3,2)"),
}


@dataclass(slots=True)
class Settings:
    n_nodes: int
    n_disks: int  # of each node
    policies: tuple[str, ...]  # one volume each
    n_clients: int
    keys: tuple[bytes, ...]
    mix: tuple[int, ...]  # of a client's operations, as `client.KINDS` has them
    small_bytes: int
    large_bytes: int
    p_think: float
    think_seconds: float
    timeout: float
    chunk_bytes: int
    batch_bytes_max: int
    batches_in_flight: int
    cache_bytes: int
    known_keys: int  # states kept in memory though runs have them
    block_bytes: int
    block_cache_bytes: int
    small_run_keys: int
    runs_per_size: int
    late_seconds: float
    idle_seconds: float
    tidy_seconds: float
    checkpoint_seconds: float
    checkpoint_bytes: int
    pack_seconds: float
    sync_seconds: float
    raft_log_max: int
    drift: float
    weather: Weather
    faults: tuple[str, ...]
    p_silent: float  # of a crash: nobody says that the connections are gone


def in_words(settings: Settings) -> str:
    return (
        f"{settings.n_nodes} nodes with {settings.n_disks} disks each, {settings.n_clients} clients; "
        f"volumes: {', '.join(settings.policies)}; faults: {', '.join(settings.faults)}"
    )


def details(settings: Settings) -> str:
    names = [field.name for field in fields(settings)]
    told = {"n_nodes", "n_disks", "n_clients", "policies", "faults", "keys"}
    return ", ".join(f"{name}={getattr(settings, name)}" for name in names if name not in told)


def draw_settings(rng: random.Random) -> Settings:
    choose = rng.choice
    n_nodes = choose((2, 3, 3, 3, 3, 4, 5))
    n_keys = choose((2, 4, 6, 10))
    n_volumes = choose((1, 1, 2))
    n_faults = rng.randint(3, 9)
    delay = choose((0.0003, 0.001, 0.001, 0.004))
    return Settings(
        n_nodes=n_nodes,
        n_disks=choose((1, 1, 2)),
        policies=tuple(choose(POLICIES[n_nodes]) for _ in range(n_volumes)),
        n_clients=n_volumes * choose((2, 3)),
        keys=tuple(b"k%d" % number for number in range(n_keys)),
        mix=choose(
            (
                (6, 2, 1, 1, 2, 5, 1, 1, 1, 2, 1, 1, 1, 1),
                (8, 0, 0, 0, 1, 6, 0, 1, 0, 0, 0, 0, 0, 0),
                (3, 6, 1, 1, 2, 5, 1, 1, 0, 0, 0, 2, 0, 0),
                (4, 1, 1, 1, 3, 3, 1, 1, 3, 5, 3, 1, 2, 1),
            )
        ),
        small_bytes=choose((8, 60, 300)),
        large_bytes=choose((200, 1_000, 4_000)),
        p_think=choose((0.2, 0.5, 1.0)),
        think_seconds=choose((0.002, 0.01, 0.03)),
        timeout=choose((4.0, 8.0)),
        chunk_bytes=choose((6_144, 8_192, 16_384, 65_536)),
        batch_bytes_max=choose((64, 512, 2_048)),
        batches_in_flight=choose((1, 2, 4)),
        cache_bytes=choose((0, 500, 100_000)),
        known_keys=choose((0, 4, 1_000)),
        block_bytes=choose((1, 300)),
        block_cache_bytes=choose((0, 500, 100_000)),
        small_run_keys=choose((1, 3, 10)),
        runs_per_size=choose((2, 2, 3)),
        late_seconds=choose((0.1, 0.3, 1.0)),
        idle_seconds=choose((0.3, 1.0, 120.0)),
        tidy_seconds=choose((0.05, 0.3, 2.0)),
        checkpoint_seconds=choose((0.1, 0.5)),
        checkpoint_bytes=choose((1_000, 6_000, 40_000)),
        pack_seconds=choose((0.3, 1.0, 100.0)),
        sync_seconds=choose((0.0005, 0.002, 0.008)),
        raft_log_max=choose((8, 30, 1_000)),
        drift=choose((0.0, 0.002, 0.0049)),
        weather=Weather(
            delay=delay,
            bus_loss=choose((0.0, 0.0, 0.02, 0.1)),
            bus_doubling=choose((0.0, 0.1)),
            very_late=choose((0.0, 0.0, 0.01)),
            wild=choose((0.0, 0.0, 0.0, 0.05, 0.2)),
        ),
        faults=tuple(rng.sample(FAULTS, n_faults)),
        p_silent=choose((0.0, 0.5, 1.0)),
    )


WALK_FAULTS = (
    "crash", "crash-all", "crash-owner", "crash-member", "pause", "pause-owner", "cut", "one-way",
    "isolate-owner", "break-lane", "sync-error", "client-crash", "moment-crash", "moment-pause",
    "moment-cut", "forget-leases",
)  # fmt: skip


def draw_walk_settings(rng: random.Random) -> Settings:
    """A small world: its every step counts."""
    choose = rng.choice
    settings = draw_settings(rng)
    settings.n_nodes = choose((2, 3, 3, 3))
    settings.n_disks = 1
    settings.policies = (choose(POLICIES[settings.n_nodes]),)
    settings.n_clients = 2
    settings.keys = settings.keys[:4]
    settings.p_think = 0.0
    settings.weather.bus_loss = settings.weather.bus_doubling = settings.weather.very_late = 0.0
    settings.faults = tuple(rng.sample(WALK_FAULTS, rng.randint(2, 6)))
    return settings
