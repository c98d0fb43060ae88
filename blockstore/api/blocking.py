"""The blocking twin of the async classes: the same names, for any thread.

Nothing is decided here: each method hands the async one to the bridge and waits. Iterators fetch page by
page, and `open` gives a file that the standard library knows how to use.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, overload

from blockstore.api import bucket as async_bucket
from blockstore.api import reading as async_reading
from blockstore.api import snapshot as async_snapshot
from blockstore.api.batch import BatchChanges
from blockstore.api.blocking_device import BlockDevice, DeviceSnapshot
from blockstore.api.bridge import Bridge, ConnectedBridge, EmbeddedBridge
from blockstore.api.history import ChangeCursor, Moment
from blockstore.api.known_versions import KnownVersions, OnProgress, Versions, fetch_map
from blockstore.api.location import Cluster, PathLike, resolve
from blockstore.api.object_reader import OpenVersion, fetch_block, seek_position
from blockstore.api.opening import CONNECT_SECONDS, as_cluster, check_directories
from blockstore.api.reading import PageCursor, Wanted
from blockstore.api.restoring import OnChanges
from blockstore.api.samples import Samples
from blockstore.api.snapshot_map import SnapshotMap
from blockstore.api.store import Store as AsyncStore
from blockstore.api.value_source import Data
from blockstore.codec.messages import CredentialView, Events, NodeView, SnapshotRecord, Status, VolumeView
from blockstore.config import OPERATION_SECONDS
from blockstore.ids import KiB
from blockstore.kinds.bucket import CommonPrefix, ObjectInfo, prefix_key
from blockstore.kinds.object_history import Change, ObjectVersion, Restored
from blockstore.kinds.samples import Share

T = TypeVar("T")

FILE_BUFFER_BYTES = 64 * KiB
"""Of an open object, for small reads and lines; larger reads pass it by."""


def connect(
    location: PathLike | None = None,
    *,
    credentials: PathLike | None = None,
    timeout: float = CONNECT_SECONDS,
) -> Store:
    """The store at `tcp://host:port[,host:port…]`. Any thread may use it, and children made by fork, which
    connect by themselves. Unavailable when nobody answers there within `timeout`, PermissionDenied when the
    credential is not accepted."""
    return Store(ConnectedBridge(as_cluster(location, credentials), timeout))


def open(
    location: PathLike | Sequence[PathLike] | None = None,
    *,
    credentials: PathLike | None = None,
    create: bool = True,
    timeout: float = CONNECT_SECONDS,
) -> Store:
    """The store in a directory (or several: each is a disk); made there if there is none yet, unless `create`
    is False. It runs in a thread of this process until it is closed: `with` it. An address is connected
    to."""
    place = resolve(location, credentials)
    if isinstance(place, Cluster):
        return Store(ConnectedBridge(place, timeout))
    check_directories(place, create)
    return Store(EmbeddedBridge(place))


class Store:
    """`with` it, or `close` it when done."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def close(self) -> None:
        """Hang up, or stop the embedded node; using the store afterwards is InvalidRequest. May be
        repeated."""
        self._bridge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_bucket(
        self,
        name: str,
        *,
        policy: str | None = None,
        durability: str | None = None,
        exist_ok: bool = False,
        timeout: float = OPERATION_SECONDS,
    ) -> Bucket:
        """Make a bucket under a policy: `replicated(3)`, `ec(4,2)`; without one, the store's default.
        AlreadyExists, unless `exist_ok` and the policy agrees."""

        async def work(store: AsyncStore) -> VolumeView:
            made = await store.create_bucket(
                name, policy=policy, durability=durability, exist_ok=exist_ok, timeout=timeout
            )
            return made.view

        return Bucket(self._bridge, self._bridge.run(work))

    def bucket(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Bucket:
        """The bucket of that name. NotFound."""

        async def work(store: AsyncStore) -> VolumeView:
            return (await store.bucket(name, timeout=timeout)).view

        return Bucket(self._bridge, self._bridge.run(work))

    def buckets(self, *, timeout: float = OPERATION_SECONDS) -> list[VolumeView]:
        """All of them, by name: with `name`, `policy`, `owner` and `epoch`."""
        return self._bridge.run(lambda store: store.buckets(timeout=timeout))

    def delete_bucket(
        self, name: str, *, even_held: bool = False, timeout: float = OPERATION_SECONDS
    ) -> None:
        """Delete a bucket with all its objects and snapshots. NotFound, or SnapshotHeld when one of them is
        held. With `even_held` its owner is not asked about that, and need not be there."""
        self._bridge.run(lambda store: store.delete_bucket(name, even_held=even_held, timeout=timeout))

    def create_block_device(
        self,
        name: str,
        size: int,
        *,
        policy: str | None = None,
        exist_ok: bool = False,
        timeout: float = OPERATION_SECONDS,
    ) -> BlockDevice:
        """Make a virtual disk of `size` bytes, up to 64 TiB, which takes no space before it is written to,
        and open it for writing. Names are shared with buckets. AlreadyExists, unless `exist_ok` and size
        and policy agree."""

        async def work(store: AsyncStore) -> BlockDevice:
            made = await store.create_block_device(
                name, size, policy=policy, exist_ok=exist_ok, new_wake=self._bridge.new_wake, timeout=timeout
            )
            return BlockDevice(self._bridge, made.view, made.size, made.writer)

        return self._bridge.run(work)

    def block_device(
        self, name: str, *, writable: bool = False, timeout: float = OPERATION_SECONDS
    ) -> BlockDevice:
        """The block device of that name. A device has one writer: opened with `writable`, it is taken over,
        and whoever wrote to it until now gets TakenOver. NotFound."""

        async def work(store: AsyncStore) -> BlockDevice:
            found = await store.block_device(
                name, writable=writable, new_wake=self._bridge.new_wake, timeout=timeout
            )
            return BlockDevice(self._bridge, found.view, found.size, found.writer)

        return self._bridge.run(work)

    def block_devices(self, *, timeout: float = OPERATION_SECONDS) -> list[VolumeView]:
        """All of them, by name: with `name`, `policy`, `owner` and `epoch`."""
        return self._bridge.run(lambda store: store.block_devices(timeout=timeout))

    def snapshot_block_devices(
        self, names: Iterable[str], snapshot: str, *, timeout: float = OPERATION_SECONDS
    ) -> Sequence[DeviceSnapshot]:
        """A snapshot of that name of each of these devices, all of one instant: what was acknowledged before
        is in them, and of writes that follow one another, to whichever device, no later one without the
        earlier. Their writers wait meanwhile, some milliseconds a device. NotFound, AlreadyExists;
        Unavailable when they could not all be held so long."""
        wanted = tuple(names)
        found = self._bridge.run(
            lambda store: store.snapshot_block_devices(wanted, snapshot, timeout=timeout)
        )
        return [DeviceSnapshot(self._bridge, one.device, one.record, one.size) for one in found]

    def delete_block_device(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Delete a block device with all its snapshots. NotFound."""
        self._bridge.run(lambda store: store.delete_block_device(name, timeout=timeout))

    def status(self, *, timeout: float = OPERATION_SECONDS) -> Status:
        """One sentence about the data, then facts."""
        return self._bridge.run(lambda store: store.status(timeout=timeout))

    def events(self, *, after: int = 0, wait: float = 0.0, timeout: float = OPERATION_SECONDS) -> Events:
        """What happened, numbered above `after`; with `wait`, up to so many seconds for something to happen.
        Pass `next` of the answer as `after` to go on."""
        return self._bridge.run(lambda store: store.events(after=after, wait=wait, timeout=timeout))

    def nodes(self, *, timeout: float = OPERATION_SECONDS) -> list[NodeView]:
        """The nodes that control knows, with their addresses, disks and whether they live."""
        return self._bridge.run(lambda store: store.nodes(timeout=timeout))

    def create_credential(
        self, name: str, role: str, path: PathLike, *, timeout: float = OPERATION_SECONDS
    ) -> CredentialView:
        """Make a key for a client, list it with `role` (read, write or admin), and write its bundle to
        `path`, for this user's eyes only. The store's own credential must hold the authority's key: the
        administrator's does."""
        return self._bridge.run(lambda store: store.create_credential(name, role, path, timeout=timeout))

    def credentials(self, *, timeout: float = OPERATION_SECONDS) -> list[CredentialView]:
        return self._bridge.run(lambda store: store.credentials(timeout=timeout))

    def revoke_credential(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Refuse a credential from now on, and close its connections. NotFound."""
        self._bridge.run(lambda store: store.revoke_credential(name, timeout=timeout))


class Reading:
    """The reading methods: of a bucket as it is now, and of one of its snapshots."""

    def __init__(self, bridge: Bridge, bucket: str, at: int) -> None:
        self._bridge = bridge
        self._bucket = bucket
        self._at = at

    def _of(self, store: AsyncStore) -> async_reading.Reading:
        return async_reading.Reading(self._versions(store), self._at)

    def _versions(self, store: AsyncStore) -> Versions:
        return store.session(self._bucket)

    def get(
        self, name: str, *, start: int = 0, end: int | None = None, timeout: float = OPERATION_SECONDS
    ) -> bytes:
        """The object's bytes, or those in `[start, end)`; what lies past its end is left out. NotFound."""
        return self._bridge.run(
            lambda store: self._of(store).get(name, start=start, end=end, timeout=timeout)
        )

    def open(self, name: str, *, timeout: float = OPERATION_SECONDS) -> ObjectReader:
        """The object as a readable binary file. `timeout` is for each read."""
        version = self._bridge.run(lambda store: self._of(store).open_version(name, timeout))
        return ObjectReader(self._bridge, self._bucket, version)

    def read_many(self, wanted: Iterable[Wanted], *, timeout: float = OPERATION_SECONDS) -> list[bytes]:
        """The bytes of many objects, or `(name, start, end)` ranges of them, in the order asked. NotFound
        names the first that is missing. One request for hundreds of small objects: this is how to read a data
        set."""
        asked = tuple(wanted)  # here: an embedded store works in another thread
        return self._bridge.run(lambda store: self._of(store).read_many(asked, timeout=timeout))

    def stat(self, name: str, *, timeout: float = OPERATION_SECONDS) -> ObjectInfo:
        """Size, etag, times and metadata of an object. NotFound."""
        return self._bridge.run(lambda store: self._of(store).stat(name, timeout=timeout))

    @overload
    def list(
        self,
        prefix: str = "",
        *,
        delimiter: Literal[""] | None = None,
        timeout: float = OPERATION_SECONDS,
    ) -> Iterator[ObjectInfo]: ...
    @overload
    def list(
        self, prefix: str = "", *, delimiter: str, timeout: float = OPERATION_SECONDS
    ) -> Iterator[ObjectInfo | CommonPrefix]: ...
    def list(
        self, prefix: str = "", *, delimiter: str | None = None, timeout: float = OPERATION_SECONDS
    ) -> Iterator[Any]:
        """The objects whose names begin with `prefix`, in order of their names' bytes; with `delimiter`,
        names that go on past it are folded into one CommonPrefix. Of a bucket, each page is as of when it was
        asked for; of a snapshot, all are as of the snapshot. `timeout` is for each page."""
        return self._pages(PageCursor(prefix, delimiter, self._at), timeout)

    def _pages(self, cursor: PageCursor, timeout: float) -> Iterator[ObjectInfo | CommonPrefix]:
        while page := self._bridge.run(lambda store: cursor.fetch(self._versions(store), timeout)):
            yield from page


class Snapshot(Reading):
    """A named instant of a bucket, with the bucket's reading methods as of then. It never changes."""

    def __init__(self, bridge: Bridge, bucket: str, record: SnapshotRecord) -> None:
        super().__init__(bridge, bucket, record.sequence)
        self._record = record
        self.bucket = bucket
        self.name = record.name
        self.sequence = record.sequence
        self.created = record.created  # wall clock, seconds since 1970
        self.held = record.held  # when this was asked: it could not be deleted
        self._names: tuple[str, list[str]] | None = None  # below a prefix: they never change

    def cached(
        self,
        directory: PathLike | None = None,
        *,
        prefix: str = "",
        on_progress: OnProgress | None = None,
        timeout: float = OPERATION_SECONDS,
    ) -> CachedSnapshot:
        """The snapshot with its map at hand: which objects it has, and where they are, is fetched once (some
        100 bytes an object; `on_progress` is told how many objects are done), and then its reading methods
        ask only the nodes that have the bytes. With `directory` the map is kept in a file there, up to 4 GiB
        for all maps, and found again next time; else in memory, up to 256 MiB. With `prefix` only of objects
        whose names begin so; others are read as ever. Threads share the map, and so do children made by fork.
        `timeout` is for each 1,000 objects."""
        at, key = self.sequence, prefix_key(prefix)
        known = self._bridge.run(
            lambda store: fetch_map(store.session(self.bucket), at, key, directory, on_progress, timeout)
        )
        return CachedSnapshot(self._bridge, self.bucket, self._record, known)

    def samples(
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
    ) -> Samples:
        """Every object below `prefix` once, in batches of (name, bytes), in an order that `seed` and
        `epoch` alone decide. Of `world_size` processes, number `rank` gets its share: each sample goes to
        one of them. `start` is the batch to begin with, `prefetch` how many are read ahead. May be made
        before a fork, or pickled, and is iterated where the samples are wanted; names are listed when it is
        made."""
        share = Share(0, seed, epoch, rank, world_size, batch)
        if self._names is None or self._names[0] != prefix:
            self._names = prefix, [entry.name for entry in self.list(prefix, timeout=timeout)]
        names = self._names[1]
        read = partial(self.read_many, timeout=timeout)
        return Samples(names, replace(share, n=len(names)), start, prefetch, read)

    def __repr__(self) -> str:
        return f"<Snapshot {self.bucket}@{self.name} at sequence {self.sequence}>"


class CachedSnapshot(Snapshot):
    """A snapshot that knows where its objects are. It reads while the snapshot exists, whether or not the
    bucket has an owner just now."""

    def __init__(self, bridge: Bridge, bucket: str, record: SnapshotRecord, known: SnapshotMap) -> None:
        super().__init__(bridge, bucket, record)
        self.known = known

    def _versions(self, store: AsyncStore) -> Versions:
        return KnownVersions(store.session(self.bucket), self.known)


class Batch(BatchChanges):
    """Puts and deletes that become true together, or not at all: at the end of `with`, or by `commit`."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self._to = bucket

    def commit(self, *, timeout: float = OPERATION_SECONDS) -> list[ObjectInfo]:
        """Make all of it true; what was put, in order. PreconditionFailed and NotFound name the object that
        stood in the way, and then nothing was changed. Afterwards the batch is empty."""
        return self._to.commit(self, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()


class Bucket(Reading):
    """A bucket as it is now."""

    def __init__(self, bridge: Bridge, view: VolumeView) -> None:
        super().__init__(bridge, view.name, 0)
        self._view = view
        self.name = view.name
        self.policy = view.policy

    def _run(self, work: Callable[[async_bucket.Bucket], Coroutine[Any, Any, T]]) -> T:
        return self._bridge.run(lambda store: work(store.bucket_of(self._view)))

    def put(
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
        return self._run(
            lambda bucket: bucket.put(
                name, data, metadata=metadata, if_absent=if_absent, if_etag=if_etag, timeout=timeout
            )
        )

    def delete(self, name: str, *, if_etag: str | None = None, timeout: float = OPERATION_SECONDS) -> None:
        """Delete the object; snapshots keep it. NotFound, or PreconditionFailed when it is another
        version."""
        self._run(lambda bucket: bucket.delete(name, if_etag=if_etag, timeout=timeout))

    def batch(self) -> Batch:
        """Collect up to 1,000 puts and deletes that become true together: `put` and `delete` it, then
        `commit`. Values have up to 128 KiB each, and all of them, with names and metadata, 768 KiB."""
        return Batch(self)

    def commit(self, changes: BatchChanges, timeout: float) -> list[ObjectInfo]:
        """What `Batch.commit` does."""
        return self._run(lambda bucket: bucket.commit(changes, timeout))

    def snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """Keep the bucket as it is now under a name: instant, whatever the size. AlreadyExists."""
        return self._snapshot(self._run(lambda bucket: bucket.snapshot(name, timeout=timeout)))

    def snapshots(self, *, timeout: float = OPERATION_SECONDS) -> Sequence[Snapshot]:
        """All of them, oldest first."""
        found = self._run(lambda bucket: bucket.snapshots(timeout=timeout))
        return [self._snapshot(snapshot) for snapshot in found]

    def at(self, snapshot: str | datetime, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """The snapshot of that name, or the newest taken at or before an instant. NotFound."""
        return self._snapshot(self._run(lambda bucket: bucket.at(snapshot, timeout=timeout)))

    def diff(
        self,
        since: Moment,
        until: Moment | None = None,
        *,
        prefix: str = "",
        timeout: float = OPERATION_SECONDS,
    ) -> Iterator[Change]:
        """What was added, changed and removed since one snapshot, up to another or up to now, in order of the
        names' bytes; only names with `prefix`. Content is compared, checksum, size and metadata with its time
        of writing, so what was changed and restored is not named. Each page is as of when it was asked for,
        where now is meant. `timeout` is for each page. NotFound, when the first page is asked for."""
        return self._changes(ChangeCursor(since, until, prefix), timeout)

    def _changes(self, cursor: ChangeCursor, timeout: float) -> Iterator[Change]:
        while page := self._bridge.run(lambda store: cursor.fetch(store.session(self.name), timeout)):
            yield from page

    def log(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Sequence[ObjectVersion]:
        """Every version of an object that is there now or that a snapshot shows, newest first; what was
        overwritten between two snapshots is gone. NotFound when no snapshot has it either."""
        return self._run(lambda bucket: bucket.log(name, timeout=timeout))

    def restore(
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
        chosen = names if names is None or isinstance(names, str) else tuple(names)
        return self._run(
            lambda bucket: bucket.restore(
                chosen, at=at, prefix=prefix, to=to, dry_run=dry_run, on_changes=on_changes, timeout=timeout
            )
        )

    def rollback(
        self, snapshot: Moment, *, on_changes: OnChanges | None = None, timeout: float = OPERATION_SECONDS
    ) -> Restored:
        """Make the whole bucket what it was at a snapshot: `restore` of every name. Readers may see a part of
        it while it runs. A safety snapshot of now is taken first, and its name is in the answer."""
        return self._run(lambda bucket: bucket.rollback(snapshot, on_changes=on_changes, timeout=timeout))

    def clone(self, snapshot: Moment, name: str, *, timeout: float = OPERATION_SECONDS) -> Bucket:
        """Make a bucket called `name` of a snapshot: with its objects, writable, under the same policy.
        Nothing is copied, so it is instant, whatever the size; what either of the two changes, the other
        does not see. The snapshot may be deleted afterwards, and so may this bucket. NotFound,
        AlreadyExists."""

        async def work(bucket: async_bucket.Bucket) -> VolumeView:
            return (await bucket.clone(snapshot, name, timeout=timeout)).view

        return Bucket(self._bridge, self._run(work))

    def flatten(self, *, timeout: float = OPERATION_SECONDS) -> VolumeView:
        """Let a clone copy what it still has in common with what it was made of, in the background, so that
        this need not be kept for it any more. Returns at once: `clone_of` of what this returns, and of
        `store.buckets()`, is empty when it is done. It begins by itself when what it was made of is
        deleted."""
        return self._run(lambda bucket: bucket.flatten(timeout=timeout))

    def hold_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """Let nobody delete a snapshot, nor its bucket, until it is released. May be repeated. NotFound."""
        return self._snapshot(self._run(lambda bucket: bucket.hold_snapshot(name, timeout=timeout)))

    def release_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Snapshot:
        """Let a held snapshot be deleted again. May be repeated. NotFound."""
        return self._snapshot(self._run(lambda bucket: bucket.release_snapshot(name, timeout=timeout)))

    def delete_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Give up a snapshot, and what only it still needed. NotFound, or SnapshotHeld."""
        self._run(lambda bucket: bucket.delete_snapshot(name, timeout=timeout))

    def facts(self, *, timeout: float = OPERATION_SECONDS) -> dict[str, int | float | str]:
        """Numbers about the bucket, by name: keys, bytes, chunks, … as its owner counts them."""
        return self._run(lambda bucket: bucket.facts(timeout=timeout))

    def _snapshot(self, found: async_snapshot.Snapshot) -> Snapshot:
        return Snapshot(self._bridge, self.name, found.record)


class ObjectReader(io.BufferedReader):
    """An open object: a readable, seekable binary file of the version that it was opened at."""

    def __init__(self, bridge: Bridge, bucket: str, version: OpenVersion) -> None:
        super().__init__(cast("io.RawIOBase", _RawObject(bridge, bucket, version)), FILE_BUFFER_BYTES)
        self.info = version.info


class _RawObject(io.RawIOBase):
    def __init__(self, bridge: Bridge, bucket: str, version: OpenVersion) -> None:
        self._bridge = bridge
        self._bucket = bucket
        self._version = version
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        part = self._part(view.nbytes)
        view[: part.nbytes] = part
        return part.nbytes

    def readall(self) -> bytes:
        parts: list[memoryview] = []
        while part := self._part(max(0, self._version.info.size - self._position)):
            parts.append(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = seek_position(offset, whence, self._position, self._version.info.size)
        return self._position

    def tell(self) -> int:
        return self._position

    def _part(self, length: int) -> memoryview:
        """The next bytes, up to `length`; empty only at the end."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        version = self._version
        part = version.find(self._position, length)
        if part is None:
            start, end = version.plan(self._position, length)
            block = self._bridge.run(
                lambda store: fetch_block(store.session(self._bucket), version, start, end)
            )
            version.keep(start, block)
            part = memoryview(block)[:length]
        self._position += part.nbytes
        return part
