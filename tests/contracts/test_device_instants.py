"""Block devices under load: a snapshot shows one instant, also of several devices; a client's map is never
older than it may be.

A writer that numbers its blocks writes 1, 2, 3, … round and round, each after the one before was answered.
What it has written up to some number can be computed, so an image tells whether it ever existed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from blockstore import aio
from blockstore.api import block_holding, block_writing
from blockstore.api.block_device import BlockDevice
from blockstore.api.block_writing import fetch_mark, put_mark, take_over
from blockstore.api.session import VolumeSession
from blockstore.codec.messages import SnapshotCreate
from blockstore.errors import AlreadyExists, InvalidRequest, NotFound, TakenOver, Unavailable
from blockstore.ids import MiB
from blockstore.kinds.block import BLOCK_BYTES, KIND, WriterMark
from blockstore.kinds.block_map import MISSES_MAX
from tests.contracts.ways import Way

N_BLOCKS = 12
"""Of each device that is written to; a few, so that the writer comes round often."""


@pytest.fixture(params=["aio", "blocking"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return Way(request.param, {"location": tmp_path / "store"})


class Numbering:
    """Writes numbers to blocks, in turn over all blocks of all devices."""

    def __init__(self, devices: Sequence[aio.BlockDevice]) -> None:
        self.devices = devices
        self.asked = self.acknowledged = 0
        self._wanted, self._reached = 0, trio.Event()

    async def until(self, number: int) -> None:
        """It is acknowledged."""
        self._wanted, self._reached = number, trio.Event()
        if self.acknowledged < number:
            await self._reached.wait()

    async def write(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                self.asked += 1
                index = self.asked % (N_BLOCKS * len(self.devices))
                device = self.devices[index % len(self.devices)]
                offset = index // len(self.devices) * BLOCK_BYTES
                await device.write(offset, self.asked.to_bytes(BLOCK_BYTES, "big"))
                self.acknowledged = self.asked
                if self.acknowledged >= self._wanted:
                    self._reached.set()
                await trio.lowlevel.checkpoint()

    def check(self, images: Sequence[bytes], at_least: int, at_most: int) -> None:
        """These were there together at some instant between two that the bounds tell."""
        n = len(self.devices)
        numbers = [
            int.from_bytes(images[index % n][index // n * BLOCK_BYTES :][:BLOCK_BYTES], "big")
            for index in range(N_BLOCKS * n)
        ]
        newest = max(numbers)
        assert at_least <= newest <= at_most
        for index, number in enumerate(numbers):
            expected = newest - (newest - index) % len(numbers)
            assert number == max(0, expected), f"block {index} of a state whose newest is {newest}"


async def test_every_snapshot_under_load_existed_at_one_instant(store: aio.Store) -> None:
    devices = [await store.create_block_device(name, MiB) for name in ("one", "two")]
    numbering = Numbering(devices)
    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(numbering.write, scope)
        for round_number in range(12):
            await numbering.until(7 * round_number)
            before = numbering.acknowledged
            taken = await store.snapshot_block_devices(["one", "two"], f"s{round_number}")
            after = numbering.asked
            images = [await one.read(0, N_BLOCKS * BLOCK_BYTES) for one in taken]
            numbering.check(images, before, after)
        scope.cancel()
    assert numbering.acknowledged >= 77
    assert [one.name for one in await devices[0].snapshots()] == [f"s{number}" for number in range(12)]


async def test_a_snapshot_of_several_is_of_all_or_of_none(store: aio.Store) -> None:
    one, two = [await store.create_block_device(name, MiB) for name in ("one", "two")]
    await two.snapshot("there")
    with pytest.raises(AlreadyExists):
        await store.snapshot_block_devices(["one", "two"], "there")
    with pytest.raises(NotFound):
        await store.snapshot_block_devices(["one", "three"], "new")
    with pytest.raises(InvalidRequest):
        await store.snapshot_block_devices([], "new")
    assert await one.snapshots() == []
    await one.write(0, b"goes on")
    taken = await store.snapshot_block_devices(["one", "two", "one"], "new")
    assert [(found.device, found.name, found.size) for found in taken] == [
        ("one", "new", MiB),
        ("two", "new", MiB),
    ]


async def test_a_writer_waits_while_it_is_held_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_writing, "HOLD_SECONDS", 0.4)
    async with aio.open(tmp_path / "store") as store:
        device = await store.create_block_device("vm", MiB)
        session = store.session("vm", KIND)
        sequence, mark = await fetch_mark(session, 5)
        held = await put_mark(session, WriterMark(mark.token, b"12345678"), sequence, 5)
        done = trio.Event()

        async def write() -> None:
            await device.write(0, b"x" * BLOCK_BYTES)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            with trio.move_on_after(0.1):
                await done.wait()
            assert not done.is_set()
            assert await device.read(0, 1) == b"\0"
            await put_mark(session, mark, held, 5)
            await done.wait()
        # whoever holds it now is never heard of again
        sequence, mark = await fetch_mark(session, 5)
        await put_mark(session, WriterMark(mark.token, b"87654321"), sequence, 5)
        started = trio.current_time()
        await device.write(0, b"y" * BLOCK_BYTES)
        assert 0.3 < trio.current_time() - started < 5
        await (await store.block_device("vm", writable=True)).write(0, b"z")
        with pytest.raises(TakenOver):
            await device.write(0, b"x")


async def test_what_a_writer_did_not_wait_for_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that heeds no hold writes while the snapshots are taken."""
    monkeypatch.setattr(block_writing, "HOLD_SECONDS", 0.0)
    async with aio.open(tmp_path / "store") as store:
        device = await store.create_block_device("vm", MiB)

        async def release(*arguments: object) -> bool:
            await device.write(0, b"x" * BLOCK_BYTES)
            return await real_release(*arguments)  # type: ignore[arg-type]  # what it was called with

        real_release = block_holding._release  # pyright: ignore[reportPrivateUsage]  # the moment before it
        monkeypatch.setattr(block_holding, "_release", release)
        with pytest.raises(Unavailable, match="A writer did not wait while block device 'vm'"):
            await store.snapshot_block_devices(["vm"], "s")
        assert await device.snapshots() == []


async def test_a_hold_that_was_left_behind_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who held the device died, and it has no writer; or it is a clone of what was held."""
    monkeypatch.setattr(block_holding, "HOLDING_SECONDS", 0.3)
    async with aio.open(tmp_path / "store") as store:
        await store.create_block_device("vm", MiB)
        session = store.session("vm", KIND)
        sequence, mark = await fetch_mark(session, 5)
        await put_mark(session, WriterMark(mark.token, b"12345678"), sequence, 5)
        (taken,) = await store.snapshot_block_devices(["vm"], "s")
        assert (taken.device, taken.name) == ("vm", "s")
        assert (await fetch_mark(session, 5))[1] == mark


# --- what a client remembers


class Counting(VolumeSession):
    """Counts what the owner is asked about keys."""

    n_asked = 0

    async def look_up_many(self, keys: Sequence[bytes], *arguments: object) -> list[object]:  # type: ignore[override]
        self.n_asked += 1
        return await super().look_up_many(keys, *arguments)  # type: ignore[arg-type, return-value]


async def test_a_writer_asks_the_owner_once(tmp_path: Path) -> None:
    async with aio.open(tmp_path / "store") as store:
        made = await store.create_block_device("vm", 4 * MiB)
        session = Counting(made._session.cluster, "vm", KIND)  # pyright: ignore[reportPrivateUsage]
        device = BlockDevice(session, made.view, made.size, await take_over(session, trio.Event, 10))
        await device.write(0, b"1" * 2 * MiB)
        await device.write(5 * BLOCK_BYTES, b"2" * BLOCK_BYTES)
        for _ in range(2 * MISSES_MAX):
            for block in (0, 1, 6, 7):
                assert await device.read(block * BLOCK_BYTES, 10) == b"1" * 10
        assert session.n_asked < 6
        assert await device.read(MiB - 5, 10) == b"1" * 10
        asked = session.n_asked
        assert await device.read(5 * BLOCK_BYTES - 1, 3) == b"122"  # the owner has what was written just now
        assert session.n_asked == asked + 1
        await device.write(6 * BLOCK_BYTES, b"3" * BLOCK_BYTES)
        assert await device.read(6 * BLOCK_BYTES - 1, 2) == b"23"
        await device.discard(0, MiB)
        assert await device.read(0, MiB) == bytes(MiB)
        await device.write(0, b"4" * MiB)
        assert await device.read(7 * BLOCK_BYTES, 2) == b"44"


async def test_a_former_writer_reads_what_is_there_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_writing, "MAP_SECONDS", 1_000.0)
    async with aio.open(tmp_path / "store") as store:
        first = await store.create_block_device("vm", 4 * MiB)
        await first.write(0, b"1" * MiB)
        assert await first.read(0, 1) == b"1"
        second = await store.block_device("vm", writable=True)
        await second.write(0, b"2" * MiB)
        assert await first.read(0, 1) == b"1"  # what was there when it was taken over
        monkeypatch.setattr(block_writing, "MAP_SECONDS", 0.0)
        assert (await first.read(MiB - 1, 1), await second.read(0, 1)) == (b"2", b"2")
        with pytest.raises(TakenOver):
            await first.flush()


async def test_what_was_moved_is_found_again(tmp_path: Path) -> None:
    """The map says where bytes were; nobody has them there any more."""
    async with aio.open(tmp_path / "store") as store:
        device = await store.create_block_device("vm", 4 * MiB)
        await device.write(0, b"1" * MiB)
        assert await device.read(0, 1) == b"1"
        writer = device.writer
        assert writer is not None
        known = writer.map._spans[0]  # pyright: ignore[reportPrivateUsage]  # as if packing had moved it
        assert isinstance(known.base, tuple)
        wrong = [extent.chunk._replace(number=99) for extent in known.base]
        [extent] = known.base
        moved = type(extent)(wrong[0], extent.offset, extent.length, extent.unit, extent.crc)
        known.base = (moved,)
        placements = writer.map._placements  # pyright: ignore[reportPrivateUsage]
        placements[wrong[0]] = placements[extent.chunk]
        assert await device.read(5, 3) == b"111"
        assert await device.read(0, MiB) == b"1" * MiB


async def test_who_is_cancelled_meanwhile_leaves_no_snapshot_and_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second snapshot never comes: both devices are held by then, and one snapshot is there."""
    ask = VolumeSession.ask
    is_stuck = trio.Event()

    async def ask_or_wait(session: VolumeSession, op: Any, kind: Any, *rest: Any) -> Any:
        if isinstance(op, SnapshotCreate) and session.name == "two":
            is_stuck.set()
            await trio.sleep_forever()
        return await ask(session, op, kind, *rest)

    async with aio.open(tmp_path) as store:
        devices = [await store.create_block_device(name, MiB) for name in ("one", "two")]
        monkeypatch.setattr(VolumeSession, "ask", ask_or_wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.snapshot_block_devices, ["one", "two"], "s")
            await is_stuck.wait()
            assert len(await devices[0].snapshots()) == 1
            nursery.cancel_scope.cancel()
        assert await devices[0].snapshots() == []
        with trio.fail_after(block_writing.HOLD_SECONDS / 2):
            for device in devices:
                await device.write(0, b"x")
