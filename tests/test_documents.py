"""Documents point to what is there."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from blockstore.version import RELEASE
from blockstore_cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def show(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=show)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{show(document)} points to {target}"


def test_the_reference_names_every_command() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    for command in COMMANDS:
        assert f"`{command}" in text or f"blockstore {command}" in text, (
            f"docs/reference/cli.md lacks {command}"
        )


def test_one_release_has_one_number() -> None:
    assert importlib.metadata.version("blockstore") == RELEASE
    assert f"## {RELEASE}" in (ROOT / "CHANGELOG.md").read_text()


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
