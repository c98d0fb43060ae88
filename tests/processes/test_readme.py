"""The commands of README and quickstart are run as they stand there: only the installing is left out, and the
address is the one that `dev` really got."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DEV = re.compile(r"^blockstore dev .*$", re.MULTILINE)


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return BLOCK.findall((ROOT / document).read_text())


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BLOCKSTORE")}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "HOME": "/nonexistent"}


def run(language: str, text: str, folder: Path, variables: dict[str, str]) -> str:
    """Run one block to its end; it must succeed."""
    text = re.sub(r"^pip install .*$", "", text, flags=re.MULTILINE)
    if "blockstore.connect(" in text:
        text = text.replace("tcp://127.0.0.1:7440", variables["BLOCKSTORE"])
    if variables:
        text = re.sub(r"^export BLOCKSTORE=tcp.*$", "", text, flags=re.MULTILINE)
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def dev_of(text: str, folder: Path) -> Generator[dict[str, str]]:
    """The `blockstore dev` command of a block, running; what to export for it."""
    command = DEV.findall(text)[0] + " --json"
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            yield {"BLOCKSTORE": ready["store"], "BLOCKSTORE_CREDENTIALS": ready["credentials"]}
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md"])
def test_a_newcomer_can_type_what_is_written(document: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.jpg").write_bytes(os.urandom(300_000))
    everything = blocks(document)
    position = next(index for index, (_, text) in enumerate(everything) if DEV.search(text))
    for language, text in everything[:position]:
        run(language, text, tmp_path, {})
    with dev_of(everything[position][1], tmp_path) as variables:
        for language, text in everything[position + 1 :]:
            run(language, text, tmp_path, variables)
    if document == "README.md":
        assert (tmp_path / "cat.jpg").read_bytes() == (tmp_path / "pictures" / "cat.jpg").read_bytes()
    else:
        again = tmp_path / "pictures-again" / "cat.jpg"
        assert again.read_bytes() == (tmp_path / "pictures" / "cat.jpg").read_bytes()
