"""The directories of a node that is being made, and how that is taken up again after an interruption.

Making a node ends with node.json: without it a directory is no node. It begins with `setup.part`, which holds
a token drawn for this setup. Power may fail, or the process end, at any point:

- before `setup.part` has its name, there are at most empty directories, which may be made into anything;
- until node.json is there, the same command in the same directory begins again. What it would make a second
  time differently is kept: the token, from which a new cluster has its id and a request to join its id (the
  cluster applies it once), the node's certificate and the bus key. Of disks it changes only what formatting
  writes, and refuses one that anybody else has formatted since;
- after that the node is whole, and what is left of `setup.part` means nothing.

All that node.json speaks of is durable before node.json is written, the directories' own names included.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from blockstore.codec.fence_file import NAMES as FENCE_NAMES
from blockstore.codec.superblock import NAME as SUPERBLOCK_NAME
from blockstore.codec.superblock import Superblock
from blockstore.daemon.node_directory import DiskPlace, NodeDirectory, NodeFile, sync_directory
from blockstore.errors import AlreadyExists, NotAStore, StoreLocked, of_path
from blockstore.ids import DiskId
from blockstore.node.disk_shell import format_disk, read_superblock
from blockstore.runtime.real_disk import LOCK_NAME, open_real_disk

_TOKEN_DIGITS = 16

_FORMATTED = {LOCK_NAME, SUPERBLOCK_NAME, *FENCE_NAMES}
"""Names on a disk that was formatted and never used."""


class SetupPlaces:
    """As a context manager: what the block did not finish is removed, as far as it was made here, unless
    `keep` was said."""

    def __init__(self, directory: Path, disks: Sequence[Path]) -> None:
        self.node = NodeDirectory(directory)
        self.disks = list(disks) or [directory / "disk-1"]
        self.token = ""
        self._made: list[Path] = []
        self._part: int | None = None  # descriptor of setup.part, locked
        self._is_kept = False

    def __enter__(self) -> SetupPlaces:
        if self.node.exists():
            raise AlreadyExists(f"node in {self.node.path}")
        try:
            is_resumed = self.node.part.exists()
            self._check(is_resumed)
            self._make_directory(self.node.path)
            self._begin()
            if is_resumed:
                self._clear()
            for path in (self.node.control, *self.disks):
                self._make_directory(path)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not self._is_kept:
            for path in reversed(self._made):
                shutil.rmtree(path, ignore_errors=True)
            if self._part is not None and self._is_bare():
                self.node.part.unlink(missing_ok=True)
        if self._part is not None:
            os.close(self._part)
            self._part = None
        if isinstance(error, OSError):
            raise of_path(error, str(self.node.path)) from error

    def keep(self) -> None:
        """Others may know of this node by now: whatever happens, the same command can take it up again."""
        self._is_kept = True

    def forget(self) -> None:
        """`keep` does not hold any more."""
        self._is_kept = False

    def capacities(self) -> tuple[int, ...]:
        return tuple(shutil.disk_usage(path).total for path in self.disks)

    def disk_places(self, disk_ids: Sequence[DiskId]) -> tuple[DiskPlace, ...]:
        return tuple(
            DiskPlace(
                disk,
                os.path.relpath(path, self.node.path)
                if _within(path, self.node.path)
                else str(path.resolve()),
            )
            for disk, path in zip(disk_ids, self.disks, strict=True)
        )

    async def format_disks(self, disk_ids: Sequence[DiskId], cluster: str) -> None:
        for disk_id, path in zip(disk_ids, self.disks, strict=True):
            async with open_real_disk(path) as disk:
                if read_superblock(disk) != Superblock(disk_id, cluster):
                    format_disk(disk, disk_id, cluster)

    def finish(self, facts: NodeFile) -> None:
        """From here on it is a node."""
        self.node.write(facts)
        self.node.part.unlink()

    def _check(self, is_resumed: bool) -> None:
        for path in (self.node.path, *self.disks):
            if path.exists() and (not path.is_dir() or self._is_foreign(path, is_resumed)):
                why = "is not empty" if path.is_dir() else "is not a directory"
                raise NotAStore(str(path), f"it {why}; a node is made in an empty or missing directory")

    def _is_foreign(self, path: Path, is_resumed: bool) -> bool:
        """Whether there is anything that no setup of this node can have left."""
        names = {entry.name for entry in path.iterdir()}
        if not is_resumed:
            return bool(names)
        if path == self.node.path:
            return False
        return bool({name.removesuffix(".new") for name in names} - _FORMATTED)

    def _is_bare(self) -> bool:
        path = self.node.path
        return path.exists() and [entry.name for entry in path.iterdir()] == [self.node.part.name]

    def _make_directory(self, path: Path) -> None:
        if path.exists():
            return
        missing = [parent for parent in path.parents if not parent.exists()]
        for one in (*reversed(missing), path):
            one.mkdir(exist_ok=True)
            with suppress(PermissionError):  # a parent that may be written to, and not be read
                sync_directory(one.parent)
            self._made.append(one)

    def _begin(self) -> None:
        """The token is there, durably, and nobody else is at work here."""
        fd = os.open(self.node.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 64, 0).decode("ascii", "replace")[_TOKEN_DIGITS:].strip()
            os.close(fd)
            raise StoreLocked(str(self.node.path), int(holder) if holder.isdigit() else 0) from error
        self._part = fd
        if self.node.exists() or not self.node.part.exists():  # somebody was quicker
            raise AlreadyExists(f"node in {self.node.path}")
        token = os.pread(fd, _TOKEN_DIGITS, 0).decode("ascii", "replace")
        if not _is_token(token):  # power failed while it was written, so nothing was done with it
            token = secrets.token_hex(_TOKEN_DIGITS // 2)
        os.pwrite(fd, f"{token} {os.getpid()}\n".encode(), 0)
        os.fsync(fd)
        sync_directory(self.node.path)
        self.token = token

    def _clear(self) -> None:
        """What is simply made anew."""
        shutil.rmtree(self.node.control, ignore_errors=True)
        for name in (self.node.bundle.name, self.node.bus_key.name):
            for path in self.node.path.glob(f".{name}.*"):  # keys that never got their name
                path.unlink()


def _is_token(text: str) -> bool:
    return len(text) == _TOKEN_DIGITS and set(text) <= set("0123456789abcdef")


def _within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())
