"""Each checker of the whole cluster accuses when it should: shown what cannot be, a bucket that lies, and
clusters in which something is broken on purpose. The claims about journals are those of the cores, and so are
their tests."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

import pytest
import trio

from blockstore.aio import Bucket
from blockstore.errors import BlockStoreError, InvalidRequest, NotFound, PreconditionFailed, Unavailable
from blockstore.ids import ChunkId, DiskId, RequestId, VolumeId
from blockstore.runtime.sim.disk_content import Content
from blockstore.volume.sessions import Sessions
from chaos.history import History
from tests.simulation.claims import Claims
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.seed import Outcome, run_seed
from tests.simulation.workload import BucketBook, Tally, Workload

VOLUME = VolumeId(1)
CHUNK = ChunkId(VOLUME, 1, 1)
DISK = DiskId(1)


@pytest.fixture
def accused() -> list[str]:
    return []


@pytest.fixture
def claims(accused: list[str]) -> Claims:
    return Claims(accused.append)


# --- what is seen of the nodes


def test_one_leader_for_each_term(claims: Claims, accused: list[str]) -> None:
    claims.see_leader(1, "node 1")
    claims.see_leader(1, "node 1")
    claims.see_leader(2, "node 2")
    assert not accused
    claims.see_leader(1, "node 2")
    assert accused == ["node 1 and node 2 both lead control in term 1"]


def test_one_holder_at_a_time(claims: Claims, accused: list[str]) -> None:
    claims.see_holders([(VolumeId(1), "node 1"), (VolumeId(2), "node 2")])
    claims.see_holders([(VolumeId(1), "node 2")])
    assert not accused
    claims.see_holders([(VolumeId(1), "node 1"), (VolumeId(1), "node 2")])
    assert accused == ["node 1 and node 2 both have a lease for volume 1"]


def test_one_owner_for_each_epoch(claims: Claims, accused: list[str]) -> None:
    first, second = object(), object()
    claims.see_server(VOLUME, 3, first, "node 1")
    claims.see_server(VOLUME, 3, first, "node 1")
    claims.see_server(VOLUME, 4, second, "node 1")
    assert not accused
    claims.see_server(VOLUME, 4, first, "node 1")
    assert accused == ["a second owner, on node 1, serves volume 1 in epoch 4"]


def test_what_is_sealed_never_changes(claims: Claims, accused: list[str]) -> None:
    claims.see_sealed(DISK, CHUNK, 10, 77)
    claims.see_sealed(DISK, CHUNK, 10, 77)
    claims.see_sealed(DiskId(2), CHUNK, 12, 78)
    assert not accused
    assert claims.n_sealed == 2
    claims.see_sealed(DISK, CHUNK, 10, 78)
    claims.see_sealed(DISK, CHUNK, 9, 77)
    assert len(accused) == 2


def test_queues_keep_their_bounds(claims: Claims, accused: list[str]) -> None:
    claims.see_queue("journal", "node 1", 10, 10)
    assert not accused
    claims.see_queue("journal", "node 1", 11, 10)
    assert accused == ["the journal queue of node 1 holds 11, its bound is 10"]


# --- what clients are told: by a bucket that lies


@dataclass
class Info:
    name: str
    etag: str = ""


@dataclass
class LyingBucket:
    """A dict, and the lies it tells."""

    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])
    forgets: bool = False  # what is put is acknowledged and not there
    raises: BlockStoreError | None = None
    n_puts: int = 0

    async def put(self, name: str, data: bytes, **_: object) -> Info:
        await trio.lowlevel.checkpoint()
        if self.raises is not None:
            raise self.raises
        if not self.forgets:
            self.objects[name] = data
        self.n_puts += 1
        return Info(name, str(self.n_puts // 2))  # every version twice

    async def get(self, name: str, **_: object) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.raises is not None:
            raise self.raises
        if name not in self.objects:
            raise NotFound(f"object {name!r}")
        return self.objects[name]

    async def read_many(self, names: list[str], **_: object) -> list[bytes]:
        return [await self.get(name) for name in names]

    async def stat(self, name: str, **_: object) -> Info:
        await self.get(name)
        return Info(name, "1")

    async def delete(self, name: str, **_: object) -> None:
        await trio.lowlevel.checkpoint()
        if name not in self.objects:
            raise NotFound(f"object {name!r}")
        if not self.forgets:
            del self.objects[name]

    async def list(self, prefix: str, **_: object) -> AsyncIterator[Info]:
        for name in self.objects:
            await trio.lowlevel.checkpoint()
            yield Info(name)

    async def snapshot(self, name: str, **_: object) -> None:
        await trio.lowlevel.checkpoint()

    async def delete_snapshot(self, name: str, **_: object) -> None:
        raise NotFound(f"snapshot {name!r}")

    async def at(self, snapshot: str, **_: object) -> LyingBucket:
        """As of now, whatever was asked for."""
        await trio.lowlevel.checkpoint()
        return self


Act = Callable[[], Awaitable[None]]


class Client:
    def __init__(self, accused: list[str]) -> None:
        self.lying = LyingBucket()
        self.bucket = cast(Bucket, self.lying)
        self.book = BucketBook("lies", "replicated(3)", History(1))
        self.workload = Workload(self.book, Tally(), accused.append, 0.01)
        self.rng = random.Random(1)

    async def write(self, n: int = 20) -> None:
        await self.repeat(self.workload.writer(self.bucket, 1, self.rng), n)

    async def repeat(self, act: Act, n: int) -> None:
        for _ in range(n):
            await act()


@pytest.fixture
def client(accused: list[str]) -> Client:
    return Client(accused)


async def test_nobody_is_accused_of_the_truth(client: Client, accused: list[str]) -> None:
    await client.write()
    await client.repeat(client.workload.reader(client.bucket, client.rng), 30)
    await client.workload.verify(client.bucket)
    assert accused == []
    assert client.workload.tally.n_checked > 40


async def test_an_acknowledged_write_that_is_gone(client: Client, accused: list[str]) -> None:
    await client.write(5)
    client.lying.forgets = True
    await client.write(5)
    client.lying.forgets = False
    await client.workload.verify(client.bucket)
    assert any("only" in words and "possible" in words for words in accused)


async def test_bytes_that_nobody_wrote(client: Client, accused: list[str]) -> None:
    name = "w1/0"
    await client.workload._put(client.bucket, name, 1_000, client.rng, 8.0)
    data = client.lying.objects[name]
    client.lying.objects[name] = data[:-1] + b"?"
    await client.workload.check(client.bucket, name)
    client.lying.objects[name] = b"?" * len(data)
    await client.workload.check(client.bucket, name)
    assert len(accused) == 2
    assert accused[0].endswith("with wrong bytes")
    assert accused[1].endswith("bytes that nobody wrote there")


async def test_an_object_that_is_not_listed(client: Client, accused: list[str]) -> None:
    await client.write(5)
    client.lying.objects.clear()
    await client.workload._list(client.bucket)
    assert any("is not listed" in words for words in accused)


async def test_a_snapshot_that_changes_or_is_gone(client: Client, accused: list[str]) -> None:
    await client.write()
    snapshotter = client.workload.snapshotter(client.bucket, client.rng)
    await client.repeat(snapshotter, 2)
    assert not accused
    await client.write()
    await client.workload.verify(client.bucket)
    assert any("@s1 shows version" in words for words in accused)
    accused.clear()
    await client.repeat(snapshotter, 10)
    assert any("was not there to be deleted" in words for words in accused)


async def test_an_error_that_was_not_promised(client: Client, accused: list[str]) -> None:
    client.lying.raises = InvalidRequest("no")
    await client.write(1)
    assert any("ended with InvalidRequest" in words for words in accused)


async def test_a_refusal_without_a_reason(client: Client, accused: list[str]) -> None:
    client.lying.raises = PreconditionFailed("it exists")
    await client.write(1)
    assert any("was refused" in words for words in accused)


async def test_what_cannot_be_read_in_the_end(client: Client, accused: list[str]) -> None:
    await client.write(3)
    client.lying.raises = Unavailable("nobody answers")
    await client.workload.verify(client.bucket)
    assert any("cannot be read, though all faults are over" in words for words in accused)


async def test_two_who_replace_one_version(client: Client, accused: list[str]) -> None:
    await client.repeat(client.workload.counter(client.bucket, "somebody", client.rng), 4)
    await client.workload.verify(client.bucket)
    assert any("both replaced version" in words for words in accused)
    assert any("both made version" in words for words in accused)


async def test_a_value_that_comes_back(client: Client, accused: list[str]) -> None:
    racer = client.workload.racer(client.bucket, "somebody", client.rng)
    await client.repeat(racer, 10)
    old = dict(client.lying.objects)
    await client.repeat(racer, 10)
    client.lying.objects.update(old)
    await client.repeat(racer, 10)
    await client.workload.verify(client.bucket)
    assert any("is not linearizable" in words for words in accused)


# --- clusters in which something is broken


def broken(seed: int) -> Outcome:
    """A short one."""
    return run_seed(seed, n_faults=8, n_operations=60)


def test_a_short_seed_is_sound() -> None:
    outcome = broken(2)
    assert outcome.violations == []
    assert outcome.n_faults == 8


def test_disks_that_say_they_stored_and_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(content: Content) -> None:
        pass

    monkeypatch.setattr(Content, "sync", sync)
    assert broken(2).violations


def test_requests_that_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(sessions: Sessions, request: RequestId) -> None:
        pass

    monkeypatch.setattr(Sessions, "find", find)
    assert any("took effect" in words for words in broken(7).violations)


def test_nodes_that_do_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = SimCluster.start

    def start(cluster: SimCluster, one: SimNode) -> None:
        if not one.n_starts:
            usual(cluster, one)

    monkeypatch.setattr(SimCluster, "start", start)
    assert any("not everything answers" in words for words in broken(2).violations)
