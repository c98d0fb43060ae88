"""A writer that numbers its blocks, on two block devices at once, and what their images may show.

It writes 1, 2, 3, … round and round over the blocks of both devices, each number after the one before was
acknowledged, and now and then a number to a whole span. Where faults may come together, a number whose write
was given up is written again. So whatever both show together is a state that existed at one instant exactly
if it is what the writer had written up to some number, which can be computed: the checks are exact. Snapshots
are taken of both at once, under load; what the head shows is judged by what was acknowledged."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import trio

from blockstore import aio
from blockstore.errors import BlockStoreError, TakenOver
from blockstore.ids import MiB
from blockstore.kinds.block import BLOCK_BYTES, SPAN_BYTES
from chaos.workload import SNAPSHOTS_KEPT, Load

POLICIES: Final = {"disk-copies": "replicated(3)", "disk-coded": "ec(4,2)"}

DEVICE_BYTES: Final = 4 * MiB
BLOCKS_PER_DEVICE: Final = 40
"""In the first span. The second one is written whole."""

WHOLE_EVERY: Final = 25
"""Of so many numbers one goes to a whole span, over its former whole."""

SNAPSHOT_ATTEMPTS_MAX: Final = 8
"""Snapshots of both at once are given up when an owner is missing for two seconds; then they are asked for
again."""


class Place(NamedTuple):
    device: int
    offset: int
    length: int


def place_of(number: int) -> Place:
    """Where a number is written."""
    device = number % len(POLICIES)
    if number % WHOLE_EVERY == 0:
        return Place(device, SPAN_BYTES, SPAN_BYTES)
    return Place(device, number // len(POLICIES) % BLOCKS_PER_DEVICE * BLOCK_BYTES, BLOCK_BYTES)


def content(seed: int, number: int, block: int) -> bytes:
    """One block of a write: its number, and bytes that no other has."""
    head = number.to_bytes(8, "big")
    return head + random.Random(f"{seed} {number} {block}").randbytes(BLOCK_BYTES - len(head))


def value_of(seed: int, number: int) -> bytes:
    return b"".join(content(seed, number, block) for block in range(place_of(number).length // BLOCK_BYTES))


class Numbering:
    """What was asked for and acknowledged, and whether images can be true. Pure."""

    def __init__(self, seed: int) -> None:
        self.asked = self.acknowledged = 0
        self._seed = seed

    def judge(self, images: Sequence[bytes], at_least: int, at_most: int) -> str:
        """What is wrong with the first two spans of both devices, seen together, of a time when `at_least`
        was acknowledged and no more than `at_most` asked for; "" when they are a state that existed."""
        newest = max(int.from_bytes(image[at : at + 8], "big") for image in images for at in _heads())
        if not at_least <= newest <= at_most:
            return f"the newest number is {newest}, not one of {at_least} to {at_most}"
        expected = [bytearray(2 * SPAN_BYTES) for _ in images]
        last = {place_of(number): number for number in range(1, newest + 1)}
        for place, number in last.items():
            value = value_of(self._seed, number)
            expected[place.device][place.offset : place.offset + place.length] = value
        for device, image in enumerate(images):
            wanted = bytes(expected[device])
            if image != wanted:
                at = next(at for at in range(len(wanted)) if image[at] != wanted[at])
                block = at // BLOCK_BYTES * BLOCK_BYTES
                shown, due = (int.from_bytes(one[block : block + 8], "big") for one in (image, wanted))
                return f"when {newest} was the newest, device {device} had {due} at {block:,}, not {shown}"
        return ""


def _heads() -> range:
    """Where numbers stand: at the head of each block of the first span, and of the second as a whole."""
    return range(0, SPAN_BYTES + 1, BLOCK_BYTES)


class NumberingClients:
    """The writer, until stopped, and who takes snapshots.

    `allowed`: what faults may let a request end with. It is asked for again, or given up."""

    def __init__(
        self,
        store: aio.Store,
        devices: Sequence[aio.BlockDevice],
        seed: int,
        load: Load,
        allowed: tuple[type[BlockStoreError], ...] = (),
    ) -> None:
        self._store, self._devices, self._load, self._seed = store, devices, load, seed
        self._names = [device.name for device in devices]
        self._allowed = allowed
        self._rng = random.Random(f"{seed} device snapshots")
        self.numbering = Numbering(seed)
        self.violations: list[str] = []
        self.n_snapshots = 0
        self._bounds: dict[str, tuple[int, int]] = {}
        self.is_stopping = False

    @classmethod
    async def create(
        cls,
        store: aio.Store,
        seed: int,
        load: Load,
        policies: Mapping[str, str] = POLICIES,
        allowed: tuple[type[BlockStoreError], ...] = (),
    ) -> NumberingClients:
        devices = [
            await store.create_block_device(name, DEVICE_BYTES, policy=policy)
            for name, policy in policies.items()
        ]
        return cls(store, devices, seed, load, allowed)

    def stop(self) -> None:
        self.is_stopping = True

    async def run(self) -> None:
        numbering = self.numbering
        while not self.is_stopping:
            if numbering.asked == numbering.acknowledged:
                numbering.asked += 1
            place = place_of(numbering.asked)
            try:
                await self._devices[place.device].write(place.offset, value_of(self._seed, numbering.asked))
            except self._allowed:
                pass
            except BlockStoreError as error:
                self.violations.append(f"writing number {numbering.asked} failed: {error!r}")
                return
            else:
                numbering.acknowledged = numbering.asked
            await trio.sleep(self._load.pace)

    async def snapshot(self, name: str) -> None:
        before = self.numbering.acknowledged
        for attempt in range(SNAPSHOT_ATTEMPTS_MAX):
            try:
                await self._store.snapshot_block_devices(self._names, f"{name}-{attempt}")
            except BlockStoreError as error:
                if attempt == SNAPSHOT_ATTEMPTS_MAX - 1 and not isinstance(error, self._allowed):
                    self.violations.append(f"snapshot {name} of both devices failed: {error!r}")
            else:
                self._bounds[f"{name}-{attempt}"] = before, self.numbering.asked
                self.n_snapshots += 1
                break
        if len(self._bounds) > SNAPSHOTS_KEPT:
            retired = self._rng.choice(sorted(self._bounds))
            try:
                await self._check_snapshot(retired)
                for device in self._devices:
                    await device.delete_snapshot(retired)
            except self._allowed:
                pass
            except BlockStoreError as error:
                self.violations.append(f"reading and deleting snapshot {retired} failed: {error!r}")
            del self._bounds[retired]

    async def verify(self) -> None:
        """After all faults: the head, every snapshot; and that another writer ends this one."""
        numbering = self.numbering
        images = [await device.read(0, 2 * SPAN_BYTES) for device in self._devices]
        self._judge("the head", images, numbering.acknowledged, numbering.asked)
        for name in sorted(self._bounds):
            await self._check_snapshot(name)
        for name, device in zip(self._names, self._devices, strict=True):
            await self._store.block_device(name, writable=True)
            try:
                await device.write(0, bytes(BLOCK_BYTES))
            except TakenOver:
                pass
            else:
                self.violations.append(f"{name} was written by who is not its writer any more")
        again = [await (await self._store.block_device(name)).read(0, 2 * SPAN_BYTES) for name in self._names]
        self._judge("the head, taken over", again, numbering.acknowledged, numbering.asked)

    async def _check_snapshot(self, name: str) -> None:
        views = [await device.at(name) for device in self._devices]
        images = [await view.read(0, 2 * SPAN_BYTES) for view in views]
        self._judge(f"snapshot {name}", images, *self._bounds[name])

    def _judge(self, what: str, images: Sequence[bytes], at_least: int, at_most: int) -> None:
        problem = self.numbering.judge(images, at_least, at_most)
        if problem:
            self.violations.append(f"{what} of the devices never existed: {problem}")
