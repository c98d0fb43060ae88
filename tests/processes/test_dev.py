"""`blockstore dev`: it says when it is ready, stops what it started, and starts the same cluster again."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import blockstore
from blockstore_cli import main

SECONDS = 30.0


@contextmanager
def dev(*arguments: str) -> Generator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`blockstore dev` as a process, and what it printed when ready; Ctrl-C stops it at the end."""
    command = [sys.executable, "-m", "blockstore_cli.main", "dev", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield process, json.loads(line)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(SECONDS)


def wait_until_gone(pids: list[int]) -> None:
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(descriptor):
            gone, _, _ = select.select([descriptor], [], [], SECONDS)
            assert gone, f"process {pid} is still there"


def test_ctrl_c_stops_every_daemon_and_leaves_no_trace(tmp_path: Path) -> None:
    with dev("--nodes", "3") as (process, ready):
        assert [node["id"] for node in ready["nodes"]] == [1, 2, 3]
        folder = Path(ready["nodes"][0]["dir"]).parent
        with blockstore.connect(ready["store"], credentials=ready["credentials"]) as store:
            store.create_bucket("b").put("x", b"1")
        assert folder.exists()
    assert process.returncode == 0
    wait_until_gone([node["pid"] for node in ready["nodes"]])
    assert not folder.exists()


def test_no_daemon_outlives_a_killed_parent(tmp_path: Path) -> None:
    with dev("--nodes", "1", "--dir", str(tmp_path / "d")) as (process, ready):
        process.kill()
        wait_until_gone([node["pid"] for node in ready["nodes"]])


def test_the_same_directory_is_the_same_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "d")
    with (
        dev("--nodes", "1", "--dir", folder) as (_, first),
        blockstore.connect(first["store"], credentials=first["credentials"]) as store,
    ):
        store.create_bucket("b").put("x", b"kept")
    with (
        dev("--dir", folder) as (_, second),
        blockstore.connect(second["store"], credentials=second["credentials"]) as store,
    ):
        assert store.bucket("b").get("x") == b"kept"
    assert second["store"] == first["store"]
    assert main.run(["dev", "--dir", folder, "--nodes", "3"]) == 64
    assert "leave --nodes out" in capsys.readouterr().err


def test_a_directory_with_something_else_in_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("x")
    assert main.run(["dev", "--nodes", "1", "--dir", str(tmp_path)]) == 66
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
