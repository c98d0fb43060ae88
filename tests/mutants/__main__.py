"""`python -m tests.mutants [NAME...]`: which check notices which planted bug, and how fast."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.mutants.patch import PATCHES, Stale, load_mutants
from tests.mutants.trial import (
    ROOT,
    Trial,
    copy_of,
    failing_without_a_bug,
    failures,
    median_seconds,
    survivors,
    try_mutant,
)


def main(arguments: Sequence[str], root: Path = ROOT, patches: Path = PATCHES) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a file in patches/; default: all of them")
    parser.add_argument("--all", action="store_true", help="try the whole default suite on survivors")
    parser.add_argument("--table", action="store_true", help="print a table for docs/design/proof.md as well")
    parser.add_argument(
        "--simulations",
        action="store_true",
        help="instead of the cheapest check, the simulated seeds that a bug names",
    )
    asked = parser.parse_args(arguments)
    try:
        mutants = load_mutants(patches)
    except Stale as stale:
        print(stale)
        return 1
    unknown = set(asked.names) - {mutant.name for mutant in mutants}
    if unknown or not mutants:
        print(f"There is no {', '.join(sorted(unknown)) or 'bug'} in {patches}.")
        return 2
    chosen = [mutant for mutant in mutants if not asked.names or mutant.name in asked.names]
    if asked.simulations:
        chosen = [replace(mutant, killers=mutant.simulations) for mutant in chosen if mutant.simulations]
    with copy_of(root) as copy:
        wrong = failing_without_a_bug((killer for mutant in chosen for killer in mutant.killers), copy)
        if wrong:
            print(f"A check does not pass on the source as it is:\n{wrong}")
            return 1
        trials: list[Trial] = []
        for mutant in chosen:
            trials.append(try_mutant(mutant, copy, whole_suite=asked.all))
            print(_line(trials[-1]), flush=True)
    print(_summary(trials))
    if asked.table:
        print(_table(trials))
    problems = survivors(trials) if asked.simulations else failures(trials)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _line(trial: Trial) -> str:
    how = f"killed by {trial.killer.text}" if trial.killer is not None else "SURVIVED"
    return f"{trial.seconds:6.1f} s  {trial.mutant.name:<36} {how}"


def _summary(trials: Sequence[Trial]) -> str:
    killers = [trial.killer for trial in trials if trial.killer is not None]
    in_test = sum(killer.in_test for killer in killers)
    return (
        f"{len(killers)} of {len(trials)} planted bugs killed, {in_test} of them by what `make test` runs; "
        f"median {median_seconds(trials):.1f} CPU seconds"
    )


def _table(trials: Sequence[Trial]) -> str:
    rows = ["| mutant | the planted bug | killed by | CPU s |", "| --- | --- | --- | ---: |"]
    for trial in trials:
        killer = "nothing" if trial.killer is None else f"`{trial.killer.text}`"
        rows.append(f"| {trial.mutant.name} | {trial.mutant.bug} | {killer} | {trial.seconds:.1f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
