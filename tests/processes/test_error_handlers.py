"""Handlers of errors that seldom happen, run once each in a store inside this process.

What is made to fail is a step of its own life: the takeover, a checkpoint, the change of control's record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blockstore
from blockstore.errors import DiskFailed, NoSpace, Unavailable
from blockstore.runtime.real_disk import RealDisk
from blockstore.volume import checkpoint_shell, owner_shell
from blockstore.volume.checkpoint_shell import Checkpointer
from blockstore.volume.compaction import RUNS_PER_SIZE
from blockstore.volume.record_shell import RecordShell


def failing(monkeypatch: pytest.MonkeyPatch, where: object, name: str, *errors: Exception) -> list[Exception]:
    """Let the coroutine function `name` fail so many times, then do its work. Returns what is left to
    raise."""
    left, real = list(errors), getattr(where, name)

    async def work(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop(0)
        return await real(*arguments, **named)

    monkeypatch.setattr(where, name, work)
    return left


def wait_until(holds: Callable[[], bool]) -> None:
    """`holds` asks the store, which takes its time."""
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until


def test_an_owner_that_falls_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with blockstore.open(tmp_path / "s") as store:
        store.create_bucket("b").put("x", b"1")
    left = failing(monkeypatch, owner_shell, "take_over", Unavailable("a"), DiskFailed("sim", "EIO"))
    with blockstore.open(tmp_path / "s") as store:
        bucket = store.bucket("b")
        assert bucket.get("x") == b"1"
        bucket.put("x", b"2")
    assert not left
    with blockstore.open(tmp_path / "s") as store:
        assert store.bucket("b").get("x") == b"2"


def test_a_checkpoint_that_fails_is_made_again_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 5)
    monkeypatch.setattr(owner_shell, "CHECKPOINT_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(owner_shell, "CHECKPOINT_RETRY_SECONDS", 0.01)
    with blockstore.open(tmp_path / "s") as store:
        bucket = store.create_bucket("b")
        # Before its run is written, and when its root is being committed.
        early = failing(monkeypatch, checkpoint_shell.Appending, "_write", NoSpace("a"), Unavailable("b"))
        late = failing(monkeypatch, RecordShell, "change", Unavailable("no answer"))
        for number in range(20):
            bucket.put(f"{number:02}", b"v%d" % number)
        wait_until(lambda: bool(bucket.facts()) and not early and not late)
        for number in range(20, 30):
            bucket.put(f"{number:02}", b"v%d" % number)
    with blockstore.open(tmp_path / "s") as store:
        bucket = store.bucket("b")
        found = {entry.name: bucket.get(entry.name) for entry in bucket.list()}
        assert found == {f"{number:02}": b"v%d" % number for number in range(30)}


def test_a_merge_that_fails_is_made_again_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 5)
    monkeypatch.setattr(owner_shell, "CHECKPOINT_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(owner_shell, "CHECKPOINT_RETRY_SECONDS", 0.01)
    failed = failing(monkeypatch, Checkpointer, "_merge", NoSpace("a"), Unavailable("b"))
    with blockstore.open(tmp_path / "s") as store:
        bucket = store.create_bucket("b")
        n_runs_max = n_puts = 0
        while failed or int(bucket.facts()["map_runs"]) >= n_runs_max or n_runs_max < RUNS_PER_SIZE:
            n_runs_max = max(n_runs_max, int(bucket.facts()["map_runs"]))
            bucket.put(f"{n_puts % 20:02}", b"v%d" % n_puts)
            n_puts += 1
            assert n_puts < 5_000, "nothing was ever merged"
    with blockstore.open(tmp_path / "s") as store:
        bucket = store.bucket("b")
        last = {f"{number % 20:02}": b"v%d" % number for number in range(n_puts)}
        assert {entry.name: bucket.get(entry.name) for entry in bucket.list()} == last


def test_a_disk_that_cannot_be_synced_at_the_start_is_suspect_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = [tmp_path / str(number) for number in range(3)]
    with blockstore.open(directories) as store:
        store.create_bucket("b").put("x", b"1")
    sync_all = RealDisk.sync_all

    def fail_on_one(disk: RealDisk) -> None:
        if disk.path.startswith(str(directories[2])):
            raise DiskFailed(disk.path, "Input/output error")
        sync_all(disk)

    monkeypatch.setattr(RealDisk, "sync_all", fail_on_one)
    with blockstore.open(directories) as store:
        wait_until(lambda: "disk-suspect" in {fact.code for fact in store.status().facts})
        bucket = store.bucket("b")
        assert bucket.get("x") == b"1"
        bucket.put("y", b"2")
        assert store.status().severity == 1
