"""Every planted bug still fits the source, and the runner tells a bug that nothing notices from one that a
check does."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.mutants.__main__ import main
from tests.mutants.patch import Mutant, Stale, load_mutants, parse, read_source
from tests.mutants.trial import IN_TEST_MIN, ROOT

MUTANTS = load_mutants()
MUTANTS_MIN = 24


def test_there_are_enough_and_most_are_for_the_default_run() -> None:
    assert len(MUTANTS) >= MUTANTS_MIN
    in_test = [mutant for mutant in MUTANTS if any(killer.in_test for killer in mutant.killers)]
    assert len(in_test) >= IN_TEST_MIN * len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_fits_the_source_and_names_checks_that_exist(mutant: Mutant) -> None:
    for path, content in mutant.apply(read_source(ROOT, mutant)).items():
        ast.parse(content, path)
    for killer in (*mutant.killers, *mutant.simulations):
        if killer.is_pytest:
            path, _, name = killer.text.partition("::")
            test = name.partition("[")[0].rpartition("::")[2]
            assert test in (ROOT / path).read_text(), killer.text
        else:
            python, option, module, *_ = killer.text.split()
            assert (python, option) == ("python", "-m")
            assert find_spec(module) is not None, killer.text


# --- the runner, on a project of one line

SOUND = "def double(x: int) -> int:\n    return 2 * x\n"
CHECK = "from thing import double\n\ndef test_two():\n    assert double(2) == 4\n"
PATCH = """\
# {name}: doubling is wrong (invariant 0)
# killer: tests/test_thing.py::test_two
--- a/thing.py
+++ b/thing.py
@@ -1,2 +1,2 @@
 def double(x: int) -> int:
-    return 2 * x
+    return {wrong}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "patches").mkdir()
    (tmp_path / "thing.py").write_text(SOUND)
    (tmp_path / "tests" / "test_thing.py").write_text(CHECK)
    return tmp_path


def _plant(project: Path, name: str, wrong: str) -> None:
    (project / "patches" / f"{name}.patch").write_text(PATCH.format(name=name, wrong=wrong))


def test_a_bug_that_a_check_notices_is_killed_and_one_that_none_does_is_red(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _plant(project, "noticed", "3 * x")
    _plant(project, "overlooked", "x * x")
    assert main(["noticed"], project, project / "patches") == 0
    assert "1 of 1 planted bugs killed, 1 of them" in capsys.readouterr().out
    assert main([], project, project / "patches") == 1
    said = capsys.readouterr().out
    assert "1 of 2 planted bugs killed" in said
    assert "overlooked survived" in said


def test_a_patch_that_does_not_fit_any_more_is_red(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _plant(project, "old", "3 * x")
    (project / "thing.py").write_text(SOUND.replace("2 * x", "x + x"))
    assert main([], project, project / "patches") == 1
    assert "its lines are 0 times in thing.py" in capsys.readouterr().out


def test_a_check_that_always_fails_kills_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _plant(project, "noticed", "3 * x")
    (project / "tests" / "test_thing.py").write_text(CHECK.replace("== 4", "== 5"))
    assert main([], project, project / "patches") == 1
    assert "does not pass on the source as it is" in capsys.readouterr().out


def test_a_bug_that_keeps_the_check_from_running_is_not_killed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _plant(project, "no_python", "2 *")
    assert main([], project, project / "patches") == 1
    assert "no_python survived" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "# it names no check\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
        "# killer: tests/x.py::y\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
        "# it changes nothing\n# killer: tests/x.py::y\n",
    ],
    ids=["no killer", "no sentence", "no change"],
)
def test_a_file_that_is_no_planted_bug_is_refused(text: str) -> None:
    with pytest.raises(Stale):
        parse("x", text)


def test_lines_around_the_change_may_be_others_by_now() -> None:
    mutant = parse("x", PATCH.format(name="x", wrong="x"))
    above, changed = SOUND.splitlines(keepends=True)
    assert mutant.apply({"thing.py": "def twice(y):\n" + changed}) == {
        "thing.py": "def twice(y):\n    return x\n"
    }
    with pytest.raises(Stale, match="2 times"):
        mutant.apply({"thing.py": changed + changed})
    with pytest.raises(Stale, match="0 times"):
        mutant.apply({"thing.py": above})


def test_a_line_that_occurs_twice_is_no_place() -> None:
    mutant = parse("x", PATCH.format(name="x", wrong="x"))
    assert mutant.apply({"thing.py": SOUND}) == {"thing.py": SOUND.replace("2 * x", "x")}
    with pytest.raises(Stale, match="2 times"):
        mutant.apply({"thing.py": SOUND + SOUND})
    with pytest.raises(Stale, match="no thing"):
        mutant.apply({})
