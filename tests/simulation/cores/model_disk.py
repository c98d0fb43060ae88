"""A disk as simple as can be: what is stored, and the batch that is being written.

Bytes change in few moments only: when a batch's sync is done, all of it is stored; when power fails, any
part of the batch under way is, sector by sector, and of what only waited nothing; when the process dies, a
beginning of the batch is there to be read, and may be lost by a later power failure until it is synced.
That is all that the shell of a disk can tell apart, for it reads only what it was told is durable. (The
disk of `runtime/sim/` also has caches, directories and lies; this one is for a million appends.)

Reads leave zeros where nothing was ever written: the shell hands over fresh buffers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from blockstore.errors import BlockStoreError, DiskFailed, NoSpace, NotFound
from blockstore.ids import GiB, MiB
from blockstore.runtime.interfaces import File, Write
from tests.simulation.heap import Event

T = TypeVar("T")
OnDone = Callable[[BlockStoreError | None], None]
SECTOR_BYTES = 512
FULL_BYTES = 40 * MiB
"""Free on a full disk: less than its node keeps in reserve, enough for what is needed to delete."""
Batch = list[tuple[Sequence[Write], OnDone]]


class Worker(Protocol):
    """The node that the disk is in."""

    def arrive(self, seconds: float, event: Event) -> None:
        """Run `event` about then, unless the node has crashed by then."""
        ...


class _Content:
    """A sparse file: in each MiB, the bytes from its beginning to the last ever written."""

    __slots__ = ("parts", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: dict[int, bytearray] = {}

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        part, start = divmod(offset, MiB)
        n = len(data)
        room = MiB - start
        if n > room:
            self.put(offset, memoryview(data)[:room])
            self.put(offset + room, memoryview(data)[room:])
            return
        content = self.parts.get(part)
        if content is None:
            content = self.parts[part] = bytearray()
        if len(content) < start:
            content.extend(bytes(start - len(content)))
        content[start : start + n] = data

    def get(self, offset: int, into: memoryview) -> None:
        part, start = divmod(offset, MiB)
        n = len(into)
        room = MiB - start
        if n > room:
            self.get(offset, into[:room])
            self.get(offset + room, into[room:])
            return
        content = self.parts.get(part)
        if content is not None and len(content) > start:
            found = content[start : start + n]
            into[: len(found)] = found


class ModelDisk:
    """`interfaces.Disk`."""

    def __init__(self, rng: random.Random, latency: float) -> None:
        self.rng = rng
        self.latency = latency
        self.path = "model"
        self.worker: Worker | None = None
        self.slowness = 1.0
        self.is_full = False
        self.syncs_to_fail = 0
        self.n_syncs = 0
        self.contents: dict[str, _Content] = {}
        self._writing: dict[ModelFile, None] = {}  # those with a batch under way
        self._unsynced: list[
            tuple[_Content, int, bytes]
        ] = []  # written by a process that died; what was there

    # --- faults

    def crash(self, *, power: bool) -> None:
        """Power fails, or only the process dies: then what it wrote can be read by the next one, and is lost
        only if power fails before somebody syncs it."""
        rng = self.rng
        if power:
            for content, offset, old in reversed(self._unsynced):
                if rng.random() < 0.5:
                    content.put(offset, old)
            self._unsynced.clear()
        for file in self._writing:
            writes = [write for writes, _ in file.batch for write in writes]
            if power:
                self._store_some(file.content, writes)
            else:
                for write in writes[: rng.randint(0, len(writes))]:
                    data = b"".join(write.buffers)
                    before = bytearray(len(data))
                    file.content.get(write.offset, memoryview(before))
                    self._unsynced.append((file.content, write.offset, bytes(before)))
                    file.content.put(write.offset, data)
        self._writing.clear()
        self.worker = None

    def _store_some(self, content: _Content, writes: list[Write]) -> None:
        rng = self.rng
        mood = rng.random()
        for write in writes:
            if mood < 0.25:
                return
            data = b"".join(write.buffers)
            if mood > 0.75 or rng.random() < 0.4:
                content.put(write.offset, data)
            elif rng.random() < 0.5:
                _tear(content, write.offset, data, rng)

    def sync_all(self) -> None:
        self._unsynced.clear()

    def rot(self) -> str | None:
        """Flip a bit in some fragment's records or data; where, or None if there is nothing."""
        names = [name for name in self.contents if name.startswith("fragments/")]
        if not names:
            return None
        name = self.rng.choice(names)
        content = self.contents[name].parts.get(self.rng.choice((0, 1)))
        if content is None or len(content) <= 8192:
            return None
        at = self.rng.randrange(8192, len(content))
        content[at] ^= 1 << self.rng.randrange(8)
        return f"{name} at {at}"

    # --- Disk

    async def offload(self, work: Callable[[], T]) -> T:
        return work()

    def free_bytes(self) -> int:
        return FULL_BYTES if self.is_full else 100 * GiB

    def names(self, sub: str = "") -> list[str]:
        prefix = f"{sub}/" if sub else ""
        inside = [name.removeprefix(prefix) for name in self.contents if name.startswith(prefix)]
        return sorted(name for name in inside if "/" not in name)

    def open(self, name: str, size: int | None = None) -> File:
        content = self.contents.get(name)
        if content is None:
            if size is None:
                raise NotFound(f"file {name} on {self.path}")
            if self.is_full and size > FULL_BYTES:
                raise NoSpace(self.path)
            content = self.contents[name] = _Content(size)
        return ModelFile(self, name, content)

    def submit_open(self, name: str, size: int, on_done: Callable[[File | BlockStoreError], None]) -> None:
        def job() -> None:
            try:
                on_done(self.open(name, size))
            except NoSpace as error:
                on_done(error)

        self.later(job)

    def read_file(self, name: str) -> bytes | None:
        content = self.contents.get(name)
        if content is None:
            return None
        assert content.size <= MiB, "a small file"
        return bytes(content.parts.get(0, b"")).ljust(content.size, b"\0")

    def replace_file(self, name: str, content: bytes) -> None:
        fresh = self.contents[name] = _Content(len(content))
        fresh.put(0, content)

    def remove(self, name: str) -> None:
        self.contents.pop(name, None)

    def submit_remove(self, name: str, on_done: OnDone) -> None:
        def job() -> None:
            self.remove(name)
            on_done(None)

        self.later(job)

    def later(self, job: Callable[[], None]) -> None:
        assert self.worker is not None, "a disk works for a node that runs"
        self.worker.arrive(self.latency * self.slowness * (0.5 + self.rng.random()), job)

    def writing(self, file: ModelFile) -> None:
        self._writing[file] = None

    def written(self, file: ModelFile) -> None:
        del self._writing[file]

    def synced(self, content: _Content) -> None:
        if self._unsynced:
            self._unsynced = [undo for undo in self._unsynced if undo[0] is not content]


def _tear(content: _Content, offset: int, data: bytes, rng: random.Random) -> None:
    at = 0
    while at < len(data):
        n = min(SECTOR_BYTES - (offset + at) % SECTOR_BYTES, len(data) - at)
        if rng.random() < 0.5:
            content.put(offset + at, data[at : at + n])
        at += n


class ModelFile:
    """`interfaces.File`."""

    __slots__ = ("_disk", "_error", "_queue", "batch", "content", "name")

    def __init__(self, disk: ModelDisk, name: str, content: _Content) -> None:
        self.name = name
        self.content = content
        self.batch: Batch = []
        self._disk = disk
        self._queue: Batch = []
        self._error: BlockStoreError | None = None

    def submit(self, writes: Sequence[Write], on_done: OnDone) -> None:
        self._queue.append((writes, on_done))
        if not self.batch:
            self._begin()

    def _begin(self) -> None:
        self.batch, self._queue = self._queue, []
        self._disk.writing(self)
        self._disk.later(self._synced)

    def _synced(self) -> None:
        disk, batch = self._disk, self.batch
        disk.n_syncs += 1
        if disk.syncs_to_fail and self._error is None:
            disk.syncs_to_fail -= 1
            self._error = DiskFailed(self.name, "input/output error")
        if self._error is None:
            put = self.content.put
            for writes, _ in batch:
                for write in writes:
                    for at, buffer in _placed(write):
                        put(at, buffer)
            disk.synced(self.content)
        disk.written(self)
        self.batch = []
        if self._queue:
            self._begin()
        for _, on_done in batch:
            on_done(self._error)

    def write(self, writes: Sequence[Write]) -> None:
        if self._error is not None:
            raise self._error
        for write in writes:
            for at, buffer in _placed(write):
                self.content.put(at, buffer)
        self._disk.synced(self.content)

    def read_now(self, offset: int, into: memoryview) -> bool:
        if self._disk.rng.random() < 0.1 or offset + len(into) > self.content.size:
            return False
        self.content.get(offset, into)
        return True

    def read(self, offset: int, into: memoryview) -> None:
        if offset + len(into) > self.content.size:
            raise DiskFailed(self.name, f"ends before byte {offset + len(into)}")
        self.content.get(offset, into)

    def submit_read(self, offset: int, into: memoryview, on_done: OnDone) -> None:
        def job() -> None:
            try:
                self.read(offset, into)
            except DiskFailed as error:
                on_done(error)
            else:
                on_done(None)

        self._disk.later(job)

    def forget_cached(self) -> None:
        """There is no cache: what a failed write left is what is stored."""

    def close(self) -> None:
        """What is under way is carried out."""


def _placed(write: Write) -> list[tuple[int, bytes | bytearray | memoryview]]:
    placed: list[tuple[int, bytes | bytearray | memoryview]] = []
    at = write.offset
    for buffer in write.buffers:
        placed.append((at, buffer))
        at += len(buffer)
    return placed
