"""Buckets: put and delete objects, take snapshots; reading them is in `reading.py`.

The async classes; `blocking.py` has the other twin. A change is durable, as the bucket's policy says, when
its method returns. When `timeout` runs out it raises Unavailable, and whether the change was made is then not
known; `timeout` counts as for reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import BinaryIO, Self, cast

from blockstore.api.batch import BatchChanges, commit, expected_version
from blockstore.api.cloning import clone_of, flatten
from blockstore.api.history import ChangeCursor, Changes, Moment, fetch_log, fetch_snapshots
from blockstore.api.reading import Reading
from blockstore.api.restoring import OnChanges, Plan, plan_restore, restore
from blockstore.api.session import VolumeSession
from blockstore.api.snapshot import Snapshot, choose_snapshot
from blockstore.api.value_source import (
    BytesSource,
    Data,
    FileSource,
    Offload,
    as_buffer,
    open_file,
    refuse_data,
)
from blockstore.codec.messages import (
    ABSENT,
    Delete,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotHold,
    SnapshotRecord,
    VolumeFacts,
    VolumeInfo,
    VolumeView,
)
from blockstore.config import INLINE_BYTES_MAX, OPERATION_SECONDS
from blockstore.errors import NotFound, PreconditionFailed, SnapshotHeld
from blockstore.kinds.bucket import (
    ObjectInfo,
    check_snapshot_name,
    encode_meta,
    etag_of,
    key_of,
    object_words,
)
from blockstore.kinds.object_history import ObjectVersion, Restored


class Batch(BatchChanges):
    """Puts and deletes that become true together, or not at all: at the end of `async with`, or by
    `commit`."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self._to = bucket

    async def commit(self, *, timeout: float = OPERATION_SECONDS) -> list[ObjectInfo]:
        """Make all of it true; what was put, in order. PreconditionFailed and NotFound name the object that
        stood in the way, and then nothing was changed. Afterwards the batch is empty."""
        return await self._to.commit(self, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.commit()


class Bucket(Reading):
    """A bucket as it is now."""

    def __init__(
        self, session: VolumeSession, view: VolumeView, offload: Offload, wall: Callable[[], float]
    ) -> None:
        super().__init__(session, 0)
        self._session = session
        self.view = view
        self.name = view.name
        self._offload = offload
        self._wall = wall
        self.policy = view.policy

    async def put(
        self,
        name: str,
        data: Data,
        *,
        metadata: dict[str, str] | None = None,
        if_absent: bool = False,
        if_etag: str | None = None,
        timeout: float = OPERATION_SECONDS,
    ) -> ObjectInfo:
        """Make `data` the object called `name`; durable, as the policy says, when this returns. With
        `if_absent` or `if_etag` only if there is none, or it is still that version; PreconditionFailed
        otherwise. A path or file object is read in pieces, so it may be larger than memory; nobody sees the
        object before all is there."""
        key = key_of(name)
        modified = self._wall()
        meta = encode_meta(metadata, modified)
        expected = expected_version(if_absent, if_etag)
        session = self._session
        view = as_buffer(data)
        try:
            if view is not None and view.nbytes <= INLINE_BYTES_MAX:
                size = view.nbytes
                sequence, crc = await session.put_small(key, meta, view, expected, timeout)
            elif view is not None:
                sequence, size, crc = await session.put(key, meta, BytesSource(view), expected, timeout)
            elif isinstance(data, os.PathLike):
                sequence, size, crc = await self._put_path(key, meta, data, expected, timeout)
            elif hasattr(data, "read"):
                source = FileSource(cast("BinaryIO", data), self._offload)
                sequence, size, crc = await session.put(key, meta, source, expected, timeout)
            else:
                raise refuse_data(data)
        except PreconditionFailed as error:
            raise self._changed(name, expected) from error
        return ObjectInfo(
            name, size, etag_of(sequence, crc), modified, dict(metadata) if metadata else {}, sequence
        )

    async def _put_path(
        self, key: bytes, meta: bytes, path: os.PathLike[str], expected: int, timeout: float
    ) -> tuple[int, int, int]:
        with await self._offload(lambda: open_file(path)) as file:
            return await self._session.put(key, meta, FileSource(file, self._offload), expected, timeout)

    async def delete(
        self, name: str, *, if_etag: str | None = None, timeout: float = OPERATION_SECONDS
    ) -> None:
        """Delete the object; snapshots keep it. NotFound, or PreconditionFailed when it is another
        version."""
        expected = expected_version(False, if_etag)
        session = self._session
        try:
            await session.change(Delete(key_of(name), expected), timeout)
        except NotFound as error:
            raise self.not_found(name, error) from None
        except PreconditionFailed as error:
            raise self._changed(name, expected) from error

    def batch(self) -> Batch:
        """Collect up to 1,000 puts and deletes that become true together: `put` and `delete` it, then
        `commit`. Values have up to 128 KiB each, and all of them, with names and metadata, 768 KiB."""
        return Batch(self)

    async def commit(self, changes: BatchChanges, timeout: float) -> list[ObjectInfo]:
        """What `Batch.commit` does."""
        return await commit(self._session, self._wall, changes, timeout)

    async def snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """Keep the bucket as it is now under a name: instant, whatever the size. AlreadyExists."""
        check_snapshot_name(name)
        record = await self._session.ask(SnapshotCreate(name), SnapshotRecord, timeout)
        return Snapshot(self._session, record)

    async def snapshots(self, *, timeout: float = OPERATION_SECONDS) -> list[Snapshot]:
        """All of them, oldest first."""
        records = await fetch_snapshots(self._session, timeout)
        return [Snapshot(self._session, record) for record in records]

    async def at(self, snapshot: str | datetime, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """The snapshot of that name, or the newest taken at or before an instant. NotFound."""
        records = await fetch_snapshots(self._session, timeout)
        return Snapshot(self._session, choose_snapshot(self.name, records, snapshot))

    def diff(
        self,
        since: Moment,
        until: Moment | None = None,
        *,
        prefix: str = "",
        timeout: float = OPERATION_SECONDS,
    ) -> Changes:
        """What was added, changed and removed since one snapshot, up to another or up to now, in order of the
        names' bytes; only names with `prefix`. Content is compared, checksum, size and metadata with its time
        of writing, so what was changed and restored is not named. Each page is as of when it was asked for,
        where now is meant. `timeout` is for each page. NotFound, when the first page is asked for."""
        return Changes(self._session, ChangeCursor(since, until, prefix), timeout)

    async def log(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Sequence[ObjectVersion]:
        """Every version of an object that is there now or that a snapshot shows, newest first; what was
        overwritten between two snapshots is gone. NotFound when no snapshot has it either."""
        try:
            return await fetch_log(self._session, name, timeout)
        except NotFound as error:
            raise self.not_found(name, error) from None

    async def restore(
        self,
        names: str | Iterable[str] | None = None,
        *,
        at: Moment,
        prefix: str | None = None,
        to: str | None = None,
        dry_run: bool = False,
        on_changes: OnChanges | None = None,
        timeout: float = OPERATION_SECONDS,
    ) -> Restored:
        """Make objects what they were at a snapshot, without copying their bytes: those that are named, or
        all with a prefix; one that did not exist then is deleted. With `to`, leave them and restore to that
        name, or with that prefix in place of theirs. A safety snapshot is taken first, if there is anything
        to do: restoring the same to it is the way back, save for what others write meanwhile to the same
        names. Readers may see a part of it while it runs; repeated, it goes on. `on_changes` is told of
        each page of changes. NotFound."""
        plan = plan_restore(names, prefix, to)
        return await restore(
            self._session, self._wall, plan, at, dry_run=dry_run, on_changes=on_changes, timeout=timeout
        )

    async def rollback(
        self, snapshot: Moment, *, on_changes: OnChanges | None = None, timeout: float = OPERATION_SECONDS
    ) -> Restored:
        """Make the whole bucket what it was at a snapshot: `restore` of every name. Readers may see a part of
        it while it runs. A safety snapshot of now is taken first, and its name is in the answer."""
        plan = Plan(None, "", None, "rollback")
        return await restore(
            self._session, self._wall, plan, snapshot, dry_run=False, on_changes=on_changes, timeout=timeout
        )

    async def clone(self, snapshot: Moment, name: str, *, timeout: float = OPERATION_SECONDS) -> Bucket:
        """Make a bucket called `name` of a snapshot: with its objects, writable, under the same policy.
        Nothing is copied, so it is instant, whatever the size; what either of the two changes, the other
        does not see. The snapshot may be deleted afterwards, and so may this bucket. NotFound,
        AlreadyExists."""
        session = await clone_of(self._session, self.view.kind, snapshot, name, timeout)
        return Bucket(session, await session.fetch_view(timeout), self._offload, self._wall)

    async def flatten(self, *, timeout: float = OPERATION_SECONDS) -> VolumeView:
        """Let a clone copy what it still has in common with what it was made of, in the background, so that
        this need not be kept for it any more. Returns at once: `clone_of` of what this returns, and of
        `store.buckets()`, is empty when it is done. It begins by itself when what it was made of is
        deleted."""
        return await flatten(self._session, timeout)

    async def hold_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """Let nobody delete a snapshot, nor its bucket, until it is released. May be repeated. NotFound."""
        return await self._hold(name, True, timeout)

    async def release_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """Let a held snapshot be deleted again. May be repeated. NotFound."""
        return await self._hold(name, False, timeout)

    async def _hold(self, name: str, held: bool, timeout: float) -> Snapshot:
        check_snapshot_name(name)
        try:
            record = await self._session.ask(SnapshotHold(name, held), SnapshotRecord, timeout)
        except NotFound as error:
            raise self._no_snapshot(name, error) from None
        return Snapshot(self._session, record)

    async def delete_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Give up a snapshot, and what only it still needed. NotFound, or SnapshotHeld."""
        check_snapshot_name(name)
        try:
            await self._session.change(SnapshotDelete(name), timeout)
        except NotFound as error:
            raise self._no_snapshot(name, error) from None
        except SnapshotHeld:
            raise SnapshotHeld(f"Snapshot {name!r} of bucket {self.name!r}") from None

    def _no_snapshot(self, name: str, error: NotFound) -> NotFound:
        """A missing bucket stays what it is."""
        if str(error.fields[0]).startswith("snapshot "):
            return NotFound(f"snapshot {name!r} of bucket {self.name!r}")
        return error

    async def facts(self, *, timeout: float = OPERATION_SECONDS) -> dict[str, int | float | str]:
        """Numbers about the bucket, by name: keys, bytes, chunks, … as its owner counts them."""
        return (await self._session.ask(VolumeInfo(), VolumeFacts, timeout)).facts

    def _changed(self, name: str, expected: int) -> PreconditionFailed:
        words = object_words(self.name, name)
        if expected == ABSENT:
            return PreconditionFailed(f"There is already an {words}.")
        return PreconditionFailed(f"The {words} is not the version of that etag any more.")
