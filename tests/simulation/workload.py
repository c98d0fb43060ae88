"""Clients at work on one bucket: programs that put, get, delete, list, snapshot and race, and write down what
they were told.

Each client is a program on a machine of its own, which nothing hurts but its links. What it may be told is
what the library promises: success, the outcome asked about, or that nobody could be reached in time. Any
other error is a violation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from blockstore.aio import Bucket, Snapshot
from blockstore.errors import (
    AlreadyExists,
    BlockStoreError,
    Busy,
    NotFound,
    PreconditionFailed,
    QuorumLost,
    Unavailable,
)
from blockstore.ids import KiB
from chaos.history import HEAD_BYTES, Bounds, History, Register
from chaos.linearizability import ABSENT, Operation, find_contradiction

SIZES = (HEAD_BYTES, 200, 1 * KiB, 4 * KiB, 12 * KiB, 40 * KiB, 100 * KiB)
WEIGHTS = (6, 8, 8, 5, 3, 2, 1)
KEYS_PER_WRITER = 6
SHARED_KEYS = ("shared/a", "shared/b")
COUNTER = "shared/counter"
TIMEOUTS = (2.0, 8.0, 30.0)
"""Short ones give up in the middle of things, and what they asked for may happen later or never."""

PROMISED = (Unavailable, QuorumLost, Busy)
"""What an operation may end with while faults last."""


@dataclass
class Tally:
    n_acknowledged: int = 0
    n_given_up: int = 0
    n_reads: int = 0
    n_checked: int = 0  # reads, writes and deletions of one object whose order in time was checked
    last_write: float = 0.0
    longest_gap: float = 0.0


@dataclass
class BucketBook:
    """What is known of one bucket."""

    name: str
    policy: str
    history: History
    shared: dict[str, list[Operation]] = field(default_factory=dict[str, list[Operation]])
    increments: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """`(old etag, new etag, who)` of each compare-and-put that succeeded."""
    snapshots: dict[str, Bounds] = field(default_factory=dict[str, Bounds])


class Workload:
    """The clients of one bucket, and what they know. `accuse` hears what cannot be."""

    def __init__(
        self, book: BucketBook, tally: Tally, accuse: Callable[[str], None], think_seconds: float
    ) -> None:
        self.book, self.tally = book, tally
        self.accuse = self._accuse = accuse
        self._think_seconds = think_seconds
        self._stopping = False
        self._n_values = 0
        self._n_snapshots = 0

    def stop(self) -> None:
        """Each client finishes what it is at."""
        self._stopping = True

    async def repeat(self, rng: random.Random, act: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping:
            await trio.sleep(rng.expovariate(1 / self._think_seconds))
            if not self._stopping:
                await act()

    async def attempt(self, what: str, act: Awaitable[object]) -> BlockStoreError | None:
        return await self._try(what, act)

    async def _try(self, what: str, act: Awaitable[object]) -> BlockStoreError | None:
        """Carry it out; None, or the error, which is a violation unless it is a promised one."""
        try:
            await act
        except PROMISED as error:
            self.tally.n_given_up += 1
            return error
        except (NotFound, PreconditionFailed, AlreadyExists) as error:
            return error
        except BlockStoreError as error:
            self._accuse(f"{self.book.name}: {what} ended with {type(error).__name__}: {error}")
            return error
        return None

    def _acknowledged(self) -> None:
        now = trio.current_time()
        tally = self.tally
        tally.n_acknowledged += 1
        tally.longest_gap = max(tally.longest_gap, now - tally.last_write)
        tally.last_write = now

    # --- one writer for each object

    def writer(self, bucket: Bucket, number: int, rng: random.Random) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            if rng.random() < 0.1:
                async with trio.open_nursery() as nursery:  # a burst: many in one batch
                    for key in range(KEYS_PER_WRITER):
                        nursery.start_soon(self._put, bucket, f"w{number}/{key}", HEAD_BYTES, rng, 8.0)
                return
            name = f"w{number}/{rng.randrange(KEYS_PER_WRITER)}"
            if rng.random() < 0.15:
                await self._delete(bucket, name, rng.choice(TIMEOUTS))
            else:
                size = rng.choices(SIZES, WEIGHTS)[0]
                await self._put(bucket, name, size, rng, rng.choice(TIMEOUTS))

        return act

    async def _put(self, bucket: Bucket, name: str, size: int, rng: random.Random, timeout: float) -> None:
        history = self.book.history
        is_new = self._must_be_missing(name) and rng.random() < 0.5
        version, data = history.ask(name, size)
        error = await self._try(f"put {name}", bucket.put(name, data, if_absent=is_new, timeout=timeout))
        if error is None:
            history.acknowledge(name, version)
            self.tally.n_checked += 1
            self._acknowledged()
        elif not isinstance(error, PROMISED):
            self._accuse(f"{self.book.name}: put {name} (absent: {is_new}) was refused: {error}")

    async def _delete(self, bucket: Bucket, name: str, timeout: float) -> None:
        history = self.book.history
        may_be_missing = self._may_be_missing(name, history.floor(name))
        version = history.ask_deletion(name)
        error = await self._try(f"delete {name}", bucket.delete(name, timeout=timeout))
        if isinstance(error, NotFound) and not may_be_missing:
            self._accuse(f"{self.book.name}: delete {name} did not find what was acknowledged")
        if error is None or isinstance(error, NotFound):
            history.acknowledge(name, version)
            self.tally.n_checked += 1
            self._acknowledged()

    def _may_be_missing(self, name: str, floor: int) -> bool:
        """Whether a read that began at `floor` and ends now may find nothing."""
        register = self.book.history.registers.get(name, Register())
        return bool(register.absences(floor, register.asked))

    def _must_be_missing(self, name: str) -> bool:
        register = self.book.history.registers.get(name, Register())
        return register.acknowledged == register.asked and register.sizes[register.asked] is None

    # --- readers

    def reader(self, bucket: Bucket, rng: random.Random) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            names = sorted(self.book.history.registers)
            if not names:
                return
            dice = rng.random()
            if dice < 0.15:
                await self._read_many(bucket, rng.sample(names, min(len(names), 4)))
            elif dice < 0.25:
                await self._list(bucket)
            elif dice < 0.4 and self.book.snapshots:
                snapshot = rng.choice(list(self.book.snapshots))
                bounds = self.book.snapshots[snapshot]
                if bounds:
                    await self._read_of_snapshot(bucket, snapshot, rng.choice(sorted(bounds)))
            else:
                await self.check(bucket, rng.choice(names), rng.choice(TIMEOUTS))

        return act

    async def check(self, bucket: Bucket, name: str, timeout: float = 30.0) -> bool:
        """Read one object and judge what it shows. False when it could not be read."""
        floor = self.book.history.floor(name)
        found: list[bytes] = []

        async def get() -> None:
            found.append(await bucket.get(name, timeout=timeout))

        error = await self._try(f"get {name}", get())
        if isinstance(error, PROMISED):
            return False
        self.tally.n_reads += 1
        self._judge(name, floor, found[0] if found else None)
        return True

    def _judge(self, name: str, floor: int, data: bytes | None) -> None:
        self.tally.n_checked += 1
        self.book.history.check(name, floor, data)
        self._pass_on()

    def _pass_on(self) -> None:
        violations = self.book.history.violations
        for violation in violations:
            self._accuse(f"{self.book.name}: {violation}")
        violations.clear()

    async def _read_many(self, bucket: Bucket, names: list[str]) -> None:
        floors = [self.book.history.floor(name) for name in names]
        found: list[bytes] = []

        async def read() -> None:
            found.extend(await bucket.read_many(names, timeout=8.0))

        if await self._try(f"read_many {names}", read()) is None:
            for name, floor, data in zip(names, floors, found, strict=True):
                self.tally.n_reads += 1
                self._judge(name, floor, data)

    async def _list(self, bucket: Bucket) -> None:
        """A page is the map at one instant: what was there before and is not deleted is in it."""
        floors = {name: self.book.history.floor(name) for name in self.book.history.registers}
        listed: set[str] = set()

        async def read() -> None:
            async for info in bucket.list("w", timeout=8.0):
                listed.add(info.name)

        if await self._try("list", read()) is None:
            self.tally.n_reads += 1
            for name, floor in floors.items():
                if name not in listed and not self._may_be_missing(name, floor):
                    self._accuse(f"{self.book.name}: {name} is not listed, version {floor} was acknowledged")

    # --- snapshots

    def snapshotter(self, bucket: Bucket, rng: random.Random) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            book = self.book
            if len(book.snapshots) > 3 and rng.random() < 0.5:
                name = rng.choice(list(book.snapshots))
                del book.snapshots[name]
                error = await self._try("delete snapshot", bucket.delete_snapshot(name, timeout=8.0))
                if isinstance(error, NotFound):
                    self._accuse(f"{book.name}: snapshot {name} was not there to be deleted")
                return
            self._n_snapshots += 1
            name = f"s{self._n_snapshots}"
            before = book.history.bounds_before()
            error = await self._try(f"snapshot {name}", bucket.snapshot(name, timeout=8.0))
            if error is None:
                self._acknowledged()
                book.snapshots[name] = book.history.bounds(before)
            elif not isinstance(error, PROMISED):
                self._accuse(f"{book.name}: snapshot {name} was refused: {error}")

        return act

    async def _read_of_snapshot(self, bucket: Bucket, snapshot: str, name: str) -> bool:
        """Read an object as of a snapshot. False when it could not be read."""
        book = self.book
        found: list[bytes] = []

        async def get() -> None:
            view: Snapshot = await bucket.at(snapshot, timeout=8.0)
            found.append(await view.get(name, timeout=30.0))

        error = await self._try(f"get {name}@{snapshot}", get())
        if snapshot not in book.snapshots:
            return True  # it was deleted meanwhile
        if isinstance(error, PROMISED):
            return False
        if isinstance(error, NotFound) and str(error.fields[0]).startswith("snapshot "):
            self._accuse(f"{book.name}: snapshot {snapshot} is gone")
            return True
        self.judge_snapshot(snapshot, name, book.snapshots[snapshot], found[0] if found else None)
        return True

    def judge_snapshot(self, snapshot: str, name: str, bounds: Bounds, data: bytes | None) -> None:
        """What an object was as of a snapshot."""
        self.tally.n_reads += 1
        self.book.history.check_snapshot(snapshot, name, bounds, data)
        self._pass_on()

    # --- many writers for one object

    def racer(self, bucket: Bucket, who: str, rng: random.Random) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            name = rng.choice(SHARED_KEYS)
            operations = self.book.shared.setdefault(name, [])
            begin = trio.current_time()
            if rng.random() < 0.5:
                self._n_values += 1
                value = f"{who} {self._n_values} ".ljust(HEAD_BYTES, ".")
                error = await self._try(f"put {name}", bucket.put(name, value.encode(), timeout=8.0))
                end = trio.current_time() if error is None else math.inf
                operations.append(Operation("write", value, begin, end))
                if error is None:
                    self._acknowledged()
                return
            found: list[bytes] = []

            async def get() -> None:
                found.append(await bucket.get(name, timeout=8.0))

            error = await self._try(f"get {name}", get())
            if not isinstance(error, PROMISED):
                seen = found[0].decode() if found else ABSENT
                operations.append(Operation("read", seen, begin, trio.current_time()))
                self.tally.n_reads += 1

        return act

    def counter(self, bucket: Bucket, who: str, rng: random.Random) -> Callable[[], Awaitable[None]]:
        """Compare and put: of two who saw one version, one may replace it."""

        async def act() -> None:
            etag = ""

            async def look() -> None:
                nonlocal etag
                etag = (await bucket.stat(COUNTER, timeout=8.0)).etag

            error = await self._try(f"stat {COUNTER}", look())
            if isinstance(error, PROMISED):
                return
            new = ""

            async def put() -> None:
                nonlocal new
                if etag:
                    info = await bucket.put(COUNTER, who.encode(), if_etag=etag, timeout=8.0)
                else:
                    info = await bucket.put(COUNTER, who.encode(), if_absent=True, timeout=8.0)
                new = info.etag

            if await self._try(f"put {COUNTER}", put()) is None:
                self._acknowledged()
                self.book.increments.append((etag, new, who))

        return act

    # --- the end

    async def verify(self, bucket: Bucket) -> None:
        """When all faults are over: every object, now and in every snapshot. All can be read."""
        book = self.book
        for name in sorted(book.history.registers):
            if not await self.check(bucket, name):
                self._accuse(f"{book.name}: {name} cannot be read, though all faults are over")
        for snapshot, bounds in list(book.snapshots.items()):
            for name in sorted(bounds):
                if not await self._read_of_snapshot(bucket, snapshot, name):
                    self._accuse(f"{book.name}: {name}@{snapshot} cannot be read, though all faults are over")
        for name, operations in sorted(book.shared.items()):
            self.tally.n_checked += sum(one.end < math.inf for one in operations)
            why = find_contradiction(operations)
            if why:
                self._accuse(f"{book.name}: {name} is not linearizable: {why}")
        for why in find_forks(book.increments):
            self._accuse(f"{book.name}: {COUNTER}: {why}")


def find_forks(increments: list[tuple[str, str, str]]) -> list[str]:
    """Versions that two callers were told to have replaced, or made."""
    found: list[str] = []
    replaced: dict[str, str] = {}
    made: dict[str, str] = {}
    for old, new, who in increments:
        if old in replaced:
            found.append(f"{replaced[old]} and {who} both replaced version {old or 'none'}")
        if new in made:
            found.append(f"{made[new]} and {who} both made version {new}")
        replaced[old] = made[new] = who
    return found
