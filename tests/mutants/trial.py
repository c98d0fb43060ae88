"""Tries a planted bug: the checks that are expected to notice it, run against a copy of the source with it.

A check has noticed when it ran and failed. One that could not be run, or did not come to an end, has noticed
nothing: the bug survived. Before that, each check has to pass on the copy without a bug, for a check that
always fails would kill everything.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from tests.mutants.patch import Killer, Mutant, Stale, read_source

ROOT = Path(__file__).parents[2]
COPIED = ("blockstore", "cli", "tests", "chaos", "docs")
SECONDS_MAX = 600
"""For one check, by the wall: a bug may make it wait for ever."""
ALL = Killer("tests/", True)
IN_TEST_MIN = 0.85
MEDIAN_SECONDS_MAX = 10.0
FAILED = 1
"""The exit code of pytest, and of our commands, that says that something was checked and is wrong."""

Outcome = Literal["passed", "failed", "no verdict"]


@dataclass(frozen=True, slots=True)
class Trial:
    mutant: Mutant
    killer: Killer | None  # None: it survived
    seconds: float  # of processor time, for every check that was tried
    problem: str = ""


@contextmanager
def copy_of(root: Path) -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name)
        for path in root.iterdir():
            if path.is_file():
                shutil.copy2(path, copy / path.name)
        yield copy


def run_check(killers: Sequence[Killer], copy: Path) -> tuple[Outcome, float, str]:
    """What became of them, run as one; their processor seconds, and the end of what they said."""
    path = os.pathsep.join((str(copy), str(copy / "cli")))
    before = _cpu_seconds()
    with subprocess.Popen(
        _command(killers),
        cwd=copy,
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=SECONDS_MAX)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return "no verdict", _cpu_seconds() - before, f"no end within {SECONDS_MAX} s"
            raise
    outcome: Outcome = "no verdict"
    if process.returncode in (0, FAILED):
        outcome = "failed" if process.returncode else "passed"
    return outcome, _cpu_seconds() - before, said.decode(errors="replace")[-2_000:]


def _command(killers: Sequence[Killer]) -> list[str]:
    """Hypothesis draws the same examples each time, whatever it found before."""
    if killers[0].is_pytest:
        options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        return [sys.executable, "-m", "pytest", *options, *(killer.text for killer in killers)]
    python, *rest = shlex.split(killers[0].text)
    assert python == "python", killers[0].text
    return [sys.executable, *rest]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def failing_without_a_bug(killers: Iterable[Killer], copy: Path) -> str:
    """What the first check says that does not pass on the source as it is; "" when all do."""
    distinct = list(dict.fromkeys(killers))
    tests = [killer for killer in distinct if killer.is_pytest]
    for together in (tests, *([killer] for killer in distinct if not killer.is_pytest)):
        if together:
            outcome, _, said = run_check(together, copy)
            if outcome != "passed":
                return said or outcome
    return ""


def try_mutant(mutant: Mutant, copy: Path, *, whole_suite: bool) -> Trial:
    """Plant it in `copy`, look who notices, and take it out again."""
    seconds = 0.0
    problem = ""
    try:
        source = read_source(copy, mutant)
        changed = mutant.apply(source)
    except Stale as stale:
        return Trial(mutant, None, seconds, str(stale))
    _write(copy, changed)
    try:
        for killer in (*mutant.killers, *((ALL,) if whole_suite else ())):
            outcome, spent, said = run_check([killer], copy)
            seconds += spent
            if outcome == "failed":
                return Trial(mutant, killer, seconds)
            if outcome == "no verdict":
                problem += f"{killer.text}: {said}\n"
        return Trial(mutant, None, seconds, problem)
    finally:
        _write(copy, source)


def _write(copy: Path, contents: Mapping[str, str]) -> None:
    """Without the bytecode that may be there: it is told from its source by a second and a size."""
    for path, content in contents.items():
        (copy / path).write_text(content)
        for stale in (copy / path).parent.glob(f"__pycache__/{Path(path).stem}.*"):
            stale.unlink()


def survivors(trials: Sequence[Trial]) -> list[str]:
    return [f"{trial.mutant.name} survived. {trial.problem}".strip() for trial in trials if not trial.killer]


def failures(trials: Sequence[Trial]) -> list[str]:
    """What is not as it should be, of the bugs tried."""
    wrong = survivors(trials)
    in_test = sum(trial.killer is not None and trial.killer.in_test for trial in trials)
    if in_test < IN_TEST_MIN * len(trials):
        wrong.append(f"`make test` notices {in_test} of {len(trials)}; {IN_TEST_MIN:.0%} are wanted.")
    if (seconds := median_seconds(trials)) > MEDIAN_SECONDS_MAX:
        wrong.append(f"Half of them take more than {seconds:.1f} s; {MEDIAN_SECONDS_MAX} s are wanted.")
    return wrong


def median_seconds(trials: Sequence[Trial]) -> float:
    return median(trial.seconds for trial in trials)
