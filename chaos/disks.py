"""A small ext4 of its own for each node, so that a disk can really be full and power really fail.

Loop devices over sparse files. A power cut is the file system's own shutdown call with "do not flush the
log": from that instant nothing reaches the device, as when the plug is drawn; what was not synced is gone
when it is mounted again, and the journal of ext4 is replayed. `lab.why_not` says whether this can be had."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

from blockstore.ids import KiB, MiB

DISK_BYTES = 3 * 1024 * MiB
"""Of which a run of a few minutes fills a fifth; sparse, so it costs what is written."""

EXT4_IOC_SHUTDOWN = 0x8004587D
WITHOUT_FLUSHING_THE_LOG = 2
BALLAST = "ballast"
ROOM_LEFT = 64 * KiB


class SmallDisk:
    """One file system, mounted at `path` from `image`; made by `make`."""

    def __init__(self, image: Path, path: Path) -> None:
        self.image, self.path = image, path

    def make(self) -> None:
        with self.image.open("xb") as file:
            file.truncate(DISK_BYTES)
        _run("mkfs.ext4", "-q", "-m", "0", "-J", "size=16", "-N", "4096", str(self.image))
        self.path.mkdir()
        self.mount()
        (self.path / "lost+found").rmdir()  # a node is made in an empty directory

    def mount(self) -> None:
        """`discard`: what is deleted is given back to the machine as well."""
        _run("mount", "-o", "loop,discard", str(self.image), str(self.path))

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def cut_power(self) -> None:
        """Everything not yet on the device is lost. Kill what runs on it, unmount, mount."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_FLUSHING_THE_LOG))
        finally:
            os.close(descriptor)

    def fill(self) -> int:
        """Take all the room that is left; its bytes."""
        size, taken = 256 * MiB, 0
        descriptor = os.open(self.path / BALLAST, os.O_RDWR | os.O_CREAT)
        try:
            while size >= ROOM_LEFT:
                try:
                    os.posix_fallocate(descriptor, taken, size)
                    taken += size
                except OSError:
                    taken = max(taken, os.fstat(descriptor).st_size)
                    size //= 2
        finally:
            os.close(descriptor)
        return taken

    def empty(self) -> None:
        with suppress(FileNotFoundError):
            (self.path / BALLAST).unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip()}")
