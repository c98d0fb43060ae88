"""Limits and times of our own, drawn anew for each seed: what happens once an hour with the real ones happens
every second here.

A setting is a constant of a module. Modules take constants by name, so it is set wherever a module of
`blockstore` has that name (and where it is an argument's default), and set back when the seed ends.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from blockstore.ids import KiB, MiB
from blockstore.volume.checkpoint import Checkpoints
from blockstore.volume.compaction import n_to_merge
from blockstore.volume.owner import Owner
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import BlockCache
from blockstore.volume.versioned_map import VersionedMap

CHOICES: dict[str, Sequence[int | float]] = {
    "INLINE_BYTES_MAX": (256, 2 * KiB, 16 * KiB),
    "CHUNK_BYTES_MAX": (96 * KiB, 256 * KiB, 1 * MiB),
    "APPEND_BYTES_MAX": (64 * KiB, 4 * MiB),
    "SHARD_UNIT_BYTES": (4 * KiB, 32 * KiB, 1 * MiB),
    "JOURNAL_BATCHES_IN_FLIGHT": (1, 2, 4, 8),
    "JOURNAL_BATCH_BYTES_MAX": (4 * KiB, 1 * MiB),
    "BATCH_RECORDS_MAX": (1, 3, 1_000),
    "CHECKPOINT_JOURNAL_BYTES": (20 * KiB, 100 * KiB, 1 * MiB),
    "RUNS_MAX": (2, 24),
    "RUNS_PER_SIZE": (2, 4),
    "SMALL_KEYS": (3, 100_000),
    "RUN_BLOCK_BYTES": (1, 300, 4 * KiB),
    "BLOCK_CACHE_BYTES": (0, 2 * KiB, 64 * MiB),
    "KNOWN_KEYS_MAX": (0, 3, 250_000),
    "VALUE_CACHE_BYTES": (0, 20 * KiB, 128 * MiB),
    "REPLAY_WINDOW_BYTES": (64 * KiB, 4 * MiB),
    "RAFT_SNAPSHOT_ENTRIES": (10, 40, 10_000),
    "RAFT_TRAILING_ENTRIES": (0, 5, 1_000),
    "RAFT_APPENDS_IN_FLIGHT": (1, 16),
    "MOVES_MAX": (1, 32),
    "LOOKUP_KEYS_MAX": (3, 256),
    "TIDY_SECONDS": (0.3, 2.0),
    "GATHER_SECONDS": (0.02, 0.2),
    "INDEXES_MAX": (1, 1_024),
    "CHECKPOINT_LOOK_SECONDS": (0.05, 0.5),
    "PACK_LOOK_SECONDS": (0.1, 0.5, 2.0),
    "PACK_RETRY_SECONDS": (0.5, 5.0),
    "LEFT_BEHIND_BYTES_MIN": (1, 20 * KiB, 200 * KiB),
    "GAIN_BYTES_MIN": (1, 20 * KiB, 200 * KiB),
    "ROUND_BYTES_MAX": (50 * KiB, 256 * MiB),
    "MOVES_PER_RECORD": (1, 3, 500),
    "KEYS_AT_ONCE": (2, 2_000),
}
"""To choose from; the real one is among them where it is not too large to matter in so short a life."""

DEFAULTS: tuple[tuple[Any, int, str], ...] = (
    (Owner.__init__, 0, "CHUNK_BYTES_MAX"),
    (VersionedMap.__init__, 0, "KNOWN_KEYS_MAX"),
    (BlockCache.__init__, 0, "BLOCK_CACHE_BYTES"),
    (RunBuilder.__init__, 0, "RUN_BLOCK_BYTES"),
    (Checkpoints.begin, 0, "RUN_BLOCK_BYTES"),
    (n_to_merge, 0, "SMALL_KEYS"),
    (n_to_merge, 1, "RUNS_PER_SIZE"),
)
"""Functions that have a setting as the default of an argument, and of which."""

CHANGED_SHARE = 0.5
"""Of the settings that a seed draws anew; the others stay as they are in daemons."""


def draw(rng: random.Random) -> dict[str, int | float]:
    """The settings of a seed. Always the same number of draws, so that a new setting changes only itself."""
    drawn: dict[str, int | float] = {}
    for name, values in CHOICES.items():
        is_drawn, value = rng.random() < CHANGED_SHARE, rng.choice(values)
        if is_drawn:
            drawn[name] = value
    return _made_to_fit(drawn)


def _made_to_fit(drawn: dict[str, int | float]) -> dict[str, int | float]:
    """As the real ones are: a batch and its records fit into an append, and many into a chunk."""

    def cap(name: str, usual: int, most: float) -> None:
        if drawn.get(name, usual) > most:
            drawn[name] = most

    chunk = drawn.get("CHUNK_BYTES_MAX", 64 * MiB)
    cap("APPEND_BYTES_MAX", 4 * MiB, chunk)
    append = drawn.get("APPEND_BYTES_MAX", 4 * MiB)
    cap("SHARD_UNIT_BYTES", MiB, append)
    cap("JOURNAL_BATCH_BYTES_MAX", MiB, append // 8)
    cap("INLINE_BYTES_MAX", 128 * KiB, append // 8)
    return drawn


@contextmanager
def applied(settings: dict[str, int | float]) -> Generator[None]:
    """These settings, in every module that has them, for as long as the block lasts."""
    former: list[tuple[object, str, object]] = []
    defaults = [(function, function.__defaults__) for function, _, _ in DEFAULTS]
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("blockstore.")]
    try:
        for name, value in settings.items():
            holders = [module for module in modules if name in vars(module)]
            assert holders, f"{name} is a constant of no module"
            for module in holders:
                former.append((module, name, vars(module)[name]))
                setattr(module, name, value)
        for function, index, name in DEFAULTS:
            if name in settings:
                values: list[Any] = list(function.__defaults__ or ())
                values[index] = settings[name]
                function.__defaults__ = tuple(values)
        yield
    finally:
        for function, usual in defaults:
            function.__defaults__ = usual
        for holder, name, before in reversed(former):
            setattr(holder, name, before)
