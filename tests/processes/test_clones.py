"""Clones over real daemons: both sides are written while their owners are killed, what they are clones of is
deleted, and in the end the disks have their space back."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster, LocalNode
from blockstore.errors import BlockStoreError
from blockstore.ids import KiB, MiB
from blockstore_cli.dev import wait_until_settled
from tests.processes.test_command import Command, command

__all__ = ["command"]

N_OBJECTS = 100
LARGE = random.Random(1).randbytes(2 * MiB)
WRITTEN_AFTER_A_KILL = 5
"""Puts that each side must take before the daemon is started again."""


class Writer:
    """Puts numbered values to one bucket, one after the other, and knows what it must be."""

    def __init__(self, bucket: aio.Bucket, model: dict[str, bytes]) -> None:
        self.bucket, self.model = bucket, model
        self.n_written = 0
        self._is_over = False

    async def run(self) -> None:
        rng = random.Random(self.bucket.name)
        while not self._is_over:
            name = f"{rng.randrange(N_OBJECTS):03d}"
            value = b"%s %d" % (self.bucket.name.encode(), self.n_written) * rng.choice((1, 500, 15_000))
            await self.bucket.put(name, value, timeout=30.0)
            self.model[name] = value
            self.n_written += 1
            await trio.sleep(0.02)  # there is room for the daemons

    def stop(self) -> None:
        self._is_over = True

    async def check(self) -> None:
        names = [entry.name async for entry in self.bucket.list()]
        assert names == sorted(self.model)
        for first in range(0, len(names), 50):
            some = names[first : first + 50]
            assert await self.bucket.read_many(some) == [self.model[name] for name in some]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(90.0):
        while not await holds():  # noqa: ASYNC110 - nobody tells of what others do in the background
            await trio.sleep(0.2)


async def owner_of(store: aio.Store, cluster: LocalCluster, name: str) -> LocalNode:
    (owner,) = [view.owner for view in await store.buckets() if view.name == name]
    return next(node for node in cluster.nodes if node.node == owner)


async def kill_its_owner(store: aio.Store, cluster: LocalCluster, name: str, writers: list[Writer]) -> None:
    killed = await owner_of(store, cluster, name)
    killed.kill()
    before = [writer.n_written for writer in writers]

    async def go_on() -> bool:
        return all(
            writer.n_written >= n + WRITTEN_AFTER_A_KILL for writer, n in zip(writers, before, strict=True)
        )

    await until(go_on)
    await trio.to_thread.run_sync(killed.start)
    await trio.to_thread.run_sync(wait_until_settled, cluster)


async def used_bytes(store: aio.Store) -> int:
    return sum(disk[2] for node in (await store.status()).nodes for disk in node.disks)


async def test_owners_are_killed_and_the_parent_is_deleted_while_all_are_written(
    cluster: LocalCluster,
) -> None:
    async with aio.connect(cluster.location, credentials=cluster.credentials) as store:
        await trio.to_thread.run_sync(wait_until_settled, cluster)
        at_first = await used_bytes(store)
        bucket = await store.create_bucket("parent", policy="replicated(3)")
        model = {f"{number:03d}": b"%d" % number * 300 for number in range(N_OBJECTS)}
        for number in range(0, N_OBJECTS, 50):
            async with bucket.batch() as batch:
                for name in sorted(model)[number : number + 50]:
                    batch.put(name, model[name])
        await bucket.put("large", LARGE)
        model["large"] = LARGE
        await bucket.snapshot("s")
        clone = await bucket.clone("s", "clone")
        parent_writer, clone_writer = Writer(bucket, dict(model)), Writer(clone, dict(model))
        writers = [parent_writer, clone_writer]
        async with trio.open_nursery() as nursery:
            for writer in writers:
                nursery.start_soon(writer.run)
            for name in ("clone", "parent"):
                await kill_its_owner(store, cluster, name, writers)
            late = Writer(await bucket.clone("s", "late"), dict(model))
            await late.check()
            for writer in writers:
                writer.stop()
        for writer in writers:
            await writer.check()
        snapshot = await bucket.at("s")
        assert await snapshot.read_many(sorted(model)) == [model[name] for name in sorted(model)]

        async with trio.open_nursery() as nursery:
            clone_writer = Writer(clone, clone_writer.model)
            nursery.start_soon(clone_writer.run)
            await store.delete_bucket("parent")
            await kill_its_owner(store, cluster, "clone", [clone_writer])

            async def are_flat() -> bool:
                try:
                    return not any(view.clone_of for view in await store.buckets())
                except BlockStoreError:
                    return False

            await until(are_flat)
            clone_writer.stop()
        for writer in (clone_writer, late):
            await writer.check()
        for name in ("clone", "late"):
            await store.delete_bucket(name)

        async def is_given_back() -> bool:
            return await used_bytes(store) <= at_first + 64 * KiB

        await until(is_given_back)


@pytest.mark.usefixtures("configured")
def test_a_bucket_and_a_device_are_cloned_and_flattened_by_command(command: Command) -> None:
    command("bucket", "create", "photos", "--policy", "replicated(3)")
    command("snapshot", "create", "photos", "s")
    made = command("snapshot", "clone", "photos@s", "copy", "--json").json()
    assert made == {"name": "copy", "kind": "bucket", "policy": "replicated(3)", "clone_of": "photos@s"}
    listed = command("bucket", "list", "--json").json()["buckets"]
    assert {"name": "copy", "policy": "replicated(3)", "clone_of": "photos@s"} in listed
    assert "photos@s" in command("bucket", "list").out
    shown = command("bucket", "show", "copy", "--json").json()
    assert (shown["clone_of"], shown["is_flattening"]) == ("photos@s", False)
    assert command("bucket", "show", "photos", "--json").json()["clones"] == 1
    assert "already a bucket 'copy'" in command("snapshot", "clone", "photos@s", "copy", code=73).err
    assert "snapshot 'other'" in command("snapshot", "clone", "photos@other", "new", code=66).err
    assert "bucket 'nobody'" in command("snapshot", "clone", "nobody@s", "new", code=66).err
    assert "NAME@SNAPSHOT" in command("snapshot", "clone", "photos", "new", code=64).err
    assert "cannot name" in command("snapshot", "clone", "photos@s", "No Name", code=64).err
    assert command("bucket", "flatten", "copy", "--no-wait", "--json").json()["clone_of"] == "photos@s"
    assert "depends on no other" in command("bucket", "flatten", "copy").out
    assert command("bucket", "show", "copy", "--json").json()["clone_of"] == ""
    assert command("bucket", "flatten", "photos", "--json").json() == {"name": "photos", "clone_of": ""}

    command("block", "create", "vm1", "1M")
    command("block", "snapshot", "create", "vm1", "s")
    made = command("snapshot", "clone", "vm1@s", "vm2", "--json").json()
    assert (made["kind"], made["clone_of"]) == ("block", "vm1@s")
    assert command("block", "show", "vm2", "--json").json()["clone_of"] == "vm1@s"
    command("block", "delete", "vm1", "--yes")
    assert command("block", "flatten", "vm2", "--json").json() == {"name": "vm2", "clone_of": ""}
