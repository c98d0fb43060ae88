"""A store: its buckets and block devices, its health, its credentials. The async class; `blocking.py` has
the other twin."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import trio

from blockstore.api.block_device import BlockDevice, DeviceSnapshot, open_for_writing
from blockstore.api.block_holding import snapshot_together
from blockstore.api.block_reading import fetch_size, words
from blockstore.api.block_writing import Writer, make_header
from blockstore.api.bucket import Bucket
from blockstore.api.cluster import ClusterSession, unexpected
from blockstore.api.history import fetch_snapshots
from blockstore.api.session import VolumeSession
from blockstore.api.value_source import Offload
from blockstore.codec.messages import (
    CreateCredential,
    CreateVolume,
    Credentials,
    CredentialView,
    DeleteVolume,
    Events,
    FetchEvents,
    FetchStatus,
    ListCredentials,
    ListVolumes,
    NodeView,
    Ok,
    RevokeCredential,
    Status,
    View,
    Volumes,
    VolumeView,
    WireMessage,
)
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import AlreadyExists, InvalidRequest, NotFound, SnapshotHeld
from blockstore.kinds import block
from blockstore.kinds.bucket import check_bucket_name, check_snapshot_name
from blockstore.kinds.turns import Wake

KIND = "bucket"

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Opened:
    """What a store works with, for as long as it is open."""

    cluster: ClusterSession
    offload: Offload
    credentials: str | None  # path of the bundle it was opened with
    wall: Callable[[], float] = time.time


class Store:
    """`async with` it: everything it needs is opened on entering and closed on leaving."""

    def __init__(self, opening: AbstractAsyncContextManager[Opened]) -> None:
        self._opening = opening
        self._opened: Opened | None = None
        self._sessions: dict[tuple[str, str], VolumeSession] = {}  # by kind and name

    async def __aenter__(self) -> Self:
        self._opened = await self._opening.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened = None
        self._sessions.clear()
        await self._opening.__aexit__(
            None, None, None
        )  # so what the block raised goes on as it is, in no group

    # --- buckets

    async def create_bucket(
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
        check_bucket_name(name)
        if durability is not None:
            raise InvalidRequest(
                "Targets in nines come with the durability model; until then name a policy: 'replicated(3)' "
                "or 'ec(4,2)'."
            )
        cluster = self._cluster
        message = CreateVolume(name, KIND, policy or "", exist_ok, cluster.next_request())
        view = await self._control(message, View, timeout)
        if view.volume is None:
            raise unexpected(view)
        return self.bucket_of(view.volume)

    async def bucket(self, name: str, *, timeout: float = OPERATION_SECONDS) -> Bucket:
        """The bucket of that name. NotFound."""
        check_bucket_name(name)
        return self.bucket_of(await self.session(name).fetch_view(timeout))

    async def buckets(self, *, timeout: float = OPERATION_SECONDS) -> list[VolumeView]:
        """All of them, by name: with `name`, `policy`, `owner` and `epoch`."""
        volumes = (await self._control(ListVolumes(KIND), Volumes, timeout)).volumes
        return sorted(volumes, key=lambda volume: volume.name)

    async def delete_bucket(
        self, name: str, *, even_held: bool = False, timeout: float = OPERATION_SECONDS
    ) -> None:
        """Delete a bucket with all its objects and snapshots. NotFound, or SnapshotHeld when one of them is
        held. With `even_held` its owner is not asked about that, and need not be there."""
        check_bucket_name(name)
        cluster = self._cluster
        session = self.session(name)
        await session.fetch_view(timeout)  # there is one, and it is a bucket
        if not even_held:
            for snapshot in await fetch_snapshots(session, timeout):
                if snapshot.held:
                    raise SnapshotHeld(f"Snapshot {snapshot.name!r} of bucket {name!r}")
        try:
            await self._control(DeleteVolume(name, cluster.next_request()), object, timeout)
        except NotFound:
            raise NotFound(f"bucket {name!r}") from None
        self._sessions.pop((KIND, name), None)

    # --- block devices

    async def create_block_device(
        self,
        name: str,
        size: int,
        *,
        policy: str | None = None,
        exist_ok: bool = False,
        new_wake: Callable[[], Wake] = trio.Event,
        timeout: float = OPERATION_SECONDS,
    ) -> BlockDevice:
        """Make a virtual disk of `size` bytes, up to 64 TiB, which takes no space before it is written to,
        and open it for writing. Names are shared with buckets. AlreadyExists, unless `exist_ok` and size
        and policy agree."""
        block.check_device_name(name)
        block.check_size(size)
        cluster = self._cluster
        message = CreateVolume(name, block.KIND, policy or "", True, cluster.next_request())
        made = await self._control(message, View, timeout)
        view = made.volume
        if view is None:
            raise unexpected(made)
        session = self.session(name, block.KIND)
        if not await make_header(session, size, timeout):  # a device that was not finished has none
            if not exist_ok:
                raise AlreadyExists(words(name))
            found = await fetch_size(session, 0, timeout)
            if found != size:
                raise AlreadyExists(f"{words(name)} with {found:,} bytes, not {size:,}")
        return await open_for_writing(session, view, new_wake, timeout)

    async def block_device(
        self,
        name: str,
        *,
        writable: bool = False,
        new_wake: Callable[[], Wake] = trio.Event,
        timeout: float = OPERATION_SECONDS,
    ) -> BlockDevice:
        """The block device of that name. A device has one writer: opened with `writable`, it is taken over,
        and whoever wrote to it until now gets TakenOver. NotFound."""
        block.check_device_name(name)
        session = self.session(name, block.KIND)
        view = await session.fetch_view(timeout)
        if writable:
            return await open_for_writing(session, view, new_wake, timeout)
        return BlockDevice(session, view, await fetch_size(session, 0, timeout))

    async def block_devices(self, *, timeout: float = OPERATION_SECONDS) -> list[VolumeView]:
        """All of them, by name: with `name`, `policy`, `owner` and `epoch`."""
        volumes = (await self._control(ListVolumes(block.KIND), Volumes, timeout)).volumes
        return sorted(volumes, key=lambda volume: volume.name)

    async def snapshot_block_devices(
        self, names: Iterable[str], snapshot: str, *, timeout: float = OPERATION_SECONDS
    ) -> list[DeviceSnapshot]:
        """A snapshot of that name of each of these devices, all of one instant: what was acknowledged before
        is in them, and of writes that follow one another, to whichever device, no later one without the
        earlier. Their writers wait meanwhile, some milliseconds a device. NotFound, AlreadyExists;
        Unavailable when they could not all be held so long."""
        check_snapshot_name(snapshot)
        if isinstance(names, str):
            raise InvalidRequest(f"Name block devices in a list: [{names!r}].")
        wanted = list(dict.fromkeys(names))
        if not wanted:
            raise InvalidRequest("Name one block device at least.")
        for name in wanted:
            block.check_device_name(name)
        sessions = [self.session(name, block.KIND) for name in wanted]
        for session in sessions:
            await session.fetch_view(timeout)
        taken = await snapshot_together(sessions, snapshot, timeout)
        return [
            DeviceSnapshot(session, record, size)
            for session, (record, size) in zip(sessions, taken, strict=True)
        ]

    async def delete_block_device(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Delete a block device with all its snapshots. NotFound."""
        block.check_device_name(name)
        cluster = self._cluster
        try:
            await self.session(name, block.KIND).fetch_view(timeout)  # there is one, and it is a device
            await self._control(DeleteVolume(name, cluster.next_request()), object, timeout)
        except NotFound:
            raise NotFound(words(name)) from None
        self._sessions.pop((block.KIND, name), None)

    # --- the cluster

    async def status(self, *, timeout: float = OPERATION_SECONDS) -> Status:
        """One sentence about the data, then facts."""
        return await self._control(FetchStatus(), Status, timeout)

    async def events(
        self, *, after: int = 0, wait: float = 0.0, timeout: float = OPERATION_SECONDS
    ) -> Events:
        """What happened, numbered above `after`; with `wait`, up to so many seconds for something to happen.
        Pass `next` of the answer as `after` to go on. Each node numbers for itself: ask through one store."""
        return await self._control(FetchEvents(after, wait), Events, timeout + wait, wait)

    async def nodes(self, *, timeout: float = OPERATION_SECONDS) -> list[NodeView]:
        """The nodes that control knows, with their addresses, disks and whether they live."""
        cluster = self._cluster
        deadline = cluster.caller.now() + timeout
        return list((await cluster.repeat(lambda: cluster.fetch_view("", deadline), deadline)).nodes)

    # --- credentials

    async def create_credential(
        self, name: str, role: str, path: str | os.PathLike[str], *, timeout: float = OPERATION_SECONDS
    ) -> CredentialView:
        """Make a key for a client, list it with `role` (read, write or admin), and write its bundle to
        `path`, for this user's eyes only. The store's own credential must hold the authority's key: the
        administrator's does."""
        from blockstore.api import credentials  # slow to import, and rarely needed

        ready = self._ready
        own, file_path = ready.credentials, os.fspath(path)
        if own is None:
            raise InvalidRequest("This store runs without credentials, so there are none to make.")
        fingerprint = await ready.offload(lambda: credentials.make(own, name, role, file_path))
        message = CreateCredential(name, role, fingerprint, self._cluster.next_request())
        try:
            await self._control(message, Ok, timeout)
        except BaseException:
            os.unlink(file_path)
            raise
        return CredentialView(name, role, fingerprint, False)

    async def credentials(self, *, timeout: float = OPERATION_SECONDS) -> list[CredentialView]:
        return list((await self._control(ListCredentials(), Credentials, timeout)).credentials)

    async def revoke_credential(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Refuse a credential from now on, and close its connections. NotFound."""
        await self._control(RevokeCredential(name, self._cluster.next_request()), object, timeout)

    # --- inside

    @property
    def _ready(self) -> Opened:
        if self._opened is None:
            raise InvalidRequest("This store is not open; use it inside its `with` block.")
        return self._opened

    @property
    def _cluster(self) -> ClusterSession:
        return self._ready.cluster

    def session(self, name: str, kind: str = KIND) -> VolumeSession:
        """The one session with the volume of that name, which all its users share."""
        session = self._sessions.get((kind, name))
        if session is None:
            session = self._sessions[kind, name] = VolumeSession(self._cluster, name, kind)
        return session

    def bucket_of(self, view: VolumeView) -> Bucket:
        """The bucket that control described so."""
        return Bucket(self.session(view.name), view, self._ready.offload, self._ready.wall)

    def device_of(self, view: VolumeView, size: int, writer: Writer | None) -> BlockDevice:
        """The block device that control described so, open as it was opened."""
        return BlockDevice(self.session(view.name, block.KIND), view, size, writer)

    async def _control(self, message: WireMessage, kind: type[M], timeout: float, wait: float = 0.0) -> M:
        """Control's answer of that kind."""
        cluster = self._cluster
        answer = await cluster.control(message, cluster.caller.now() + timeout, wait)
        if not isinstance(answer, kind):
            raise unexpected(answer)
        return answer
