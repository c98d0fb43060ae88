"""Many seeds over a few processes, and one line for each that failed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")

WORKERS = min(2, os.cpu_count() or 1)
CHUNK_SEEDS = 20
"""Seeds given to a worker at once: a few seconds, so that both end together."""
SEEDS_PER_COLLECTION = 5
"""A world is one cycle of objects, garbage as a whole when its seed is done. Python looks for such cycles
much more often than that, which takes a sixth of the time."""


@dataclass
class Outcome(Generic[R]):
    reports: list[R] = field(default_factory=list[R])
    failures: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def merge(self, other: Outcome[R]) -> None:
        self.reports += other.reports
        self.failures += other.failures


def run_seeds(run: Callable[[int], R], seeds: Iterable[int], workers: int = WORKERS) -> Outcome[R]:
    """`run` each; it is a module's function, for processes are begun anew."""
    ordered = list(seeds)
    parts = [ordered[at : at + CHUNK_SEEDS] for at in range(0, len(ordered), CHUNK_SEEDS)]
    outcome = Outcome[R]()
    if workers == 1:
        for part in parts:
            outcome.merge(_run_part((run, part)))
        return outcome
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for found in pool.imap_unordered(_run_part, [(run, part) for part in parts]):
            outcome.merge(found)
    return outcome


def _run_part(work: tuple[Callable[[int], R], list[int]]) -> Outcome[R]:
    run, seeds = work
    outcome = Outcome[R]()
    gc.disable()
    gc.freeze()
    for n, seed in enumerate(seeds):
        if n % SEEDS_PER_COLLECTION == 0:
            gc.collect()
        try:
            outcome.reports.append(run(seed))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            outcome.failures.append((seed, f"{type(error).__name__} at {place}: {error}"))
    gc.unfreeze()
    gc.enable()
    return outcome


def tell(kind: str, outcome: Outcome[R]) -> str:
    """What failed, with the command that replays each."""
    return "\n".join(
        f"{kind} seed {seed}: {why}\n  replay: python -m tests.simulation.cores {kind} {seed}"
        for seed, why in sorted(outcome.failures)[:20]
    )
