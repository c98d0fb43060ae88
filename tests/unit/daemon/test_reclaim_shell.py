"""The space of a deleted bucket comes back, at a node that runs and at one that was away."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockstore.daemon import node_shell
from blockstore.daemon.reclaim_shell import LAST_EPOCH
from blockstore.errors import NotFound
from blockstore.ids import KiB
from blockstore.volume.flatten_shell import FlattenShell
from tests.node_harness import VOLUME, Running, running, until

VALUE = random.Random(1).randbytes(300 * KiB)


async def fill(one: Running, name: str) -> None:
    bucket = await one.store.create_bucket(name)
    for number in range(5):
        await bucket.put(f"large {number}", VALUE)
        await bucket.put(f"small {number}", b"value")


async def forever(*_: object) -> None:
    """In place of reclaiming: as if the node had stopped right after the bucket was deleted."""


async def test_fragments_of_a_deleted_bucket_go_and_those_of_others_stay(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        await fill(one, "kept")
        n_kept = one.n_fragments()
        await fill(one, "dropped")
        assert one.n_fragments() > n_kept
        await one.store.delete_bucket("dropped")
        await until(lambda: one.n_fragments() == n_kept)
        bucket = await one.store.bucket("kept")
        assert await bucket.get("large 3") == VALUE
        with pytest.raises(NotFound):
            await one.store.bucket("dropped")
        await fill(one, "dropped")  # another one of that name is not touched
        assert await (await one.store.bucket("dropped")).get("large 3") == VALUE
        n_both = one.n_fragments()
    async with running(tmp_path) as one:
        assert await (await one.store.bucket("dropped")).get("small 3") == b"value"
        assert one.n_fragments() >= n_both


async def test_a_node_that_was_away_deletes_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(node_shell, "reclaim", forever)
        async with running(tmp_path) as one:
            await fill(one, "dropped")
            before = one.n_fragments()
            await one.store.delete_bucket("dropped")
            assert one.n_fragments() == before > 0
    for _ in range(2):
        async with running(tmp_path) as one:
            await until(lambda: one.n_fragments() == 0)


async def test_what_a_clone_needs_of_a_deleted_bucket_stays_and_nothing_is_written_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlattenShell, "_step", forever)
    async with running(tmp_path) as one:
        await fill(one, "parent")
        bucket = await one.store.bucket("parent")
        await bucket.snapshot("s")
        clone = await bucket.clone("s", "clone")
        before = one.n_fragments()
        await one.store.delete_bucket("parent")
        (disk,) = one.node.disks.values()
        await until(lambda: disk.highest_epoch(VOLUME) == LAST_EPOCH)
        assert await clone.get("large 3") == VALUE
    async with running(tmp_path) as one:
        clone = await one.store.bucket("clone")
        assert await clone.get("large 3") == VALUE
        assert one.n_fragments() >= before
        await one.store.delete_bucket("clone")
        await until(lambda: one.n_fragments() == 0)
