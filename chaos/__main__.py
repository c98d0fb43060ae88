"""`python -m chaos`: hurt a real cluster and see whether it keeps what it was given.

    python -m chaos                       ten kills, one after the other, seed drawn and printed
    python -m chaos --seed 7 --faults 20 --kinds kill,freeze
    python -m chaos --minutes 10          as many faults as fit

Exit 0: every acknowledged write was read back, nothing else was shown, no error reached a client and no gap
was longer than promised. Exit 1: not so; the violations, the seed and the daemons' logs are named."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import trio

from blockstore.ids import MiB
from chaos.run import Verdict, run
from chaos.schedule import KINDS, Kind, plan

GAP_SECONDS_MAX: dict[str, float] = {"kill": 3.0, "freeze": 5.0}
SECONDS_PER_FAULT = 6.0
"""Pause, hold, restart and settling, on two cores."""
VIOLATIONS_SHOWN = 20


def main() -> int:
    options = _options()
    kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind in options.kinds.split(","))
    n_faults = options.faults
    if options.minutes is not None:
        n_faults = max(1, int(options.minutes * 60 / SECONDS_PER_FAULT))
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}; again: python -m chaos --seed {seed} --faults {n_faults} --kinds {options.kinds}")
    directory = Path(tempfile.mkdtemp(prefix="blockstore-chaos-"))
    verdict = trio.run(
        lambda: run(
            directory / "cluster",
            seed,
            plan(seed, n_faults, kinds),
            n_nodes=options.nodes,
            plain=options.plain,
            tell=lambda text: print(text, flush=True),
        ),
        strict_exception_groups=True,
    )
    passed = _report(verdict)
    if passed:
        shutil.rmtree(directory)
    else:
        print(f"The cluster's files and the daemons' logs are kept in {directory}.")
    return 0 if passed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Hurt a real cluster and see whether it keeps what it was given."
    )
    parser.add_argument("--seed", type=int, help="of an earlier run, to have its schedule again")
    parser.add_argument("--faults", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--minutes", type=float, help="instead of --faults: for about so long")
    parser.add_argument("--kinds", default="kill", help=f"of {','.join(KINDS)} (default kill)")
    parser.add_argument(
        "--nodes", type=int, default=6, help="daemons (default 6, the least that ec(4,2) needs)"
    )
    parser.add_argument("--plain", action="store_true", help="without TLS")
    options = parser.parse_args()
    if not set(options.kinds.split(",")) <= set(KINDS):
        parser.error(f"--kinds takes {', '.join(KINDS)}, separated by commas")
    if options.nodes < 6:
        parser.error("--nodes: ec(4,2) needs 6 or more")
    return options


def _report(verdict: Verdict) -> bool:
    print(
        f"\n{len(verdict.gaps)} faults in {verdict.seconds:.0f} s; {verdict.n_writes} writes acknowledged "
        f"({verdict.n_bytes / MiB:.0f} MiB), {verdict.n_reads} reads checked, "
        f"{verdict.n_snapshots} snapshots."
    )
    problems = list(verdict.violations)
    for kind, limit in GAP_SECONDS_MAX.items():
        longest = verdict.longest_gap(kind)
        if longest:
            print(f"Longest gap between writes after a {kind}: {longest:.2f} s (promised: {limit:.0f} s).")
        if longest > limit:
            problems.append(f"no write for {longest:.2f} s after a {kind}")
    for problem in problems[:VIOLATIONS_SHOWN]:
        print(f"VIOLATION: {problem}")
    if len(problems) > VIOLATIONS_SHOWN:
        print(f"… and {len(problems) - VIOLATIONS_SHOWN} more.")
    print("Nothing was lost, nothing was made up." if not problems else f"FAILED with seed {verdict.seed}.")
    return not problems


if __name__ == "__main__":
    sys.exit(main())
