"""Answering look-ups: the value itself when it is small and near, else where to fetch it.

Nothing is answered when a block of the map is missing: fetch it and ask again. Near is what the cache holds
or a disk of this node. A value that must be fetched costs its reader one more round trip, to the nodes that
have it, and this owner nothing."""

from __future__ import annotations

from collections.abc import Callable

from blockstore.codec.messages import Entry, Extent, Found, FoundMany, Lookup, LookupMany
from blockstore.codec.run_file import StoredVersion
from blockstore.config import FRAME_PAYLOAD_BYTES_MAX, INLINE_BYTES_MAX
from blockstore.errors import BlockStoreError, NotFound, Unavailable
from blockstore.ids import DiskId
from blockstore.runtime.interfaces import Buffer, IncomingCall
from blockstore.volume.requests import check_read, clip
from blockstore.volume.state import VolumeState
from blockstore.volume.value_cache import ValueCache
from blockstore.volume.world import World

OnValue = Callable[[bytes | None], None]


class ReadShell:
    def __init__(self, world: World, state: VolumeState, cache: ValueCache) -> None:
        self._world = world
        self._state = state
        self._cache = cache
        self._own_disks = world.own_disks()

    def lookup(self, call: IncomingCall, op: Lookup) -> None:
        state = self._state
        if op.at:
            check_read(op, state)
        version = state.map.find(op.key, op.at)
        if version is None:
            raise NotFound(f"object {op.key.decode(errors='backslashreplace')!r}")
        start, end = clip(op.start, op.end, version.size)
        if not op.want_data:
            call.answer(Found(_inlined(op.key, version, -1)))
            return

        def answer(value: bytes | None) -> None:
            if value is None:
                try:
                    placements = state.chunks.placements_of(version.extents)
                except Unavailable as replaced:  # while the disk was being read, and its chunk dropped
                    call.fail(replaced)
                    return
                call.answer(Found(_referring(op.key, version), placements))
            else:
                part = value if end - start == version.size else memoryview(value)[start:end]
                call.answer(Found(_inlined(op.key, version, end - start)), (part,))

        self._read_near(version, answer)

    def lookup_many(self, call: IncomingCall, op: LookupMany) -> None:
        check_read(op, self._state)
        versions = self._state.map.find_many(op.keys, op.at)
        gathered = _Gathered(call, op, self._state)
        for index, version in enumerate(versions):
            if version is None:
                gathered.note_missing()
            elif (take := gathered.taker(index, version)) is not None:
                self._read_near(version, take)

    def _read_near(self, version: StoredVersion, on_value: OnValue) -> None:
        """The whole value if it is small and near, else None."""
        if not version.size:
            on_value(b"")
            return
        extent = version.extents[0]
        if len(version.extents) > 1 or extent.length > INLINE_BYTES_MAX or extent.unit != extent.length:
            on_value(None)
            return
        cached = self._cache.find(extent.chunk, extent.offset, extent.shard)
        if cached is not None:
            on_value(cached)
            return
        near = next((disk for disk in self._disks_with(extent) if disk in self._own_disks), None)
        if near is None:
            on_value(None)
            return

        def read(data: bytes | BlockStoreError) -> None:
            if isinstance(data, bytes):
                self._cache.keep(extent.chunk, extent.offset, data, extent.shard)
                on_value(data)
            else:
                on_value(None)  # damaged here: the reader takes it from another member

        self._world.local.read(near, extent.chunk, extent.offset, extent.length, read)

    def _disks_with(self, extent: Extent) -> tuple[DiskId, ...]:
        """Those that have all of the extent's bytes."""
        placement = self._state.chunks.find_placement(extent.chunk)
        if placement is None:
            return ()
        if placement.k == 1:
            return placement.disks
        return () if extent.shard < 0 else (placement.disks[extent.shard],)


class _Gathered:
    """One answer for many keys, sent when the last value has come. Values beyond a frame's bound are only
    referred to."""

    def __init__(self, call: IncomingCall, op: LookupMany, state: VolumeState) -> None:
        self._call = call
        self._op = op
        self._state = state
        self._entries: list[Entry | None] = [None] * len(op.keys)
        self._values: list[Buffer | None] = [None] * len(op.keys)
        self._referred: list[StoredVersion] = []
        self._n_missing_values = len(op.keys)
        self._size = 0
        if not op.keys:
            call.answer(FoundMany(()))

    def note_missing(self) -> None:
        self._one_less()

    def taker(self, index: int, version: StoredVersion) -> OnValue | None:
        """Who takes the value; None when it is not wanted or has no room, so that it need not be read."""
        start, end = clip(*self._op.ranges[index], version.size) if self._op.ranges else (0, version.size)
        n_bytes = end - start
        if not self._op.want_data:
            self._refer(index, version)
            return None
        if self._size + n_bytes > FRAME_PAYLOAD_BYTES_MAX:
            self._refer(index, version)
            return None
        self._size += n_bytes

        def take(value: bytes | None) -> None:
            if value is None:
                self._size -= n_bytes
                self._refer(index, version)
            else:
                self._entries[index] = _anonymous(version, (), n_bytes)
                self._values[index] = value if n_bytes == version.size else memoryview(value)[start:end]
                self._one_less()

        return take

    def _refer(self, index: int, version: StoredVersion) -> None:
        self._entries[index] = _anonymous(version, version.extents, -1)
        self._referred.append(version)
        self._one_less()

    def _one_less(self) -> None:
        self._n_missing_values -= 1
        if self._n_missing_values:
            return
        try:
            placements = self._state.chunks.placements_of(
                extent for version in self._referred for extent in version.extents
            )
        except Unavailable as replaced:
            self._call.fail(replaced)
            return
        values = [value for value in self._values if value is not None]
        self._call.answer(FoundMany(tuple(self._entries), placements), values)


def _inlined(key: bytes, version: StoredVersion, n_bytes: int) -> Entry:
    assert version.meta is not None
    return Entry(key, version.sequence, version.meta, version.size, version.crc, (), n_bytes)


def _referring(key: bytes, version: StoredVersion) -> Entry:
    assert version.meta is not None
    return Entry(key, version.sequence, version.meta, version.size, version.crc, version.extents)


def _anonymous(version: StoredVersion, extents: tuple[Extent, ...], n_bytes: int) -> Entry:
    """Without key and metadata: of many at once, these would not fit one answer, and the asker has the
    keys."""
    return Entry(b"", version.sequence, b"", version.size, version.crc, extents, n_bytes)
