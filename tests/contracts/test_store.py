"""One suite for every way to a store: both twins, embedded and over a cluster of real daemons.

The tests speak to the async twin; `Awaited` lets the blocking one answer in a thread, under the same names.
"""

from __future__ import annotations

import io
import os
import random
import uuid
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

import blockstore
from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    SnapshotHeld,
)
from blockstore.ids import KiB, MiB
from blockstore.kinds.object_history import Change
from blockstore.placement.policy import Policy
from tests.contracts.ways import Way


@pytest.fixture(params=["aio embedded", "blocking embedded", "aio cluster", "blocking cluster"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    twin, where = request.param.split()
    if where == "embedded":
        return Way(twin, {"location": tmp_path / "store"})
    running: LocalCluster = request.getfixturevalue("cluster")
    return Way(twin, {"location": running.location, "credentials": running.credentials})


@pytest.fixture
async def bucket(store: aio.Store) -> aio.Bucket:
    return await store.create_bucket(f"b-{uuid.uuid4().hex}")


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def test_values_of_every_size_come_back(bucket: aio.Bucket) -> None:
    for size in (0, 1, 4 * KiB, 128 * KiB, 128 * KiB + 1, 5 * MiB + 7):
        data = some_bytes(size)
        info = await bucket.put(f"{size}", data, metadata={"size": str(size)})
        assert await bucket.get(f"{size}") == data
        assert (
            await bucket.get(f"{size}", start=size // 3, end=size - size // 3)
            == data[size // 3 : size - size // 3]
        )
        assert await bucket.stat(f"{size}") == info
        assert info.metadata == {"size": str(size)}
    with pytest.raises(NotFound, match=r"no object 'other' in bucket"):
        await bucket.get("other")


async def test_names_are_kept_as_they_are(bucket: aio.Bucket) -> None:
    names = ["..", ".", "/", "a", "a/b", "a\nb", "\u00e9", "e\u0301", "\x1b[31m", "日本"]
    for name in names:
        await bucket.put(name, name.encode())
    assert sorted(names) == [entry.name async for entry in bucket.list()]
    assert await bucket.read_many(names) == [name.encode() for name in names]


async def test_paths_and_files_go_in_and_come_out(bucket: aio.Bucket, tmp_path: Path) -> None:
    data = some_bytes(17 * MiB + 1)
    path = tmp_path / "file"
    path.write_bytes(data)
    await bucket.put("path", path)
    await bucket.put("file", io.BytesIO(data[5:]))
    for name, expected in (("path", data), ("file", data[5:])):
        async with await bucket.open(name) as file:
            assert file.info.size == len(expected)
            assert await file.read(10) == expected[:10]
            assert file.seek(-10, os.SEEK_END) == len(expected) - 10
            assert await file.read() == expected[-10:]
            file.seek(1_000_000)
            assert await file.read(3_000_000) == expected[1_000_000:4_000_000]
            assert file.tell() == 4_000_000


async def test_conditions(bucket: aio.Bucket) -> None:
    first = await bucket.put("x", b"1", if_absent=True)
    with pytest.raises(PreconditionFailed, match="already an object 'x'"):
        await bucket.put("x", b"2", if_absent=True)
    second = await bucket.put("x", b"2", if_etag=first.etag)
    with pytest.raises(PreconditionFailed, match="not the version"):
        await bucket.delete("x", if_etag=first.etag)
    assert await bucket.get("x") == b"2"
    await bucket.delete("x", if_etag=second.etag)
    with pytest.raises(NotFound):
        await bucket.delete("x")
    await bucket.put("x", b"3", if_absent=True)


async def test_listing_by_pages_and_folders(bucket: aio.Bucket) -> None:
    names = [f"{folder}/{index:03}" for folder in range(3) for index in range(400)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(bucket.put, name, b"")
    assert [entry.name async for entry in bucket.list()] == names
    assert [entry.name async for entry in bucket.list("1/")] == [n for n in names if n.startswith("1/")]
    folded = [entry async for entry in bucket.list(delimiter="/")]
    assert [entry.name for entry in folded] == ["0/", "1/", "2/"]
    assert all(isinstance(entry, blockstore.CommonPrefix) for entry in folded)
    assert [entry.name async for entry in bucket.list("1/39", delimiter="/")] == [
        f"1/{n}" for n in range(390, 400)
    ]


async def test_a_listing_of_many_pages_shows_what_was_there_when_it_began(bucket: aio.Bucket) -> None:
    names = [f"{index:04}" for index in range(2_500)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(bucket.put, name, b"1")
    seen = list[tuple[str, int]]()
    async for entry in bucket.list():
        if not seen:  # the first page is here, no other
            await bucket.delete("1500")
            await bucket.put("2000", b"22")
            await bucket.put("1500+", b"")
        assert isinstance(entry, blockstore.ObjectInfo)
        seen.append((entry.name, entry.size))
    assert seen == [(name, 1) for name in names]
    assert "1500" not in [entry.name async for entry in bucket.list("15")]


async def test_what_is_written_for_each_byte_is_told(bucket: aio.Bucket) -> None:
    value = some_bytes(100_000)
    async with trio.open_nursery() as nursery:
        for index in range(20):
            nursery.start_soon(bucket.put, f"{index}", value)
    facts = await bucket.facts()
    assert facts["put_bytes"] == 20 * len(value)
    amplification = float(facts["write_amplification"])
    assert amplification == round(float(facts["written_bytes"]) / (20 * len(value)), 2)
    copies = 1 + Policy.parse(bucket.policy).m
    assert copies <= amplification < copies + 0.2, "the value on each member, and little beside it"


async def test_full_metadata_and_long_names_fit_in_many_answers(bucket: aio.Bucket) -> None:
    names = [f"{index:03}" + "n" * 1_000 for index in range(200)]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(partial(bucket.put, name, b"x", metadata={"k": "v" * 8_000}))
    assert [entry.name async for entry in bucket.list()] == names
    assert await bucket.read_many(names) == [b"x"] * 200


async def test_many_are_read_at_once_in_the_order_asked(bucket: aio.Bucket) -> None:
    values = {f"{size}": some_bytes(size) for size in (*range(300), 20 * KiB, 300 * KiB, 3 * MiB)}
    async with trio.open_nursery() as nursery:
        for name, value in values.items():
            nursery.start_soon(bucket.put, name, value)
    names = list(values)
    random.Random(2).shuffle(names)
    assert await bucket.read_many(names) == [values[name] for name in names]
    ranged = [(name, 1, len(values[name]) // 2 + 1) for name in names]
    assert await bucket.read_many(ranged) == [values[name][1 : len(values[name]) // 2 + 1] for name in names]
    with pytest.raises(NotFound, match="'missing'"):
        await bucket.read_many([names[0], "missing"])


async def test_snapshots_do_not_change(bucket: aio.Bucket) -> None:
    await bucket.put("kept", b"1")
    await bucket.put("large", some_bytes(MiB))
    await bucket.put("deleted", b"1")
    taken = await bucket.snapshot("before")
    await bucket.put("kept", b"2")
    await bucket.put("large", b"2")
    await bucket.delete("deleted")
    await bucket.put("new", b"2")
    for old in (taken, await bucket.at("before"), (await bucket.snapshots())[-1]):
        assert (old.name, old.bucket) == ("before", bucket.name)
        assert [entry.name async for entry in old.list()] == ["deleted", "kept", "large"]
        assert await old.read_many(["kept", "deleted", "large"]) == [b"1", b"1", some_bytes(MiB)]
        assert await old.get("large", start=5, end=9) == some_bytes(MiB)[5:9]
        with pytest.raises(NotFound):
            await old.get("new")
    with pytest.raises(AlreadyExists):
        await bucket.snapshot("before")
    await bucket.delete_snapshot("before")
    with pytest.raises(NotFound, match="no snapshot 'before'"):
        await bucket.at("before")
    assert await bucket.get("kept") == b"2"


async def test_a_batch_comes_true_as_a_whole_or_not_at_all(bucket: aio.Bucket) -> None:
    old = await bucket.put("old", b"1")
    batch = bucket.batch()
    batch.put("a", some_bytes(100_000), metadata={"k": "v"}, if_absent=True)
    batch.put("empty", b"")
    batch.delete("old", if_etag=old.etag)
    batch.put("b", b"22")
    a, empty, b = await batch.commit()
    assert await bucket.read_many(["a", "empty", "b"]) == [some_bytes(100_000), b"", b"22"]
    assert [await bucket.stat(name) for name in ("a", "empty", "b")] == [a, empty, b]
    assert await batch.commit() == [], "it is empty now"
    with pytest.raises(NotFound):
        await bucket.get("old")

    async with bucket.batch() as batch:
        batch.put("a", b"new", if_etag=a.etag)
        batch.put("c", b"3")
    assert await bucket.read_many(["a", "c"]) == [b"new", b"3"]

    async def refused(raising: BaseException | None = None, deleting: str = "", **condition: str) -> None:
        async with bucket.batch() as batch:
            batch.put("d", b"4")
            batch.put("a", b"newer", **cast("Any", condition))
            if deleting:
                batch.delete(deleting)
            if raising:
                raise raising

    with pytest.raises(PreconditionFailed, match="'a'"):
        await refused(if_etag=a.etag)
    with pytest.raises(NotFound, match="no object 'never' in bucket"):
        await refused(deleting="never")
    with pytest.raises(KeyError):
        await refused(KeyError())
    assert [entry.name async for entry in bucket.list()] == ["a", "b", "c", "empty"]
    batch = bucket.batch()
    batch.put("x", b"1")
    for wrong in (bytes(128 * KiB + 1), "text"):
        with pytest.raises(InvalidRequest):
            batch.put("y", cast("bytes", wrong))
    with pytest.raises(InvalidRequest, match="already"):
        batch.delete("x")
    for index in range(7):
        batch.put(f"{index}", bytes(128 * KiB))
    with pytest.raises(InvalidRequest, match="up to 1,000 changes"):
        await batch.commit()


async def test_a_diff_and_a_log_say_what_happened(bucket: aio.Bucket) -> None:
    changed = await bucket.put("a/changed", b"1")
    removed = await bucket.put("b/removed", some_bytes(MiB))
    await bucket.put("b/kept", b"1")
    await bucket.snapshot("one")
    new = await bucket.put("a/changed", b"22", metadata={"k": "v"})
    added = await bucket.put("c", b"3")
    await bucket.delete("b/removed")
    expected = [
        Change("changed", "a/changed", changed, new),
        Change("removed", "b/removed", removed, None),
        Change("added", "c", None, added),
    ]
    assert [change async for change in bucket.diff("one")] == expected
    await bucket.snapshot("two")
    await bucket.put("c", b"4")
    assert [change async for change in bucket.diff("one", "two")] == expected
    assert [change async for change in bucket.diff("one", "two", prefix="b/")] == expected[1:2]
    assert [change.kind async for change in bucket.diff("two", "one")] == ["changed", "added", "removed"]
    with pytest.raises(NotFound, match="no snapshot 'three'"):
        assert [change async for change in bucket.diff("one", "three")]

    now, before = await bucket.log("a/changed")
    assert (now.info, now.is_current, now.n_snapshots, now.first_snapshot) == (new, True, 1, "two")
    assert (before.info, before.is_current, before.last_snapshot) == (changed, False, "one")
    gone, there = await bucket.log("b/removed")
    assert (gone.info, gone.is_current, gone.first_snapshot) == (None, True, "two")
    assert there.info == removed
    assert there.first_taken <= gone.first_taken
    with pytest.raises(NotFound, match="no object 'never'"):
        await bucket.log("never")


async def test_a_diff_of_many_comes_by_pages(bucket: aio.Bucket) -> None:
    names = [f"{index:04}" + "n" * 500 for index in range(1_200)]
    await bucket.snapshot("empty")
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(bucket.put, name, b"")
    assert [change.name async for change in bucket.diff("empty")] == names
    assert [change.name async for change in bucket.diff("empty", prefix="110")] == names[1100:1110]


async def test_one_object_comes_back_and_the_restore_is_undone(bucket: aio.Bucket) -> None:
    was = await bucket.put("large", some_bytes(MiB), metadata={"k": "v"})
    await bucket.put("small", b"1")
    await bucket.snapshot("s")
    await bucket.delete("large")
    await bucket.put("small", b"2")
    for dry_run in (True, False):
        done = await bucket.restore("large", at="s", dry_run=dry_run)
        assert (done.snapshot, done.added, done.changed, done.removed) == ("s", 1, 0, 0)
        assert [one.name for one in await bucket.snapshots()][1:] == ([done.safety] if done.safety else [])
    assert await bucket.get("large") == some_bytes(MiB)
    again = await bucket.stat("large")
    assert (again.modified, again.metadata, again.size) == (was.modified, was.metadata, was.size)
    assert again.etag != was.etag
    assert await bucket.get("small") == b"2"
    assert (await bucket.restore(["large"], at="s")).safety == "", "there was nothing to do"
    undone = await bucket.restore("large", at=done.safety)
    assert (undone.removed, len({done.safety, undone.safety})) == (1, 2)
    with pytest.raises(NotFound):
        await bucket.get("large")


async def test_a_restore_elsewhere_leaves_what_is_there(bucket: aio.Bucket) -> None:
    for name in ("old/a", "old/b", "old/c", "other"):
        await bucket.put(name, name.encode())
    await bucket.snapshot("s")
    await bucket.put("old/b", b"2")
    await bucket.put("new/b", b"3")
    await bucket.put("new/x", b"4")
    told: list[Change] = []
    done = await bucket.restore(prefix="old/", at="s", to="new/", on_changes=told.extend)
    assert (done.added, done.changed, done.removed) == (2, 1, 0)
    assert [(one.kind, one.name) for one in told] == [
        ("added", "new/a"),
        ("changed", "new/b"),
        ("added", "new/c"),
    ]
    names = ["new/a", "new/b", "new/c", "new/x", "old/a", "old/b", "old/c", "other"]
    assert [entry.name async for entry in bucket.list()] == names
    assert await bucket.read_many(names) == [
        b"old/a", b"old/b", b"old/c", b"4", b"old/a", b"2", b"old/c", b"other"
    ]  # fmt: skip
    assert (await bucket.restore(prefix="old/", at="s", to="new/")).safety == ""
    undone = await bucket.restore(prefix="new/", at=done.safety)
    assert (undone.added, undone.changed, undone.removed) == (0, 1, 2)
    assert await bucket.get("new/b") == b"3"
    await bucket.restore("other", at="s", to="copy")
    assert await bucket.get("copy") == b"other"


async def test_what_cannot_be_restored_is_said_before_anything_is_done(bucket: aio.Bucket) -> None:
    await bucket.snapshot("s")
    await bucket.put("x", b"1")
    with pytest.raises(NotFound, match=r"no object 'never' in .*, neither now nor in snapshot 's'"):
        await bucket.restore(["x", "never"], at="s")
    with pytest.raises(NotFound, match="not in snapshot 's'"):
        await bucket.restore("x", at="s", to="y")
    with pytest.raises(NotFound, match="no snapshot 'other'"):
        await bucket.restore("x", at="other")
    for wrong in ({}, {"names": "x", "prefix": "x"}, {"names": ["x", "y"], "to": "z"}):
        with pytest.raises(InvalidRequest):
            await bucket.restore(**cast("Any", wrong), at="s")
    assert [one.name for one in await bucket.snapshots()] == ["s"]
    assert await bucket.get("x") == b"1"


async def test_a_bucket_is_rolled_back_and_forward(bucket: aio.Bucket) -> None:
    names = [f"{index:04}" for index in range(1_100)]
    for start in (0, 550):
        async with bucket.batch() as batch:
            for name in names[start : start + 550]:
                batch.put(name, name.encode())
    await bucket.put("large", some_bytes(MiB))
    await bucket.snapshot("full")
    for start in (50, 575):
        async with bucket.batch() as batch:
            for name in names[start : 575 if start < 575 else None]:
                batch.delete(name)
    await bucket.delete("large")
    await bucket.put("new", b"1")
    await bucket.put("0000", b"changed")
    pages: list[int] = []
    done = await bucket.rollback("full", on_changes=lambda changes: pages.append(len(changes)))
    assert (done.added, done.changed, done.removed, sum(pages)) == (1_051, 1, 1, 1_053)
    assert len(pages) > 1
    assert [change async for change in bucket.diff("full")] == []
    await bucket.delete_snapshot("full")
    assert await bucket.read_many([*names, "large"]) == [*(name.encode() for name in names), some_bytes(MiB)]
    await bucket.rollback(done.safety)
    assert [entry.name async for entry in bucket.list()] == [*names[:50], "new"]
    assert await bucket.get("0000") == b"changed"


async def test_a_held_snapshot_keeps_itself_and_its_bucket(store: aio.Store, bucket: aio.Bucket) -> None:
    await bucket.put("x", b"1")
    await bucket.snapshot("s")
    assert (await bucket.hold_snapshot("s")).held
    assert [one.held for one in await bucket.snapshots()] == [True]
    with pytest.raises(SnapshotHeld, match=r"Snapshot 's' of bucket '.*' is held") as refused:
        await bucket.delete_snapshot("s")
    assert "snapshot release" in refused.value.next_step
    with pytest.raises(SnapshotHeld, match="Snapshot 's' of bucket"):
        await store.delete_bucket(bucket.name)
    assert await bucket.get("x") == b"1"
    for method in (bucket.hold_snapshot, bucket.release_snapshot):
        with pytest.raises(NotFound, match="no snapshot 'other' of bucket"):
            await method("other")
    assert not (await bucket.release_snapshot("s")).held
    await bucket.delete_snapshot("s")
    await bucket.snapshot("t")
    await bucket.hold_snapshot("t")
    await store.delete_bucket(bucket.name, even_held=True)
    with pytest.raises(NotFound, match="no bucket"):
        await bucket.hold_snapshot("t")


async def test_buckets_come_and_go(store: aio.Store) -> None:
    name = f"b-{uuid.uuid4().hex}"
    made = await store.create_bucket(name, policy="replicated(1)")
    await made.put("x", b"1")
    assert name in [one.name for one in await store.buckets()]
    with pytest.raises(AlreadyExists, match=name):
        await store.create_bucket(name, policy="replicated(1)")
    same = await store.create_bucket(name, policy="replicated(1)", exist_ok=True)
    assert await same.get("x") == b"1"
    assert (await same.facts())["keys"] == 1
    await store.delete_bucket(name)
    with pytest.raises(NotFound, match="no bucket"):
        await store.bucket(name)
    with pytest.raises(NotFound, match="no bucket"):
        await made.get("x")
    again = await store.create_bucket(name, policy="replicated(1)")
    with pytest.raises(NotFound, match="no object 'x'"):
        await again.get("x")
    for policy in ("replicated(0)", "ec(0,1)", "nonsense"):
        with pytest.raises(InvalidRequest):
            await store.create_bucket("other", policy=policy)


async def test_it_tells_how_it_is(store: aio.Store) -> None:
    status = await store.status()
    assert status.sentence.endswith(".")
    assert len(await store.nodes()) == len(status.nodes)
    page = await store.events()
    assert (await store.events(after=page.next)).next >= page.next


async def test_writers_race_and_one_wins(bucket: aio.Bucket) -> None:
    won: list[int] = []

    async def write(index: int) -> None:
        try:
            await bucket.put("x", b"%d" % index, if_absent=True)
        except PreconditionFailed:
            return
        won.append(index)

    async with trio.open_nursery() as nursery:
        for index in range(16):
            nursery.start_soon(write, index)
    assert len(won) == 1
    assert await bucket.get("x") == b"%d" % won[0]


async def test_what_the_block_raises_is_what_comes_out(way: Way) -> None:
    async def fail() -> None:
        async with way.open() as store:
            await store.buckets()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
