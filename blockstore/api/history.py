"""What a bucket was: changes between two of its moments, page by page, and the versions of one name.

Knows sessions, not buckets: both twins ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from blockstore.api.session import VolumeSession
from blockstore.api.snapshot import choose_snapshot
from blockstore.codec.messages import (
    ChangePage,
    KeyHistory,
    KeyVersion,
    KeyVersions,
    ListChanges,
    SnapshotList,
    SnapshotRecord,
    SnapshotRecords,
)
from blockstore.errors import ProtocolViolation
from blockstore.kinds.bucket import key_of, prefix_key
from blockstore.kinds.object_history import Change, ObjectVersion, change_of, versions_of

Moment = str | datetime
"""A snapshot's name, or an instant: the newest snapshot taken at or before it is meant."""

PAGE_CHANGES = 1_000


async def fetch_snapshots(session: VolumeSession, timeout: float) -> list[SnapshotRecord]:
    """All of a bucket's, oldest first."""
    answer = await session.ask(SnapshotList(), SnapshotRecords, timeout)
    return sorted(answer.snapshots, key=lambda record: record.sequence)


class ChangeCursor:
    """Where a diff stands. Knows no session, so that any may fetch its next page."""

    def __init__(self, since: Moment, until: Moment | None, prefix: str) -> None:
        self._moments = since, until
        self._start = prefix_key(prefix)
        self._end = successor(self._start)
        self._between: tuple[int, int] | None = None
        self._more = True

    async def fetch(self, session: VolumeSession, timeout: float) -> list[Change]:
        """The next page; empty at the end."""
        if self._between is None:
            records = await fetch_snapshots(session, timeout)
            since, until = self._moments
            self._between = (
                choose_snapshot(session.name, records, since).sequence,
                0 if until is None else choose_snapshot(session.name, records, until).sequence,
            )
        while self._more:
            page = await fetch_changes(session, *self._between, self._start, self._end, timeout)
            self._more, self._start = bool(page.next), page.next
            if page.changes:
                return [change_of(change) for change in page.changes]
        return []


class Changes:
    """An async iterator over the changes of a diff, fetched page by page."""

    def __init__(self, session: VolumeSession, cursor: ChangeCursor, timeout: float) -> None:
        self._session = session
        self._cursor = cursor
        self._timeout = timeout
        self._page: list[Change] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if not self._page:
            page = await self._cursor.fetch(self._session, self._timeout)
            if not page:
                raise StopAsyncIteration
            self._page = page[::-1]
        return self._page.pop()


async def fetch_changes(
    session: VolumeSession, since: int, until: int, start: bytes, end: bytes, timeout: float
) -> ChangePage:
    """A page of the keys in [start, end) that differ between two sequences (0: now)."""
    page = await session.ask(ListChanges(since, until, start, end, PAGE_CHANGES), ChangePage, timeout)
    if page.next and page.next <= start:
        raise ProtocolViolation("the owner answered with a page that ends where it began")
    return page


async def fetch_log(session: VolumeSession, name: str, timeout: float) -> Sequence[ObjectVersion]:
    """The versions of a name, newest first. NotFound as the owner says it."""
    key = key_of(name)
    versions: list[KeyVersion] = []
    before = 0
    while True:
        page = await session.ask(KeyHistory(key, before), KeyVersions, timeout)
        versions += page.versions
        if not page.next:
            return versions_of(key, versions)
        if before and page.next >= before:
            raise ProtocolViolation("the owner answered with a page that ends where it began")
        before = page.next


def successor(prefix: bytes) -> bytes:
    """The smallest key above all that begin with `prefix`; empty if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b""
