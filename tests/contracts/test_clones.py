"""Clones of buckets and block devices, both twins, embedded and over a cluster of real daemons: a clone is
the snapshot and what was written to it since, whatever becomes of what it was made of."""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import AlreadyExists, InvalidRequest, NotFound, PreconditionFailed, TakenOver
from blockstore.ids import KiB, MiB
from tests.contracts.ways import Way

LARGE = random.Random(1).randbytes(3 * MiB)
FLAT_SECONDS_MAX = 60.0


@pytest.fixture(params=["aio embedded", "blocking cluster"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    twin, where = request.param.split()
    if where == "embedded":
        return Way(twin, {"location": tmp_path / "store"})
    running: LocalCluster = request.getfixturevalue("cluster")
    return Way(twin, {"location": running.location, "credentials": running.credentials})


def new_name() -> str:
    return f"v-{uuid.uuid4().hex}"


async def filled(store: aio.Store) -> aio.Bucket:
    bucket = await store.create_bucket(new_name())
    async with bucket.batch() as batch:
        for number in range(200):
            batch.put(f"small/{number:03d}", b"%d" % number)
    await bucket.put("large", LARGE)
    return bucket


async def names(bucket: aio.Bucket, prefix: str = "") -> list[str]:
    return [entry.name async for entry in bucket.list(prefix)]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(FLAT_SECONDS_MAX):
        while not await holds():  # noqa: ASYNC110 - nobody is told when a background task is done
            await trio.sleep(0.1)


async def is_flat(store: aio.Store, clone: str) -> bool:
    views = [*await store.buckets(), *await store.block_devices()]
    return not any(view.clone_of for view in views if view.name == clone)


async def has_no_clones(bucket: aio.Bucket) -> bool:
    return (await bucket.facts())["clones"] == 0


async def test_a_clone_is_the_snapshot_and_goes_its_own_way(store: aio.Store) -> None:
    bucket = await filled(store)
    etag = (await bucket.stat("small/001")).etag
    await bucket.snapshot("s")
    await bucket.put("small/000", b"later")
    await bucket.delete("small/001")
    await bucket.put("new", b"later")
    clone = await bucket.clone("s", new_name())
    [view] = [one for one in await store.buckets() if one.name == clone.name]
    assert (view.clone_of, view.policy) == (f"{bucket.name}@s", bucket.policy)
    assert await names(clone) == ["large", *(f"small/{number:03d}" for number in range(200))]
    assert await clone.get("large") == LARGE
    assert await clone.read_many([f"small/{number:03d}" for number in range(200)]) == [
        b"%d" % number for number in range(200)
    ]
    assert (await clone.facts())["keys"] == 201
    assert await clone.snapshots() == []
    assert (await bucket.facts())["clones"] == 1
    # A version is what it was: its etag holds, once.
    await clone.put("small/001", b"mine", if_etag=etag)
    with pytest.raises(PreconditionFailed):
        await clone.put("small/001", b"other", if_etag=etag)
    await clone.put("new", b"mine", if_absent=True)
    await clone.snapshot("of-clone")
    await clone.delete("small/002")
    assert [(one.kind, one.name) async for one in clone.diff("of-clone")] == [("removed", "small/002")]
    assert [await one.get("small/000") for one in (bucket, clone)] == [b"later", b"0"]
    assert [await one.get("new") for one in (bucket, clone)] == [b"later", b"mine"]
    assert await bucket.get("small/002") == b"2"
    assert await (await clone.at("of-clone")).get("small/002") == b"2"
    await store.delete_bucket(clone.name)
    assert await bucket.get("large") == LARGE


async def test_its_snapshot_and_its_parent_may_go_and_then_it_is_flat(store: aio.Store) -> None:
    bucket = await filled(store)
    await bucket.snapshot("s")
    clone = await bucket.clone("s", new_name())
    await clone.put("small/003", b"mine")
    await clone.snapshot("t")
    await clone.put("small/004", b"after t")
    second = await clone.clone("t", new_name())
    await bucket.delete_snapshot("s")
    await store.delete_bucket(bucket.name)
    await store.delete_bucket(clone.name)  # in the middle
    again = await store.create_bucket(bucket.name)
    assert await names(again) == []

    async def check() -> None:
        assert await second.get("large") == LARGE
        assert len(await names(second)) == 201
        assert await second.read_many(["small/003", "small/004"]) == [b"mine", b"4"]

    await check()
    await until(lambda: is_flat(store, second.name))
    await check()
    facts = await second.facts()
    assert (facts["foreign_chunks"], facts["foreign_runs"]) == (0, 0)


async def test_a_clone_is_made_independent_on_command(store: aio.Store) -> None:
    bucket = await filled(store)
    await bucket.snapshot("s")
    clone = await bucket.clone("s", new_name())
    assert (await clone.flatten()).is_flattening
    assert (await bucket.flatten()).clone_of == ""  # it is none
    await clone.restore(["small/000"], at=(await clone.snapshot("t")).name, to="copy")
    await until(lambda: is_flat(store, clone.name))
    assert await clone.get("large") == LARGE
    assert await clone.read_many(["small/000", "copy"]) == [b"0", b"0"]
    await until(lambda: has_no_clones(bucket))


async def test_what_stands_in_the_way_is_said(store: aio.Store) -> None:
    bucket = await filled(store)
    await bucket.snapshot("s")
    with pytest.raises(NotFound, match=f"snapshot 'other' of bucket '{bucket.name}'"):
        await bucket.clone("other", new_name())
    with pytest.raises(AlreadyExists, match=f"bucket '{bucket.name}'"):
        await bucket.clone("s", bucket.name)
    with pytest.raises(InvalidRequest, match="cannot name"):
        await bucket.clone("s", "No Name")
    with pytest.raises(InvalidRequest, match="chosen by a datetime, not NoneType"):
        await bucket.clone(None, new_name())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await until(lambda: has_no_clones(bucket))  # what was begun in vain is let go of


async def test_many_clones_at_once(store: aio.Store) -> None:
    bucket = await filled(store)
    await bucket.snapshot("s")
    made: dict[str, aio.Bucket] = {}

    async def make(name: str) -> None:
        made[name] = await bucket.clone("s", name)

    wanted = [new_name() for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for name in wanted:
            nursery.start_soon(make, name)
    for number, name in enumerate(wanted):
        await made[name].put("mine", b"%d" % number)
    for number, name in enumerate(wanted):
        assert await made[name].read_many(["mine", "small/007"]) == [b"%d" % number, b"7"]


async def test_a_device_is_cloned_and_has_a_writer_of_its_own(store: aio.Store) -> None:
    device = await store.create_block_device(new_name(), 4 * MiB)
    await device.write(0, LARGE)
    await device.write(4 * KiB, b"x" * 4 * KiB)
    await device.snapshot("s")
    await device.write(0, b"y" * 8 * KiB)
    clone = await device.clone("s", new_name())
    image = bytearray(4 * MiB)
    image[: len(LARGE)] = LARGE
    image[4 * KiB : 8 * KiB] = b"x" * 4 * KiB
    assert clone.size == device.size
    assert await clone.read(0, 4 * MiB) == image
    await clone.write(100, b"mine")
    image[100:104] = b"mine"
    await device.write(MiB, b"its own")  # its writer is not disturbed
    assert await device.read(100, 4) == b"yyyy"
    await store.block_device(clone.name, writable=True)
    with pytest.raises(TakenOver):
        await clone.write(0, b"again")
    assert (await clone.flatten()).is_flattening
    with pytest.raises(NotFound, match="snapshot 'other' of block device"):
        await device.clone("other", new_name())
    await store.delete_block_device(device.name)
    await until(lambda: is_flat(store, clone.name))
    assert await clone.read(0, 4 * MiB) == image
