"""Reading a snapshot whose map is at hand (`snapshot_map.py`): from the nodes that have the bytes, and the
owner is asked for nothing but where values have moved to.

It answers as a `VolumeSession` does, so the reading methods need not know which of the two they use. Safe for
many tasks; the blocking twin makes one around each thread's session, and they share the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Protocol

from blockstore.api.cluster import may_retry
from blockstore.api.many_values import Remote, waves
from blockstore.api.session import TRANSFER_PIECE_BYTES, VolumeSession
from blockstore.api.snapshot_map import MapBuilder, SnapshotMap, find_map, folder_of
from blockstore.codec.messages import Entry, Found, KeyPage, ListKeys
from blockstore.codec.run_file import StoredVersion
from blockstore.errors import BlockStoreError, NotFound, ProtocolViolation, of_path

PAGE_KEYS = 1_000

OnProgress = Callable[[int], None]
"""Told how many keys were fetched so far."""


class Versions(Protocol):
    """Where the reading methods find versions and bytes: the volume's owner, or a map of a snapshot."""

    name: str

    async def fetch(
        self, key: bytes, at: int, start: int, end: int, timeout: float
    ) -> tuple[Found, bytes]: ...

    async def fetch_inline(
        self, key: bytes, at: int, start: int, end: int, timeout: float
    ) -> tuple[Found, bytes | None]: ...

    async def fetch_version(self, found: Found, at: int, start: int, end: int, timeout: float) -> bytes: ...

    async def fetch_many(
        self, keys: Sequence[bytes], ranges: Sequence[tuple[int, int]], at: int, timeout: float
    ) -> list[bytes | None]: ...

    async def fetch_entry(self, key: bytes, at: int, timeout: float) -> Entry: ...

    async def fetch_page(self, op: ListKeys, timeout: float) -> KeyPage: ...


class KnownVersions:
    """What a map of the snapshot covers is looked up there, everything else at the owner."""

    def __init__(self, session: VolumeSession, known: SnapshotMap) -> None:
        self.name = session.name
        self._session = session
        self._known = known

    async def fetch_entry(self, key: bytes, at: int, timeout: float) -> Entry:
        found = self._find(key)
        return await self._session.fetch_entry(key, at, timeout) if found is None else found.entry

    async def fetch(self, key: bytes, at: int, start: int, end: int, timeout: float) -> tuple[Found, bytes]:
        found = self._find(key)
        if found is None:
            return await self._session.fetch(key, at, start, end, timeout)
        first, last = _clipped((start, end), found.entry.size)
        if last - first > TRANSFER_PIECE_BYTES:
            return found, await self._session.fetch_version(found, at, first, last, timeout)
        (data,) = await self.fetch_many((key,), ((start, end),), at, timeout)
        if data is None:
            raise _no_object(key)
        return found, data

    async def fetch_inline(
        self, key: bytes, at: int, start: int, end: int, timeout: float
    ) -> tuple[Found, bytes | None]:
        found = self._find(key)
        if found is None:
            return await self._session.fetch_inline(key, at, start, end, timeout)
        return found, None if found.entry.size else b""

    async def fetch_version(self, found: Found, at: int, start: int, end: int, timeout: float) -> bytes:
        return await self._session.fetch_version(found, at, start, end, timeout)

    async def fetch_page(self, op: ListKeys, timeout: float) -> KeyPage:
        if not self._known.covers(op.prefix):
            return await self._session.fetch_page(op, timeout)
        return self._known.page(op)

    async def fetch_many(
        self, keys: Sequence[bytes], ranges: Sequence[tuple[int, int]], at: int, timeout: float
    ) -> list[bytes | None]:
        known = self._known
        results: list[bytes | None] = [None] * len(keys)
        wanted: list[Remote] = []
        unknown: list[int] = []
        covered = [index for index, key in enumerate(keys) if known.covers(key)]
        if len(covered) < len(keys):
            unknown = [index for index, key in enumerate(keys) if not known.covers(key)]
        versions = known.find_many([keys[index] for index in covered])
        for index, version in zip(covered, versions, strict=True):
            if version is None:
                continue
            asked = ranges[index] if ranges else (0, -1)
            start, end = _clipped(asked, version.size)
            placements = known.placements_of(version)
            if start == end:
                results[index] = b""
            elif placements is None or not version.extents:
                unknown.append(index)
            else:
                entry = _entry(keys[index], version)
                wanted.append(Remote(index, keys[index], entry, placements, start, end, asked))
        for wave in waves(wanted):
            data = await self._read_wave(wave, timeout)
            if data is None:
                unknown += [want.index for want in wave]
                continue
            for want, value in zip(wave, data, strict=True):
                results[want.index] = value
        if unknown:
            await self._read_anew(sorted(unknown), keys, ranges, at, timeout, results)
        return results

    async def _read_wave(self, wave: Sequence[Remote], timeout: float) -> list[bytes] | None:
        """None when some are not where they were, or their nodes do not answer."""
        cluster = self._session.cluster
        if not cluster.cluster_id:  # this thread's client has not asked anybody anything yet
            deadline = cluster.caller.now() + timeout
            await cluster.repeat(lambda: cluster.fetch_view("", deadline), deadline)
        try:
            return await self._session.read_remote(wave, timeout)
        except BlockStoreError as error:
            if not may_retry(error):
                raise
            return None

    async def _read_anew(
        self,
        unknown: Sequence[int],
        keys: Sequence[bytes],
        ranges: Sequence[tuple[int, int]],
        at: int,
        timeout: float,
        results: list[bytes | None],
    ) -> None:
        """Ask the owner where these are, remember it, and read them there; what cannot be read at once goes
        the owner's way, with retries."""
        wanted = [keys[index] for index in unknown]
        asked = [ranges[index] for index in unknown] if ranges else [(0, -1)] * len(unknown)
        found = await self._session.look_up_places(wanted, at, timeout)
        remote = [self._learn(*item) for item in zip(unknown, wanted, asked, found, strict=True)]
        slow: list[int] = []
        for wave in waves([want for want in remote if want is not None]):
            data = await self._read_wave(wave, timeout)
            for position, want in enumerate(wave):
                results[want.index] = None if data is None else data[position]
            slow += [want.index for want in wave if data is None]
        if slow:
            values = await self._session.fetch_many(
                [keys[index] for index in slow],
                [ranges[index] for index in slow] if ranges else (),
                at,
                timeout,
            )
            for index, value in zip(slow, values, strict=True):
                results[index] = value

    def _learn(self, index: int, key: bytes, asked: tuple[int, int], found: Found | None) -> Remote | None:
        """NotFound when the owner shows another snapshot than the map is of."""
        known = self._known
        is_covered = known.covers(key)
        (former,) = known.find_many((key,)) if is_covered else (None,)
        sequence = 0 if found is None else found.entry.sequence
        if is_covered and sequence != (0 if former is None else former.sequence):
            raise NotFound(f"snapshot at sequence {known.tail.sequence} (it was deleted)")
        if found is None:
            return None
        if former is not None:
            now = StoredVersion(former.sequence, former.meta, former.size, former.crc, found.entry.extents)
            known.note_moved(key, former, now, found.placements)
        start, end = _clipped(asked, found.entry.size)
        return Remote(index, key, found.entry, found.placements, start, end, asked)

    def _find(self, key: bytes) -> Found | None:
        """The version and its places as far as they are known; None when the owner must be asked. NotFound
        when the snapshot has no such key."""
        known = self._known
        if not known.covers(key):
            return None
        (version,) = known.find_many((key,))
        if version is None:
            raise _no_object(key)
        placements = known.placements_of(version)
        if placements is None or (version.size and not version.extents):
            return None
        return Found(_entry(key, version), placements)


async def fetch_map(
    session: VolumeSession,
    at: int,
    prefix: bytes,
    directory: str | PathLike[str] | None,
    on_progress: OnProgress | None,
    timeout: float,
) -> SnapshotMap:
    """The map of the snapshot at that sequence: from the directory if it is there, else from the owner, page
    by page, and then kept there. `timeout` is for each page. NoSpace, NoAccess or InvalidRequest when the
    directory cannot be used; InvalidRequest when without one the map is too large."""
    view = await session.fetch_view(timeout)
    cluster = session.cluster.cluster_id
    folder = folder_of(directory)
    if folder is not None:
        found = find_map(folder, cluster, view.volume, at, prefix)
        if found is not None:
            return found
    try:
        builder = MapBuilder(cluster, view.volume, at, prefix, folder)
        try:
            n_keys = 0
            start, more = b"", True
            while more:
                op = ListKeys(prefix, b"", b"", PAGE_KEYS, at, start, True)
                page = await session.fetch_page(op, timeout)
                if page.more and page.next <= start:
                    raise ProtocolViolation("the owner says that more follows, and not where")
                builder.add(page)
                n_keys += len(page.entries)
                start, more = page.next, page.more
                if on_progress is not None:
                    on_progress(n_keys)
            return builder.finish()
        except BaseException:
            builder.give_up()
            raise
    except OSError as error:
        raise of_path(error, str(folder)) from error


def _entry(key: bytes, version: StoredVersion) -> Entry:
    assert version.meta is not None, "a map of a snapshot has no tombstones"
    return Entry(key, version.sequence, version.meta, version.size, version.crc, version.extents)


def _clipped(asked: tuple[int, int], size: int) -> tuple[int, int]:
    start, end = asked
    end = size if end < 0 else min(end, size)
    return min(start, end), end


def _no_object(key: bytes) -> NotFound:
    return NotFound(f"object {key.decode(errors='backslashreplace')!r}")
