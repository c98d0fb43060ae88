"""Block devices, both twins, against a bytearray: any alignment, snapshots, two writers, late requests."""

from __future__ import annotations

import os
import random
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio

import blockstore
from blockstore import aio
from blockstore.api.block_device import BlockDevice
from blockstore.api.block_writing import take_over
from blockstore.api.session import VolumeSession
from blockstore.codec.messages import Batch
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import AlreadyExists, InvalidRequest, NotFound, TakenOver, Unavailable
from blockstore.ids import KiB, MiB, TiB
from blockstore.kinds.block import BLOCK_BYTES, DEVICE_BYTES_MAX, KIND
from blockstore.kinds.turns import Turn
from tests.contracts.ways import Way

SIZE = 4 * MiB + 700


@pytest.fixture(params=["aio", "blocking"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return Way(request.param, {"location": tmp_path / "store"})


@pytest.fixture
async def device(store: aio.Store) -> aio.BlockDevice:
    return await store.create_block_device("vm", SIZE)


class Model:
    """What the device must be: bytes, and the bytes of its snapshots."""

    def __init__(self, size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.image = bytearray(size)
        self.snapshots: dict[str, bytes] = {}

    def some_range(self) -> tuple[int, int]:
        rng, size = self.rng, len(self.image)
        length = rng.choice((1, 511, 4 * KiB, 5_000, 64 * KiB, 300 * KiB, MiB, 2 * MiB + 1))
        length = min(length, size)
        offset = rng.randrange(size - length + 1)
        unit = rng.choice((1, 512, 4 * KiB, MiB))
        offset -= offset % unit
        return offset, length

    async def step(self, device: aio.BlockDevice) -> None:
        rng = self.rng
        offset, length = self.some_range()
        chosen = rng.random()
        if chosen < 0.5:
            data = rng.randbytes(length)
            await device.write(offset, data)
            self.image[offset : offset + length] = data
        elif chosen < 0.65:
            await (device.discard if rng.random() < 0.5 else device.write_zeroes)(offset, length)
            self.image[offset : offset + length] = bytes(length)
        elif chosen < 0.9:
            assert await device.read(offset, length) == self.image[offset : offset + length]
        elif chosen < 0.95:
            taken = await device.snapshot(f"s{len(self.snapshots)}")
            self.snapshots[taken.name] = bytes(self.image)
        else:
            size = rng.choice((SIZE, 2 * MiB + 3, 5 * MiB))
            await device.resize(size)
            self.image = self.image[:size] + bytes(max(0, size - len(self.image)))
            assert device.size == size

    async def check(self, device: aio.BlockDevice) -> None:
        assert await device.read(0, len(self.image)) == self.image
        for name, image in self.snapshots.items():
            then = await device.at(name)
            assert then.size == len(image)
            assert await then.read(0, len(image)) == image
        names = list(self.snapshots)
        for since, until in zip(names, [*names, None][1:], strict=True):
            await self.check_diff(device, since, until)

    async def check_diff(self, device: aio.BlockDevice, since: str, until: str | None) -> None:
        """Carried out on the old bytes, it gives the new ones; runs are in order and do not touch."""
        new = self.snapshots[until] if until else bytes(self.image)
        image = bytearray(self.snapshots[since][: len(new)].ljust(len(new), b"\0"))
        end = -1
        async for change in device.diff(since, until):
            assert change.offset >= end
            end = change.offset + change.length
            assert end <= len(new)
            written = change.kind == "written"
            image[change.offset : end] = new[change.offset : end] if written else bytes(change.length)
        assert image == new


async def test_any_history_gives_what_a_bytearray_gives(device: aio.BlockDevice) -> None:
    model = Model(SIZE, seed=3)
    for _ in range(90):
        await model.step(device)
    assert len(model.snapshots) > 1
    await model.check(device)


async def test_what_was_written_is_there_after_opening_again(way: Way) -> None:
    model = Model(SIZE, seed=4)
    async with way.open() as store:
        device = await store.create_block_device("vm", SIZE)
        for _ in range(25):
            await model.step(device)
    async with way.open() as store:
        for writable in (False, True):
            device = await store.block_device("vm", writable=writable)
            assert (device.size, device.writable) == (len(model.image), writable)
            await model.check(device)
        for _ in range(10):
            await model.step(device)
        await model.check(device)


async def test_a_device_of_64_tib_takes_what_was_written(store: aio.Store) -> None:
    device = await store.create_block_device("huge", DEVICE_BYTES_MAX)
    await device.write(DEVICE_BYTES_MAX - 5, b"12345")
    await device.write(30 * TiB + 1, b"x" * 10)
    await device.snapshot("a")
    assert await device.read(DEVICE_BYTES_MAX - 10, 10) == bytes(5) + b"12345"
    assert await device.read(30 * TiB, 12) == b"\0" + b"x" * 10 + b"\0"
    assert await device.read(7 * TiB, MiB) == bytes(MiB)
    facts = await device.facts()
    assert facts["size_bytes"] == DEVICE_BYTES_MAX
    assert cast("int", facts["allocated_bytes"]) < MiB
    await device.discard(TiB, DEVICE_BYTES_MAX - TiB)
    assert await device.read(DEVICE_BYTES_MAX - 10, 10) == bytes(10)
    changes = [change async for change in device.diff("a")]
    assert [(change.offset, change.length, change.kind) for change in changes] == [
        (30 * TiB, BLOCK_BYTES, "zeroed"),
        (DEVICE_BYTES_MAX - BLOCK_BYTES, BLOCK_BYTES, "zeroed"),
    ]
    assert await (await device.at("a")).read(30 * TiB + 1, 10) == b"x" * 10
    await device.resize(TiB)
    with pytest.raises(InvalidRequest, match="The device has"):
        await device.read(TiB - 1, 2)


async def test_a_second_writer_ends_the_first(store: aio.Store) -> None:
    first = await store.create_block_device("vm", SIZE)
    await first.write(0, b"first")
    second = await store.block_device("vm", writable=True)
    for refused in (
        first.write(0, b"late"),
        first.write(0, bytes(MiB)),
        first.discard(0, 5),
        first.resize(5),
        first.flush(),
    ):
        with pytest.raises(TakenOver, match=r"Block device 'vm' was taken over by another writer"):
            await refused
    await second.write(5, b"second")
    assert await second.read(0, 12) == b"firstsecond\0"
    assert await first.read(0, 12) == b"firstsecond\0"
    await (await store.block_device("vm", writable=True)).flush()
    with pytest.raises(TakenOver):
        await second.write(MiB, bytes(MiB))


async def test_snapshots_are_listed_and_deleted(device: aio.BlockDevice) -> None:
    await device.write(0, b"1")
    taken = await device.snapshot("one")
    with pytest.raises(AlreadyExists):
        await device.snapshot("one")
    await device.resize(MiB)
    await device.snapshot("two")
    assert [(one.name, one.size) for one in await device.snapshots()] == [("one", SIZE), ("two", MiB)]
    await device.delete_snapshot("one")
    assert [one.name for one in await device.snapshots()] == ["two"]
    with pytest.raises(NotFound, match=r"snapshot 'one' of block device 'vm'"):
        await device.delete_snapshot("one")
    with pytest.raises(NotFound, match="snapshot 'one' of block device 'vm'"):
        await device.at("one")
    with pytest.raises(NotFound):
        await taken.read(0, 1)
    with pytest.raises(NotFound):
        _ = [change async for change in device.diff("one")]


async def test_names_are_shared_with_buckets(store: aio.Store) -> None:
    await store.create_bucket("photos")
    made = await store.create_block_device("vm", SIZE, exist_ok=True)
    await made.write(1, b"x")
    assert await (await store.create_block_device("vm", SIZE, exist_ok=True)).read(0, 3) == b"\0x\0"
    with pytest.raises(AlreadyExists, match="block device 'vm'"):
        await store.create_block_device("vm", SIZE)
    with pytest.raises(AlreadyExists, match="block device 'vm' with 4,195,004 bytes, not 5"):
        await store.create_block_device("vm", 5, exist_ok=True)
    with pytest.raises(AlreadyExists, match="bucket 'photos'"):
        await store.create_block_device("photos", SIZE, exist_ok=True)
    with pytest.raises(AlreadyExists):
        await store.create_bucket("vm", exist_ok=True)
    with pytest.raises(InvalidRequest, match="'vm' is a block device, not a bucket"):
        await store.bucket("vm")
    with pytest.raises(InvalidRequest, match="'photos' is a bucket, not a block device"):
        await store.block_device("photos")
    with pytest.raises(InvalidRequest):
        await store.delete_block_device("photos")
    with pytest.raises(InvalidRequest):
        await store.delete_bucket("vm")
    assert [one.name for one in await store.block_devices()] == ["vm"]
    assert [one.name for one in await store.buckets()] == ["photos"]
    await store.delete_block_device("vm")
    with pytest.raises(NotFound, match="block device 'vm'"):
        await store.block_device("vm")
    with pytest.raises(NotFound, match="block device 'vm'"):
        await store.delete_block_device("vm")


async def test_what_makes_no_sense_is_refused(store: aio.Store, device: aio.BlockDevice) -> None:
    wrong: Any = "text"
    for refused in (
        device.write(SIZE - 1, b"12"),
        device.write(-1, b"1"),
        device.write(0, wrong),
        device.read(0, SIZE + 1),
        device.read(wrong, 1),
        device.discard(SIZE, 1),
        device.resize(0),
        device.resize(DEVICE_BYTES_MAX + 1),
        device.snapshot("no/slash"),
        store.create_block_device("UPPER", 5),
        store.create_block_device("x", wrong),
        store.create_block_device("x", 5, policy="none"),
    ):
        with pytest.raises(InvalidRequest):
            await refused
    await device.write(SIZE, b"")
    assert await device.read(SIZE, 0) == b""
    reader = await store.block_device("vm")
    with pytest.raises(InvalidRequest, match="open for reading only"):
        await reader.write(0, b"1")


async def test_many_writes_at_once_do_not_mix(tmp_path: Path) -> None:
    """Each task has ranges of its own that share blocks with its neighbours'."""
    async with aio.open(tmp_path / "store") as store:
        device = await store.create_block_device("vm", 2 * MiB)
        image = bytearray(2 * MiB)
        step = 1_500

        async def write(index: int) -> None:
            data = random.Random(index).randbytes(step)
            image[index * step : (index + 1) * step] = data
            await device.write(index * step, data)

        async with trio.open_nursery() as nursery:
            for index in range(200):
                nursery.start_soon(write, index)
            nursery.start_soon(device.write, MiB, b"z" * MiB)
            image[MiB:] = b"z" * MiB
        assert await device.read(0, 2 * MiB) == image


# --- requests that come late, or whose answers are lost


class Untrusty(VolumeSession):
    """A session whose batches may fail: not sent, or carried out and not answered, or sent much later."""

    armed: bool
    late: list[tuple[Any, ...]]

    def arm(self, seed: int, late_share: float) -> None:
        """Of what is late, so much comes before each further request."""
        self.rng = random.Random(seed)
        self.late_share = late_share
        self.armed = True

    async def ask(
        self, op: Any, kind: Any, timeout: float, payload: Sequence[Any] = ()
    ) -> Any:  # the real one's signature, for any answer
        if not (self.armed and isinstance(op, Batch)):
            return await super().ask(op, kind, timeout, payload)
        await self.deliver_some()
        fate = self.rng.random()
        if fate < 0.1:
            raise Unavailable("it was not sent")
        if fate < 0.2:
            self.late.append((op, kind, timeout, [bytes(one) for one in payload]))
            raise Unavailable("it will come late")
        answer = await super().ask(op, kind, timeout, payload)
        if fate < 0.3:
            raise Unavailable("its answer was lost")
        return answer

    async def deliver_some(self) -> None:
        while self.late and self.rng.random() < self.late_share:
            await self.deliver(self.late.pop(self.rng.randrange(len(self.late))))

    async def deliver(self, arguments: tuple[Any, ...]) -> None:
        with suppress(blockstore.BlockStoreError):
            await super().ask(*arguments)


def untrusty(store: aio.Store) -> Untrusty:
    """One that does nothing wrong yet."""
    session = Untrusty(store.session("vm", KIND).cluster, "vm", KIND)
    session.armed = False
    session.late = []
    return session


@pytest.mark.parametrize("seed", range(4))
async def test_a_failed_write_never_comes_true_after_a_later_one(seed: int, tmp_path: Path) -> None:
    """A block is what was last written to it successfully, or by one of the failed writes since."""
    n_blocks = 600
    async with aio.open(tmp_path / "store") as store:
        made = await store.create_block_device("vm", n_blocks * BLOCK_BYTES)
        session = untrusty(store)
        writer = await take_over(session, trio.Event, 10)
        device = BlockDevice(session, made.view, made.size, writer)
        session.arm(seed, 0.4)
        rng = session.rng
        possible: list[set[int]] = [{0} for _ in range(n_blocks)]
        n_failed = 0
        for number in range(1, 120):
            first = rng.choice((0, 256, rng.randrange(n_blocks)))
            count = min(rng.choice((1, 3, 256, 300)), n_blocks - first)
            zero = rng.random() < 0.2
            value = 0 if zero else number
            work = (
                device.discard(first * BLOCK_BYTES, count * BLOCK_BYTES)
                if zero
                else device.write(first * BLOCK_BYTES, bytes([number]) * (count * BLOCK_BYTES))
            )
            try:
                await work
            except Unavailable:
                n_failed += 1
                for index in range(first, first + count):
                    possible[index].add(value)
            else:
                for index in range(first, first + count):
                    possible[index] = {value}
        assert n_failed > 10
        session.armed = False
        await device.flush()
        for late in session.late:
            await session.deliver(late)
        image = await device.read(0, n_blocks * BLOCK_BYTES)
        for index, values in enumerate(possible):
            found = image[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            assert found in [bytes([value]) * BLOCK_BYTES for value in values], index


async def test_what_a_former_writer_sent_is_decided_when_a_new_one_opens(tmp_path: Path) -> None:
    lengths = (MiB, 2 * MiB, BLOCK_BYTES)
    n_late = 0
    async with aio.open(tmp_path / "store") as store:
        made = await store.create_block_device("vm", 8 * MiB)
        for number in range(24):
            session = untrusty(store)
            device = BlockDevice(session, made.view, made.size, await take_over(session, trio.Event, 10))
            session.arm(number, 0.0)
            data = bytes([number]) * lengths[number % 3]
            with pytest.raises(Unavailable):
                await write_until_it_fails(device, number % 4 * MiB, data)
            n_late += len(session.late)
            session.armed = False
            new = await store.block_device("vm", writable=True)
            before = await new.read(0, 8 * MiB)
            for late in session.late:
                await session.deliver(late)
            assert await new.read(0, 8 * MiB) == before
            with pytest.raises(TakenOver):
                await device.write(0, b"x")
        assert n_late >= 6
        facts = await (await store.block_device("vm")).facts()
        assert cast("int", facts["allocated_bytes"]) < 5 * MiB + 64 * KiB  # nothing hidden is left


async def write_until_it_fails(device: aio.BlockDevice, offset: int, data: bytes) -> None:
    while True:
        await device.write(offset, data)


async def test_what_is_overwritten_takes_no_space(store: aio.Store) -> None:
    device = await store.create_block_device("vm", 4 * MiB)
    for number in range(3):
        await device.write(MiB, bytes([number]) * 2 * MiB)
        for block in range(4):
            await device.write(MiB + 4 * block * BLOCK_BYTES, b"x" * BLOCK_BYTES)
    assert cast("int", (await device.facts())["allocated_bytes"]) < 2 * MiB + 32 * KiB
    await device.write(MiB, bytes(2 * MiB))
    assert cast("int", (await device.facts())["allocated_bytes"]) < 2 * MiB + KiB
    await device.discard(0, 3 * MiB - 1)
    assert cast("int", (await device.facts())["allocated_bytes"]) < MiB + 5 * KiB
    await device.discard(0, 3 * MiB)
    assert cast("int", (await device.facts())["allocated_bytes"]) < KiB


async def test_who_shares_a_request_is_not_hurt_by_who_sends_it(tmp_path: Path) -> None:
    """Tasks that write are cancelled or fail at random; the others' writes are there all the same."""
    n_blocks = 400
    async with aio.open(tmp_path / "store") as store:
        made = await store.create_block_device("vm", n_blocks * BLOCK_BYTES)
        session = untrusty(store)
        device = BlockDevice(session, made.view, made.size, await take_over(session, trio.Event, 10))
        session.arm(31, 0.3)  # with this seed the first request fails
        scopes = [trio.CancelScope() for _ in range(n_blocks)]
        doomed = random.Random(7).sample(range(n_blocks), 40)
        written: set[int] = set()
        n_failed = 0

        async def write(index: int) -> None:
            nonlocal n_failed
            with scopes[index]:
                while index not in written:
                    try:
                        await device.write(index * BLOCK_BYTES, bytes([index % 255 + 1]) * BLOCK_BYTES)
                    except Unavailable:
                        n_failed += 1
                        for other in doomed:
                            scopes[other].cancel()
                    else:
                        written.add(index)

        async with trio.open_nursery() as nursery:
            for index in range(n_blocks):
                nursery.start_soon(write, index)
        assert n_failed
        assert len(written) >= n_blocks - len(doomed)
        session.armed = False
        await device.flush()
        image = await device.read(0, n_blocks * BLOCK_BYTES)
        for index in range(n_blocks):
            found = image[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
            new = bytes([index % 255 + 1]) * BLOCK_BYTES
            assert found == new or (index not in written and found == bytes(BLOCK_BYTES)), index


# --- over a cluster, from many threads


def test_threads_share_a_device_over_a_cluster(tmp_path: Path) -> None:
    n_threads, step = 8, 10_000
    with (
        LocalCluster.create(tmp_path / "c", 1, security="plain") as cluster,
        blockstore.connect(cluster.location) as store,
    ):
        device = store.create_block_device(f"d-{uuid.uuid4().hex}", 4 * MiB, policy="replicated(1)")
        image = bytearray(4 * MiB)
        for index in range(n_threads * 20):
            image[index * step : (index + 1) * step] = bytes([index % 251]) * step

        def work(mine: int) -> None:
            for index in range(mine, n_threads * 20, n_threads):
                device.write(index * step, bytes([index % 251]) * step)

        threads = [threading.Thread(target=work, args=(mine,)) for mine in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert device.read(0, 4 * MiB) == image
        child = os.fork()
        if child == 0:
            try:
                device.write(0, b"x")
            except InvalidRequest:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        store.block_device(device.name, writable=True)
        with pytest.raises(TakenOver):
            device.write(0, b"x")


def test_a_turn_knows_what_it_overlaps() -> None:
    assert Turn(0, 5).overlaps(Turn(4, 9))
    assert not Turn(0, 5).overlaps(Turn(5, 9))
    assert not Turn(0, 0).overlaps(Turn(0, 9))
