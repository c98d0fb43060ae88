"""`python -m chaos`: hurt a real cluster and see whether it keeps what it was given.

    python -m chaos                       ten kills, one after the other, seed drawn and printed
    python -m chaos --seed 7 --faults 20 --kinds kill,freeze
    python -m chaos --kinds all --at-once 2
    python -m chaos --minutes 60 --kinds all

`--kinds all` takes every kind that this machine allows: partitions, full disks and power cuts need root, and
are made on hosts and disks of their own (chaos/lab.py, chaos/disks.py), which vanish with the run, however
it ends. A long run is made of rounds of a few minutes, each with a cluster and a seed of its own.

Exit 0: every acknowledged write was read back, nothing else was shown, no error reached a client and no gap
was longer than promised. Exit 1: not so; the violations, the seed and the daemons' logs are named. Exit 2: a
kind that was asked for by name cannot be had here."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import trio

from chaos import lab
from chaos.report import Report
from chaos.run import Verdict, run
from chaos.schedule import AT_ONCE_MAX, KINDS, MEANINGS, SIGNAL_KINDS, Kind, plan

SECONDS_PER_FAULT = 6.0
"""Pause, hold, restart and settling, on two cores."""
FAULTS_PER_ROUND = 30
"""A few minutes; the data of one round fits its disks, and a new cluster takes five seconds."""


def main() -> int:
    options = _options()
    kinds, skipped = _kinds(options.kinds)
    if not kinds:
        print(f"None of {options.kinds} can be had here: {next(iter(skipped.values()))}", file=sys.stderr)
        return 2
    if options.kinds != "all" and skipped:
        print(f"{', '.join(skipped)}: {next(iter(skipped.values()))}", file=sys.stderr)
        return 2
    if not set(kinds) <= set(SIGNAL_KINDS) and not lab.is_inside():
        lab.enter(sys.argv[1:])  # does not return
    signal.signal(signal.SIGTERM, _interrupt)  # ends as Ctrl-C does: with everything put away
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    report, seeds = _rounds(options, kinds, seed, skipped)
    for line in report.lines():
        _say(options, line)
    if options.json:
        print(json.dumps(report.facts(seeds), indent=2))
    return 1 if report.problems else 0


def _rounds(
    options: argparse.Namespace, kinds: Sequence[Kind], seed: int, skipped: dict[str, str]
) -> tuple[Report, list[int]]:
    verdicts: list[Verdict] = []
    seeds: list[int] = []
    until = time.monotonic() + (options.minutes or 0) * 60
    n_left = options.faults
    while True:
        n_faults = min(n_left, FAULTS_PER_ROUND)
        if options.minutes is not None:
            seconds_left = max(SECONDS_PER_FAULT, until - time.monotonic())
            n_faults = min(FAULTS_PER_ROUND, round(seconds_left / SECONDS_PER_FAULT))
        seeds.append(seed)
        verdicts.append(_round(options, kinds, seed, n_faults))
        report = Report(tuple(verdicts), skipped, options.busy)
        n_left -= n_faults
        is_over = time.monotonic() + SECONDS_PER_FAULT > until if options.minutes else n_left <= 0
        if report.problems or is_over:
            return report, seeds
        seed += 1


def _round(options: argparse.Namespace, kinds: Sequence[Kind], seed: int, n_faults: int) -> Verdict:
    again = f"--seed {seed} --faults {n_faults} --kinds {','.join(kinds)} --at-once {options.at_once}"
    if options.nodes != 6:
        again += f" --nodes {options.nodes}"
    _say(options, f"seed {seed}; again: python -m chaos {again}{' --plain' if options.plain else ''}")
    directory = Path(tempfile.mkdtemp(prefix="blockstore-chaos-"))
    is_kept = False
    try:
        verdict = trio.run(
            lambda: run(
                directory / "cluster",
                seed,
                plan(seed, n_faults, kinds, options.at_once),
                n_nodes=options.nodes,
                plain=options.plain,
                tell=lambda text: _say(options, text),
            ),
            strict_exception_groups=True,
        )
        is_kept = bool(Report((verdict,), {}, options.busy).problems)
        if is_kept:
            _say(options, f"The cluster's files and the daemons' logs are kept in {directory}.")
        return verdict
    finally:
        if not is_kept:
            shutil.rmtree(directory, ignore_errors=True)


def _kinds(text: str) -> tuple[tuple[Kind, ...], dict[str, str]]:
    """Those that can be had, and why the others cannot."""
    wanted: tuple[Kind, ...] = (
        KINDS if text == "all" else tuple(kind for kind in KINDS if kind in text.split(","))
    )
    special = [kind for kind in wanted if kind not in SIGNAL_KINDS]
    why = lab.why_not() if special and not lab.is_inside() else ""
    if not why:
        return wanted, {}
    usual: tuple[Kind, ...] = tuple(kind for kind in wanted if kind not in special)
    return usual, dict[str, str](dict.fromkeys(special, why))


def _say(options: argparse.Namespace, text: str) -> None:
    """With --json the report alone is on standard output."""
    print(text, flush=True, file=sys.stderr if options.json else sys.stdout)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description="Hurt a real cluster and see whether it keeps what it was given.",
        epilog="kinds: " + "; ".join(f"{kind}: {what}" for kind, what in MEANINGS.items()),
    )
    parser.add_argument("--seed", type=int, help="of an earlier run, to have its schedule again")
    parser.add_argument("--faults", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--minutes", type=float, help="instead of --faults: for about so long")
    parser.add_argument(
        "--kinds", default="kill", help="separated by commas, or all that this machine allows (default kill)"
    )
    parser.add_argument(
        "--at-once", type=int, default=1, help=f"faults that may overlap, 1 to {AT_ONCE_MAX} (default 1)"
    )
    parser.add_argument(
        "--nodes", type=int, default=6, help="daemons (default 6, the least that ec(4,2) needs)"
    )
    parser.add_argument("--plain", action="store_true", help="without TLS")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="other work runs here: tell the gaps between writes, judge them not",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON on standard output")
    options = parser.parse_args()
    wanted = set(options.kinds.split(","))
    if options.kinds != "all" and not wanted <= set(KINDS):
        parser.error(f"--kinds takes all, or some of {', '.join(KINDS)}, separated by commas")
    if not 6 <= options.nodes <= 200:
        parser.error("--nodes: ec(4,2) needs 6 or more, and 200 are plenty")
    if not 1 <= options.at_once <= AT_ONCE_MAX:
        parser.error(f"--at-once: the policies promise to survive 1 to {AT_ONCE_MAX}")
    if options.faults < 1:
        parser.error("--faults: at least 1")
    if options.plain and (options.kinds == "all" or not wanted <= set(SIGNAL_KINDS)):
        parser.error(f"--plain clusters are on loopback, where only {', '.join(SIGNAL_KINDS)} can be had")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted; everything is put away.", file=sys.stderr)
        sys.exit(130)
