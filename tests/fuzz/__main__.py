"""`python -m tests.fuzz [--minutes M | --inputs N] [--decoder NAME] [--seed S] [--only NUMBER]`.

See `run.py`. Inputs are mutated valid encodings, all from the seed. With --minutes every round has a seed of
its own, and they follow on one that is drawn, or on the one given. A finding is printed with the command that
makes it again, and kept in `tests/fuzz/kept/DECODER/`, where a test tries it from then on.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Sequence

from tests.fuzz.decoders import DECODERS
from tests.fuzz.kept import keep
from tests.fuzz.run import INPUTS, Report, examine, fuzz_all, input_of

ROUND_INPUTS = 10_000
"""Of each decoder, with one seed, when there are minutes."""

FINDINGS_SHOWN = 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--decoder", choices=tuple(DECODERS), action="append", help="only this one")
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"of each decoder (default {INPUTS})")
    parser.add_argument("--minutes", type=float, help="go on with fresh seeds for so long")
    parser.add_argument("--seed", type=int, help="default 0; with --minutes the first, default a drawn one")
    parser.add_argument("--only", type=int, help="the input of this number alone, of the one --decoder")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    names = options.decoder or list(DECODERS)
    if options.only is not None:
        return _only(names[0], options.seed or 0, options.only)
    if options.minutes is None:
        seeds = [options.seed or 0]
        total = _round(names, options.inputs, seeds[0], options.processes)
    else:
        seeds, total = list[int](), dict[str, Report]()
        until = time.monotonic() + 60 * options.minutes
        while not seeds or time.monotonic() < until:
            seeds.append(seeds[-1] + 1 if seeds else options.seed or secrets.randbits(40))
            for name, report in _round(names, ROUND_INPUTS, seeds[-1], options.processes).items():
                total.setdefault(name, Report(name)).add(report)
    return _verdict(seeds, total)


def _only(name: str, seed: int, number: int) -> int:
    data = input_of(name, seed, number)
    what = examine(DECODERS[name], data)
    print(f"{data.hex()}\n{what or 'nothing wrong'}")
    return int(bool(what))


def _round(names: Sequence[str], n_inputs: int, seed: int, n_processes: int) -> dict[str, Report]:
    reports = fuzz_all(names, n_inputs, seed, n_processes)
    for report in reports:
        for finding in report.findings[:FINDINGS_SHOWN]:
            print(f"{finding}\n  kept as {keep(finding.decoder, finding.data)}", flush=True)
    return {report.decoder: report for report in reports}


def _verdict(seeds: Sequence[int], total: dict[str, Report]) -> int:
    for report in total.values():
        print(report)
    n_findings = sum(len(report.findings) for report in total.values())
    print(
        f"seeds {seeds[0]} to {seeds[-1]}: {sum(report.inputs for report in total.values()):,} inputs, "
        f"{sum(report.cpu_seconds for report in total.values()):.0f} CPU seconds; "
        + (f"{n_findings} findings" if n_findings else "nothing found")
    )
    return int(n_findings > 0)


if __name__ == "__main__":
    sys.exit(main())
