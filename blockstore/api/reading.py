"""Reading objects: the methods that a bucket has as it is now, and as of each of its snapshots.

Every method takes `timeout`, in seconds: for all of an operation up to `TRANSFER_PIECE_BYTES`, retries
included, and anew for each further piece of a larger transfer, so that what makes progress may go on for as
long as it takes. When it runs out the method raises Unavailable.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any, Generic, Literal, Self, TypeVar, cast, overload

from blockstore.api.known_versions import PAGE_KEYS, Versions
from blockstore.api.object_reader import ObjectReader, OpenVersion
from blockstore.codec.messages import Entry, ListKeys
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import InvalidRequest, NotFound, ProtocolViolation
from blockstore.kinds.bucket import (
    CommonPrefix,
    ObjectInfo,
    info_of,
    key_of,
    name_of,
    object_words,
    prefix_key,
)

POSITION_MAX = 2**62
"""Past the end of every object, and a number that a message can carry."""

Wanted = str | tuple[str, int, int | None]
"""What `read_many` takes: a name, or a name with a range."""

Listed = TypeVar("Listed", ObjectInfo, ObjectInfo | CommonPrefix, covariant=True)


class Reading:
    """The reading methods: of a bucket as it is now, and of one of its snapshots."""

    def __init__(self, session: Versions, at: int) -> None:
        self._versions = session
        self._at = at

    async def get(
        self, name: str, *, start: int = 0, end: int | None = None, timeout: float = OPERATION_SECONDS
    ) -> bytes:
        """The object's bytes, or those in `[start, end)`; what lies past its end is left out. NotFound."""
        first, last = _checked_range(start, end)
        try:
            _, data = await self._versions.fetch(key_of(name), self._at, first, last, timeout)
        except NotFound as error:
            raise self.not_found(name, error) from None
        return data

    async def open(self, name: str, *, timeout: float = OPERATION_SECONDS) -> ObjectReader:
        """The object as a readable file. `timeout` is for each read."""
        return ObjectReader(self._versions, await self.open_version(name, timeout))

    async def open_version(self, name: str, timeout: float) -> OpenVersion:
        """What a file is made of."""
        try:
            found, inline = await self._versions.fetch_inline(key_of(name), self._at, 0, -1, timeout)
        except NotFound as error:
            raise self.not_found(name, error) from None
        return OpenVersion(_info(found.entry), found, inline, self._at, timeout)

    async def read_many(self, wanted: Iterable[Wanted], *, timeout: float = OPERATION_SECONDS) -> list[bytes]:
        """The bytes of many objects, or `(name, start, end)` ranges of them, in the order asked. NotFound
        names the first that is missing. One request for hundreds of small objects: this is how to read a data
        set."""
        keys: list[bytes] = []
        ranges: list[tuple[int, int]] = []
        has_ranges = False
        for item in wanted:
            if isinstance(item, str):
                keys.append(key_of(item))
                ranges.append((0, -1))
            else:
                name, start, end = item
                keys.append(key_of(name))
                ranges.append(_checked_range(start, end))
                has_ranges = True
        values = await self._versions.fetch_many(keys, ranges if has_ranges else (), self._at, timeout)
        if None in values:
            missing = keys[values.index(None)]
            raise NotFound(object_words(self._versions.name, name_of(missing)))
        return cast("list[bytes]", values)

    async def stat(self, name: str, *, timeout: float = OPERATION_SECONDS) -> ObjectInfo:
        """Size, etag, times and metadata of an object. NotFound."""
        try:
            entry = await self._versions.fetch_entry(key_of(name), self._at, timeout)
        except NotFound as error:
            raise self.not_found(name, error) from None
        return _info(entry)

    @overload
    def list(
        self, prefix: str = "", *, delimiter: Literal[""] | None = None, timeout: float = OPERATION_SECONDS
    ) -> Listing[ObjectInfo]: ...
    @overload
    def list(
        self, prefix: str = "", *, delimiter: str, timeout: float = OPERATION_SECONDS
    ) -> Listing[ObjectInfo | CommonPrefix]: ...
    def list(
        self, prefix: str = "", *, delimiter: str | None = None, timeout: float = OPERATION_SECONDS
    ) -> Listing[Any]:
        """The objects whose names begin with `prefix`, in order of their names' bytes; with `delimiter`,
        names that go on past it are folded into one CommonPrefix. Of a bucket, each page is as of when it was
        asked for; of a snapshot, all are as of the snapshot. `timeout` is for each page."""
        return Listing(self._versions, PageCursor(prefix, delimiter, self._at), timeout)

    def not_found(self, name: str, error: NotFound) -> NotFound:
        """The owner knows keys; the user knows names. A missing bucket or snapshot stays what it is."""
        if str(error.fields[0]).startswith(("bucket ", "snapshot ")):
            return error
        return NotFound(object_words(self._versions.name, name))


class KeyPages:
    """Where a listing of keys stands. Knows no session, so that any may fetch its next page."""

    def __init__(self, prefix: bytes, delimiter: bytes, at: int) -> None:
        self._prefix, self._delimiter, self._at = prefix, delimiter, at
        self._view = 0  # the sequence that the first page showed
        self._after: bytes = b""
        self._start: bytes = b""
        self._more = True

    async def fetch(self, session: Versions, timeout: float) -> tuple[Entry, ...]:
        """The next page; empty at the end."""
        while self._more:
            at = self._at or self._view
            op = ListKeys(self._prefix, self._after, self._delimiter, PAGE_KEYS, at, self._start)
            try:
                page = await session.fetch_page(op, timeout)
            except NotFound:
                if not self._view:
                    raise
                self._view = 0  # its owner is gone, or waited too long: the rest is as of now
                continue
            self._view = 0 if self._at else page.at
            if page.more and not page.entries and page.next <= self._start:
                raise ProtocolViolation("the owner answered with an empty page and says that more follows")
            self._more, self._start = page.more, page.next
            if page.entries:
                self._after = page.entries[-1].key
                return page.entries
        return ()


class PageCursor:
    """Where a listing of objects stands."""

    def __init__(self, prefix: str, delimiter: str | None, at: int) -> None:
        self._pages = KeyPages(prefix_key(prefix), prefix_key(delimiter or ""), at)

    async def fetch(self, session: Versions, timeout: float) -> list[ObjectInfo | CommonPrefix]:
        """The next page; empty at the end."""
        return [_listed(entry) for entry in await self._pages.fetch(session, timeout)]


class Listing(Generic[Listed]):
    """An async iterator over the objects of a listing, fetched page by page."""

    def __init__(self, session: Versions, cursor: PageCursor, timeout: float) -> None:
        self._session = session
        self._cursor = cursor
        self._timeout = timeout
        self._page: list[ObjectInfo | CommonPrefix] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Listed:
        if not self._page:
            page = await self._cursor.fetch(self._session, self._timeout)
            if not page:
                raise StopAsyncIteration
            self._page = page[::-1]
        return self._page.pop()  # type: ignore[return-value]  # only a delimiter brings CommonPrefix


def _checked_range(start: int, end: int | None) -> tuple[int, int]:
    """The range as it travels: what lies past the end of any object is left out already here."""
    try:
        first = index(start)
        last = first if end is None else index(end)
    except TypeError:
        raise InvalidRequest(f"A range is two whole numbers of bytes, not {start!r} to {end!r}.") from None
    if first < 0 or last < first:
        raise InvalidRequest(f"There is no range from byte {start} to byte {end}.")
    return min(first, POSITION_MAX), -1 if end is None else min(last, POSITION_MAX)


def _info(entry: Entry) -> ObjectInfo:
    return info_of(entry.key, entry.sequence, entry.meta, entry.size, entry.crc)


def _listed(entry: Entry) -> ObjectInfo | CommonPrefix:
    return _info(entry) if entry.sequence else CommonPrefix(name_of(entry.key))
