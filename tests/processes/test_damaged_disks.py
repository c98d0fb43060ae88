"""An embedded store whose disks fail or rot: nothing is lost while copies are left, and status says so.

Real files; what the disk does wrong is done to them, or to the system call that reaches it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import blockstore
from blockstore.codec.messages import Placement
from blockstore.ids import DiskId
from blockstore.volume.chunk_places import ChunkPlaces


def wait_until(holds: Callable[[], bool]) -> None:
    """Facts are told with the next heartbeat."""
    until = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < until
        os.sched_yield()


def codes(store: blockstore.Store) -> set[str]:
    return {fact.code for fact in store.status().facts}


def rot(directory: Path, content: bytes) -> None:
    """Flip a bit of each of these bytes, where a fragment has them."""
    n_rotten = 0
    for path in (directory / "disk" / "fragments").iterdir():
        at = path.read_bytes().find(content)
        if at >= 0:
            n_rotten += 1
            with path.open("r+b") as file:
                file.seek(at)
                file.write(bytes(byte ^ 1 for byte in content))
    assert n_rotten == 1


def test_rot_that_a_read_meets_is_read_around_and_told(tmp_path: Path) -> None:
    directories = [tmp_path / str(number) for number in range(3)]
    value = os.urandom(300_000)
    with blockstore.open(directories) as store:
        bucket = store.create_bucket("b")
        bucket.put("x", value)
        assert codes(store) == set()
        # Whichever copy a client prefers, it is rotten somewhere, and there the others are sound.
        rotten = [range(at, at + 100) for at in (50_000, 150_000, 250_000)]
        for directory, place in zip(directories, rotten, strict=True):
            rot(directory, value[place.start : place.stop])

        def is_told() -> bool:
            for place in rotten:
                assert bucket.get("x", start=place.start, end=place.stop) == value[place.start : place.stop]
            return codes(store) == {"fragments-damaged"}

        wait_until(is_told)
        status = store.status()
        assert status.severity == 1
        assert status.sentence.endswith("not all is as promised (see the facts); any 1 more disk may fail.")


def test_a_disk_whose_sync_failed_gets_no_new_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [tmp_path / str(number) for number in range(3)]
    failing = directories[1] / "disk" / "fragments"
    real, n_failed = os.fdatasync, 0

    def fdatasync(fd: int) -> None:
        nonlocal n_failed
        if not n_failed and Path(os.readlink(f"/proc/self/fd/{fd}")).parent == failing:
            n_failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with blockstore.open(directories) as store:
        bucket = store.create_bucket("b")
        bucket.put("before", b"1")
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        bucket.put("meanwhile", b"2")
        assert n_failed == 1
        wait_until(lambda: "disk-suspect" in codes(store))
        chosen = list[Placement]()
        choose = ChunkPlaces.choose

        def choose_later(places: ChunkPlaces, *args: Any) -> Placement:
            """What the owner itself saw failing is forgotten: only being suspect keeps the disk away."""
            places._avoided.clear()
            chosen.append(choose(places, *args))
            return chosen[-1]

        monkeypatch.setattr(ChunkPlaces, "choose", choose_later)
        bucket.put("large", bytes(1_000_000))
        assert chosen
        assert not any(DiskId(2) in placement.disks for placement in chosen)
    monkeypatch.undo()
    with blockstore.open(directories) as store:
        bucket = store.bucket("b")
        assert [bucket.get(name) for name in ("before", "meanwhile")] == [b"1", b"2"]
        assert bucket.get("large") == bytes(1_000_000)
