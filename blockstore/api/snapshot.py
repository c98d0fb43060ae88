"""Snapshots: a bucket as it was, under a name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from os import PathLike

from blockstore.api.known_versions import KnownVersions, OnProgress, fetch_map
from blockstore.api.reading import Reading
from blockstore.api.samples import Batch, reading_ahead
from blockstore.api.session import VolumeSession
from blockstore.api.snapshot_map import SnapshotMap
from blockstore.codec.messages import SnapshotRecord
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import InvalidRequest, NotFound
from blockstore.kinds.bucket import prefix_key
from blockstore.kinds.samples import Share


class Snapshot(Reading):
    """A named instant of a bucket, with the bucket's reading methods as of then. It never changes."""

    def __init__(self, session: VolumeSession, record: SnapshotRecord) -> None:
        super().__init__(session, record.sequence)
        self._session = session
        self.bucket = session.name
        self.record = record
        self.name = record.name
        self.sequence = record.sequence
        self.created = record.created  # wall clock, seconds since 1970
        self.held = record.held  # when this was asked: it could not be deleted

    async def cached(
        self,
        directory: str | PathLike[str] | None = None,
        *,
        prefix: str = "",
        on_progress: OnProgress | None = None,
        timeout: float = OPERATION_SECONDS,
    ) -> CachedSnapshot:
        """The snapshot with its map at hand: which objects it has, and where they are, is fetched once (some
        100 bytes an object; `on_progress` is told how many objects are done), and then its reading methods
        ask only the nodes that have the bytes. With `directory` the map is kept in a file there, up to 4 GiB
        for all maps, and found again next time; else in memory, up to 256 MiB. With `prefix` only of objects
        whose names begin so; others are read as ever. `timeout` is for each 1,000 objects."""
        known = await fetch_map(
            self._session, self.sequence, prefix_key(prefix), directory, on_progress, timeout
        )
        return CachedSnapshot(self._session, self.record, known)

    @asynccontextmanager
    async def samples(
        self,
        *,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch: int = 64,
        prefetch: int = 4,
        start: int = 0,
        prefix: str = "",
        timeout: float = OPERATION_SECONDS,
    ) -> AsyncGenerator[AsyncIterator[Batch]]:
        """Every object below `prefix` once, in batches of (name, bytes), in an order that `seed` and
        `epoch` alone decide. Of `world_size` processes, number `rank` gets its share: each sample goes to
        one of them. `start` is the batch to begin with, `prefetch` how many are read ahead. `async with`
        it, and iterate over what that gives."""
        share = Share(0, seed, epoch, rank, world_size, batch)
        names = [entry.name async for entry in self.list(prefix, timeout=timeout)]
        share = replace(share, n=len(names))

        async def read(wanted: list[str]) -> list[bytes]:
            return await self.read_many(wanted, timeout=timeout)

        async with reading_ahead(names, share, start, prefetch, read) as batches:
            yield batches

    def __repr__(self) -> str:
        return f"<Snapshot {self.bucket}@{self.name} at sequence {self.sequence}>"


class CachedSnapshot(Snapshot):
    """A snapshot that knows where its objects are. It reads while the snapshot exists, whether or not the
    bucket has an owner just now."""

    def __init__(self, session: VolumeSession, record: SnapshotRecord, known: SnapshotMap) -> None:
        super().__init__(session, record)
        self.known = known
        self._versions = KnownVersions(session, known)


def choose_snapshot(
    volume: str, records: Sequence[SnapshotRecord], wanted: object, kind: str = "bucket"
) -> SnapshotRecord:
    """The one of that name, or the newest taken at or before an instant (without a zone: local time)."""
    if isinstance(wanted, str):
        for record in records:
            if record.name == wanted:
                return record
        raise NotFound(f"snapshot {wanted!r} of {kind} {volume!r}")
    if not isinstance(wanted, datetime):
        raise InvalidRequest(
            f"A snapshot is named by a str or chosen by a datetime, not {type(wanted).__name__}."
        )
    try:
        instant = wanted.timestamp()
    except (OverflowError, ValueError):
        raise InvalidRequest(f"{wanted.isoformat(sep=' ')} lies outside of what clocks can say.") from None
    earlier = [record for record in records if record.created <= instant]
    if not earlier:
        raise NotFound(f"snapshot of {kind} {volume!r} taken at or before {wanted.isoformat(sep=' ')}")
    return max(earlier, key=lambda record: record.sequence)
