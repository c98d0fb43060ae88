"""Snapshots whose map is at the client: the same answers as the owner's, without asking it."""

from __future__ import annotations

import os
import pickle
import random
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

import blockstore
from blockstore import aio
from blockstore.api import snapshot_map
from blockstore.api.session import VolumeSession
from blockstore.api.snapshot_map import LEFT_SECONDS, PART_SUFFIX, SUFFIX
from blockstore.codec.messages import Placement
from blockstore.codec.run_file import StoredVersion
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import InvalidRequest, NotFound
from blockstore.ids import ChunkId, DiskId, KiB, MiB
from blockstore.volume import owner_shell, packing

NAMES = [f"train/{number:04d}" for number in range(2_500)]


def content(name: str) -> bytes:
    chance = random.Random(name)
    return chance.randbytes(chance.randrange(2 * KiB))


LARGE = random.Random("large").randbytes(3 * MiB)


def fill(bucket: blockstore.Bucket) -> None:
    for first in range(0, len(NAMES), 500):
        with bucket.batch() as batch:
            for name in NAMES[first : first + 500]:
                batch.put(name, content(name), metadata={"kind": "sample"})
    bucket.put("large", LARGE)
    bucket.put("empty", b"")
    bucket.snapshot("v1")
    bucket.delete(NAMES[0])
    bucket.put(NAMES[1], b"changed since")
    bucket.put("train/new", b"after the snapshot")


@pytest.fixture(scope="module")
def connected(cluster: LocalCluster) -> Generator[blockstore.Store]:
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        fill(store.create_bucket("cached", policy="ec(2,1)"))
        yield store


@pytest.fixture
def snapshot(connected: blockstore.Store) -> blockstore.Snapshot:
    return connected.bucket("cached").at("v1")


@pytest.fixture
def no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the owner anything fails the test."""

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the owner was asked")

    monkeypatch.setattr(VolumeSession, "call", refuse)
    monkeypatch.setattr(VolumeSession, "_call_many", refuse)


@pytest.mark.parametrize("kept", [False, True])
def test_everything_is_read_without_the_owner(
    kept: bool, snapshot: blockstore.Snapshot, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    listed = list(snapshot.list())
    folded = list(snapshot.list("tr", delimiter="/"))
    known = snapshot.cached(tmp_path if kept else None)
    request.getfixturevalue("no_owner")
    assert [info.name for info in listed] == ["empty", "large", *NAMES]
    assert list(known.list()) == listed
    assert list(known.list("tr", delimiter="/")) == folded
    assert known.read_many(NAMES) == [content(name) for name in NAMES]
    assert known.read_many([(NAMES[5], 3, 9), ("large", MiB, None), ("empty", 0, 7)]) == [
        content(NAMES[5])[3:9],
        LARGE[MiB:],
        b"",
    ]
    assert known.get("large") == LARGE
    assert known.get("large", start=10, end=20) == LARGE[10:20]
    assert known.get("empty") == b""
    assert known.stat(NAMES[0]) == listed[2]
    assert known.stat(NAMES[0]).metadata == {"kind": "sample"}
    with known.open("large") as file:
        file.seek(2 * MiB)
        assert file.read() == LARGE[2 * MiB :]
    assert sorted(name for batch in known.samples(prefix="train/") for name, _ in batch) == NAMES
    missing = pytest.raises(NotFound, match="'train/new' in bucket 'cached'")
    for ask in (known.get, known.stat, known.open):
        with missing:
            ask("train/new")
    with missing:
        known.read_many([NAMES[4], "train/new"])


async def test_the_async_twin_reads_without_the_owner(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    progress: list[int] = []
    async with aio.open(tmp_path) as store:
        bucket = await store.create_bucket("data")
        async with bucket.batch() as batch:
            for name in NAMES[:500]:
                batch.put(name, content(name))
        await bucket.put("large", LARGE)
        plain = await bucket.snapshot("v1")
        known = await plain.cached(on_progress=progress.append)
        listed = [info async for info in plain.list()]
        request.getfixturevalue("no_owner")
        assert await known.read_many(NAMES[:500]) == [content(name) for name in NAMES[:500]]
        assert await known.get("large") == LARGE
        assert [info async for info in known.list()] == listed
    assert progress[-1] == 501


def test_a_kept_map_is_found_again_and_a_damaged_one_fetched_anew(
    snapshot: blockstore.Snapshot, tmp_path: Path
) -> None:
    fetched: list[int] = []
    cached = partial(snapshot.cached, tmp_path / "maps", on_progress=fetched.append)
    cached()
    (file,) = (tmp_path / "maps").iterdir()
    assert fetched[-1] == len(NAMES) + 2
    fetched.clear()
    assert cached().get(NAMES[7]) == content(NAMES[7])
    assert not fetched
    sound = file.read_bytes()
    for at in (-40, 40, len(sound) // 2):  # in the tail; in the first block, and in one amid the others
        damaged = bytearray(sound)
        damaged[at] ^= 1
        file.write_bytes(damaged)
        fetched.clear()
        assert cached().get(NAMES[7]) == content(NAMES[7])
        assert fetched
        assert file.read_bytes() == sound


def test_maps_in_a_directory_are_bounded(
    snapshot: blockstore.Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = snapshot.cached(tmp_path, prefix="train/00")
    (oldest,) = tmp_path.iterdir()
    monkeypatch.setattr(snapshot_map, "DIRECTORY_BYTES_MAX", oldest.stat().st_size + 1_000)
    second = snapshot.cached(tmp_path, prefix="train/01")
    assert not oldest.exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [SUFFIX]
    assert first.get(NAMES[7]) == content(NAMES[7])
    assert second.get(NAMES[100]) == content(NAMES[100])


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(
    snapshot: blockstore.Snapshot, tmp_path: Path
) -> None:
    left, written = tmp_path / f"left{PART_SUFFIX}", tmp_path / f"written{PART_SUFFIX}"
    for path in (left, written):
        path.touch()
    long_ago = time.time() - LEFT_SECONDS - 60
    os.utime(left, (long_ago, long_ago))
    snapshot.cached(tmp_path, prefix="train/00")
    assert not left.exists()
    assert written.exists()


def test_a_map_too_large_for_memory_says_what_to_do(
    snapshot: blockstore.Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_map, "MAP_BYTES_MAX", 100_000)
    with pytest.raises(InvalidRequest, match="name a directory"):
        snapshot.cached()
    assert len(snapshot.cached(prefix="train/00").known) == 100
    assert len(snapshot.cached(tmp_path).known) == len(NAMES) + 2


def test_a_directory_that_cannot_be_used_is_refused(snapshot: blockstore.Snapshot, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot be used"):
        snapshot.cached(tmp_path / "file")


def test_what_a_prefix_leaves_out_is_read_as_ever(snapshot: blockstore.Snapshot) -> None:
    known = snapshot.cached(prefix="train/1")
    names = [NAMES[3], NAMES[1_003], "large"]
    assert known.read_many(names) == [content(NAMES[3]), content(NAMES[1_003]), LARGE]
    assert known.get(NAMES[3]) == content(NAMES[3])
    assert [info.name for info in known.list("train/0")] == NAMES[:1_000]
    with pytest.raises(NotFound, match="'nothing'"):
        known.get("nothing")


@pytest.mark.parametrize("kept", [False, True])
def test_a_cached_snapshot_may_be_sent_to_another_process(
    kept: bool, snapshot: blockstore.Snapshot, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sent = pickle.dumps(snapshot.cached(tmp_path if kept else None, prefix="train/"))
    assert (len(sent) < 10_000) == kept
    request.getfixturevalue("no_owner")
    received = pickle.loads(sent)
    try:
        assert received.read_many(NAMES) == [content(name) for name in NAMES]
    finally:
        received._bridge.close()  # as the end of its process would


def test_values_that_were_packed_since_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 20)
    for name in ("CHECKPOINT_LOOK_SECONDS", "TIDY_SECONDS", "PACK_LOOK_SECONDS"):
        monkeypatch.setattr(owner_shell, name, 0.05)
    for name in ("LEFT_BEHIND_BYTES_MIN", "GAIN_BYTES_MIN"):
        monkeypatch.setattr(packing, name, 1_000)
    moved: list[bytes] = []
    note_moved = snapshot_map.SnapshotMap.note_moved

    def note(known: snapshot_map.SnapshotMap, key: bytes, *rest: Any) -> None:
        moved.append(key)
        note_moved(known, key, *rest)

    monkeypatch.setattr(snapshot_map.SnapshotMap, "note_moved", note)
    with blockstore.open([tmp_path / str(number) for number in range(3)]) as store:
        bucket = store.create_bucket("data", policy="ec(2,1)")
        fill(bucket)
        known = bucket.at("v1").cached()
        number = 0
        while not moved:
            bucket.put(f"more/{number}", bytes(64 * KiB))
            number += 1
            assert known.get(NAMES[0]) == content(NAMES[0])
        assert known.read_many(NAMES) == [content(name) for name in NAMES]
        assert known.get("large") == LARGE
        n_moved = len(moved)
        assert known.read_many(NAMES[:100]) == [content(name) for name in NAMES[:100]]
        assert len(moved) == n_moved, "where values are was not remembered"
        for name in NAMES:
            known.known.note_moved(name.encode(), *_nowhere(known, name))
        bucket.delete_snapshot("v1")
        with pytest.raises(NotFound, match="it was deleted"):
            known.get(NAMES[0])


def _nowhere(
    known: blockstore.CachedSnapshot, name: str
) -> tuple[StoredVersion, StoredVersion, dict[ChunkId, Placement]]:
    """As if the value were in a chunk that never was."""
    (version,) = known.known.find_many((name.encode(),))
    assert version is not None
    gone = ChunkId(known.known.tail.volume, 1, 10**6)
    extents = (msgspec.structs.replace(version.extents[0], chunk=gone),) if version.size else ()
    return version, msgspec.structs.replace(version, extents=extents), {gone: Placement(1, 0, (DiskId(1),))}
