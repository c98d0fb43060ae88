"""`python -m tests.fuzz [--decoder NAME] [--inputs N] [--seed S] [--only NUMBER]`: see `run.py`.

Inputs are mutated valid encodings, all from the seed. A finding is printed with the command that makes it
again, and kept in `tests/fuzz/kept/DECODER/`, where a test tries it from then on.
"""

from __future__ import annotations

import argparse
import os
import sys

from tests.fuzz.decoders import DECODERS
from tests.fuzz.kept import keep
from tests.fuzz.run import INPUTS, examine, fuzz_all, input_of


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--decoder", choices=tuple(DECODERS), action="append", help="only this one")
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"of each decoder (default {INPUTS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the input of this number alone, of the one --decoder")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    names = options.decoder or list(DECODERS)
    if options.only is not None:
        data = input_of(names[0], options.seed, options.only)
        what = examine(DECODERS[names[0]], data)
        print(f"{data.hex()}\n{what or 'nothing wrong'}")
        return int(bool(what))
    reports = fuzz_all(names, options.inputs, options.seed, options.processes)
    n_findings = 0
    for report in reports:
        print(
            f"{report.decoder:18} {report.inputs:8,} inputs, {report.decoded:8,} taken, "
            f"{1e6 * report.cpu_seconds / max(1, report.inputs):5.1f} us each, "
            f"{len(report.findings)} findings"
        )
        for finding in report.findings[:3]:
            print(f"  {finding}\n  kept as {keep(finding.decoder, finding.data)}")
        n_findings += len(report.findings)
    print(f"{sum(report.inputs for report in reports):,} inputs, {n_findings} findings, "
          f"{sum(report.cpu_seconds for report in reports):.0f} CPU seconds")  # fmt: skip
    return int(n_findings > 0)


if __name__ == "__main__":
    sys.exit(main())
