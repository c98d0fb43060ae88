"""`docs/design/killers.md` names a test for each failure, and each of these tests is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "design" / "killers.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.*)\|$", re.MULTILINE)
N_SCENES = 44


@cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions)


def test_every_test_that_the_page_names_is_there() -> None:
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 100
    for path, name in named:
        assert name in names_in(TESTS / path), f"{path}::{name}"


def test_every_scene_has_a_row_and_a_test_or_a_reason() -> None:
    rows = ROW.findall(PAGE.read_text())
    assert [int(number) for number, *_ in rows] == list(range(1, N_SCENES + 1))
    for number, _, here, shown in rows:
        assert NAMED.search(shown) or "waits for" in here or "there are no" in here, number
