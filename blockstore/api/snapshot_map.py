"""The map of a snapshot at a client: which versions it has, and where their bytes are.

A snapshot never changes, so its map may be kept for as long as the snapshot is, and whoever has it reads
without asking the owner. What changes is where the bytes are, when they are packed or repaired: the node
then has them no more, the owner is asked once for the new place, and that is remembered here.

The map is one run, as owners write them, in memory or in a file: a look-up decodes one block of it (20 us).
Memory: the run, unless it is in a file, BLOCKS_BYTES_MAX, and PLACES_MAX places learned since. Pure but for
the file; any thread may use it."""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from blockstore.codec.map_file import MapTail, decode_map, encode_tail
from blockstore.codec.messages import Entry, KeyPage, ListKeys, Placement
from blockstore.codec.run_file import RunInfo, StoredVersion, encode_version
from blockstore.errors import BlockStoreError, InvalidRequest
from blockstore.ids import ChunkId, GiB, MiB, VolumeId
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import BlockCache, BlocksMissing, Held, SortedRun
from blockstore.volume.versioned_map import VersionedMap

MAP_BYTES_MAX = 256 * MiB
"""Of a map in memory: two million objects."""

DIRECTORY_BYTES_MAX = 4 * GiB
"""Of all maps in one directory: those used the longest ago are removed."""

BLOCKS_BYTES_MAX = 8 * MiB
PLACES_MAX = 50_000
SUFFIX = ".map"
PART_SUFFIX = ".part"
LEFT_SECONDS = 3_600.0

T = TypeVar("T")


class SnapshotMap:
    """Of the keys that begin with `prefix`; of others it knows nothing."""

    def __init__(self, image: mmap.mmap | bytes, path: Path | None = None) -> None:
        """`image`: a whole map file, which stands at `path` if it is one. Corrupt or UnknownFormat."""
        self._path = path
        self.image = memoryview(image)
        self.tail, index = decode_map(self.image)
        self._cache = BlockCache(BLOCKS_BYTES_MAX)
        self._cache.near = self._read_block
        self._map = VersionedMap(0, self._cache)
        self._run = SortedRun(self.tail.volume, self.tail.run, index, self._cache)
        self._map.load((self._run,), self.tail.run.n_keys)
        self._moved: dict[bytes, StoredVersion] = {}  # keys whose bytes are elsewhere by now
        self._placements = dict(self.tail.placements)
        self._left: set[ChunkId] = set()  # chunks that values were found to have left
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., SnapshotMap], tuple[object, ...]]:
        """To another process: by its file, if it has one."""
        if self._path is not None:
            return open_map, (self._path,)
        return SnapshotMap, (bytes(self.image),)

    def __len__(self) -> int:
        """How many keys it has."""
        return self.tail.run.n_keys

    def check(self) -> None:
        """Corrupt unless every block is as it was written; some 0.1 s for a million objects."""
        run = self._run
        for _ in run.bodies(0, run.n_blocks, self.image):
            pass

    def covers(self, prefix: bytes) -> bool:
        """Whether it has every key that begins so."""
        return prefix.startswith(self.tail.prefix)

    def find_many(self, keys: Iterable[bytes]) -> list[StoredVersion | None]:
        """The versions of keys that it covers, where they were found last."""
        with self._lock:
            moved = self._moved
            versions = self._with_blocks(lambda: self._map.find_many(keys))
            if moved:
                return [moved.get(key, version) for key, version in zip(keys, versions, strict=True)]
            return versions

    def page(self, op: ListKeys) -> KeyPage:
        """A page of a listing that it covers."""
        with self._lock:
            entries, rest = self._with_blocks(
                lambda: self._map.page(op.prefix, op.after, op.delimiter, op.limit, 0, op.start)
            )
            return KeyPage(tuple(entries), bool(rest), op.at, rest)

    def placements_of(self, version: StoredVersion) -> dict[ChunkId, Placement] | None:
        """Where the version's chunks are; None when it must be asked anew."""
        left, placements = self._left, self._placements
        found: dict[ChunkId, Placement] = {}
        for extent in version.extents:
            placement = placements.get(extent.chunk)
            if placement is None or extent.chunk in left:
                return None
            found[extent.chunk] = placement
        return found

    def note_moved(
        self, key: bytes, former: StoredVersion, now: StoredVersion, placements: dict[ChunkId, Placement]
    ) -> None:
        """A version's bytes were found elsewhere. Others that were with them will have left as well."""
        with self._lock:
            if len(self._moved) >= PLACES_MAX:
                self._moved.clear()  # those still wanted are asked for once more
            self._moved[key] = now
            self._left.update(
                {extent.chunk for extent in former.extents} - {extent.chunk for extent in now.extents}
            )
            for extent in now.extents:
                self._left.discard(extent.chunk)
                self._placements[extent.chunk] = placements[extent.chunk]

    def _read_block(self, run: SortedRun, block: int) -> memoryview:
        start, end = run.span(block, block + 1)
        return self.image[start:end]

    def _with_blocks(self, work: Callable[[], T]) -> T:
        held: Held = {}
        while True:
            try:
                with self._cache.holding(held):
                    return work()
            except BlocksMissing as missing:
                for run, first, last in missing.ranges:
                    start, end = run.span(first, last)
                    held.update(run.keep(first, last, self.image[start:end]))


class MapBuilder:
    """Makes a map of a snapshot's pages, in order: in memory, or with `directory` in a file there."""

    def __init__(
        self, cluster: str, volume: VolumeId, sequence: int, prefix: bytes, directory: Path | None
    ) -> None:
        self._identity = cluster, volume, sequence, prefix
        self._builder = RunBuilder(volume, sequence, 1)  # without a filter: blocks are near
        self._placements: dict[ChunkId, Placement] = {}
        self._directory = directory
        self._parts: list[bytes] = []
        self._size = 0
        self._file: BinaryIO | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._part = directory / f"{secrets.token_hex(8)}{PART_SUFFIX}"
            self._file = self._part.open("xb")

    def add(self, page: KeyPage) -> None:
        self._placements.update(page.placements)
        self._write(self._builder.add([(entry.key, _packed(entry), ()) for entry in page.entries]))

    def finish(self) -> SnapshotMap:
        last, _ = self._builder.finish()
        self._write(last)
        cluster, volume, sequence, prefix = self._identity
        index_at = self._builder.size
        run = RunInfo((), {}, self._size, sequence, self._builder.n_keys, index_at)
        self._write(encode_tail(MapTail(cluster, volume, sequence, prefix, run, self._placements)))
        if self._file is None or self._directory is None:
            return SnapshotMap(b"".join(self._parts))
        self._file.close()
        path = self._directory / map_file_name(cluster, volume, sequence, prefix)
        self._part.replace(path)
        _remove_old(self._directory, path)
        return open_map(path)

    def give_up(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        if self._file is not None:
            self._file.write(data)
            return
        if self._size > MAP_BYTES_MAX:
            raise InvalidRequest(
                f"The map of this snapshot takes more than {MAP_BYTES_MAX // MiB} MiB of memory; name a "
                "directory to keep it in, or a prefix that is shared by fewer objects."
            )
        self._parts.append(data)


def folder_of(directory: str | os.PathLike[str] | None) -> Path | None:
    return None if directory is None else Path(directory).expanduser()


def map_file_name(cluster: str, volume: VolumeId, sequence: int, prefix: bytes) -> str:
    """Of the map of that snapshot; whatever the names, no two have the same."""
    words = hashlib.sha256(b"\0".join((cluster.encode(), b"%d.%d" % (volume, sequence), prefix)))
    return words.hexdigest()[:32] + SUFFIX


def find_map(
    directory: Path, cluster: str, volume: VolumeId, sequence: int, prefix: bytes
) -> SnapshotMap | None:
    """The one that was kept there, if all of it is sound: what is damaged here is whole at the nodes."""
    path = directory / map_file_name(cluster, volume, sequence, prefix)
    try:
        found = open_map(path)
        found.check()
        os.utime(path)  # used just now
    except (OSError, BlockStoreError):
        return None
    tail = found.tail
    if (tail.cluster, tail.volume, tail.sequence, tail.prefix) != (cluster, volume, sequence, prefix):
        return None
    return found


def open_map(path: Path) -> SnapshotMap:
    """OSError, Corrupt or UnknownFormat."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return SnapshotMap(b"")
        return SnapshotMap(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)


def _remove_old(directory: Path, kept: Path) -> None:
    """Files that are in use stay readable: they are mapped. A part that nobody has written to for an hour was
    left by a process that was killed."""
    found: list[tuple[float, int, Path]] = []
    for path in directory.iterdir():
        with suppress(OSError):  # another process removes as well
            state = path.stat()
            if path.suffix == SUFFIX and path != kept:
                found.append((state.st_mtime, state.st_size, path))
            elif path.suffix == PART_SUFFIX and state.st_mtime < kept.stat().st_mtime - LEFT_SECONDS:
                path.unlink()
    left = DIRECTORY_BYTES_MAX - kept.stat().st_size
    for _, size, path in sorted(found, reverse=True):
        left -= size
        if left < 0:
            path.unlink(missing_ok=True)


def _packed(entry: Entry) -> bytes:
    return encode_version(StoredVersion(entry.sequence, entry.meta, entry.size, entry.crc, entry.extents))
