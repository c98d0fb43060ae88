"""One planted bug: what its file says, and the source with it.

A hunk is found by its text and not by its line numbers, and lines around the change may be others by now, as
long as the rest is in one place and no other: so most edits to a file leave the patch as it is. Where that
fails the patch is stale, and a stale patch is an error, never a bug that is passed over.

    # <what the bug is, and the invariant that it breaks>
    # killer: tests/unit/...py::test_...            a check of the default run
    # killer: python -m tests.simulation.cores ...  the same as a command
    # soak killer: ...                              one that only the long runs make
    # simulation: python -m tests.simulation ...    seeds that find it as well, if there are some
    --- a/blockstore/...
    +++ b/blockstore/...
    @@ -1,7 +1,7 @@
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product, takewhile
from pathlib import Path

PATCHES = Path(__file__).parent / "patches"
_KILLER = "# killer: "
_SOAK_KILLER = "# soak killer: "
_SIMULATION = "# simulation: "


class Stale(Exception):
    """The patch does not fit the source, or is none."""


@dataclass(frozen=True, slots=True)
class Killer:
    """A check that is expected to fail when the bug is there."""

    text: str
    in_test: bool  # `make test` runs it

    @property
    def is_pytest(self) -> bool:
        return self.text.startswith("tests/")


@dataclass(frozen=True, slots=True)
class Hunk:
    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    bug: str
    killers: tuple[Killer, ...]
    simulations: tuple[Killer, ...]
    hunks: tuple[Hunk, ...]

    def apply(self, source: Mapping[str, str]) -> dict[str, str]:
        """The files that the bug changes, changed. `source` are contents by path. Raises Stale."""
        changed: dict[str, str] = {}
        for hunk in self.hunks:
            content = changed.get(hunk.path, source.get(hunk.path))
            if content is None:
                raise Stale(f"{self.name}: there is no {hunk.path}")
            changed[hunk.path] = _replace(self.name, content, hunk)
        return changed


def _replace(name: str, content: str, hunk: Hunk) -> str:
    """The hunk carried out at the one place that has its lines, or as many of them as can be found."""
    for before, after in _with_less_and_less_around(hunk):
        n_found = content.count(before)
        if n_found == 1:
            return content.replace(before, after)
        if n_found > 1:
            raise Stale(f"{name}: its lines are {n_found} times in {hunk.path}:\n{before}")
    raise Stale(f"{name}: its lines are 0 times in {hunk.path}:\n{hunk.before}")


def _with_less_and_less_around(hunk: Hunk) -> list[tuple[str, str]]:
    before, after = hunk.before.splitlines(keepends=True), hunk.after.splitlines(keepends=True)
    top = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))))
    most = min(len(before), len(after)) - top  # a line is not counted above and below
    below = zip(reversed(before), reversed(after), strict=False)
    bottom = min(most, len(list(takewhile(lambda pair: pair[0] == pair[1], below))))
    cuts = sorted(product(range(top + 1), range(bottom + 1)), key=sum)
    return [
        ("".join(before[above : len(before) - under]), "".join(after[above : len(after) - under]))
        for above, under in cuts
        if above + under < len(before)
    ]


def load_mutants(folder: Path = PATCHES) -> list[Mutant]:
    return [parse(path.stem, path.read_text()) for path in sorted(folder.glob("*.patch"))]


def read_source(root: Path, mutant: Mutant) -> dict[str, str]:
    paths = {hunk.path for hunk in mutant.hunks}
    return {path: (root / path).read_text() for path in paths if (root / path).is_file()}


def parse(name: str, text: str) -> Mutant:
    """Raises Stale."""
    lines = text.splitlines(keepends=True)
    comments = [line.rstrip("\n") for line in lines if line.startswith("# ")]
    killers = _named(comments, _KILLER, True) + _named(comments, _SOAK_KILLER, False)
    simulations = _named(comments, _SIMULATION, True)
    if not comments or comments[0].startswith((_KILLER, _SOAK_KILLER, _SIMULATION)) or not killers:
        raise Stale(f"{name}: its first comment says what the bug is, the next ones what kills it")
    hunks = _hunks(name, lines)
    return Mutant(name, comments[0].removeprefix("# "), killers, simulations, hunks)


def _named(comments: list[str], start: str, in_test: bool) -> tuple[Killer, ...]:
    checks = [comment.removeprefix(start) for comment in comments if comment.startswith(start)]
    return tuple(Killer(check, in_test) for check in checks)


def _hunks(name: str, lines: list[str]) -> tuple[Hunk, ...]:
    hunks: list[Hunk] = []
    path = ""
    before: list[str] = []
    after: list[str] = []
    is_within = False

    def end_hunk() -> None:
        if before != after:
            hunks.append(Hunk(path, "".join(before), "".join(after)))
        before.clear()
        after.clear()

    for line in lines:
        if line.startswith("--- "):
            end_hunk()
            is_within = False
        elif line.startswith("+++ "):
            path = line.removeprefix("+++ b/").strip()
        elif line.startswith("@@"):
            end_hunk()
            is_within = True
        elif is_within:
            if line[0] in " -" or line == "\n":
                before.append(line[1:] or "\n")
            if line[0] in " +" or line == "\n":
                after.append(line[1:] or "\n")
    end_hunk()
    if not hunks:
        raise Stale(f"{name}: it changes nothing")
    return tuple(hunks)
