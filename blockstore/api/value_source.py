"""The bytes of a value to put: from memory, from a path, or from a file object.

`offload` runs what may block: under trio in a worker thread, for a blocking client in place.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, Protocol, TypeVar

from blockstore.errors import InvalidRequest
from blockstore.runtime.interfaces import Buffer

T = TypeVar("T")

Data = Buffer | os.PathLike[str] | BinaryIO
"""What `put` takes: bytes or another buffer, a path, or a binary file object."""


class Offload(Protocol):
    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


async def offload_in_place(work: Callable[[], T], /) -> T:
    """For callers that may block."""
    return work()


class BytesSource:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    async def read(self, n_bytes: int) -> Buffer:
        piece = self._data[self._position : self._position + n_bytes]
        self._position += piece.nbytes
        return piece

    async def rewind(self) -> bool:
        self._position = 0
        return True


class FileSource:
    """A file object from where it stands. Whoever opened it closes it."""

    def __init__(self, file: BinaryIO, offload: Offload) -> None:
        self._file = file
        self._offload = offload
        self._start: int | None = None

    async def read(self, n_bytes: int) -> Buffer:
        return await self._offload(lambda: self._fill(n_bytes))

    async def rewind(self) -> bool:
        return await self._offload(self._seek_start)

    def _fill(self, n_bytes: int) -> bytes:
        """Raw files and pipes may give less than was asked before their end."""
        if self._start is None:
            self._start = self._file.tell() if _is_seekable(self._file) else -1
        parts: list[bytes] = []
        while n_bytes:
            part: Any = self._file.read(n_bytes)
            if not isinstance(part, bytes):
                raise InvalidRequest(
                    f"The file object gave {type(part).__name__}, not bytes; open it in binary mode, "
                    "and blocking."
                )
            if not part:
                break
            parts.append(part)
            n_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _seek_start(self) -> bool:
        if self._start is None:
            return True  # nothing was read yet
        if self._start < 0:
            return False
        self._file.seek(self._start)
        return True


def open_file(path: os.PathLike[str]) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InvalidRequest(f"{os.fspath(path)} cannot be read: {error.strerror}.") from error


def _is_seekable(file: BinaryIO) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable and seekable())


def as_buffer(data: object) -> memoryview | None:
    """A flat view of bytes-like data without a copy; None for what is no buffer."""
    try:
        view = memoryview(data)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # asked by trying
    except TypeError:
        return None
    if not view.c_contiguous:
        raise InvalidRequest("The data is a view with gaps; copy it with bytes() first.")
    return view if view.ndim == 1 and view.format == "B" else view.cast("B")


def refuse_data(data: object) -> InvalidRequest:
    if isinstance(data, str):
        return InvalidRequest("put takes bytes, not str: say .encode() for text, or pathlib.Path for a path.")
    return InvalidRequest(f"put takes bytes, a path or a binary file object, not {type(data).__name__}.")
