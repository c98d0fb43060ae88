"""A store whose disk is full still deletes, and by that becomes writable again.

Real files in a directory that is said to be as large as a test can fill.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import blockstore
from blockstore.errors import NoSpace, NotFound
from blockstore.ids import MiB
from blockstore.runtime.real_disk import RealDisk

VALUE = os.urandom(1 * MiB // 10)
TIMEOUT = 20.0
N_AT_ONCE = 8


def used_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # removed meanwhile
    return total


def limit(monkeypatch: pytest.MonkeyPatch, folder: Path, capacity: int) -> None:
    def free_bytes(_: RealDisk) -> int:
        return max(0, capacity - used_bytes(folder))

    monkeypatch.setattr(RealDisk, "free_bytes", free_bytes)


def fill(bucket: blockstore.Bucket) -> list[str]:
    """Put until nothing more goes in; the names that did."""

    def put(name: str) -> str | None:
        try:
            bucket.put(name, VALUE, timeout=TIMEOUT)
        except NoSpace:
            return None
        return name

    names, n_tried, n_per_round = list[str](), 0, 4 * N_AT_ONCE
    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        while True:
            tried = [f"{n_tried + i:05}" for i in range(n_per_round)]
            n_tried += n_per_round
            put_now = [name for name in pool.map(put, tried) if name is not None]
            if not put_now:
                return names
            names += put_now


def put_when_there_is_space(bucket: blockstore.Bucket) -> None:
    """It comes in the background: files for the first chunks; later a checkpoint, then the journal's dead
    chunks."""
    for _ in range(100_000):
        try:
            bucket.put("again", VALUE, timeout=TIMEOUT)
        except NoSpace:
            continue
        return
    pytest.fail("no space came back")


def test_a_full_store_deletes_and_is_writable_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, tmp_path, 270 * MiB)
    with blockstore.open(tmp_path / "store") as store:
        bucket = store.create_bucket("b")
        put_when_there_is_space(bucket)
        names = ["again", *fill(bucket)]
        assert len(names) > 100
        with pytest.raises(NoSpace):
            bucket.put("large", bytes(1 * MiB), timeout=TIMEOUT)
        assert "disk-full" in {fact.code for fact in store.status().facts}
    # Started anew it needs a new chunk for its journal, which only the reserve has.
    with blockstore.open(tmp_path / "store") as store:
        bucket = store.bucket("b")
        with pytest.raises(NoSpace):
            bucket.put("more", VALUE, timeout=TIMEOUT)
        assert bucket.get(names[0]) == VALUE
        with ThreadPoolExecutor(N_AT_ONCE) as pool:
            list(pool.map(partial(bucket.delete, timeout=TIMEOUT), names))
        assert list(bucket.list()) == []
        with pytest.raises(NotFound):
            bucket.get("more")
        put_when_there_is_space(bucket)
    with blockstore.open(tmp_path / "store") as store:
        assert [entry.name for entry in store.bucket("b").list()] == ["again"]
        assert store.bucket("b").get("again") == VALUE
