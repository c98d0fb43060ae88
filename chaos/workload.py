"""Writers and readers that use the store as anybody would, and write down what they were told."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import trio

from blockstore import aio
from blockstore.errors import BlockStoreError, NotFound
from blockstore.ids import KiB, MiB
from chaos.history import HEAD_BYTES, History

SIZES = (HEAD_BYTES, 1 * KiB, 4 * KiB, 40 * KiB, 128 * KiB, 300 * KiB, 1 * MiB, 4 * MiB)
WEIGHTS = (2, 6, 8, 4, 3, 2, 2, 1)
"""Mostly what rides in the journal, some that goes past it: both ways are under fire all the time."""

OBJECTS_PER_WRITER = 20


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
    """`n_writers` writers and as many readers on one bucket, until stopped."""

    def __init__(self, bucket: aio.Bucket, history: History, gaps: Gaps, seed: int, n_writers: int) -> None:
        self._bucket, self._history, self.gaps = bucket, history, gaps
        self._seed, self._n_writers = seed, n_writers
        self._stopping = False
        self.snapshots: dict[str, dict[str, tuple[int, int]]] = {}

    def stop(self) -> None:
        """Each client finishes what it is at."""
        self._stopping = True

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._n_writers):
                nursery.start_soon(self._write, number)
                nursery.start_soon(self._read, number)

    async def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed} writer {number}")
        history = self._history
        while not self._stopping:
            name = f"writer-{number}/object-{rng.randrange(OBJECTS_PER_WRITER)}"
            version, data = history.ask(name, rng.choices(SIZES, WEIGHTS)[0])
            try:
                await self._bucket.put(name, data)
            except BlockStoreError as error:
                history.fail(name, version, repr(error))
            else:
                history.acknowledge(name, version)
                self.gaps.acknowledged()

    async def _read(self, number: int) -> None:
        rng = random.Random(f"{self._seed} reader {number}")
        while not self._stopping:
            names = sorted(self._history.registers)
            if names:
                await self._check(rng.choice(names))
            else:
                await trio.lowlevel.checkpoint()

    async def _check(self, name: str) -> None:
        floor = self._history.floor(name)
        try:
            data = await self._bucket.get(name)
        except NotFound:
            self._history.check(name, floor, None)
        except BlockStoreError as error:
            self._history.violations.append(f"reading {name} failed: {error!r}")
        else:
            self._history.check(name, floor, data)

    async def snapshot(self, name: str) -> None:
        """Take one, and note between which versions each object must be in it."""
        floors = {key: register.acknowledged for key, register in self._history.registers.items()}
        try:
            await self._bucket.snapshot(name)
        except BlockStoreError as error:
            self._history.violations.append(f"snapshot {name} failed: {error!r}")
            return
        ceilings = {key: register.asked for key, register in self._history.registers.items()}
        self.snapshots[name] = {key: (floors.get(key, 0), ceiling) for key, ceiling in ceilings.items()}

    async def verify(self) -> None:
        """After all faults: every object of the head and of every snapshot."""
        for name in sorted(self._history.registers):
            await self._check(name)
        for snapshot, bounds in self.snapshots.items():
            view = await self._bucket.at(snapshot)
            for name, (floor, ceiling) in sorted(bounds.items()):
                try:
                    data = await view.get(name)
                except NotFound:
                    self._history.check(name, floor, None, ceiling)
                except BlockStoreError as error:
                    self._history.violations.append(f"reading {name}@{snapshot} failed: {error!r}")
                else:
                    self._history.check(name, floor, data, ceiling)
