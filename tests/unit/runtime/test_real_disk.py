"""What a power failure would lose at the moment when a real disk says that something is done: nothing.

The kernel is watched from outside: a file that was written, and a folder in which a name changed, are dirty
until they are synced. A file that is renamed while it is dirty may be found empty under its new name.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from blockstore.ids import KiB
from blockstore.runtime.interfaces import Buffer, File, Write
from blockstore.runtime.real_disk import RealDisk, open_real_disk


class Kernel:
    """Remembers, by inode, what is not on the disk yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dirty: set[int] = set()
        self.named_before_synced: list[str] = []
        pwritev, fallocate, rename, unlink = os.pwritev, os.posix_fallocate, os.rename, os.unlink

        def write(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            self.dirty.add(os.fstat(fd).st_ino)
            return pwritev(fd, buffers, offset)

        def allocate(fd: int, offset: int, length: int) -> None:
            self.dirty.add(os.fstat(fd).st_ino)
            fallocate(fd, offset, length)

        def sync(really: Callable[[int], None]) -> Callable[[int], None]:
            def synced(fd: int) -> None:
                inode = os.fstat(fd).st_ino
                really(fd)
                self.dirty.discard(inode)

            return synced

        def name(old: Path, new: Path) -> None:
            if old.stat().st_ino in self.dirty:
                self.named_before_synced.append(new.name)
            rename(old, new)
            self.dirty.add(new.parent.stat().st_ino)

        def remove(path: Path) -> None:
            unlink(path)
            self.dirty.add(path.parent.stat().st_ino)

        monkeypatch.setattr(os, "pwritev", write)
        monkeypatch.setattr(os, "posix_fallocate", allocate)
        monkeypatch.setattr(os, "fdatasync", sync(os.fdatasync))
        monkeypatch.setattr(os, "fsync", sync(os.fsync))
        monkeypatch.setattr(os, "rename", name)
        monkeypatch.setattr(os, "unlink", remove)

    @contextmanager
    def everything_kept(self) -> Generator[None]:
        """At the end of the block a power failure would lose nothing."""
        yield
        assert not self.dirty
        assert not self.named_before_synced


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[RealDisk]:
    async with open_real_disk(tmp_path) as disk:
        yield disk


@pytest.fixture
def file(disk: RealDisk) -> Iterator[File]:
    file = disk.open("folder/file", 64 * KiB)
    yield file
    file.close()


@pytest.fixture
def kernel(disk: RealDisk, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Watches from when the disk is open: its lock need not be durable."""
    return Kernel(monkeypatch)


async def test_what_was_submitted_is_on_the_disk_when_it_is_answered(file: File, kernel: Kernel) -> None:
    lost: list[set[int]] = []
    done = trio.Event()

    def on_done(error: object) -> None:
        assert error is None
        lost.append(set(kernel.dirty))
        done.set()

    with kernel.everything_kept():
        file.submit([Write(0, [b"header"]), Write(8 * KiB, [b"data"])], on_done)
        await done.wait()
    assert lost == [set()]


async def test_so_is_what_is_written_at_start_up(file: File, kernel: Kernel) -> None:
    with kernel.everything_kept():
        file.write([Write(0, [b"header"])])


async def test_a_file_that_was_made_is_there_and_whole(disk: RealDisk, kernel: Kernel) -> None:
    with kernel.everything_kept():
        disk.open("other/file", 64 * KiB).close()


async def test_a_small_file_has_its_bytes_before_its_name(disk: RealDisk, kernel: Kernel) -> None:
    with kernel.everything_kept():
        disk.replace_file("superblock", b"of this disk")
        disk.replace_file("superblock", b"of this disk, again")


async def test_what_was_removed_stays_away(disk: RealDisk, file: File, kernel: Kernel) -> None:
    with kernel.everything_kept():
        disk.remove(file.name)


async def test_the_watch_sees_what_is_not_synced(disk: RealDisk, file: File, kernel: Kernel) -> None:
    fd = os.open(Path(disk.path) / file.name, os.O_RDWR)
    os.pwritev(fd, [b"never synced"], 0)
    assert kernel.dirty == {os.fstat(fd).st_ino}
    os.rename(Path(disk.path) / file.name, Path(disk.path) / "folder/renamed")
    assert kernel.named_before_synced == ["renamed"]
    os.close(fd)
