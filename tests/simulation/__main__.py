"""Simulate whole clusters from seeds.

    python -m tests.simulation --seed 7            one seed, with all that happens in it: time, node, event
    python -m tests.simulation --seeds 1-500       many, one line each
    python -m tests.simulation --minutes 60        fresh seeds until the time is over

Exit 0: no violation. Exit 1: violations, each with the command that shows how it came about."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterable, Iterator

from tests.simulation.report import Total, show
from tests.simulation.seed import run_seed
from tests.simulation.shares import N_PROCESSES, in_turns, run_shares


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="one, told in words")
    which.add_argument("--seeds", metavar="A-B", help="from A to B, without words")
    which.add_argument("--minutes", type=float, help="fresh seeds for so long")
    parser.add_argument("--processes", type=int, default=N_PROCESSES, help="at once (default: %(default)s)")
    options = parser.parse_args()
    if options.seed is not None:
        return _tell_one(options.seed)
    if options.seeds is not None:
        first, _, last = options.seeds.partition("-")
        return _run_many(range(int(first), int(last or first) + 1), options.processes)
    return _run_many(_fresh(options.minutes), options.processes)


def _fresh(minutes: float) -> Iterator[int]:
    """Seeds that were hardly ever run before, until time is over."""
    until = time.monotonic() + 60 * minutes
    first = random.SystemRandom().randrange(10**6, 10**9)
    print(f"seeds from {first} on, for {minutes:g} minutes", flush=True)
    return itertools.takewhile(lambda _: time.monotonic() < until, itertools.count(first))


def _tell_one(seed: int) -> int:
    outcome = run_seed(seed, lambda when, machine, words: print(f"{when:9.4f} {machine:9} {words}"))
    print(show(outcome))
    return 1 if outcome.violations else 0


def _run_many(seeds: Iterable[int], n_processes: int) -> int:
    total = Total()
    for outcome in run_shares(in_turns(seeds, n_processes)):
        print(show(outcome), flush=True)
        total.add(outcome)
    print(total.summary())
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
