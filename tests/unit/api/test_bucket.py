"""What users of a bucket rely on, against a store in memory that loses answers, moves owners and hangs up."""

from __future__ import annotations

import io
import os
import random
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from blockstore.api.bucket import Bucket
from blockstore.api.many_values import LOOKUP_KEYS_MAX
from blockstore.api.store import Store
from blockstore.codec import messages as m
from blockstore.codec.checksum import crc32c
from blockstore.config import INLINE_BYTES_MAX
from blockstore.errors import (
    AlreadyExists,
    BlockStoreError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from blockstore.ids import ChunkId, DiskId, KiB, MiB, NodeId
from blockstore.kinds.bucket import CommonPrefix, ObjectInfo
from tests.unit.api.fake_store import FakeStore, Version, opened_store

SIZES = (0, 1, 4 * KiB, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 5 * MiB + 3, 17 * MiB)


IN_VIRTUAL_TIME = True  # read by conftest.py


@pytest.fixture
async def opened() -> AsyncGenerator[tuple[FakeStore, Store]]:
    async with opened_store() as pair:
        yield pair


@pytest.fixture
async def bucket(opened: tuple[FakeStore, Store]) -> Bucket:
    return await opened[1].create_bucket("photos")


@pytest.fixture
def fake(opened: tuple[FakeStore, Store]) -> FakeStore:
    return opened[0]


@cache
def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# --- round trips


@pytest.mark.parametrize("policy", ["replicated(3)", "ec(2,1)"])
async def test_what_was_put_is_got(opened: tuple[FakeStore, Store], policy: str) -> None:
    bucket = await opened[1].create_bucket("any", policy=policy)
    for size in SIZES:
        data = some_bytes(size)
        info = await bucket.put(f"of {size}", data, metadata={"who": "me"})
        assert await bucket.get(f"of {size}") == data
        assert await bucket.stat(f"of {size}") == info
        assert (info.name, info.size, info.metadata) == (f"of {size}", size, {"who": "me"})


@pytest.mark.parametrize("size", [100, 5 * MiB])
async def test_ranges_are_clipped_to_the_object(bucket: Bucket, size: int) -> None:
    data = some_bytes(size)
    await bucket.put("x", data)
    for start, end in ((0, 0), (0, 10), (7, 7), (50, 90), (90, 2 * size), (3 * size, None), (99, None)):
        assert await bucket.get("x", start=start, end=end) == data[start:end]
    for start, end in ((-1, None), (5, 4)):
        with pytest.raises(InvalidRequest, match="no range"):
            await bucket.get("x", start=start, end=end)


async def test_what_is_not_there_is_named(opened: tuple[FakeStore, Store], bucket: Bucket) -> None:
    for action in (bucket.get("a\nb"), bucket.stat("a\nb"), bucket.open("a\nb"), bucket.delete("a\nb")):
        with pytest.raises(NotFound, match=r"no object 'a\\nb' in bucket 'photos'"):
            await action
    await bucket.put("a", b"")
    with pytest.raises(NotFound, match="no object 'b' in bucket 'photos'"):
        await bucket.read_many(["a", "b", "c"])
    with pytest.raises(NotFound, match="no bucket 'other'"):
        await opened[1].bucket("other")
    with pytest.raises(NotFound, match="no snapshot 'x' of bucket 'photos'"):
        await bucket.at("x")
    with pytest.raises(NotFound, match="no snapshot 'x' of bucket 'photos'"):
        await bucket.delete_snapshot("x")


@pytest.mark.parametrize("size", [0, 10, 300 * KiB, 20 * MiB])
async def test_paths_and_file_objects_are_streamed(bucket: Bucket, tmp_path: Path, size: int) -> None:
    data = some_bytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    await bucket.put("path", path)
    with path.open("rb") as file:
        file.seek(min(size, 5))
        await bucket.put("file", file)
    reader, writer = os.pipe()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, _write_all, writer, data)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            await bucket.put("pipe", pipe)
    assert await bucket.get("path") == data
    assert await bucket.get("file") == data[5:]
    assert await bucket.get("pipe") == data


def _write_all(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(data)


async def test_buffers_of_any_kind(bucket: Bucket) -> None:
    import array

    for data in (bytearray(b"abc"), memoryview(b"abc"), memoryview(b"xabcx")[1:-1]):
        await bucket.put("x", data)
        assert await bucket.get("x") == b"abc"
    numbers = array.array("I", range(100_000))
    await bucket.put("x", memoryview(numbers))
    assert await bucket.get("x") == numbers.tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("text", "not str"),
        (7, "not int"),
        (io.StringIO("text"), "binary mode"),
        (memoryview(b"abcdef")[::2], "gaps"),
        (Path("/nowhere"), "cannot be read"),
    ],
)
async def test_data_that_cannot_be_put(bucket: Bucket, data: object, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await bucket.put("x", data)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- conditions


async def test_if_absent(bucket: Bucket, fake: FakeStore) -> None:
    await bucket.put("x", b"1", if_absent=True)
    with pytest.raises(PreconditionFailed, match="already an object 'x'"):
        await bucket.put("x", b"2", if_absent=True)
    assert await bucket.get("x") == b"1"
    await bucket.delete("x")
    await bucket.put("x", b"3", if_absent=True)
    assert await bucket.get("x") == b"3"


async def test_if_etag(bucket: Bucket) -> None:
    first = await bucket.put("x", b"1")
    second = await bucket.put("x", b"2", if_etag=first.etag)
    for action in (bucket.put("x", b"3", if_etag=first.etag), bucket.delete("x", if_etag=first.etag)):
        with pytest.raises(PreconditionFailed, match="object 'x' in bucket 'photos' is not the version"):
            await action
    assert await bucket.get("x") == b"2"
    await bucket.delete("x", if_etag=second.etag)
    with pytest.raises(NotFound):
        await bucket.get("x")
    with pytest.raises(InvalidRequest, match="exclude"):
        await bucket.put("x", b"", if_etag=first.etag, if_absent=True)


# --- retries


@pytest.mark.parametrize("fault", ["lose", "lose answer", "twice", "hang up", "busy"])
@pytest.mark.parametrize("size", [10, 5 * MiB])
async def test_a_fault_is_retried_and_the_put_applied_once(
    bucket: Bucket, fake: FakeStore, fault: str, size: int
) -> None:
    await bucket.put("before", b"")
    fake.fail_next(m.Put, fault, fault)
    fake.fail_next(m.Grant, fault)
    info = await bucket.put("x", some_bytes(size), if_absent=True)
    assert sum(isinstance(call.op, m.Put) and call.op.key == b"x" for call in fake.applied) == 1
    assert await bucket.get("x") == some_bytes(size)
    assert (await bucket.stat("x")).etag == info.etag


@pytest.mark.parametrize("fault", ["lose", "lose answer", "hang up", "busy"])
async def test_reads_are_retried(bucket: Bucket, fake: FakeStore, fault: str) -> None:
    await bucket.put("small", b"abc")
    await bucket.put("large", some_bytes(MiB))
    for kind in (m.Lookup, m.LookupMany, m.ListKeys, m.ReadFragments, m.SnapshotList, m.VolumeInfo):
        fake.fail_next(kind, fault)
    assert await bucket.get("small") == b"abc"
    assert await bucket.get("large") == some_bytes(MiB)
    assert await bucket.read_many(["large", "small"]) == [some_bytes(MiB), b"abc"]
    assert [entry.name async for entry in bucket.list()] == ["large", "small"]
    assert await bucket.snapshots() == []
    assert await bucket.facts() == {"keys": 2}
    assert not fake.faults


async def test_the_owner_moves_between_requests(bucket: Bucket, fake: FakeStore) -> None:
    await bucket.put("x", b"1")
    fake.move("photos", 3)
    began = trio.current_time()
    await bucket.put("x", b"2")
    assert await bucket.get("x") == b"2"
    assert trio.current_time() - began < 0.01, "the old owner names the new one: nothing is waited for"


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_new_owner_is_found_well_under_a_second_after_it_serves(
    bucket: Bucket, fake: FakeStore, how: str
) -> None:
    await bucket.put("x", b"1")
    if how == "killed":
        fake.kill(NodeId(2))
    else:
        fake.paused.add(NodeId(2))
    for when_asked in (0.0, 1.4, 2.9):
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            nursery.start_soon(_take_over_later, fake, began + 3.0)
            await trio.sleep_until(began + when_asked)
            await bucket.put("x", b"2")
            assert trio.current_time() - (began + 3.0) < 0.8
            nursery.cancel_scope.cancel()
        fake.volumes["photos"].owner = NodeId(2)  # for the next round: the same silence again
        fake.move("photos", 2)
    assert await _applied_puts(fake, b"2") == 3


async def _take_over_later(fake: FakeStore, when: float) -> None:
    await trio.sleep_until(when)
    fake.move("photos", 3)


async def _applied_puts(fake: FakeStore, value: bytes) -> int:
    return len([one for one in fake.volumes["photos"].keys[b"x"] if one.value == value])


async def test_nobody_serves_until_the_deadline(bucket: Bucket, fake: FakeStore) -> None:
    fake.kill(NodeId(2))
    began = trio.current_time()
    with pytest.raises(Unavailable, match=r"Bucket 'photos' did not answer in time: tried \d+ times"):
        await bucket.put("x", b"1", timeout=5.0)
    assert 4.9 < trio.current_time() - began < 5.5
    assert len(fake.heard) < 60, "it pauses between attempts"


async def test_a_request_given_up_is_not_applied_later(bucket: Bucket, fake: FakeStore) -> None:
    await bucket.put("x", b"0")
    fake.paused.add(NodeId(2))
    with pytest.raises(Unavailable):
        await bucket.put("x", b"1", timeout=1.0)
    late = next(got for _, got in fake.heard if isinstance(got, m.VolumeCall) and got.request.number == 2)
    fake.paused.clear()
    await bucket.put("x", b"2")
    volume = fake.volumes["photos"]
    with pytest.raises(InvalidRequest, match="settled"):
        fake._change(volume, late, b"1")
    assert await bucket.get("x") == b"2"


async def test_many_tasks_share_a_session(bucket: Bucket, fake: FakeStore) -> None:
    """Numbers are used once, and `settled` never passes one that is not answered."""
    rng = random.Random(7)
    fake.fail_next(m.Put, *("lose", "lose answer", "hang up", "busy", "twice") * 4)

    async def work(index: int) -> None:
        for turn in range(10):
            await trio.sleep(rng.random() / 100)
            await bucket.put(f"{index}", b"%d" % turn)
            assert await bucket.get(f"{index}") == b"%d" % turn

    async with trio.open_nursery() as nursery:
        for index in range(16):
            nursery.start_soon(work, index)
    puts = [call.request for call in fake.applied if isinstance(call.op, m.Put)]
    assert len(puts) == len(set(puts)) == 160
    assert all(settled <= number for number, settled in fake.settled_told)
    assert max(settled for _, settled in fake.settled_told) > 200, "it grows"


async def test_a_bucket_just_made_is_found_through_a_node_that_lags() -> None:
    async with opened_store(seed=3) as (fake, store):
        fake.lagging[NodeId(3)] = (fake.revision, {})
        fake.volumes["photos"] = fake.make_volume("photos")
        bucket = await store.bucket("photos")
        await bucket.put("x", b"1")
        assert await bucket.get("x") == b"1"
        with pytest.raises(NotFound):
            await store.bucket("other")


async def test_without_a_leader_nobody_can_say_that_a_bucket_is_missing(
    opened: tuple[FakeStore, Store], bucket: Bucket
) -> None:
    fake, store = opened
    fake.leader = NodeId(0)
    assert (await store.bucket("photos")).name == "photos"
    with pytest.raises(Unavailable, match="No leader of control"):
        await store.bucket("other", timeout=1.0)


async def test_a_bucket_made_anew_is_another_one(opened: tuple[FakeStore, Store], bucket: Bucket) -> None:
    _, store = opened
    await bucket.put("x", some_bytes(MiB))
    await store.delete_bucket("photos")
    with pytest.raises(NotFound, match="no bucket 'photos'"):
        await bucket.get("x")
    await store.create_bucket("photos")
    with pytest.raises(NotFound, match="no object 'x'"):
        await bucket.get("x")
    await bucket.put("x", some_bytes(2 * MiB))
    assert await bucket.get("x") == some_bytes(2 * MiB)


@pytest.mark.parametrize("kind", ["bytes", "file", "pipe"])
async def test_the_owner_changes_while_a_large_value_is_written(
    bucket: Bucket, fake: FakeStore, kind: str
) -> None:
    """Its chunks' ends are not found by the new owner: the bytes are written anew, if they can be."""
    data = some_bytes(20 * MiB)

    class Moving(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() and fake.volumes["photos"].owner != 3:
                fake.move("photos", 3)
            return super().read(size)

        def seekable(self) -> bool:
            return kind != "pipe"

    if kind == "bytes":
        fake.fail_next(m.Put, "busy")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bucket.put, "x", data)
            while not fake.count(m.Put):
                await trio.lowlevel.checkpoint()
            fake.move("photos", 3)
    elif kind == "file":
        await bucket.put("x", Moving(data))
    else:
        with pytest.raises(Unavailable, match="put it once more"):
            await bucket.put("x", Moving(data))
        return
    assert await bucket.get("x") == data


async def test_bytes_that_moved_are_looked_up_again(bucket: Bucket, fake: FakeStore) -> None:
    data = some_bytes(3 * MiB)
    await bucket.put("x", data)
    file = await bucket.open("x")
    (version,) = fake.volumes["photos"].keys[b"x"]
    fake.fragments.clear()
    version.value, version.extents = data, ()
    assert await file.read() == data


async def test_wrong_bytes_are_never_returned(bucket: Bucket, fake: FakeStore) -> None:
    await bucket.put("small", b"abc")
    fake.volumes["photos"].keys[b"small"][0].value = b"abd"
    for action in (bucket.get("small"), bucket.read_many(["small"])):
        with pytest.raises(BlockStoreError, match="damaged"):
            await action


# --- reading many


async def test_read_many_keeps_the_order(bucket: Bucket) -> None:
    values = {f"{index:04}": some_bytes(index % 50) for index in range(3 * LOOKUP_KEYS_MAX // 2)}
    values["big"] = some_bytes(300 * KiB)
    values["bigger"] = some_bytes(2 * MiB)
    async with trio.open_nursery() as nursery:
        for name, value in values.items():
            nursery.start_soon(bucket.put, name, value)
    names = list(values)
    random.Random(3).shuffle(names)
    assert await bucket.read_many(names) == [values[name] for name in names]
    assert await bucket.read_many(iter([*names, *names])) == [values[name] for name in [*names, *names]]
    assert await bucket.read_many([]) == []
    ranged = await bucket.read_many(
        ["big", ("big", 5, 9), ("0049", 3, None), ("bigger", 7, 8), ("0007", 9, 20)]
    )
    expected = [values["big"], values["big"][5:9], values["0049"][3:], values["bigger"][7:8], b""]
    assert ranged == expected


async def test_read_many_gives_all_of_a_value_that_is_replaced_while_it_is_read(
    bucket: Bucket, fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bucket.put("x", some_bytes(MiB))
    await bucket.put("y", some_bytes(MiB))
    volume, read, longer = fake.volumes[bucket.name], fake._fragments, some_bytes(MiB + 5)

    def replace_first(message: m.AppendFragment | m.ReadFragments, payload: memoryview) -> object:
        """By the time that the nodes are asked, x is another value, and y is deleted."""
        if fake.fragments:
            fake.fragments.clear()
            meta = volume.keys[b"x"][-1].meta
            volume.keys[b"x"].append(Version(volume.sequence + 1, meta, len(longer), crc32c(longer), longer))
            volume.keys[b"y"].append(Version(volume.sequence + 2, None))
            volume.sequence += 2
        return read(message, payload)

    monkeypatch.setattr(fake, "_fragments", replace_first)
    with pytest.raises(NotFound, match="'y'"):
        await bucket.read_many(["x", "y"])
    volume.keys[b"x"].pop()
    fake.fragments[DiskId(1), ChunkId(volume.volume, 9, 9)] = bytearray()
    assert await bucket.read_many(["x"]) == [longer]


async def test_read_many_of_small_objects_is_one_request(bucket: Bucket, fake: FakeStore) -> None:
    for index in range(64):
        await bucket.put(str(index), b"x")
    before = len(fake.heard)
    await bucket.read_many([str(index) for index in range(64)])
    assert len(fake.heard) == before + 1


# --- listings


async def test_listing_pages_and_folds(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockstore.api.reading.PAGE_KEYS", 3)
    names = sorted(
        [f"cats/{index}" for index in range(7)] + ["cats/old/a", "cats/old/b", "dogs", "cats", "z/z"]
    )
    for name in names:
        await bucket.put(name, b"x", metadata={"n": name})
    assert [entry.name async for entry in bucket.list()] == names
    assert [entry.name async for entry in bucket.list("cats/")] == [n for n in names if n.startswith("cats/")]
    top = [entry async for entry in bucket.list(delimiter="/")]
    assert [entry.name for entry in top] == ["cats", "cats/", "dogs", "z/"]
    assert [type(entry) for entry in top] == [ObjectInfo, CommonPrefix, ObjectInfo, CommonPrefix]
    inside = [entry async for entry in bucket.list("cats/", delimiter="/")]
    assert [entry.name for entry in inside] == [*(f"cats/{index}" for index in range(7)), "cats/old/"]
    assert inside[0] == await bucket.stat("cats/0")
    assert [entry async for entry in bucket.list("nothing")] == []


# --- snapshots


async def test_a_snapshot_shows_what_was(bucket: Bucket) -> None:
    await bucket.put("kept", b"1")
    await bucket.put("large", some_bytes(MiB))
    await bucket.put("gone", b"1")
    taken = await bucket.snapshot("before")
    await bucket.put("kept", b"2")
    await bucket.put("large", b"")
    await bucket.delete("gone")
    await bucket.put("new", b"2")
    with pytest.raises(AlreadyExists):
        await bucket.snapshot("before")
    for old in (taken, await bucket.at("before"), (await bucket.snapshots())[0]):
        assert (old.name, old.bucket, old.sequence) == ("before", "photos", taken.sequence)
        assert await old.get("kept") == b"1"
        assert await old.read_many(["gone", "large"]) == [b"1", some_bytes(MiB)]
        assert [entry.name async for entry in old.list()] == ["gone", "kept", "large"]
        assert (await old.stat("large")).size == MiB
        assert await (await old.open("large")).read() == some_bytes(MiB)
        with pytest.raises(NotFound, match="'new'"):
            await old.get("new")
    await bucket.delete_snapshot("before")
    assert await bucket.snapshots() == []
    with pytest.raises(NotFound, match="it was deleted"):
        await taken.get("kept")


async def test_the_snapshot_of_an_instant(bucket: Bucket) -> None:
    first = await bucket.snapshot("first")
    second = await bucket.snapshot("second")
    instant = datetime.fromtimestamp(second.created - 0.5, UTC)
    assert (await bucket.at(instant)).name == "first"
    assert (await bucket.at(datetime.fromtimestamp(second.created))).name == "second"
    with pytest.raises(NotFound, match="at or before"):
        await bucket.at(datetime.fromtimestamp(first.created - 0.5, UTC))


# --- files


@pytest.mark.parametrize("size", [1_000, 3 * MiB])
async def test_an_object_reads_like_a_file(bucket: Bucket, size: int) -> None:
    data = some_bytes(size)
    await bucket.put("x", data)
    model = io.BytesIO(data)
    rng = random.Random(size)
    async with await bucket.open("x") as file:
        assert file.info.size == size
        for _ in range(200):
            if rng.random() < 0.3:
                where = rng.randrange(size + 10)
                assert file.seek(where) == model.seek(where)
            length = rng.choice([0, 1, 100, 70_000, -1])
            assert await file.read(length) == model.read(length)
            assert file.tell() == model.tell()
        assert file.seek(-5, io.SEEK_END) == size - 5
        assert await file.read() == data[-5:]
        with pytest.raises(InvalidRequest, match="before the beginning"):
            file.seek(-1)


async def test_a_scan_fetches_ahead(bucket: Bucket, fake: FakeStore) -> None:
    await bucket.put("x", some_bytes(8 * MiB))
    file = await bucket.open("x")
    before = len(fake.heard)
    while await file.read(10_000):
        pass
    assert len(fake.heard) - before < 25


async def test_a_file_keeps_its_version(bucket: Bucket, fake: FakeStore) -> None:
    data = some_bytes(3 * MiB)
    await bucket.put("x", data)
    file = await bucket.open("x")
    await bucket.put("x", b"new")
    assert await file.read(100) == data[:100]
    file.seek(-100, io.SEEK_END)
    assert await file.read() == data[-100:]
    file.seek(0)
    fake.fragments.clear()
    with pytest.raises(PreconditionFailed, match="replaced or deleted while this file was open"):
        await file.read(10)


# --- the store


async def test_buckets(opened: tuple[FakeStore, Store]) -> None:
    _, store = opened
    made = await store.create_bucket("b", policy="ec(2,1)")
    await store.create_bucket("a")
    assert (made.name, made.policy) == ("b", "ec(2,1)")
    assert [(one.name, one.policy) for one in await store.buckets()] == [
        ("a", "replicated(3)"),
        ("b", "ec(2,1)"),
    ]
    with pytest.raises(AlreadyExists, match="bucket 'a'"):
        await store.create_bucket("a")
    await store.create_bucket("a", exist_ok=True)
    await store.delete_bucket("a")
    with pytest.raises(NotFound, match="bucket 'a'"):
        await store.delete_bucket("a")
    with pytest.raises(InvalidRequest, match="durability model"):
        await store.create_bucket("c", durability="9 nines")
    with pytest.raises(InvalidRequest, match="cannot name a bucket"):
        await store.create_bucket("a/b")


async def test_control_follows_the_leader(opened: tuple[FakeStore, Store]) -> None:
    fake, store = opened
    await store.create_bucket("a")
    fake.kill(NodeId(1))
    fake.leader = NodeId(3)
    fake.revision += 1
    await store.create_bucket("b")
    assert (await store.status()).sentence == "All is well."
    assert (await store.events(after=5)).next == 6
    assert [node.node for node in await store.nodes()] == [1, 2, 3]


async def test_a_store_nobody_answers_for() -> None:
    async with opened_store() as (fake, store):
        for node in (1, 2, 3):
            fake.kill(NodeId(node))
        with pytest.raises(Unavailable, match="Control did not answer in time: tried"):
            await store.status(timeout=2.0)
        with pytest.raises(Unavailable, match="No node of the store answers"):
            await store.nodes(timeout=2.0)


async def test_outside_its_block_a_store_is_closed() -> None:
    async with opened_store() as (_, store):
        pass
    with pytest.raises(InvalidRequest, match="not open"):
        await store.status()
