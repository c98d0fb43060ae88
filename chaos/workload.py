"""Writers and readers that use the store as anybody would, and write down what they were told."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import trio

from blockstore import aio
from blockstore.errors import BlockStoreError, NotFound
from blockstore.ids import KiB, MiB
from chaos.history import HEAD_BYTES, Bounds, History

SIZES = (HEAD_BYTES, 1 * KiB, 4 * KiB, 40 * KiB, 128 * KiB, 300 * KiB, 1 * MiB, 4 * MiB)
WEIGHTS = (8, 24, 32, 16, 12, 6, 3, 1)
"""Mostly what rides in the journal, some that goes past it: both ways are under fire all the time."""

OBJECTS_PER_WRITER = 20
DELETED = 0.08
"""How often a writer deletes instead."""

SNAPSHOTS_KEPT = 8
"""Past it one of them, drawn, is read and deleted while faults go on."""
READ_IN_SNAPSHOT = 0.15


@dataclass(frozen=True, slots=True)
class Load:
    """On each bucket: so many writers and as many readers, and a pause of `pace` seconds between two requests
    of one client: the daemons, not the clients, shall have the processors."""

    n_writers: int = 3
    pace: float = 0.004


@dataclass(slots=True)
class Gaps:
    """The longest time without an acknowledged write to one bucket since the last fault began."""

    last: float = field(default_factory=time.monotonic)
    longest: float = 0.0

    def acknowledged(self) -> None:
        self.longest = self.longest_now()
        self.last = time.monotonic()

    def longest_now(self) -> float:
        """The gap that is still open included."""
        return max(self.longest, time.monotonic() - self.last)

    def begin_fault(self) -> None:
        self.longest = 0.0


class Workload:
    """Clients of one bucket, until stopped."""

    def __init__(self, bucket: aio.Bucket, history: History, gaps: Gaps, seed: int, load: Load) -> None:
        self._bucket, self._history, self.gaps = bucket, history, gaps
        self._seed, self._load = seed, load
        self._rng = random.Random(f"{seed} snapshots")
        self._stopping = False
        self._snapshots: dict[str, Bounds] = {}
        self.n_snapshots = 0

    def stop(self) -> None:
        """Each client finishes what it is at."""
        self._stopping = True

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._load.n_writers):
                nursery.start_soon(self._write, number)
                nursery.start_soon(self._read, number)

    async def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed} writer {number}")
        history = self._history
        while not self._stopping:
            name = f"writer-{number}/object-{rng.randrange(OBJECTS_PER_WRITER)}"
            size = rng.choices(SIZES, WEIGHTS)[0]
            is_deletion = rng.random() < DELETED and history.is_there(name)
            version, data = (history.ask_deletion(name), b"") if is_deletion else history.ask(name, size)
            try:
                if is_deletion:
                    await self._bucket.delete(name)
                else:
                    await self._bucket.put(name, data)
            except BlockStoreError as error:
                history.fail(name, version, repr(error))
            else:
                history.acknowledge(name, version)
                self.gaps.acknowledged()
            await trio.sleep(self._load.pace)

    async def _read(self, number: int) -> None:
        rng = random.Random(f"{self._seed} reader {number}")
        while not self._stopping:
            names = sorted(self._history.registers)
            if names and self._snapshots and rng.random() < READ_IN_SNAPSHOT:
                await self._check_in_snapshot(rng.choice(sorted(self._snapshots)), [rng.choice(names)])
            elif names:
                await self._check(rng.choice(names))
            await trio.sleep(self._load.pace)

    async def _check(self, name: str) -> None:
        floor = self._history.floor(name)
        try:
            data = await self._bucket.get(name)
        except NotFound:
            data = None
        except BlockStoreError as error:
            self._history.violations.append(f"reading {name} failed: {error!r}")
            return
        self._history.check(name, floor, data)

    async def snapshot(self, name: str) -> None:
        """Take one, and note between which versions each object must be in it."""
        before = self._history.bounds_before()
        try:
            await self._bucket.snapshot(name)
        except BlockStoreError as error:
            self._history.violations.append(f"snapshot {name} failed: {error!r}")
            return
        self._snapshots[name] = self._history.bounds(before)
        self.n_snapshots += 1
        if len(self._snapshots) > SNAPSHOTS_KEPT:
            await self._retire(self._rng.choice(sorted(self._snapshots)))

    async def _retire(self, snapshot: str) -> None:
        await self._check_in_snapshot(snapshot, sorted(self._history.registers))
        self._snapshots.pop(snapshot, None)  # before it is deleted: from now on nobody may ask for it
        try:
            await self._bucket.delete_snapshot(snapshot)
        except BlockStoreError as error:
            self._history.violations.append(f"deleting snapshot {snapshot} failed: {error!r}")

    async def _check_in_snapshot(self, snapshot: str, names: list[str]) -> None:
        try:
            view = await self._bucket.at(snapshot)
        except BlockStoreError as error:
            if snapshot in self._snapshots:
                self._history.violations.append(f"opening snapshot {snapshot} failed: {error!r}")
            return
        for name in names:
            try:
                data = await view.get(name)
            except NotFound:
                data = None
            except BlockStoreError as error:
                self._history.violations.append(f"reading {name}@{snapshot} failed: {error!r}")
                continue
            bounds = self._snapshots.get(snapshot)
            if bounds is not None:  # else it was given up meanwhile
                self._history.check_snapshot(snapshot, name, bounds, data)

    async def verify(self) -> None:
        """After all faults: every object of the head and of every snapshot, and the names."""
        names = sorted(self._history.registers)
        for name in names:
            await self._check(name)
        try:
            self._history.check_listing([entry.name async for entry in self._bucket.list()])
        except BlockStoreError as error:
            self._history.violations.append(f"listing failed: {error!r}")
        for snapshot in sorted(self._snapshots):
            await self._check_in_snapshot(snapshot, names)
