"""An owner on a node in this process: over restarts, checkpoints, snapshots and garbage.

Everything is real: the node, its disk, and the clock; only the times between looks are short.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
import trio

from blockstore import aio
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import (
    ABSENT,
    ListKeys,
    Lookup,
    LookupMany,
    Put,
    SnapshotList,
)
from blockstore.errors import NotFound, Unavailable
from blockstore.ids import KiB, MiB, RequestId, SessionId
from blockstore.volume import owner_shell, packing
from blockstore.volume.owner import Owner
from tests.node_harness import SECONDS_MAX, running, until


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_shell, "CHECKPOINT_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(owner_shell, "TIDY_SECONDS", 0.02)
    monkeypatch.setattr(owner_shell, "PACK_LOOK_SECONDS", 0.02)


async def contents(bucket: aio.Bucket | aio.Snapshot) -> dict[str, bytes]:
    return {entry.name: await bucket.get(entry.name) async for entry in bucket.list()}


async def test_a_repeated_request_is_answered_alike_by_the_next_owner(tmp_path: Path) -> None:
    value, request = b"value", RequestId(SessionId(77), 5)
    op = Put(b"key", b"", len(value), crc32c(value), (), ABSENT)
    async with running(tmp_path) as one:
        await one.store.create_bucket("x")
        first = await one.call(op, request, value)
        assert await one.call(op, request, value) == first
    async with running(tmp_path) as one:
        assert await one.call(op, request, value) == first


async def test_also_when_a_checkpoint_lies_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 1)
    value, request = b"value", RequestId(SessionId(77), 5)
    op = Put(b"key", b"", len(value), crc32c(value), (), ABSENT)
    async with running(tmp_path) as one:
        await one.store.create_bucket("x")
        first = await one.call(op, request, value)
        await until(lambda: one.checkpointed() >= first.sequence)
    async with running(tmp_path) as one:
        assert await one.call(op, request, value) == first


async def test_a_checkpoint_and_a_restart_give_the_same_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 50)
    chance = random.Random(1)
    head: dict[str, bytes] = {}
    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        kept: dict[str, bytes] = {}
        for number in range(300):
            name = f"{chance.randrange(60):02d}"
            if name in head and chance.random() < 0.3:
                await bucket.delete(name)
                del head[name]
            else:
                head[name] = chance.randbytes(chance.choice((0, 10, 5_000)))
                await bucket.put(name, head[name])
            if number == 150:
                await bucket.snapshot("s")
                kept = dict(head)
        await bucket.put("large", large := chance.randbytes(300 * KiB))
        head["large"] = large
        await until(lambda: one.checkpointed() > 200)
        assert await contents(bucket) == head
    for _ in range(2):
        async with running(tmp_path) as one:
            bucket = await one.store.bucket("x")
            assert await contents(bucket) == head
            assert await contents(await bucket.at("s")) == kept
            assert (await bucket.facts())["keys"] == len(head)


async def test_a_checkpoint_under_load_loses_nothing_of_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, bytes] = {}

    async def write(bucket: aio.Bucket, writer: int) -> None:
        for number in range(1_000_000):
            name = f"{writer}/{number}"
            await bucket.put(name, name.encode())
            written[name] = name.encode()

    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        async with trio.open_nursery() as nursery:
            for writer in range(8):
                nursery.start_soon(write, bucket, writer)
            await until(lambda: len(written) > 50)
            monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 1)
            await until(lambda: one.checkpointed() > 0)
            monkeypatch.undo()  # this was the last one
            enough = len(written) + 50
            await until(lambda: len(written) > enough)
            nursery.cancel_scope.cancel()
    async with running(tmp_path) as one:
        found = await contents(await one.store.bucket("x"))
        assert {name: found.get(name) for name in written} == written


async def test_without_its_nodes_lease_an_owner_answers_nothing_of_its_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another may own the volume by then, and have changed it."""

    def lease_valid(_: float) -> bool:
        return False

    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        await bucket.put("key", b"value")
        monkeypatch.setattr(one.node.control, "lease_valid", lease_valid)
        for op in (Lookup(b"key"), LookupMany((b"key",)), ListKeys(), SnapshotList()):
            with pytest.raises(Unavailable, match="has not confirmed its owner"):
                await one.ask(op)


async def test_what_only_a_deleted_snapshot_saw_is_deleted_at_the_node(tmp_path: Path) -> None:
    value = random.Random(1).randbytes(300 * KiB)
    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        await bucket.put("large", value)
        await bucket.snapshot("s")
    async with running(tmp_path) as one:  # whose takeover ended the chunk that the first session had
        bucket = await one.store.bucket("x")
        await bucket.delete("large")
        before = one.n_fragments()
        assert await (await bucket.at("s")).get("large") == value
        await bucket.delete_snapshot("s")
        await until(lambda: one.n_fragments() < before)
        assert (await bucket.facts())["live_bytes"] == 0
        with pytest.raises(NotFound):
            await bucket.get("large")


async def test_the_journal_before_a_checkpoint_is_deleted_once_its_values_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        for number in range(20):
            await bucket.put(f"{number}", b"v" * 1_000)
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 1)
    async with running(tmp_path) as one:
        bucket = await one.store.bucket("x")
        for number in range(20):
            await bucket.put(f"{number}", b"w" * 1_000)  # nothing refers to the first chunk any more
        await until(lambda: one.checkpointed() >= 40)
        chunks = int((await bucket.facts())["chunks"])
        await until(lambda: one.n_fragments() <= chunks)
        assert await contents(bucket) == {f"{number}": b"w" * 1_000 for number in range(20)}
    async with running(tmp_path) as one:
        bucket = await one.store.bucket("x")
        assert await contents(bucket) == {f"{number}": b"w" * 1_000 for number in range(20)}


async def test_a_value_of_several_chunks_outlives_every_tidying_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_tidied = 0
    end_idle_grants = Owner.end_idle_grants

    def counted(self: Owner, now: float) -> None:
        nonlocal n_tidied
        n_tidied += 1
        end_idle_grants(self, now)

    monkeypatch.setattr(Owner, "end_idle_grants", counted)

    async def two_tidyings() -> None:
        enough = n_tidied + 2
        await until(lambda: n_tidied >= enough)

    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        source = _Source(80 * MiB, two_tidyings)  # a chunk is 64 MiB
        await bucket.put("large", cast("BinaryIO", source))
        assert await bucket.get("large", start=70 * MiB, end=70 * MiB + 8) == b"70707070"


async def test_small_values_leave_the_journal_for_stripes_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LEFT_BEHIND_BYTES_MIN", 1)
    chance = random.Random(1)
    head = {f"{number:03d}": chance.randbytes(chance.randrange(20 * KiB)) for number in range(300)}
    async with running(tmp_path / "disk", 3) as one:
        bucket = await one.store.create_bucket("x", policy="ec(2,1)")
        for name, value in head.items():
            await bucket.put(name, value)
        await bucket.snapshot("s")
        kept = dict(head)
        for number in range(0, 300, 3):
            name = f"{number:03d}"
            head[name] = b"new" + head[name]
            await bucket.put(name, head[name])
    n_bytes = sum(map(len, kept.values())) + sum(len(head[name]) for name in head if head[name] != kept[name])
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 1)

    async def is_there(bucket: aio.Bucket) -> None:
        assert await contents(bucket) == head
        assert await contents(await bucket.at("s")) == kept
        many = await bucket.read_many([(name, 1, 3) for name in head])
        assert many == [value[1:3] for value in head.values()]

    async with running(tmp_path / "disk") as one:
        bucket = await one.store.bucket("x")
        await bucket.put("last", b"")  # so that a checkpoint leaves the first journal behind
        head["last"] = b""
        with trio.fail_after(SECONDS_MAX):
            while int((await bucket.facts())["packed_bytes"]) < n_bytes:
                await is_there(bucket)
        await is_there(bucket)
    async with running(tmp_path / "disk") as one:
        await is_there(await one.store.bucket("x"))


async def test_a_chunk_that_is_mostly_dead_gives_its_space_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "GAIN_BYTES_MIN", MiB)
    chance = random.Random(1)
    head = {f"{number}": chance.randbytes(300 * KiB) for number in range(20)}
    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        for name, value in head.items():
            await bucket.put(name, value)
    async with running(tmp_path) as one:  # whose takeover ended the chunk that the first session had
        bucket = await one.store.bucket("x")
        for number in range(15):
            await bucket.delete(f"{number}")
            del head[f"{number}"]
        with trio.fail_after(SECONDS_MAX):
            while int((await bucket.facts())["stored_bytes"]) > 2 * 5 * 300 * KiB:
                assert await contents(bucket) == head
        assert await contents(bucket) == head
    async with running(tmp_path) as one:
        assert await contents(await one.store.bucket("x")) == head


class _Source:
    """A pipe: every piece takes its time, and it cannot be read again."""

    def __init__(self, n_bytes: int, wait: Callable[[], Awaitable[None]]) -> None:
        self._n_bytes, self._wait, self._position = n_bytes, wait, 0

    def read(self, n_bytes: int) -> bytes:
        trio.from_thread.run(self._wait)
        n_bytes = min(n_bytes, self._n_bytes - self._position, MiB)
        self._position += n_bytes
        return b"%02d" % ((self._position - n_bytes) // MiB) * (n_bytes // 2)

    def seekable(self) -> bool:
        return False
