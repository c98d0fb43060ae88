"""`python -m tests.crash [--operations N] [--depth N] [--subject NAME]`: see `explore.py`.

Tries all sequences of that many operations and prints counts, and the first failures: the sequence, the
moment and the loss that led there.
"""

from __future__ import annotations

import argparse
import os
import sys

from tests.crash.explore import DEPTH
from tests.crash.shares import SUBJECTS, explore

FAILURES_SHOWN = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--operations", type=int, default=2, help="length of the sequences (default 2)")
    parser.add_argument(
        "--depth", type=int, default=DEPTH, help=f"crashes within recoveries (default {DEPTH})"
    )
    parser.add_argument("--subject", choices=tuple(SUBJECTS), action="append", help="only this one")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    n_failures = 0
    for name in options.subject or SUBJECTS:
        found = explore(name, options.operations, options.depth, options.processes)
        print(f"{name}: {found.counts}; {found.cpu_seconds:.0f} CPU seconds", flush=True)
        for failure in found.failures[:FAILURES_SHOWN]:
            print(f"  {failure}")
        n_failures += len(found.failures)
    print(f"{n_failures} failures" if n_failures else "nothing found")
    return min(n_failures, 1)


if __name__ == "__main__":
    sys.exit(main())
