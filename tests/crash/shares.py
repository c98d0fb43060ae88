"""All sequences of so many operations, divided among processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from tests.crash.explore import DEPTH, STAGGERS, Counts, Explorer, Found, sequences
from tests.crash.node import NodeSubject
from tests.crash.raft import RaftSubject
from tests.freed_memory import keep_freed_memory

SUBJECTS: dict[str, Any] = {"node": NodeSubject(), "raft": RaftSubject()}


class Outcome(NamedTuple):
    counts: Counts
    failures: list[str]
    cpu_seconds: float


def explore(
    name: str, n_operations: int, depth: int = DEPTH, n_processes: int = os.cpu_count() or 1
) -> Outcome:
    total = Outcome(Counts(), [], 0.0)
    arguments = [(name, n_operations, depth, share, n_processes) for share in range(n_processes)]
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"), keep_freed_memory) as pool:
        for outcome in pool.map(_explore_share, *zip(*arguments, strict=True)):
            total.counts.add(outcome.counts)
            total = Outcome(
                total.counts, total.failures + outcome.failures, total.cpu_seconds + outcome.cpu_seconds
            )
    return total


def _explore_share(name: str, n_operations: int, depth: int, share: int, n_shares: int) -> Outcome:
    began = time.process_time()
    explorer = Explorer[Any](SUBJECTS[name], depth)
    failures = list[str]()
    with explorer.subject.small_files():
        for number, sequence in enumerate(sequences(explorer.subject, n_operations)):
            if number // len(STAGGERS) % n_shares == share:
                try:
                    explorer.run(*sequence)
                except Found as found:
                    failures.append(str(found))
    return Outcome(explorer.counts, failures, time.process_time() - began)
