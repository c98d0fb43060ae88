"""A directory on a real file system, and the threads that write it.

Why own threads: a durable write costs one wake-up of the loop for each batch, not one for each write (10 us
instead of 65), and the thread that syncs can gather what has arrived meanwhile.

Writing. A file with work is in the ready queue once, so at most one thread serves it: the thread takes all
that waits, writes neighbouring pieces with one `pwritev`, calls `fdatasync` once, and hands all results to
the loop together. What arrives in the meantime is its next batch: that is the group commit. (Several
threads syncing one file collapse to a tenth of the rate, docs/design.) Reading cached pages needs no
thread; the rest, and creating files, has threads of its own, so that a read never waits behind a sync.

Errors. The first failed write or sync is final for the handle: the kernel may have dropped the pages it
could not write, so a later sync that succeeds proves nothing (Rebello et al., ATC 2020). Queues here have
no bound of their own: whoever submits counts what is under way (`node/disk_shell.py` answers Busy).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import trio

from blockstore.errors import BlockStoreError, Busy, DiskFailed, NoSpace, NotFound, StoreLocked, of_path
from blockstore.runtime.interfaces import Buffer, File, Write

T = TypeVar("T")
OnDone = Callable[[BlockStoreError | None], None]
Job = Callable[[], Callable[[], None]]
"""Runs in a worker thread; what it returns is then called in the loop."""

N_WRITERS = 4
"""Files synced at once. One disk gains little beyond four; a spinning one nothing beyond one."""
N_READERS = 3
N_MAKERS = 1
"""Creating and removing files: background work, in order."""

IOV_MAX = 1024
LOCK_NAME = "lock"
_RUNS_LOOKED_AT = 4


@asynccontextmanager
async def open_real_disk(path: str | Path) -> AsyncGenerator[RealDisk]:
    """The disk in the existing directory `path`, locked against every other process and its threads running.

    Raises StoreLocked, NotFound. On leaving, what was submitted is carried out before the threads end.
    """
    directory = Path(path)
    with _locked(directory):
        disk = RealDisk(directory, trio.lowlevel.current_trio_token())
        disk.start()
        try:
            yield disk
        finally:
            disk.stop()


@contextmanager
def _locked(directory: Path) -> Generator[None]:
    """Hold the directory's lock. `flock` belongs to the open file, so that one process cannot open it twice
    either."""
    try:
        fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise NotFound(f"directory {directory}") from error
    except OSError as error:
        raise of_path(error, str(directory)) from error
    owner, held = os.getpid(), [fd]

    def in_child() -> None:
        # A forked worker must not keep the store locked after we are gone; closing here does not unlock it.
        while held and os.getpid() != owner:
            os.close(held.pop())

    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            raise StoreLocked(str(directory), int(holder) if holder.isdigit() else 0) from error
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{owner}\n".encode(), 0)
        except OSError as error:
            raise of_path(error, str(directory)) from error
        os.register_at_fork(after_in_child=in_child)
        yield
    finally:
        while held:
            os.close(held.pop())


def _sync_file_system(fd: int) -> None:
    """`syncfs(2)`, which Python does not have: one call for a directory of thousands of files."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):  # not Linux
        os.sync()
    elif library.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _translate(error: OSError, where: str) -> BlockStoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(where)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Busy("the table of open files")  # no word about the disk
    return DiskFailed(where, error.strerror or str(error))


class RealDisk:
    """`interfaces.Disk`; made by `open_real_disk`."""

    def __init__(self, directory: Path, token: trio.lowlevel.TrioToken) -> None:
        self._directory = directory
        self._path = str(directory)
        self._token = token
        self.ready: SimpleQueue[RealFile | None] = SimpleQueue()
        self._reads: SimpleQueue[Job | None] = SimpleQueue()
        self._makes: SimpleQueue[Job | None] = SimpleQueue()
        self._done: deque[Callable[[], None]] = deque()
        self._wake_lock = threading.Lock()
        self._waking = False
        self._threads: list[threading.Thread] = []

    @property
    def path(self) -> str:
        return self._path

    async def offload(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work)

    # --- threads

    def start(self) -> None:
        def thread(target: Callable[..., None], *args: Any) -> None:
            name = f"disk {self._directory.name} {target.__name__.strip('_')}"
            self._threads.append(threading.Thread(target=target, args=args, name=name, daemon=True))

        for _ in range(N_WRITERS):
            thread(self._serve_files)
        for _ in range(N_READERS):
            thread(self._serve_jobs, self._reads)
        for _ in range(N_MAKERS):
            thread(self._serve_jobs, self._makes)
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """Let the threads finish what was submitted, and join them. Synchronous, so that it cannot be
        cancelled."""
        for _ in range(N_WRITERS):
            self.ready.put(None)
        for _ in range(N_READERS):
            self._reads.put(None)
        for _ in range(N_MAKERS):
            self._makes.put(None)
        for each in self._threads:
            each.join()
        self._threads.clear()
        self._drain()

    def _serve_files(self) -> None:
        while (file := self.ready.get()) is not None:
            file.serve()

    def _serve_jobs(self, jobs: SimpleQueue[Job | None]) -> None:
        while (job := jobs.get()) is not None:
            self.complete((job(),))

    def complete(self, calls: Iterable[Callable[[], None]]) -> None:
        """Have `calls` called in the loop, in this order. From any thread."""
        self._done.extend(calls)
        with self._wake_lock:
            if self._waking:
                return
            self._waking = True
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._drain)

    def _drain(self) -> None:
        with self._wake_lock:
            self._waking = False
        done = self._done
        for _ in range(len(done)):
            done.popleft()()

    # --- files

    def _full(self, name: str) -> Path:
        assert ".." not in name.split("/"), name
        return self._directory / name

    def free_bytes(self) -> int:
        facts = os.statvfs(self._path)
        return facts.f_bavail * facts.f_frsize

    def names(self, sub: str = "") -> list[str]:
        with self._translating(sub or self._path):
            try:
                with os.scandir(self._directory / sub) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
            except FileNotFoundError:
                return []

    def open(self, name: str, size: int | None = None) -> RealFile:
        full = self._full(name)
        with self._translating(name):
            try:
                return RealFile(self, name, os.open(full, os.O_RDWR | os.O_CLOEXEC))
            except FileNotFoundError as error:
                if size is None:
                    raise NotFound(f"file {name} on {self._path}") from error
            if size > self.free_bytes():  # asked first: a failing preallocation fills the disk for a moment
                raise NoSpace(self._path)
            self._make_folder(full.parent)
            # Preallocated under another name: a file that bears its own is whole.
            temporary = full.with_name(full.name + ".new")
            fd = os.open(temporary, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)
                os.fsync(fd)
                os.rename(temporary, full)
                _sync_directory(full.parent)
            except BaseException:
                os.close(fd)
                with suppress(OSError):
                    os.unlink(temporary)
                raise
            return RealFile(self, name, fd)

    def submit_open(self, name: str, size: int, on_done: Callable[[File | BlockStoreError], None]) -> None:
        def job() -> Callable[[], None]:
            try:
                return partial(on_done, self.open(name, size))
            except BlockStoreError as error:
                return partial(on_done, error)

        self._makes.put(job)

    def read_file(self, name: str) -> bytes | None:
        with self._translating(name):
            try:
                return self._full(name).read_bytes()
            except FileNotFoundError:
                return None

    def replace_file(self, name: str, content: bytes) -> None:
        full = self._full(name)
        temporary = full.with_name(full.name + ".new")
        with self._translating(name):
            self._make_folder(full.parent)
            fd = os.open(temporary, os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                _write_all(fd, 0, [content])
                os.fsync(fd)
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary)  # on a full disk its part takes the last room
                raise
            finally:
                os.close(fd)
            os.rename(temporary, full)
            _sync_directory(full.parent)

    def remove(self, name: str) -> None:
        full = self._full(name)
        with self._translating(name):
            try:
                os.unlink(full)
            except FileNotFoundError:
                return
            _sync_directory(full.parent)

    def sync_all(self) -> None:
        with self._translating(self._path):
            fd = os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _sync_file_system(fd)
            finally:
                os.close(fd)

    def submit_remove(self, name: str, on_done: OnDone) -> None:
        def job() -> Callable[[], None]:
            try:
                self.remove(name)
            except BlockStoreError as error:
                return partial(on_done, error)
            return partial(on_done, None)

        self._makes.put(job)

    def submit_job(self, job: Job) -> None:
        self._reads.put(job)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir()
            _sync_directory(folder.parent)

    @contextmanager
    def _translating(self, what: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise _translate(error, f"{self._path} ({what})") from error


class RealFile:
    """`interfaces.File`; made by `RealDisk.open`."""

    __slots__ = (
        "_busy",
        "_disk",
        "_error",
        "_fd",
        "_idle",
        "_lock",
        "_n_reading",
        "_name",
        "_no_wait",
        "_queue",
    )

    def __init__(self, disk: RealDisk, name: str, fd: int) -> None:
        self._disk = disk
        self._name = name
        self._fd = fd
        self._queue: list[tuple[Sequence[Write], OnDone]] = []
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._busy = False  # in the ready queue, or in the hands of a thread
        self._n_reading = 0  # in threads
        self._error: BlockStoreError | None = None
        self._no_wait = True

    @property
    def name(self) -> str:
        return self._name

    def submit(self, writes: Sequence[Write], on_done: OnDone) -> None:
        with self._lock:
            self._queue.append((writes, on_done))
            if self._busy:
                return
            self._busy = True
        self._disk.ready.put(self)

    def serve(self) -> None:
        """In a writer thread: one batch, then to the end of the ready queue if more has arrived."""
        with self._lock:
            batch, self._queue = self._queue, []
        if self._error is None:
            try:
                for offset, buffers in _runs(batch):
                    _write_all(self._fd, offset, buffers)
                os.fdatasync(self._fd)
            except OSError as error:
                self._error = _translate(error, f"{self._disk.path} ({self._name})")
        outcome = self._error
        self._disk.complete([partial(on_done, outcome) for _, on_done in batch])
        with self._lock:
            if not self._queue:
                self._busy = False
                self._idle.notify_all()
                return
        self._disk.ready.put(self)

    def write(self, writes: Sequence[Write]) -> None:
        if self._error is not None:
            raise self._error
        try:
            for write in writes:
                _write_all(self._fd, write.offset, write.buffers)
            os.fdatasync(self._fd)
        except OSError as error:
            self._error = _translate(error, f"{self._disk.path} ({self._name})")
            raise self._error from error

    def forget_cached(self) -> None:
        with suppress(OSError):  # advice: a file system that has none keeps its cache
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read_now(self, offset: int, into: memoryview) -> bool:
        if not self._no_wait:
            return False
        try:
            return os.preadv(self._fd, (into,), offset, os.RWF_NOWAIT) == len(into)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                self._no_wait = False  # this file system cannot; the threads can
            return False  # an EIO is met again, and reported, by submit_read

    def read(self, offset: int, into: memoryview) -> None:
        at = 0
        while at < len(into):
            try:
                n = os.preadv(self._fd, (into[at:],), offset + at)
            except OSError as error:
                raise _translate(error, f"{self._disk.path} ({self._name})") from error
            if n == 0:
                raise DiskFailed(
                    f"{self._disk.path} ({self._name})", f"ends before byte {offset + len(into)}"
                )
            at += n

    def submit_read(self, offset: int, into: memoryview, on_done: OnDone) -> None:
        def job() -> Callable[[], None]:
            outcome: BlockStoreError | None = None
            try:
                self.read(offset, into)
            except BlockStoreError as error:
                outcome = error
            with self._lock:
                self._n_reading -= 1
                self._idle.notify_all()
            return partial(on_done, outcome)

        with self._lock:
            self._n_reading += 1
        self._disk.submit_job(job)

    def close(self) -> None:
        with self._lock:
            while self._busy or self._n_reading:
                self._idle.wait()
            if self._fd < 0:
                return
            fd, self._fd = self._fd, -1
            self._error = self._error or DiskFailed(f"{self._disk.path} ({self._name})", "closed")
        os.close(fd)


def _runs(batch: list[tuple[Sequence[Write], OnDone]]) -> list[tuple[int, list[Buffer]]]:
    """The batch's writes with neighbours joined: 64 appends become one run of records and one of data.

    A write joins an earlier run when it continues it and overlaps none that began later; so order is kept
    where it matters.
    """
    runs = list[tuple[int, list[Buffer]]]()
    ends = list[int]()
    for writes, _ in batch:
        for write in writes:
            start = write.offset
            end = start + sum(map(len, write.buffers))
            at = len(runs) - 1
            lowest = max(0, len(runs) - _RUNS_LOOKED_AT)
            while at >= lowest and ends[at] != start and not (runs[at][0] < end and start < ends[at]):
                at -= 1
            if at >= lowest and ends[at] == start:
                runs[at][1].extend(write.buffers)
                ends[at] = end
            else:
                runs.append((start, list(write.buffers)))
                ends.append(end)
    return runs


def _write_all(fd: int, offset: int, buffers: Sequence[Buffer]) -> None:
    for first in range(0, len(buffers), IOV_MAX):
        some = buffers[first : first + IOV_MAX]
        expected = sum(map(len, some))
        n = os.pwritev(fd, some, offset)
        while n < expected:  # rare: a signal, or the last bytes of a full disk; the next call says why
            rest = memoryview(b"".join(some))[n:]
            n += os.pwrite(fd, rest, offset + n)
        offset += expected


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
