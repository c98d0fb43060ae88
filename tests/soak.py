"""`python -m tests.soak --minutes 60`, or `make soak MINUTES=60`: fresh seeds of everything that has seeds.

Two proofs at a time, in two rows that share the minutes: real daemons under chaos, then the cores and the
decoders; beside them whole simulated clusters, then all crash states of three operations, which take as long
as they take and are stopped when the time is over. Each proof prints its counts and its seeds, and for a
failure the command that shows it again; all that is printed is kept in a file, and its end shown here.

Exit 0: all that ran held. Exit 1: something was found, or a proof did not end. Crash states that were not all
tried are said, and are no failure: with too few minutes there was no time for them."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

State = Literal["held", "failed", "unfinished"]

GRACE_MINUTES = 10.0
"""A proof that was given minutes ends its last round and reads all back; past this it hangs."""
END_SECONDS_MAX = 60.0
"""For one that is told to stop: chaos puts processes, disks and networks away."""


@dataclass(frozen=True, slots=True)
class Proof:
    name: str
    arguments: tuple[str, ...]  # of python
    share: float  # of the minutes
    n_lines: int  # of its output that sum it up
    takes_minutes: bool = True  # else it ends when all is tried, and is stopped when its share is over

    def command(self, minutes: float) -> list[str]:
        own = ("--minutes", f"{minutes * self.share:g}") if self.takes_minutes else ()
        return [sys.executable, *self.arguments, *own]

    def limit_seconds(self, minutes: float) -> float:
        return 60 * (minutes * self.share + (GRACE_MINUTES if self.takes_minutes else 0))


ROWS: tuple[tuple[Proof, ...], ...] = (
    (
        Proof("chaos", ("-m", "chaos", "--kinds", "all", "--at-once", "2", "--busy"), share=0.5, n_lines=24),
        Proof("cores", ("-m", "tests.simulation.cores", "--processes", "1"), share=0.3, n_lines=8),
        Proof("decoders", ("-m", "tests.fuzz", "--processes", "1"), share=0.2, n_lines=40),
    ),
    (
        Proof("cluster", ("-m", "tests.simulation", "--processes", "1"), share=0.4, n_lines=8),
        Proof(
            "crash states",
            ("-m", "tests.crash", "--operations", "3", "--processes", "1"),
            share=0.6,
            n_lines=8,
            takes_minutes=False,
        ),
    ),
)
"""Two at a time: chaos' daemons and one other process keep two cores busy."""


@dataclass(frozen=True, slots=True)
class Result:
    proof: Proof
    state: State
    seconds: float
    output: Path

    def lines(self) -> list[str]:
        """What a person reads: its end, and where all of it is when something is wrong."""
        told = self.output.read_text(errors="replace").splitlines()
        shown = told[-self.proof.n_lines :]
        if self.state == "failed":
            shown.append(f"FAILED; all that it said is in {self.output}")
        elif self.state == "unfinished":
            shown.append("Stopped when its time was over: not all was tried.")
        return [f"== {self.proof.name}, {self.seconds / 60:.1f} minutes", *(f"   {line}" for line in shown)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="for about so long (default 60)")
    minutes: float = parser.parse_args().minutes
    results = trio.run(soak, ROWS, minutes, Path(tempfile.mkdtemp(prefix="blockstore-soak-")))
    print("\n" + verdict(results), flush=True)
    return exit_code(results)


async def soak(rows: Sequence[Sequence[Proof]], minutes: float, directory: Path) -> list[Result]:
    """Run the rows side by side, each one's proofs one after the other, and tell each result as it comes."""
    results: list[Result] = []

    async def run_row(row: Sequence[Proof]) -> None:
        for proof in row:
            print(f"{proof.name}: {' '.join(['python', *proof.command(minutes)[1:]])}", flush=True)
            result = await _run(proof, minutes, directory / f"{proof.name.replace(' ', '-')}.log")
            print("\n".join(["", *result.lines(), ""]), flush=True)
            results.append(result)

    async with trio.open_nursery() as nursery:
        for row in rows:
            nursery.start_soon(run_row, row)
    return results


def verdict(results: Sequence[Result]) -> str:
    of: dict[State, list[str]] = {"held": [], "failed": [], "unfinished": []}
    for result in results:
        of[result.state].append(result.proof.name)
    parts = [f"{len(of['held'])} of {len(results)} proofs held"]
    parts += [f"not all tried: {', '.join(of['unfinished'])}"] if of["unfinished"] else []
    parts += [f"FAILED: {', '.join(of['failed'])}"] if of["failed"] else []
    return "; ".join(parts) + "."


def exit_code(results: Sequence[Result]) -> int:
    return int(not results or any(result.state == "failed" for result in results))


async def _run(proof: Proof, minutes: float, output: Path) -> Result:
    began = time.monotonic()
    returned: int | None = None
    with output.open("wb") as file, trio.move_on_after(proof.limit_seconds(minutes)):
        done = await trio.run_process(
            proof.command(minutes),
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            deliver_cancel=_stop,
        )
        returned = done.returncode
    state: State = "held" if returned == 0 else "failed"
    if returned is None and not proof.takes_minutes:
        state = "unfinished"
    return Result(proof, state, time.monotonic() - began, output)


async def _stop(process: trio.Process) -> None:
    process.terminate()
    with trio.move_on_after(END_SECONDS_MAX):
        await process.wait()
        return
    process.kill()


if __name__ == "__main__":
    sys.exit(main())
