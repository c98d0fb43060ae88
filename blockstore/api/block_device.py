"""Block devices: a virtual disk in the store. The async classes; `blocking_device.py` has the other twin.

A write is durable, as the device's policy says, when its method returns. When `timeout` runs out it raises
Unavailable, and whether the bytes were written is then not known, block by block; but it is decided before
any later write of this writer begins. `timeout` is for each request that an operation is made of, retries
included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import trio

from blockstore.api.block_diff import RangeCursor
from blockstore.api.block_reading import SnapshotKeeper, choose, fetch_size, read_range, words
from blockstore.api.block_writing import BlockWriting, Writer, take_over
from blockstore.api.cloning import clone_of, flatten
from blockstore.api.history import Moment, fetch_snapshots
from blockstore.api.session import VolumeSession
from blockstore.api.value_source import as_buffer
from blockstore.codec.messages import (
    SnapshotCreate,
    SnapshotDelete,
    SnapshotRecord,
    VolumeFacts,
    VolumeInfo,
    VolumeView,
)
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import InvalidRequest, NotFound
from blockstore.kinds.block import RangeChange, check_range, check_size
from blockstore.kinds.bucket import check_snapshot_name
from blockstore.kinds.turns import Wake


class DeviceSnapshot:
    """A device as it was, under a name. It never changes."""

    def __init__(self, session: VolumeSession, record: SnapshotRecord, size: int) -> None:
        self._session = session
        self._map = SnapshotKeeper()
        self.device = session.name
        self.record = record
        self.name = record.name
        self.sequence = record.sequence
        self.created = record.created  # wall clock, seconds since 1970
        self.size = size

    async def read(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> bytes:
        """The bytes as of then; what was never written reads as zeros."""
        start, end = check_range(offset, length, self.size)
        return await read_range(self._session, self._map, self.sequence, start, end, timeout)

    def __repr__(self) -> str:
        return f"<DeviceSnapshot {self.device}@{self.name}, {self.size:,} bytes>"


class RangeChanges:
    """An async iterator over the runs of a diff, fetched page by page."""

    def __init__(self, session: VolumeSession, cursor: RangeCursor, timeout: float) -> None:
        self._session = session
        self._cursor = cursor
        self._timeout = timeout
        self._page: list[RangeChange] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RangeChange:
        if not self._page:
            self._page = (await self._cursor.fetch(self._session, self._timeout))[::-1]
        if not self._page:
            raise StopAsyncIteration
        return self._page.pop()


class BlockDevice:
    """A virtual disk of any size up to 64 TiB, of which only what was written takes space."""

    def __init__(
        self, session: VolumeSession, view: VolumeView, size: int, writer: Writer | None = None
    ) -> None:
        self._session = session
        self._writer = writer
        self._size = size
        self.view = view
        self.name = view.name
        self.policy = view.policy

    @property
    def size(self) -> int:
        """In bytes; of a device open for reading as it was when opened."""
        return self._size if self._writer is None else self._writer.size

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writer is not None

    @property
    def writer(self) -> Writer | None:
        """What it writes with."""
        return self._writer

    async def read(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> bytes:
        """The bytes; what was never written, or discarded, reads as zeros."""
        start, end = check_range(offset, length, self.size)
        return await read_range(self._session, self._writer, 0, start, end, timeout)

    async def write(
        self,
        offset: int,
        data: bytes | bytearray | memoryview,
        *,
        timeout: float = OPERATION_SECONDS,
    ) -> None:
        """Durable when this returns. Each block of 4 KiB is written whole or not at all; of a larger write
        that fails, some blocks may be written. TakenOver when another writer opened the device since."""
        view = as_buffer(data)
        if view is None:
            raise InvalidRequest(f"A device takes bytes, not {type(data).__name__}.")
        writing = self._writing(timeout)
        start, _ = check_range(offset, view.nbytes, self.size)
        if view.nbytes:
            await writing.write(start, view)

    async def write_zeroes(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> None:
        """Make the bytes zero, durably: whole blocks of 4 KiB without storing any."""
        writing = self._writing(timeout)
        start, end = check_range(offset, length, self.size)
        if start < end:
            await writing.zero(start, end)

    async def discard(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> None:
        """Give back what the bytes take. They read as zeros afterwards, exactly, as after `write_zeroes`."""
        await self.write_zeroes(offset, length, timeout=timeout)

    async def flush(self, *, timeout: float = OPERATION_SECONDS) -> None:
        """Every write that returned is durable already; what this adds is that none that failed can still
        come true afterwards. TakenOver as for writing, if that is known already."""
        await self._writing(timeout).flush()

    async def resize(self, size: int, *, timeout: float = OPERATION_SECONDS) -> None:
        """What is cut off is gone, and reads as zeros should the device grow again. A shrinking that fails
        may have zeroed some of it; repeat it."""
        await self._writing(timeout).resize(check_size(size))

    async def snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> DeviceSnapshot:
        """Keep the device as it is now under a name: instant, whatever the size. Every write that returned
        is in it. AlreadyExists."""
        check_snapshot_name(name)
        record = await self._session.ask(SnapshotCreate(name), SnapshotRecord, timeout)
        return await self._snapshot(record, timeout)

    async def snapshots(self, *, timeout: float = OPERATION_SECONDS) -> list[DeviceSnapshot]:
        """All of them, oldest first."""
        records = await fetch_snapshots(self._session, timeout)
        return [await self._snapshot(record, timeout) for record in records]

    async def at(self, snapshot: Moment, *, timeout: float = OPERATION_SECONDS) -> DeviceSnapshot:
        """The snapshot of that name, or the newest taken at or before an instant. NotFound."""
        return await self._snapshot(await choose(self._session, snapshot, timeout), timeout)

    async def delete_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Give up a snapshot, and what only it still needed. NotFound."""
        check_snapshot_name(name)
        try:
            await self._session.change(SnapshotDelete(name), timeout)
        except NotFound as error:
            if str(error.fields[0]).startswith("snapshot "):
                raise NotFound(f"snapshot {name!r} of {words(self.name)}") from None
            raise

    def diff(
        self, since: Moment, until: Moment | None = None, *, timeout: float = OPERATION_SECONDS
    ) -> RangeChanges:
        """What was written and what was zeroed since one snapshot, up to another or up to now, in whole
        blocks, in the order of the device. What was written again with the same bytes counts as written;
        where now is meant, each page is as of when it was asked for. `timeout` is for each request.
        NotFound, when the first page is asked for."""
        return RangeChanges(self._session, RangeCursor(since, until), timeout)

    async def clone(
        self,
        snapshot: Moment,
        name: str,
        *,
        new_wake: Callable[[], Wake] = trio.Event,
        timeout: float = OPERATION_SECONDS,
    ) -> BlockDevice:
        """Make a device called `name` of a snapshot, under the same policy, and open it for writing.
        Nothing is copied, so it is instant, whatever the size; what either of the two changes, the other
        does not see. The snapshot may be deleted afterwards, and so may this device. NotFound,
        AlreadyExists."""
        session = await clone_of(self._session, self.view.kind, snapshot, name, timeout)
        view = await session.fetch_view(timeout)
        return await open_for_writing(session, view, new_wake, timeout)

    async def flatten(self, *, timeout: float = OPERATION_SECONDS) -> VolumeView:
        """Let a clone copy what it still has in common with what it was made of, in the background, so that
        this need not be kept for it any more. Returns at once: `clone_of` of what this returns, and of
        `store.block_devices()`, is empty when it is done. It begins by itself when what it was made of is
        deleted."""
        return await flatten(self._session, timeout)

    async def facts(self, *, timeout: float = OPERATION_SECONDS) -> dict[str, int | float | str]:
        """Numbers about the device, by name: size_bytes; allocated_bytes, what was written and still shows
        in it or in a snapshot; and what its owner counts."""
        size = await fetch_size(self._session, 0, timeout)
        facts = (await self._session.ask(VolumeInfo(), VolumeFacts, timeout)).facts
        return {"size_bytes": size, "allocated_bytes": facts.get("live_bytes", 0), **facts}

    def __repr__(self) -> str:
        return f"<BlockDevice {self.name}, {self.size:,} bytes>"

    async def _snapshot(self, record: SnapshotRecord, timeout: float) -> DeviceSnapshot:
        return DeviceSnapshot(
            self._session, record, await fetch_size(self._session, record.sequence, timeout)
        )

    def _writing(self, timeout: float) -> BlockWriting:
        if self._writer is None:
            raise InvalidRequest(
                f"{words(self.name).capitalize()} is open for reading only; open it with `writable=True`, "
                "which makes this its one writer."
            )
        self._writer.check(self.name)
        return BlockWriting(self._session, self._writer, timeout)


async def open_for_writing(
    session: VolumeSession, view: VolumeView, new_wake: Callable[[], Wake], timeout: float
) -> BlockDevice:
    """Take the device over from its former writer."""
    writer = await take_over(session, new_wake, timeout)
    return BlockDevice(session, view, writer.size, writer)
