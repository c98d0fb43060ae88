"""The simulated disk lies: writes that are lost or misplaced, sectors that cannot be read, a sync that fails
once and then says that all is well, and power that fails between any two steps."""

from __future__ import annotations

from random import Random

import pytest

from blockstore.errors import BlockStoreError, DiskFailed
from blockstore.runtime.interfaces import File, Write
from blockstore.runtime.sim.disk import PowerLost, SimDisk
from blockstore.runtime.sim.disk_content import SECTOR_BYTES

SIZE = 64 * 1024


def read(file: File, offset: int, length: int) -> bytes:
    into = bytearray(length)
    file.read(offset, memoryview(into))
    return bytes(into)


def write(file: File, offset: int, data: bytes) -> None:
    file.write((Write(offset, (data,)),))


def test_a_lost_write_is_seen_until_the_cache_is_dropped() -> None:
    disk = SimDisk(Random(1))
    file = disk.open("a", SIZE)
    disk.misplace("a", after=1)
    write(file, 0, b"stored")
    write(file, 100, b"lost")
    assert read(file, 100, 4) == b"lost"
    assert disk.n_astray == 1
    file.forget_cached()
    assert read(file, 0, 6) == b"stored"
    assert read(file, 100, 4) == bytes(4)


def test_a_misdirected_write_is_missing_here_and_stands_there() -> None:
    disk = SimDisk(Random(1))
    file, other = disk.open("a", SIZE), disk.open("b", SIZE)
    write(other, 512, b"theirs")
    disk.misplace("a", 0, ("b", 512))
    write(file, 0, b"mine")
    disk.crash()
    assert disk.peek("a", 0, 4) == bytes(4)
    assert disk.peek("b", 512, 6) == b"miners"


def test_a_bad_sector_cannot_be_read_until_it_is_written() -> None:
    disk = SimDisk(Random(1))
    file = disk.open("a", SIZE)
    disk.make_unreadable("a", SECTOR_BYTES + 5)
    assert read(file, 0, SECTOR_BYTES) == bytes(SECTOR_BYTES)
    with pytest.raises(DiskFailed):
        read(file, SECTOR_BYTES - 1, 2)
    assert not file.read_now(SECTOR_BYTES, memoryview(bytearray(1)))
    with pytest.raises(DiskFailed):
        disk.read_file("a")
    disk.heal()
    with pytest.raises(DiskFailed):
        read(file, SECTOR_BYTES, 1)
    write(file, SECTOR_BYTES, b"x")
    assert read(file, SECTOR_BYTES, 1) == b"x"


def test_a_sync_fails_once_and_then_lies() -> None:
    """The first one that fails is told; of what it did not store the next says nothing."""
    n_lost = 0
    for seed in range(20):
        disk = SimDisk(Random(seed))
        first = disk.open("a", SIZE)
        disk.inject("sync", DiskFailed("a", "EIO"))
        with pytest.raises(DiskFailed):
            write(first, 0, b"x" * 4 * SECTOR_BYTES)
        again = disk.open("a")
        write(again, SIZE // 2, b"y")
        assert read(again, 0, 1) == b"x", "the cache shows it"
        disk.crash()
        n_lost += disk.peek("a", 0, 4 * SECTOR_BYTES) != b"x" * 4 * SECTOR_BYTES
        assert disk.peek("a", SIZE // 2, 1) == b"y"
    assert n_lost > 5


def test_a_write_that_was_not_synced_is_torn_between_sectors() -> None:
    seen: set[tuple[bool, ...]] = set()
    for seed in range(100):
        disk = SimDisk(Random(seed))
        file = disk.open("a", SIZE)
        disk.cut_after(1)  # the write, and not the sync
        with pytest.raises(PowerLost):
            write(file, 0, b"x" * 3 * SECTOR_BYTES)
        disk.crash()
        sectors = [disk.peek("a", at * SECTOR_BYTES, SECTOR_BYTES) for at in range(3)]
        assert all(len(set(sector)) == 1 for sector in sectors), "each is whole"
        seen.add(tuple(sector[0] == ord("x") for sector in sectors))
    assert len(seen) == 8


def test_power_may_fail_by_itself_at_a_step() -> None:
    disk = SimDisk(Random(1))
    outcomes: list[BlockStoreError | None] = []
    file = disk.open("a", SIZE)
    disk.cut_after(1, disk.power_off)
    file.submit((Write(0, (b"x",)),), outcomes.append)
    with pytest.raises(PowerLost):
        disk.settle()
    assert disk.is_off
    assert outcomes == []
    with pytest.raises(PowerLost):
        disk.replace_file("b", b"")
    disk.power_on()
    disk.replace_file("b", b"b")
    assert disk.read_file("b") == b"b"
