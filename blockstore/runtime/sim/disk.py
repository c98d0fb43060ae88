"""A disk in memory that fails in every way a disk may, from one seed.

What was written and what was synced are kept apart, sector by sector. `crash` is the power failing: of what
was not synced, each sector keeps a prefix of what was written to it, chosen by chance (the page cache
writes whole pages, in any order), and files and names whose directory was not synced may be gone. A sync
that fails drops the cached pages' dirt like Linux does: the bytes can still be read, some were never
stored, and the next sync "succeeds". A write may be lost or go to another place, and a sector may become
unreadable, and nobody is told until it is read.

Everything happens in `step`: one submitted write, one sync, one read. A test may drive it by hand and cut
the power between any two steps (`cut_after`), or run `serve` under trio, where each step takes a while on
the given clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Literal, TypeVar

import trio

from blockstore.errors import BlockStoreError, DiskFailed, NoSpace, NotFound
from blockstore.ids import GiB
from blockstore.runtime.interfaces import Clock, File, Write
from blockstore.runtime.sim.disk_content import PAGE_BYTES, SECTOR_BYTES, Content, get, put

OnDone = Callable[[BlockStoreError | None], None]
T = TypeVar("T")

USUAL_LATENCY_SECONDS = (0.000_05, 0.000_5)

PARTIAL = ".new"
"""Behind the name of a file that is being made; a crash leaves it."""


class PowerLost(Exception):
    """The moment that `cut_after` chose. Nothing that runs on this disk goes on; call `crash` and open it
    again."""


@dataclass(slots=True)
class _Fault:
    operation: Literal["write", "sync", "read"]
    name: str | None
    error: BlockStoreError
    left: int  # operations that still succeed


@dataclass(slots=True)
class _Stray:
    """A write to come that the disk will say it stored, and will not have."""

    name: str
    left: int  # writes of the file that are still stored
    to: tuple[str, int] | None  # where it goes instead; None: nowhere


class SimDisk:
    """`interfaces.Disk`, deterministic in `rng` and in what it is asked."""

    def __init__(
        self,
        rng: Random,
        clock: Clock | None = None,
        *,
        path: str = "sim",
        capacity_bytes: int = 64 * GiB,
        latency_seconds: tuple[float, float] = USUAL_LATENCY_SECONDS,
        after: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        """`after` makes a call after so many seconds: with it the disk works by itself, without `serve`."""
        self.rng = rng
        self._clock = clock
        self._path = path
        self.capacity_bytes = capacity_bytes
        self.latency_seconds = latency_seconds
        self._files: dict[str, Content] = {}
        self._removed: dict[str, Content] = {}  # whose removal is not durable yet
        self._faults: list[_Fault] = []
        self._strays: list[_Stray] = []
        self._jobs: deque[tuple[Callable[[], None], bool]] = deque()  # and whether they take time
        self._life = 0  # handles of an earlier one are dead
        self._stalled_until = 0.0
        self._work: trio.Event | None = None
        self._after = after
        self._is_at_work = False
        self.is_off = False
        self.n_steps = 0
        self.n_failed = 0  # operations, by what was injected or is unreadable
        self.n_astray = 0  # writes
        self._steps_left = -1
        self._on_cut: Callable[[], None] | None = None

    # --- what tests do to it

    def cut_after(self, n_steps: int, on_cut: Callable[[], None] | None = None) -> None:
        """Raise PowerLost instead of the step that comes after `n_steps` more, once `on_cut` was called."""
        self._steps_left, self._on_cut = n_steps, on_cut

    def crash(self, rng: Random | None = None) -> None:
        """Power fails and comes back: unsynced writes are lost in part, all handles and queues are gone."""
        rng = rng or self.rng
        for name, content in list(self._files.items()):
            if not content.named and rng.random() < 0.5:
                if content.replaces is None:
                    del self._files[name]
                    continue
                content = self._files[name] = content.replaces  # a rename is done or not
            content.lose(rng)
            content.forget_cache()
            content.named, content.replaces = True, None
        for name, content in self._removed.items():
            if name not in self._files and rng.random() < 0.5:
                content.lose(rng)
                content.forget_cache()
                self._files[name] = content
        self._removed.clear()
        self._faults.clear()
        self._end_life()

    def _end_life(self) -> None:
        self._jobs.clear()
        self._is_at_work = False
        self._life += 1
        self._steps_left, self._on_cut = -1, None

    def process_ended(self) -> None:
        """Who used the disk is gone: what was written is in the cache, and may still be lost by a crash; what
        waited never happens."""
        self._end_life()
        self.is_off = True

    def power_off(self) -> None:
        """A crash, after which nothing happens until `power_on`: what is left of the program meets PowerLost,
        or silence."""
        self.crash()
        self.is_off = True

    def power_on(self) -> None:
        self.is_off = False

    def inject(
        self,
        operation: Literal["write", "sync", "read"],
        error: BlockStoreError,
        name: str | None = None,
        after: int = 0,
    ) -> None:
        """Fail one operation (on file `name`, or on any) with `error`, after `after` that succeed."""
        self._faults.append(_Fault(operation, name, error, after))

    def misplace(self, name: str, after: int, to: tuple[str, int] | None = None) -> None:
        """Lose one write of this file, after `after` that are stored; or store it at another file's offset.
        Nobody is told: the cache shows what was written until the cache is dropped."""
        self._strays.append(_Stray(name, after, to))

    def make_unreadable(self, name: str, offset: int) -> None:
        """The sector there cannot be read any more, until it is written again."""
        self._files[name].unreadable.add(offset // SECTOR_BYTES)

    def heal(self) -> None:
        """What was injected and has not failed yet does not fail. What is unreadable stays so."""
        self._faults.clear()
        self._strays.clear()

    def random_place(self, name: str, rng: Random) -> int:
        """An offset of the file where something was written, if anything was."""
        content = self._files[name]
        pages = [page for page in content.cached if page * PAGE_BYTES < content.size]
        start = rng.choice(pages) * PAGE_BYTES if pages else 0
        return min(start + rng.randrange(PAGE_BYTES), content.size - 1)

    def flip(self, name: str, offset: int, mask: int = 1) -> None:
        """Rot: change stored and cached bits alike."""
        self.overwrite(name, offset, bytes([self.peek(name, offset, 1)[0] ^ mask]))

    def overwrite(self, name: str, offset: int, data: bytes) -> None:
        """A misdirected write: bytes that nobody meant to put there, stored and cached."""
        content = self._files[name]
        data = data[: max(0, content.size - offset)]
        put(content.stored, offset, data)
        put(content.cached, offset, data)

    def peek(self, name: str, offset: int, length: int) -> bytes:
        into = bytearray(length)
        get(self._files[name].cached, offset, memoryview(into))
        return bytes(into)

    def stall(self, seconds: float) -> None:
        """Answer nothing until then."""
        assert self._clock is not None
        self._stalled_until = self._clock.now() + seconds

    # --- running

    def step(self) -> bool:
        """Do the next operation; False when nothing is waiting."""
        if not self._jobs:
            return False
        job, _ = self._jobs.popleft()
        job()
        return True

    def settle(self) -> None:
        """Do all that waits, and what comes of it."""
        while self.step():
            pass

    async def serve(self) -> None:
        """Run for ever; syncs, reads and creations take their time."""
        clock = self._clock
        assert clock is not None
        while True:
            if not self._jobs:
                self._work = trio.Event()
                await self._work.wait()
            pause = self.rng.uniform(*self.latency_seconds) if self._jobs[0][1] else 0.0
            await clock.sleep_until(max(clock.now() + pause, self._stalled_until))
            self.step()

    def enqueue(self, job: Callable[[], None], takes_time: bool = True) -> None:
        if self.is_off:
            return
        self._jobs.append((job, takes_time))
        if self._after is not None:
            if not self._is_at_work:
                self._go_on(self._after)
        elif self._work is not None:
            self._work.set()

    def _go_on(self, after: Callable[[float, Callable[[], None]], None]) -> None:
        """Plan the next step that takes time, and all before it."""
        self._is_at_work = bool(self._jobs)
        if self._jobs:
            takes_time = any(takes_time for _, takes_time in self._jobs)
            pause = self.rng.uniform(*self.latency_seconds) if takes_time else 0.0
            if self._clock is not None:
                pause = max(pause, self._stalled_until - self._clock.now())
            after(pause, partial(self._work_on, after, self._life))

    def _work_on(self, after: Callable[[float, Callable[[], None]], None], life: int) -> None:
        if life != self._life:
            return
        if self._clock is not None and self._clock.now() < self._stalled_until:
            self._go_on(after)
            return
        takes_time = False
        while self._jobs and not takes_time and life == self._life:
            job, takes_time = self._jobs.popleft()
            job()
        if life == self._life:
            self._go_on(after)

    def tick(self) -> None:
        """Here the power may fail."""
        if self.is_off:
            raise PowerLost
        if self._steps_left == 0:
            if self._on_cut is not None:
                self._on_cut()
            raise PowerLost
        self._steps_left -= 1
        self.n_steps += 1

    def check(self, operation: Literal["write", "sync", "read"], name: str) -> None:
        for fault in self._faults:
            if fault.operation == operation and fault.name in (None, name):
                if fault.left == 0:
                    self._faults.remove(fault)
                    self.n_failed += 1
                    raise fault.error
                fault.left -= 1
                return

    def check_readable(self, name: str, content: Content, offset: int, length: int) -> None:
        if not content.is_readable(offset, length):
            self.n_failed += 1
            raise DiskFailed(name, "Input/output error")

    def goes_astray(self, name: str, data: bytes) -> bool:
        """Whether this write is one that the disk misplaces."""
        for stray in self._strays:
            if stray.name == name:
                if stray.left:
                    stray.left -= 1
                    continue
                self._strays.remove(stray)
                self.n_astray += 1
                if stray.to is not None and stray.to[0] in self._files:
                    self.overwrite(*stray.to, data)
                return True
        return False

    def will_fail(self, operation: Literal["write", "sync", "read"], name: str) -> bool:
        return any(fault.operation == operation and fault.name in (None, name) for fault in self._faults)

    @property
    def life(self) -> int:
        return self._life

    # --- Disk

    @property
    def path(self) -> str:
        return self._path

    async def offload(self, work: Callable[[], T]) -> T:
        """There are no threads here."""
        await trio.lowlevel.checkpoint()
        return work()

    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - sum(content.size for content in self._files.values()))

    def names(self, sub: str = "") -> list[str]:
        prefix = f"{sub}/" if sub else ""
        inside = [name.removeprefix(prefix) for name in self._files if name.startswith(prefix)]
        return sorted(name for name in inside if "/" not in name)

    def open(self, name: str, size: int | None = None) -> File:
        if name not in self._files:
            if size is None:
                raise NotFound(f"file {name} on {self._path}")
            self._claim(size)
            self.tick()
            self._files[name + PARTIAL] = Content(size)  # like the real disk: made whole under another name
            self.tick()
            self._files[name] = self._files.pop(name + PARTIAL)
            self.tick()
            self._files[name].named = True
        return SimFile(self, name, self._files[name])

    def submit_open(self, name: str, size: int, on_done: Callable[[File | BlockStoreError], None]) -> None:
        def job() -> None:
            try:
                file = self.open(name, size)
            except BlockStoreError as error:
                on_done(error)
            else:
                on_done(file)

        self.enqueue(job)

    def read_file(self, name: str) -> bytes | None:
        content = self._files.get(name)
        if content is None:
            return None
        self.check_readable(name, content, 0, content.size)
        return self.peek(name, 0, content.size)

    def replace_file(self, name: str, content: bytes) -> None:
        self._claim(len(content))
        self.tick()
        self._files[name + PARTIAL] = Content(len(content))
        self.tick()
        del self._files[name + PARTIAL]
        fresh = Content(len(content), named=True)
        fresh.write(0, content)
        fresh.sync()
        fresh.named, fresh.replaces = False, self._files.get(name)
        self._files[name] = fresh
        self.tick()
        fresh.named, fresh.replaces = True, None

    def remove(self, name: str) -> None:
        content = self._files.get(name)
        if content is None:
            return
        self.tick()
        self._removed[name] = self._files.pop(name)
        self.tick()
        del self._removed[name]

    def sync_all(self) -> None:
        self.tick()
        for name, content in self._files.items():
            if content.dirty:
                try:
                    self.check("sync", name)
                except BlockStoreError:
                    content.lose(self.rng)
                    raise
                content.sync()
        for content in self._files.values():
            content.named, content.replaces = True, None
        self._removed.clear()

    def submit_remove(self, name: str, on_done: OnDone) -> None:
        def job() -> None:
            self.remove(name)
            on_done(None)

        self.enqueue(job)

    def _claim(self, size: int) -> None:
        if size > self.free_bytes():
            raise NoSpace(self._path)


class SimFile:
    """`interfaces.File`; made by `SimDisk.open`."""

    def __init__(self, disk: SimDisk, name: str, content: Content) -> None:
        self._disk = disk
        self._name = name
        self._content = content
        self._life = disk.life
        self._queue: list[tuple[Sequence[Write], OnDone]] = []
        self._batch: list[tuple[Sequence[Write], OnDone]] = []
        self._busy = False
        self._error: BlockStoreError | None = None
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    def submit(self, writes: Sequence[Write], on_done: OnDone) -> None:
        if self._disk.is_off:
            return
        assert self._life == self._disk.life, "a handle from before the crash"
        if self._closed:
            self._disk.enqueue(partial(on_done, DiskFailed(self._name, "closed")))
            return
        self._queue.append((writes, on_done))
        if not self._busy:
            self._busy = True
            self._disk.enqueue(self._begin, takes_time=False)

    def _begin(self) -> None:
        """Take all that waits; each of its writes is a step, then the sync."""
        self._batch, self._queue = self._queue, []
        for writes, _ in self._batch:
            for write in writes:
                self._disk.enqueue(partial(self._write, write), takes_time=False)
        self._disk.enqueue(self._sync)

    def _write(self, write: Write) -> None:
        self._disk.tick()
        with self._failing():
            self._disk.check("write", self._name)
            if self._error is None:
                data = b"".join(write.buffers)
                if self._disk.goes_astray(self._name, data):
                    self._content.write_elsewhere(write.offset, data)
                else:
                    self._content.write(write.offset, data)

    def _sync(self) -> None:
        self._disk.tick()
        with self._failing():
            self._sync_content()
        batch, self._batch = self._batch, []
        if self._queue:
            self._disk.enqueue(self._begin, takes_time=False)
        else:
            self._busy = False
        outcome = self._error
        for _, on_done in batch:
            on_done(outcome)

    def _sync_content(self) -> None:
        if self._error is None:
            try:
                self._disk.check("sync", self._name)
            except BlockStoreError:
                self._content.lose(self._disk.rng)
                raise
            self._content.sync()

    @contextmanager
    def _failing(self) -> Generator[None]:
        try:
            yield
        except BlockStoreError as error:
            self._error = self._error or error

    def write(self, writes: Sequence[Write]) -> None:
        assert self._life == self._disk.life, "a handle from before the crash"
        if self._closed:
            raise DiskFailed(self._name, "closed")
        for write in writes:
            self._write(write)
        self._disk.tick()
        with self._failing():
            self._sync_content()
        if self._error is not None:
            raise self._error

    def forget_cached(self) -> None:
        if not self._content.dirty:
            self._content.forget_cache()

    def read_now(self, offset: int, into: memoryview) -> bool:
        if (
            self._closed
            or offset + len(into) > self._content.size
            or self._disk.will_fail("read", self._name)
            or not self._content.is_readable(offset, len(into))
        ):
            return False  # submit_read says why
        if self._disk.rng.random() < 0.02:
            return False  # not in the cache after all
        get(self._content.cached, offset, into)
        return True

    def read(self, offset: int, into: memoryview) -> None:
        if self._closed:
            raise DiskFailed(self._name, "closed")
        self._read(offset, into)

    def _read(self, offset: int, into: memoryview) -> None:
        self._disk.check("read", self._name)
        if offset + len(into) > self._content.size:
            raise DiskFailed(self._name, f"ends before byte {offset + len(into)}")
        self._disk.check_readable(self._name, self._content, offset, len(into))
        get(self._content.cached, offset, into)

    def submit_read(self, offset: int, into: memoryview, on_done: OnDone) -> None:
        closed = self._closed

        def job() -> None:
            try:
                if closed:
                    raise DiskFailed(self._name, "closed")
                self._read(offset, into)
            except BlockStoreError as error:
                on_done(error)
            else:
                on_done(None)

        self._disk.enqueue(job)

    def close(self) -> None:
        """What is under way is carried out by the next steps."""
        self._closed = True
