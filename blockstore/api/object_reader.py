"""An object read as a file: which bytes to fetch for which read.

A file is one version of an object, whatever happens to the name meanwhile. Reads that follow each other fetch
ahead, twice as much each time up to `READ_AHEAD_BYTES_MAX`; one that jumps fetches what it asks for. So a
scan costs few requests and a random read no more bytes than it wants.
"""

from __future__ import annotations

import io
from types import TracebackType
from typing import Self

from blockstore.api.known_versions import Versions
from blockstore.codec.messages import Found
from blockstore.errors import InvalidRequest, NotFound, PreconditionFailed
from blockstore.ids import KiB, MiB
from blockstore.kinds.bucket import ObjectInfo, object_words

READ_AHEAD_BYTES_MIN = 128 * KiB
READ_AHEAD_BYTES_MAX = 8 * MiB


class OpenVersion:
    """One version of an object: where its bytes are, and the block of them that was fetched last."""

    def __init__(self, info: ObjectInfo, found: Found, inline: bytes | None, at: int, timeout: float) -> None:
        self.info = info
        self.found = found
        self.at = at
        self.timeout = timeout
        self._block = inline if inline is not None else b""
        self._block_start = 0
        self._ahead = READ_AHEAD_BYTES_MIN

    def find(self, offset: int, length: int) -> memoryview | None:
        """Up to `length` bytes at `offset`, at least one unless that is the end; None if they must be
        fetched."""
        if offset >= self.info.size or not length:
            return memoryview(b"")
        start = offset - self._block_start
        if 0 <= start < len(self._block):
            return memoryview(self._block)[start : start + length]
        return None

    def plan(self, offset: int, length: int) -> tuple[int, int]:
        """The range to fetch, then to `keep`, for a read that `find` could not serve."""
        if offset == self._block_start + len(self._block):  # a scan
            length = max(length, self._ahead)
            self._ahead = min(2 * self._ahead, READ_AHEAD_BYTES_MAX)
        else:
            self._ahead = READ_AHEAD_BYTES_MIN
        return offset, min(offset + length, self.info.size)

    def keep(self, start: int, block: bytes) -> None:
        self._block_start, self._block = start, block


async def fetch_block(session: Versions, version: OpenVersion, start: int, end: int) -> bytes:
    """Bytes of the version. PreconditionFailed when the object was replaced and its bytes are gone."""
    try:
        return await session.fetch_version(version.found, version.at, start, end, version.timeout)
    except (PreconditionFailed, NotFound):
        words = object_words(session.name, version.info.name)
        raise PreconditionFailed(
            f"The {words} was replaced or deleted while this file was open, and its bytes are gone."
        ) from None


class ObjectReader:
    """A readable binary file: `read`, `seek`, `tell`; `async with` it, or leave it to the garbage
    collector."""

    def __init__(self, session: Versions, version: OpenVersion) -> None:
        self._session = session
        self._version = version
        self._position = 0

    @property
    def info(self) -> ObjectInfo:
        return self._version.info

    async def read(self, n_bytes: int = -1) -> bytes:
        """The next `n_bytes`, fewer only at the end; without a number all that is left."""
        version = self._version
        left = max(0, version.info.size - self._position)
        n_wanted = left if n_bytes < 0 else min(n_bytes, left)
        parts: list[memoryview] = []
        while n_wanted:
            part = version.find(self._position, n_wanted)
            if part is None:
                start, end = version.plan(self._position, n_wanted)
                version.keep(start, await fetch_block(self._session, version, start, end))
                continue
            parts.append(part)
            self._position += part.nbytes
            n_wanted -= part.nbytes
        return b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = seek_position(offset, whence, self._position, self._version.info.size)
        return self._position

    def tell(self) -> int:
        return self._position

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def seek_position(offset: int, whence: int, position: int, size: int) -> int:
    bases = {io.SEEK_SET: 0, io.SEEK_CUR: position, io.SEEK_END: size}
    if whence not in bases:
        raise InvalidRequest(f"There is no way {whence} to seek; use io.SEEK_SET, SEEK_CUR or SEEK_END.")
    target = bases[whence] + offset
    if target < 0:
        raise InvalidRequest(f"Byte {target} is before the beginning of the object.")
    return target
