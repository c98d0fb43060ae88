"""`python -m tests.simulation.cores timed 17` replays a seed and tells what happened; so does `walk 17`.

python -m tests.simulation.cores timed 17            the whole trace
python -m tests.simulation.cores timed 17 --last 60  its end
python -m tests.simulation.cores walk --from 0 --to 500   many seeds, and which of them fail
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable

from tests.simulation.cores.pool import WORKERS, run_seeds, tell
from tests.simulation.cores.timed import Report, run_timed
from tests.simulation.cores.walk import WalkReport, run_walk

Run = Callable[[int, list[str] | None], Report | WalkReport]
KINDS: dict[str, Run] = {"timed": run_timed, "walk": run_walk}
MANY: dict[str, Callable[[int], Report | WalkReport]] = {"timed": run_timed, "walk": run_walk}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.cores", description="Replay a seed, or run many."
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--last", type=int, default=0, help="only so many lines of the trace")
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--to", type=int, default=100)
    parser.add_argument("--workers", type=int, default=WORKERS)
    asked = parser.parse_args()
    if asked.seed is not None:
        return replay(asked.kind, asked.seed, asked.last)
    started = time.perf_counter()
    outcome = run_seeds(MANY[asked.kind], range(asked.first, asked.to), asked.workers)
    print(tell(asked.kind, outcome))
    reports = outcome.reports
    n = max(1, len(reports))
    print(
        f"{len(reports)} seeds hold, {len(outcome.failures)} fail; "
        f"{sum(one.n_acknowledged for one in reports):,} operations acknowledged, "
        f"{sum(one.n_faults for one in reports):,} faults; "
        f"{sum(one.cpu_seconds for one in reports) / n:.3f} CPU s a seed, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return 1 if outcome.failures else 0


def replay(kind: str, seed: int, last: int) -> int:
    trace: list[str] = []
    try:
        report = KINDS[kind](seed, trace)
    except Exception:
        print("\n".join(trace[:1] + trace[1:][-last:]))
        traceback.print_exc()
        return 1
    print("\n".join(trace[:1] + trace[1:][-last:]))
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
