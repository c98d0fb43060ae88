"""The blocking twin of `block_device.py`: the same names, for any thread.

A device may be written from many threads at once; `kinds/turns.py` sees to it that writes do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from blockstore.api import block_device as async_device
from blockstore.api.block_diff import RangeCursor
from blockstore.api.block_reading import SnapshotKeeper, read_range
from blockstore.api.block_writing import Writer
from blockstore.api.bridge import Bridge
from blockstore.api.history import Moment
from blockstore.codec.messages import SnapshotRecord, VolumeView
from blockstore.config import OPERATION_SECONDS
from blockstore.kinds.block import KIND, RangeChange, check_range

T = TypeVar("T")


class DeviceSnapshot:
    """A device as it was, under a name. It never changes."""

    def __init__(self, bridge: Bridge, device: str, record: SnapshotRecord, size: int) -> None:
        self._bridge = bridge
        self._map = SnapshotKeeper()
        self.device = device
        self.name = record.name
        self.sequence = record.sequence
        self.created = record.created  # wall clock, seconds since 1970
        self.size = size

    def read(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> bytes:
        """The bytes as of then; what was never written reads as zeros."""
        start, end = check_range(offset, length, self.size)
        return self._bridge.run(
            lambda store: read_range(
                store.session(self.device, KIND), self._map, self.sequence, start, end, timeout
            )
        )

    def __repr__(self) -> str:
        return f"<DeviceSnapshot {self.device}@{self.name}, {self.size:,} bytes>"


class BlockDevice:
    """A virtual disk of any size up to 64 TiB, of which only what was written takes space."""

    def __init__(self, bridge: Bridge, view: VolumeView, size: int, writer: Writer | None) -> None:
        self._bridge = bridge
        self._view = view
        self._size = size
        self._writer = writer
        self.name = view.name
        self.policy = view.policy

    def _run(self, work: Callable[[async_device.BlockDevice], Coroutine[Any, Any, T]]) -> T:
        return self._bridge.run(lambda store: work(store.device_of(self._view, self._size, self._writer)))

    @property
    def size(self) -> int:
        """In bytes; of a device open for reading as it was when opened."""
        return self._size if self._writer is None else self._writer.size

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writer is not None

    def read(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> bytes:
        """The bytes; what was never written, or discarded, reads as zeros."""
        return self._run(lambda device: device.read(offset, length, timeout=timeout))

    def write(
        self,
        offset: int,
        data: bytes | bytearray | memoryview,
        *,
        timeout: float = OPERATION_SECONDS,
    ) -> None:
        """Durable when this returns. Each block of 4 KiB is written whole or not at all; of a larger write
        that fails, some blocks may be written. TakenOver when another writer opened the device since."""
        self._run(lambda device: device.write(offset, data, timeout=timeout))

    def write_zeroes(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> None:
        """Make the bytes zero, durably: whole blocks of 4 KiB without storing any."""
        self._run(lambda device: device.write_zeroes(offset, length, timeout=timeout))

    def discard(self, offset: int, length: int, *, timeout: float = OPERATION_SECONDS) -> None:
        """Give back what the bytes take. They read as zeros afterwards, exactly, as after `write_zeroes`."""
        self._run(lambda device: device.discard(offset, length, timeout=timeout))

    def flush(self, *, timeout: float = OPERATION_SECONDS) -> None:
        """Every write that returned is durable already; what this adds is that none that failed can still
        come true afterwards. TakenOver as for writing, if that is known already."""
        self._run(lambda device: device.flush(timeout=timeout))

    def resize(self, size: int, *, timeout: float = OPERATION_SECONDS) -> None:
        """What is cut off is gone, and reads as zeros should the device grow again. A shrinking that fails
        may have zeroed some of it; repeat it."""
        self._run(lambda device: device.resize(size, timeout=timeout))

    def snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> DeviceSnapshot:
        """Keep the device as it is now under a name: instant, whatever the size. Every write that returned
        is in it. AlreadyExists."""
        return self._snapshot(self._run(lambda device: device.snapshot(name, timeout=timeout)))

    def snapshots(self, *, timeout: float = OPERATION_SECONDS) -> Sequence[DeviceSnapshot]:
        """All of them, oldest first."""
        found = self._run(lambda device: device.snapshots(timeout=timeout))
        return [self._snapshot(one) for one in found]

    def at(self, snapshot: Moment, *, timeout: float = OPERATION_SECONDS) -> DeviceSnapshot:
        """The snapshot of that name, or the newest taken at or before an instant. NotFound."""
        return self._snapshot(self._run(lambda device: device.at(snapshot, timeout=timeout)))

    def delete_snapshot(self, name: str, *, timeout: float = OPERATION_SECONDS) -> None:
        """Give up a snapshot, and what only it still needed. NotFound."""
        self._run(lambda device: device.delete_snapshot(name, timeout=timeout))

    def diff(
        self, since: Moment, until: Moment | None = None, *, timeout: float = OPERATION_SECONDS
    ) -> Iterator[RangeChange]:
        """What was written and what was zeroed since one snapshot, up to another or up to now, in whole
        blocks, in the order of the device. What was written again with the same bytes counts as written;
        where now is meant, each page is as of when it was asked for. `timeout` is for each request.
        NotFound, when the first page is asked for."""
        cursor = RangeCursor(since, until)
        while page := self._bridge.run(lambda store: cursor.fetch(store.session(self.name, KIND), timeout)):
            yield from page

    def clone(self, snapshot: Moment, name: str, *, timeout: float = OPERATION_SECONDS) -> BlockDevice:
        """Make a device called `name` of a snapshot, under the same policy, and open it for writing.
        Nothing is copied, so it is instant, whatever the size; what either of the two changes, the other
        does not see. The snapshot may be deleted afterwards, and so may this device. NotFound,
        AlreadyExists."""

        async def work(device: async_device.BlockDevice) -> BlockDevice:
            made = await device.clone(snapshot, name, new_wake=self._bridge.new_wake, timeout=timeout)
            return BlockDevice(self._bridge, made.view, made.size, made.writer)

        return self._run(work)

    def flatten(self, *, timeout: float = OPERATION_SECONDS) -> VolumeView:
        """Let a clone copy what it still has in common with what it was made of, in the background, so that
        this need not be kept for it any more. Returns at once: `clone_of` of what this returns, and of
        `store.block_devices()`, is empty when it is done. It begins by itself when what it was made of is
        deleted."""
        return self._run(lambda device: device.flatten(timeout=timeout))

    def facts(self, *, timeout: float = OPERATION_SECONDS) -> dict[str, int | float | str]:
        """Numbers about the device, by name: size_bytes; allocated_bytes, what was written and still shows
        in it or in a snapshot; and what its owner counts."""
        return self._run(lambda device: device.facts(timeout=timeout))

    def __repr__(self) -> str:
        return f"<BlockDevice {self.name}, {self.size:,} bytes>"

    def _snapshot(self, found: async_device.DeviceSnapshot) -> DeviceSnapshot:
        return DeviceSnapshot(self._bridge, self.name, found.record, found.size)
