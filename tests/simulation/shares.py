"""Many seeds, divided among processes, each with hashes of its own.

Python hashes strings differently in each process unless told otherwise; here each process is told something
else, so that a seed which runs in two of them shows whether its course depends on that."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager

from tests.simulation.seed import Outcome, run_seed

N_PROCESSES = 2


def run_shares(shares: Sequence[Iterable[int]]) -> Generator[Outcome]:
    """The outcomes of all seeds, as they end. Each share has a process; shares that are one iterator take
    turns. They may be endless: stop asking."""
    waiting = [iter(share) for share in shares]
    with _processes(len(shares)) as pools:
        running: dict[Future[Outcome], int] = {}

        def start_next(number: int) -> None:
            for seed in waiting[number]:
                running[pools[number].submit(_run, seed)] = number
                return

        for number in range(len(shares)):
            start_next(number)
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                start_next(running.pop(future))
                yield future.result()


def in_turns(seeds: Iterable[int], n: int = N_PROCESSES) -> list[Iterator[int]]:
    """Shares for `n` processes that each take the next seed when they have time."""
    return [iter(seeds)] * n


@contextmanager
def _processes(n: int) -> Generator[list[ProcessPoolExecutor]]:
    usual = os.environ.get("PYTHONHASHSEED")
    with ExitStack() as stack:
        pools: list[ProcessPoolExecutor] = []
        try:
            for number in range(1, n + 1):
                os.environ["PYTHONHASHSEED"] = str(number)
                pool = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
                pool.submit(
                    _start, str(number)
                ).result()  # it starts now, and inherits the environment as it is now
                pools.append(pool)
        finally:
            if usual is None:
                del os.environ["PYTHONHASHSEED"]
            else:
                os.environ["PYTHONHASHSEED"] = usual
        yield pools


def _start(hash_seed: str) -> None:
    assert os.environ["PYTHONHASHSEED"] == hash_seed


def _run(seed: int) -> Outcome:
    began = time.process_time()
    try:
        outcome = run_seed(seed)
    except Exception:
        outcome = Outcome(seed, [f"it ended with an exception:\n{traceback.format_exc()}"])
    outcome.cpu_seconds = time.process_time() - began
    return outcome
