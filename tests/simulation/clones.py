"""Clones of a bucket that others work on: a client makes them of snapshots, writes to them, flattens and
deletes some.

A clone is what its snapshot shows, which the bucket's own history judges, but for what was written to the
clone itself: by this client alone, one thing after the other."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from blockstore.aio import Bucket, Store
from blockstore.errors import BlockStoreError, NotFound
from blockstore.ids import KiB
from chaos.history import Bounds
from tests.simulation.workload import PROMISED, Workload

CLONES_MAX = 2
"""Of one bucket at a time: each has an owner, a journal and checkpoints of its own."""
VALUE_BYTES = (40, 300, 20 * KiB)
FLAT_SECONDS_MAX = 90.0


@dataclass
class CloneBook:
    bucket: Bucket
    snapshot: str
    bounds: Bounds
    own: dict[str, set[bytes | None]] = field(default_factory=dict[str, "set[bytes | None]"])
    """What an object may be that was written here: more than one thing after a write whose end is not
    known."""


class Cloner:
    def __init__(self, workload: Workload, store: Store, bucket: Bucket, rng: random.Random) -> None:
        self.n_made = 0
        self.clones: dict[str, CloneBook] = {}
        self._workload, self._book = workload, workload.book
        self._store, self._bucket, self._rng = store, bucket, rng
        self._is_acting = False

    async def act(self) -> None:
        self._is_acting = True
        try:
            await self._act()
        finally:
            self._is_acting = False

    async def _act(self) -> None:
        rng = self._rng
        dice = rng.random()
        if len(self.clones) < CLONES_MAX and dice < 0.4:
            await self._make()
        elif self.clones:
            name = rng.choice(list(self.clones))
            clone = self.clones[name]
            if dice < 0.55 and clone.bounds:
                await self._read(clone, rng.choice(sorted(clone.bounds)), 8.0)
            elif dice < 0.85:
                await self._write(clone, rng.choice([*sorted(clone.bounds), "own"]))
            elif dice < 0.93:
                await self._workload.attempt(f"flatten {name}", clone.bucket.flatten(timeout=8.0))
            else:
                del self.clones[name]
                await self._workload.attempt(f"delete {name}", self._store.delete_bucket(name, timeout=8.0))

    async def _make(self) -> None:
        book, rng = self._book, self._rng
        source, name = self._bucket, f"{book.name}-{self.n_made}"
        snapshot, bounds, own = "", Bounds(), dict[str, set[bytes | None]]()
        if self.clones and rng.random() < 0.3:  # a clone of a clone
            parent = self.clones[rng.choice(list(self.clones))]
            if await self._workload.attempt("snapshot", parent.bucket.snapshot(name, timeout=8.0)) is None:
                source, snapshot, bounds = parent.bucket, name, parent.bounds
                own = {key: set(values) for key, values in parent.own.items()}
                of = parent.snapshot
            else:
                return
        elif book.snapshots:
            of = snapshot = rng.choice(list(book.snapshots))
            bounds = book.snapshots[snapshot]
        else:
            return
        self.n_made += 1
        made: list[Bucket] = []

        async def clone() -> None:
            made.append(await source.clone(snapshot, name, timeout=8.0))

        error = await self._workload.attempt(f"clone {snapshot} as {name}", clone())
        if made:
            self.clones[name] = CloneBook(made[0], of, bounds, own)
        elif isinstance(error, NotFound):
            if snapshot in book.snapshots or source is not self._bucket:
                self._workload.accuse(f"{book.name}: {snapshot} could not be cloned: {error}")
        elif not isinstance(error, PROMISED):
            self._workload.accuse(f"{book.name}: {name} was refused: {error}")

    async def _write(self, clone: CloneBook, name: str) -> None:
        rng = self._rng
        value = None if rng.random() < 0.2 else rng.randbytes(rng.choice(VALUE_BYTES))
        if value is None:
            error = await self._workload.attempt(f"delete {name}", clone.bucket.delete(name, timeout=8.0))
        else:
            error = await self._workload.attempt(f"put {name}", clone.bucket.put(name, value, timeout=8.0))
        if error is None or isinstance(error, NotFound):
            clone.own[name] = {value}
        elif name in clone.own:
            clone.own[name].add(value)
        else:
            clone.bounds = {key: bounds for key, bounds in clone.bounds.items() if key != name}

    async def _read(self, clone: CloneBook, name: str, timeout: float) -> bool:
        """Read an object and judge what it shows. False when it could not be read."""
        found: list[bytes] = []

        async def get() -> None:
            found.append(await clone.bucket.get(name, timeout=timeout))

        error = await self._workload.attempt(f"get {clone.bucket.name}:{name}", get())
        if isinstance(error, PROMISED):
            return False
        data = found[0] if found else None
        if name not in clone.own:
            self._workload.judge_snapshot(clone.snapshot, name, clone.bounds, data)
        elif data not in clone.own[name]:
            self._workload.accuse(
                f"{clone.bucket.name}: {name} is {data and data[:20]!r}, which was not written to it"
            )
        return True

    # --- the end

    async def verify(self, store: Store, pause: Callable[[float], Awaitable[None]]) -> None:
        """Every object of every clone, through another client: this one is told to end."""
        while self._is_acting:
            await pause(0.1)
        for name, clone in self.clones.items():
            clone.bucket = await store.bucket(name)
            for name in sorted({*clone.bounds, *clone.own}):
                if not await self._read(clone, name, 30.0):
                    self._workload.accuse(
                        f"{clone.bucket.name}: {name} cannot be read, though all faults are over"
                    )

    async def outlive(self, store: Store, pause: Callable[[float], Awaitable[None]]) -> None:
        """What they are clones of is deleted: they become independent of it, and are what they were. One of
        another of them need not."""
        names = list(self.clones)
        with trio.move_on_after(FLAT_SECONDS_MAX) as waiting:
            while await _are_flattening(store, names):
                await pause(0.5)
        if waiting.cancelled_caught:
            self._workload.accuse(f"{names} did not become independent in {FLAT_SECONDS_MAX:.0f} s")
        await self.verify(store, pause)


async def _are_flattening(store: Store, names: list[str]) -> bool:
    try:
        views = await store.buckets(timeout=2.0)
    except BlockStoreError:
        return True
    return any(view.is_flattening for view in views if view.name in names)
