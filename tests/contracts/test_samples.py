"""Training data from both twins, embedded and over a cluster, in this process and in those that loaders
make."""

from __future__ import annotations

import multiprocessing
import pickle
import random
from collections.abc import Generator
from functools import partial
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path

import pytest
import trio

import blockstore
from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import InvalidRequest
from blockstore.ids import KiB

NAMES = [f"train/{number:04d}" for number in range(200)]
WORKERS = 3


def content(name: str) -> bytes:
    chance = random.Random(name)
    return chance.randbytes(chance.randrange(8 * KiB))


def fill(bucket: blockstore.Bucket) -> None:
    for name in NAMES:
        bucket.put(name, content(name))
    bucket.put("README", b"not a sample")
    bucket.snapshot("v1")
    bucket.delete(NAMES[0])
    bucket.put(NAMES[1], b"changed since")


@pytest.fixture(scope="module")
def connected(cluster: LocalCluster) -> Generator[blockstore.Store]:
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        fill(store.create_bucket("samples"))
        yield store


@pytest.fixture
def snapshot(connected: blockstore.Store) -> blockstore.Snapshot:
    return connected.bucket("samples").at("v1")


@pytest.mark.parametrize("prefetch", [0, 4])
def test_an_epoch_is_every_sample_of_the_snapshot_once(snapshot: blockstore.Snapshot, prefetch: int) -> None:
    samples = snapshot.samples(seed=1, epoch=2, batch=16, prefix="train/", prefetch=prefetch)
    assert len(samples) == 13
    batches = list(samples)
    assert [len(batch) for batch in batches] == [16] * 12 + [8]
    order = [name for batch in batches for name, _ in batch]
    assert sorted(order) == NAMES
    assert order != NAMES
    assert all(data == content(name) for batch in batches for name, data in batch)
    assert samples.position == 13
    assert list(samples) == []


def test_a_run_goes_on_where_it_stopped(snapshot: blockstore.Snapshot) -> None:
    whole = list(snapshot.samples(seed=1, batch=16))
    with snapshot.samples(seed=1, batch=16) as samples:
        first = [next(samples) for _ in range(5)]
    rest = list(snapshot.samples(seed=1, batch=16, start=samples.position))
    assert first + rest == whole
    assert list(snapshot.samples(seed=1, batch=16, epoch=1)) != whole


def worker(samples: blockstore.Samples, queue: multiprocessing.Queue[list[str]]) -> None:
    queue.put([name for batch in samples for name, data in batch if data == content(name)])


@pytest.mark.parametrize(
    "context", [multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")]
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_loader_processes_share_an_epoch(
    snapshot: blockstore.Snapshot, context: ForkContext | SpawnContext
) -> None:
    queue: multiprocessing.Queue[list[str]] = context.Queue()
    workers = [
        context.Process(
            target=worker,
            args=(
                snapshot.samples(seed=3, rank=rank, world_size=WORKERS, batch=8, prefix="train/"),
                queue,
            ),
        )
        for rank in range(WORKERS)
    ]
    for one in workers:
        one.start()
    seen = [queue.get(timeout=60) for _ in workers]
    for one in workers:
        one.join(60)
        assert one.exitcode == 0
    assert sorted(name for names in seen for name in names) == NAMES


def test_samples_that_have_begun_say_how_to_go_on_elsewhere(snapshot: blockstore.Snapshot) -> None:
    with snapshot.samples(batch=16) as samples:
        next(samples)
        with pytest.raises(InvalidRequest, match="start=1"):
            pickle.dumps(samples)


def test_bad_arguments_are_refused_at_once(snapshot: blockstore.Snapshot) -> None:
    wrong = (
        partial(snapshot.samples, rank=1),
        partial(snapshot.samples, world_size=0),
        partial(snapshot.samples, batch=0),
        partial(snapshot.samples, start=-1),
        partial(snapshot.samples, prefetch=-1),
    )
    for ask in wrong:
        with pytest.raises(InvalidRequest):
            ask()


def test_an_embedded_store_gives_samples_too_and_stays_in_its_process(tmp_path: Path) -> None:
    with blockstore.open(tmp_path) as store:
        bucket = store.create_bucket("data")
        fill(bucket)
        snapshot = bucket.at("v1")
        batches = list(snapshot.samples(seed=1, batch=50, prefix="train/"))
        assert sorted(name for batch in batches for name, _ in batch) == NAMES
        with pytest.raises(InvalidRequest, match="cannot be sent"):
            pickle.dumps(snapshot)


async def test_the_async_twin_gives_the_same_batches(tmp_path: Path) -> None:
    def expected() -> list[list[tuple[str, bytes]]]:
        with blockstore.open(tmp_path) as store:
            fill(store.create_bucket("data"))
            return list(store.bucket("data").at("v1").samples(seed=9, batch=16, rank=1, world_size=2))

    blocking = await trio.to_thread.run_sync(expected)
    async with aio.open(tmp_path) as store:
        snapshot = await (await store.bucket("data")).at("v1")
        async with snapshot.samples(seed=9, batch=16, rank=1, world_size=2) as batches:
            assert [batch async for batch in batches] == blocking
        async with snapshot.samples(batch=16, prefetch=0) as batches:
            assert len(await anext(batches)) == 16
