"""DataWriter: what it returns is durable on the whole write set, whatever happens to members meanwhile."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from blockstore.chunk import write_shell
from blockstore.chunk.chunk_shell import DataWriter, NodeTable
from blockstore.codec.checksum import crc32c
from blockstore.codec.erasure import erasure_code
from blockstore.codec.messages import Extent
from blockstore.config import MEMBER_LATE_SECONDS
from blockstore.errors import BlockStoreError, DeadlineExceeded, DiskFailed, Unavailable
from blockstore.ids import DiskId, KiB, MiB
from tests.unit.chunk.fake_nodes import FakeCluster, drive


def writer_of(
    cluster: FakeCluster, k: int, m: int, capacity: int = 64 * MiB, chunks_open_max: int = 4
) -> DataWriter:
    nodes = NodeTable()
    nodes.update(cluster.view())
    return DataWriter(cluster, nodes, cluster.granter(k, m, capacity), random.Random(1), chunks_open_max)


def check_durable(cluster: FakeCluster, extents: tuple[Extent, ...], data: bytes) -> None:
    """Each byte is in every fragment of its write set, the parity is right, and no chunk ends before it."""
    position = 0
    for extent in extents:
        placement = cluster.placements[extent.chunk]
        value = data[position : position + extent.length]
        assert crc32c(value) == extent.crc
        shards: list[bytes] = [value] * len(placement.disks)
        if placement.k > 1:
            padded = value.ljust(placement.k * extent.unit, b"\0")
            shards = [padded[at : at + extent.unit] for at in range(0, len(padded), extent.unit)]
            shards += [bytes(parity) for parity in erasure_code(placement.k, placement.m).encode(shards)]
        for shard, disk in zip(shards, placement.disks, strict=True):
            if disk:
                fragment = cluster.nodes[disk].fragments[extent.chunk]
                assert bytes(fragment.data[extent.offset : extent.offset + extent.unit]) == shard
        if extent.chunk in cluster.finished:
            assert extent.offset + extent.unit <= cluster.finished[extent.chunk]
        position += extent.length
    assert position == len(data)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 257, 300_000, 4 * MiB, 4 * MiB + 1, 9 * MiB + 5])
@pytest.mark.parametrize(("k", "m"), [(1, 0), (1, 2), (2, 1), (4, 2)])
def test_a_value_is_on_its_whole_write_set(k: int, m: int, length: int) -> None:
    cluster = FakeCluster(6, blocking=True)
    data = random.Random(length).randbytes(length)
    extents = drive(writer_of(cluster, k, m).write(data, 60.0))
    check_durable(cluster, extents, data)
    assert cluster.n_given_back == cluster.n_payloads


def test_a_write_set_with_a_hole_is_written_without_it() -> None:
    cluster = FakeCluster(5, blocking=True)
    data = random.Random(1).randbytes(700 * KiB)
    extents = drive(writer_of(cluster, 4, 2).write(data, 60.0))
    assert cluster.placements[extents[0].chunk].disks == (1, 2, 3, 4, 5, 0)
    check_durable(cluster, extents, data)


def test_a_full_chunk_is_followed_by_another_and_told_to_the_owner() -> None:
    cluster = FakeCluster(3, blocking=True)
    writer = writer_of(cluster, 1, 2, capacity=10 * MiB)
    data = random.Random(2).randbytes(30 * MiB)
    extents = drive(writer.write(data, 60.0))
    check_durable(cluster, extents, data)
    assert cluster.n_grants == 4  # two of 4 MiB in each
    assert sorted(cluster.finished.values()) == [8 * MiB] * 3
    assert [length for _, length in writer.finish()] == [6 * MiB]
    assert writer.finish() == ()


@pytest.mark.parametrize(("k", "m"), [(1, 2), (4, 2)])
@pytest.mark.parametrize("appends_left", [0, 1, 3])
def test_a_failing_disk_costs_a_chunk_and_nothing_else(k: int, m: int, appends_left: int) -> None:
    cluster = FakeCluster(8, blocking=True)
    cluster.nodes[2].appends_left = appends_left
    data = random.Random(3).randbytes(24 * MiB)
    extents = drive(writer_of(cluster, k, m).write(data, 60.0))
    check_durable(cluster, extents, data)
    assert cluster.n_grants == 2
    assert cluster.avoided == [(), (DiskId(2),)]
    assert sum(extent.length for extent in extents if extent.chunk.number == 1) == appends_left * 4 * MiB
    assert list(cluster.finished.values()) == [appends_left * 4 * MiB // k]


async def test_a_paused_member_is_left_behind_after_its_time(autojump_clock: trio.testing.MockClock) -> None:
    cluster = FakeCluster(4)
    cluster.nodes[1].is_paused = True
    data = random.Random(4).randbytes(200 * KiB)
    started = trio.current_time()
    extents = await writer_of(cluster, 1, 2).write(data, started + 30)
    assert MEMBER_LATE_SECONDS <= trio.current_time() - started < MEMBER_LATE_SECONDS + 0.2
    check_durable(cluster, extents, data)
    assert cluster.avoided[-1] == (DiskId(1),)


async def test_when_all_are_late_nobody_is_avoided(autojump_clock: trio.testing.MockClock) -> None:
    cluster = FakeCluster(3)
    for node in cluster.nodes.values():
        node.delay = 1.5
    with pytest.raises(DeadlineExceeded):
        await writer_of(cluster, 1, 2).write(b"x" * 1000, trio.current_time() + 4)
    assert cluster.n_grants > 1
    assert set(cluster.avoided) == {()}


async def test_tasks_share_a_chunk_and_their_appends_keep_the_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = FakeCluster(6)
    cluster.grant_delay = 0.01
    writer = writer_of(cluster, 4, 2)
    rng = random.Random(5)
    values = [rng.randbytes(rng.randrange(1, 3 * MiB)) for _ in range(24)]
    results: dict[int, tuple[Extent, ...]] = {}

    async def write(index: int) -> None:
        await trio.sleep(index * 0.0004)
        results[index] = await writer.write(values[index], trio.current_time() + 30)

    async with trio.open_nursery() as nursery:
        for index in range(len(values)):
            nursery.start_soon(write, index)
    for index, value in enumerate(values):
        check_durable(cluster, results[index], value)
    assert 1 < cluster.n_grants <= 4
    ends = dict(writer.finish())
    for extents in results.values():
        for extent in extents:
            assert extent.offset + extent.unit <= ends[extent.chunk]


async def test_a_member_fails_under_many_writers(autojump_clock: trio.testing.MockClock) -> None:
    cluster = FakeCluster(6)
    cluster.grant_delay = 0.002
    cluster.nodes[3].appends_left = 7
    cluster.nodes[5].delay = 0.004
    writer = writer_of(cluster, 1, 2, capacity=16 * MiB)
    rng = random.Random(6)
    values = [rng.randbytes(rng.randrange(1, 9 * MiB)) for _ in range(10)]
    results: dict[int, tuple[Extent, ...]] = {}

    async def write(index: int) -> None:
        results[index] = await writer.write(values[index], trio.current_time() + 30)

    async with trio.open_nursery() as nursery:
        for index in range(len(values)):
            nursery.start_soon(write, index)
    cluster.finished |= dict(writer.finish())
    for index, value in enumerate(values):
        check_durable(cluster, results[index], value)
    assert set(cluster.finished) == set(cluster.placements), "the owner hears of every chunk, once"


async def test_a_cancelled_write_leaves_the_writer_usable(autojump_clock: trio.testing.MockClock) -> None:
    cluster = FakeCluster(3)
    writer = writer_of(cluster, 1, 2)
    first = random.Random(7).randbytes(MiB)
    with trio.move_on_after(0.0005) as scope:
        await writer.write(first, trio.current_time() + 30)
    assert scope.cancelled_caught
    await trio.sleep(5)  # what was cancelled must not be taken for a late member now
    extents = await writer.write(first, trio.current_time() + 30)
    check_durable(cluster, extents, first)
    assert cluster.avoided == [(), ()]


def test_a_new_epoch_closes_all_chunks_of_the_old() -> None:
    cluster = FakeCluster(3, blocking=True)
    writer = writer_of(cluster, 1, 2)
    drive(writer.write(b"before" * 100, 60.0))
    for node in cluster.nodes.values():
        node.fenced = 2
    cluster.epoch = 2
    extents = drive(writer.write(b"after" * 100, 60.0))
    assert [extent.chunk.epoch for extent in extents] == [2]
    assert cluster.avoided[-1] == (), "the disks are not to blame"
    check_durable(cluster, extents, b"after" * 100)


def test_a_chunk_that_the_owner_sealed_is_left() -> None:
    cluster = FakeCluster(3, blocking=True)
    writer = writer_of(cluster, 1, 2)
    (first,) = drive(writer.write(b"before" * 100, 60.0))
    for node in cluster.nodes.values():
        node.fragments[first.chunk].sealed = True
    (second,) = drive(writer.write(b"after" * 100, 60.0))
    assert second.chunk != first.chunk
    assert cluster.finished == {first.chunk: 600}
    assert cluster.avoided[-1] == ()


def test_what_the_owner_refuses_is_raised_and_finished_chunks_are_told_later() -> None:
    cluster = FakeCluster(3, blocking=True)
    grant = cluster.granter(1, 2, 4 * MiB)
    refusals: list[BlockStoreError] = []

    async def reluctant(finished: object, avoid: object, deadline: float) -> object:
        if refusals:
            raise refusals.pop()
        return await grant(finished, avoid, deadline)

    nodes = NodeTable()
    nodes.update(cluster.view())
    writer = DataWriter(cluster, nodes, reluctant, random.Random(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    drive(writer.write(bytes(4 * MiB), 60.0))
    refusals.append(Unavailable("No owner."))
    with pytest.raises(Unavailable):
        drive(writer.write(b"x" * 1000, 60.0))
    drive(writer.write(b"x" * 1000, 60.0))
    assert list(cluster.finished.values()) == [4 * MiB]


def test_when_every_disk_fails_the_last_error_is_the_callers() -> None:
    cluster = FakeCluster(3, blocking=True)
    for node in cluster.nodes.values():
        node.appends_left = 0
    cluster.avoided.append(())
    writer = writer_of(cluster, 1, 2)

    async def keep_placing() -> None:
        cluster.place = lambda k, m: cluster_place  # type: ignore[method-assign]
        await writer.write(b"x" * 1000, 600.0)

    cluster_place = cluster.place(1, 2)
    with pytest.raises(DiskFailed):
        drive(keep_placing())
    assert cluster.n_grants == write_shell.FAILURES_MAX


def test_a_deadline_is_kept() -> None:
    cluster = FakeCluster(3, blocking=True)
    cluster.nodes[1].is_paused = True
    started = cluster.now()
    with pytest.raises(DeadlineExceeded, match="0 of 1000 bytes"):
        drive(writer_of(cluster, 1, 2).write(b"x" * 1000, started + 0.5))
    assert cluster.now() == pytest.approx(started + 0.5)
