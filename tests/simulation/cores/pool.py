"""Many seeds over a few processes, and one command for each that failed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tests.freed_memory import keep_freed_memory

R = TypeVar("R")

WORKERS = min(2, os.cpu_count() or 1)
PART_SEEDS = 20
"""Seeds given to a process at once: a few seconds, so that all end together. It ends with them, and never
collects garbage: a world is one cycle of objects, some MiB that are garbage as a whole when its seed is done.
Looking for such cycles takes a sixth of the time, and to take them apart a fifteenth."""
TOLD_MAX = 20


@dataclass
class Outcome(Generic[R]):
    reports: list[R] = field(default_factory=list[R])
    failures: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def merge(self, other: Outcome[R]) -> None:
        self.reports += other.reports
        self.failures += other.failures


def run_seeds(
    run: Callable[[int], R], seeds: Iterable[int], processes: int = WORKERS, until: float | None = None
) -> Outcome[R]:
    """`run` each, and begin none after `until` (of `time.time()`). `run` is a module's function, for
    processes are begun anew: forked from one that has its module and runs nothing."""
    ordered = list(seeds)
    parts = [(run, ordered[at : at + PART_SEEDS], until) for at in range(0, len(ordered), PART_SEEDS)]
    outcome = Outcome[R]()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run.__module__])
    with context.Pool(processes, _begin, maxtasksperchild=1) as pool:
        for found in pool.imap_unordered(_run_part, parts):
            outcome.merge(found)
    return outcome


def _begin() -> None:
    keep_freed_memory()
    gc.disable()


def _run_part(part: tuple[Callable[[int], R], list[int], float | None]) -> Outcome[R]:
    return run_here(*part)


def run_here(run: Callable[[int], R], seeds: Iterable[int], until: float | None = None) -> Outcome[R]:
    outcome = Outcome[R]()
    for seed in seeds:
        if until is not None and time.time() >= until:
            break
        try:
            outcome.reports.append(run(seed))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            outcome.failures.append((seed, f"{type(error).__name__} at {place}: {error}"))
    return outcome


def tell(outcome: Outcome[R], option: str) -> str:
    """What failed, with the command that replays each; `option` is what the command needs for this kind."""
    return "\n".join(
        f"seed {seed}: {why}\n  replay: python -m tests.simulation.cores {seed}{option}"
        for seed, why in sorted(outcome.failures)[:TOLD_MAX]
    )
