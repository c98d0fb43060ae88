"""Simulate the cores from seeds, under an event heap.

    python -m tests.simulation.cores 7              one timed seed, told in words: time, node, event
    python -m tests.simulation.cores 7 --walk       one untimed walk
    python -m tests.simulation.cores --seeds 0-999  many, without words
    python -m tests.simulation.cores --minutes 60   fresh seeds and walks until the time is over

Exit 0: every promise was kept. Exit 1: some were not; the command that replays each seed is printed."""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections.abc import Sequence

from tests.simulation.cores.pool import WORKERS, Outcome, run_seeds, tell
from tests.simulation.cores.timed import Report, run_timed
from tests.simulation.cores.walk import WalkReport, run_walk

ROUND_SEEDS, ROUND_WALKS = 200, 600
"""Of a long run; about a minute."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.cores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("seed", type=int, nargs="?", help="one, told in words")
    which.add_argument("--seeds", metavar="A-B", help="from A to B, without words")
    which.add_argument("--minutes", type=float, help="fresh seeds for so long")
    parser.add_argument("--walk", action="store_true", help="the seeds are of untimed walks")
    parser.add_argument("--last", type=int, default=0, help="of one seed, only so many lines")
    parser.add_argument("--processes", type=int, default=WORKERS, help="at once (default: %(default)s)")
    asked = parser.parse_args()
    if asked.seed is not None:
        return _replay(asked.seed, walk=asked.walk, last=asked.last)
    if asked.minutes is not None:
        return _run_for(asked.minutes, asked.processes)
    first, _, last = asked.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if asked.walk:
        walks = run_seeds(run_walk, seeds, asked.processes)
        return _conclude(Outcome[Report](), walks)
    return _conclude(run_seeds(run_timed, seeds, asked.processes), Outcome[WalkReport]())


def _replay(seed: int, *, walk: bool, last: int) -> int:
    trace: list[str] = []
    try:
        report: object = (run_walk if walk else run_timed)(seed, trace)
    except Exception:
        report = traceback.format_exc()
        failed = True
    else:
        failed = False
    print("\n".join(trace[:2] + trace[2:][-last:]))
    print(report)
    return 1 if failed else 0


def _run_for(minutes: float, processes: int) -> int:
    until = time.time() + 60 * minutes
    first = random.SystemRandom().randrange(10**6, 10**9)
    print(f"seeds and walks from {first} on, for {minutes:g} minutes", flush=True)
    timed, walks = Outcome[Report](), Outcome[WalkReport]()
    n_rounds = 0
    while time.time() < until:
        seed, walk = first + n_rounds * ROUND_SEEDS, first + n_rounds * ROUND_WALKS
        timed.merge(run_seeds(run_timed, range(seed, seed + ROUND_SEEDS), processes, until))
        walks.merge(run_seeds(run_walk, range(walk, walk + ROUND_WALKS), processes, until))
        n_rounds += 1
        print(_counts(timed, walks), flush=True)
    return _conclude(timed, walks)


def _counts(timed: Outcome[Report], walks: Outcome[WalkReport]) -> str:
    reports: Sequence[Report | WalkReport] = [*timed.reports, *walks.reports]
    return (
        f"{len(timed.reports):,} timed seeds and {len(walks.reports):,} walks hold, "
        f"{len(timed.failures) + len(walks.failures)} fail: "
        f"{sum(one.n_faults for one in reports):,} faults, "
        f"{sum(one.n_acknowledged for one in reports):,} operations acknowledged, "
        f"{sum(one.n_replayed for one in reports):,} records replayed; "
        f"{sum(one.cpu_seconds for one in reports):,.0f} CPU s"
    )


def _conclude(timed: Outcome[Report], walks: Outcome[WalkReport]) -> int:
    for failures in (tell(timed, ""), tell(walks, " --walk")):
        if failures:
            print(failures)
    print(_counts(timed, walks))
    if not timed.reports and not walks.reports:
        print("verdict: nothing was run to its end")
        return 1
    if timed.failures or walks.failures:
        print("verdict: a promise was broken")
        return 1
    print("verdict: every promise was kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
