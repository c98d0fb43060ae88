"""Directories on one side, object names on the other: what is copied, and where it may land.

Object names are any text, so `../x`, `/etc/passwd` or `a//b` are possible in a bucket; none of them becomes a
path. What is written goes below the target directory and nowhere else: folders are opened one component at a
time, relative to the one before, and never through a symbolic link, whoever put it there and whenever. A file
appears under its name only when it is whole.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blockstore.errors import InvalidRequest, NoSpace

COMPONENT_BYTES_MAX = 255
"""NAME_MAX of every file system in use."""

PART_PREFIX = ".blockstore-part-"
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Upload:
    path: Path
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Download:
    name: str
    parts: tuple[str, ...]  # below the target directory
    size: int


Refused = list[tuple[str, str]]
"""Names that cannot be copied, each with the reason."""


def plan_uploads(directory: Path, prefix: str) -> tuple[list[Upload], Refused]:
    """Every regular file below `directory`, in order of its name. Links and special files are refused: an
    object is bytes, and following links could copy what lies elsewhere, or the same thing for ever."""
    uploads: list[Upload] = []
    refused: Refused = []
    lead = as_folder(prefix)
    pending = [directory]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                name = lead + path.relative_to(directory).as_posix()
                if entry.is_symlink():
                    refused.append((entry.path, "a symbolic link"))
                elif entry.is_dir():
                    pending.append(path)
                elif not entry.is_file():
                    refused.append((entry.path, "not a regular file"))
                elif not _is_utf8(name):
                    refused.append((entry.path, "its name is not UTF-8"))
                else:
                    uploads.append(Upload(path, name, entry.stat().st_size))
    uploads.sort(key=lambda upload: upload.name)
    return uploads, sorted(refused)


def plan_downloads(objects: Iterable[tuple[str, int]], prefix: str) -> tuple[list[Download], Refused]:
    """Where each (name, size) below `prefix` lands: what `plan_uploads` put in front is cut off again."""
    cut = len(as_folder(prefix))
    downloads: list[Download] = []
    refused: Refused = []
    folders: set[tuple[str, ...]] = set()
    for name, size in objects:
        parts = tuple(name[cut:].split("/"))
        reason = why_no_path(parts)
        if reason:
            refused.append((name, reason))
        else:
            downloads.append(Download(name, parts, size))
            folders.update(parts[:depth] for depth in range(1, len(parts)))
    both = [item for item in downloads if item.parts in folders]
    refused += [(item.name, "other names make a folder of it") for item in both]
    return [item for item in downloads if item.parts not in folders], refused


def as_folder(prefix: str) -> str:
    """`2026` and `2026/` name the same folder; "" is the whole bucket."""
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"


def refuse(refused: Refused, n_copied: int) -> InvalidRequest:
    """The error that names what cannot be copied; nothing has been copied yet."""
    first = "; ".join(f"{name!r}: {reason}" for name, reason in refused[:NAMES_SHOWN])
    more = f"; and {len(refused) - NAMES_SHOWN:,} more" if len(refused) > NAMES_SHOWN else ""
    return InvalidRequest(
        f"{len(refused):,} of {len(refused) + n_copied:,} cannot be copied ({first}{more}). "
        "Nothing was copied yet: say --skip to leave them out."
    )


class TargetTree:
    """Writes files below one directory. A context manager; use from one thread."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _in_the_way(directory, error) from error
        self.directory = directory
        self._folder: tuple[str, ...] = ()  # the last one used: names come in order, so mostly the next one's
        self._folder_fd = os.dup(self._root)

    def create(self, parts: tuple[str, ...]) -> PartFile:
        """Begin the file `parts`, making its folders. InvalidRequest if a link or a file is in the way."""
        assert not why_no_path(parts), "plan_downloads lets only safe names through"
        if parts[:-1] != self._folder:
            self._enter(parts[:-1])
        return PartFile(self._folder_fd, parts[-1], self.directory.joinpath(*parts))

    def _enter(self, folder: tuple[str, ...]) -> None:
        here = os.dup(self._root)
        for depth, part in enumerate(folder, 1):
            try:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            except OSError as error:
                raise _in_the_way(self.directory.joinpath(*folder[:depth]), error) from error
            finally:
                os.close(here)
            here = below
        os.close(self._folder_fd)
        self._folder, self._folder_fd = folder, here

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._folder_fd)
        os.close(self._root)


class PartFile:
    """A file under a name of its own until `finish` gives it the right one; leaving before removes it."""

    def __init__(self, folder_fd: int, name: str, path: Path) -> None:
        self.path = path
        self._name, self._part = name, PART_PREFIX + secrets.token_hex(8)
        self._folder = os.dup(folder_fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            self._fd = os.open(self._part, flags, 0o666, dir_fd=self._folder)
        except OSError as error:
            os.close(self._folder)
            raise _in_the_way(path, error) from error

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise _in_the_way(self.path, error) from error

    def finish(self) -> None:
        """Rename over whatever file or link has the name; a link is replaced, not followed."""
        try:
            os.rename(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            raise _in_the_way(self.path, error) from error
        self._part = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if self._part:
            with suppress(FileNotFoundError):
                os.unlink(self._part, dir_fd=self._folder)
        os.close(self._folder)


def regular_file(path: Path) -> int:
    """Its size; InvalidRequest when there is no such file, or when it is something else."""
    try:
        facts = path.stat()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from error
    if stat.S_ISDIR(facts.st_mode):
        raise InvalidRequest(f"{path} is a directory; say cp -r to copy what is in it.")
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidRequest(f"{path} is not a regular file.")
    return facts.st_size


def why_no_path(parts: tuple[str, ...]) -> str:
    """Why these components would not be a file below the target; "" if they are one."""
    for part in parts:
        if part in {"", ".", ".."}:
            return f"{part!r} is a component of it"
        if "\0" in part:
            return "it holds a NUL"
        if len(os.fsencode(part)) > COMPONENT_BYTES_MAX:
            return f"a component is longer than {COMPONENT_BYTES_MAX} bytes"
        if part.startswith(PART_PREFIX):
            return f"{PART_PREFIX}… names our unfinished files"
    return ""


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_the_way(path: Path, error: OSError) -> InvalidRequest | NoSpace:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(str(path))
    if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EEXIST}:
        return InvalidRequest(
            f"{path} is a link or a file where a folder is needed; nothing goes through it."
        )
    return InvalidRequest(f"{path} cannot be written: {error.strerror}.")
