"""What a Disk promises, of the real one and of the simulated one."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from blockstore.errors import BlockStoreError, Busy, DiskFailed, NoSpace, NotFound, StoreLocked
from blockstore.ids import KiB, MiB
from blockstore.runtime.interfaces import Disk, File, Write
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.real_disk import RealFile, open_real_disk
from blockstore.runtime.sim.disk import PowerLost, SimDisk, SimFile

Outcome = BlockStoreError | None


class Waiter:
    """Collects what callbacks say, and lets a test wait for it."""

    def __init__(self) -> None:
        self.outcomes = list[object]()
        self._changed = trio.Event()

    def __call__(self, outcome: object) -> None:
        self.outcomes.append(outcome)
        self._changed.set()

    async def wait(self, n: int) -> list[object]:
        with trio.fail_after(60):
            while len(self.outcomes) < n:
                self._changed = trio.Event()
                await self._changed.wait()
        return self.outcomes


@asynccontextmanager
async def open_sim_disk() -> AsyncGenerator[SimDisk]:
    disk = SimDisk(Random(1), RealClock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.serve)
        yield disk
        nursery.cancel_scope.cancel()


@pytest.fixture(params=["real", "sim"])
async def disk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Disk]:
    if request.param == "real":
        async with open_real_disk(tmp_path) as real:
            yield real
    else:
        async with open_sim_disk() as simulated:
            yield simulated


async def written(file: File, *writes: Write) -> Outcome:
    waiter = Waiter()
    file.submit(writes, waiter)
    assert not waiter.outcomes, "never from inside the call"
    (outcome,) = await waiter.wait(1)
    assert outcome is None or isinstance(outcome, BlockStoreError)
    return outcome


async def read(file: File, offset: int, length: int) -> bytes | BlockStoreError:
    into = bytearray(length)
    if not file.read_now(offset, memoryview(into)):
        waiter = Waiter()
        file.submit_read(offset, memoryview(into), waiter)
        (outcome,) = await waiter.wait(1)
        if isinstance(outcome, BlockStoreError):
            return outcome
    return bytes(into)


async def test_a_created_file_is_zeros_of_its_size(disk: Disk) -> None:
    with pytest.raises(NotFound):
        disk.open("some")
    file = disk.open("some", 64 * KiB)
    assert file.name == "some"
    assert await read(file, 0, 64 * KiB) == bytes(64 * KiB)
    assert isinstance(await read(file, 64 * KiB - 1, 2), DiskFailed)
    file.close()
    disk.open("some").close()
    assert disk.names() == (["lock", "some"] if "lock" in disk.names() else ["some"])


async def test_writes_are_read_back_gathered_and_in_order(disk: Disk) -> None:
    file = disk.open("sub/file", 64 * KiB)
    assert (
        await written(file, Write(10, (b"one", bytearray(b"two"), memoryview(b"three"))), Write(100, ()))
        is None
    )
    assert await read(file, 9, 13) == b"\0onetwothree\0"
    waiter = Waiter()
    for at in range(2000):  # more buffers than one system call takes; later ones lie over earlier ones
        file.submit((Write(at, (b"a", b"b")), Write(8000 + at, (bytes([at % 251]),))), waiter)
    assert await waiter.wait(2000) == [None] * 2000
    assert await read(file, 0, 2001) == b"a" * 2000 + b"b"
    assert await read(file, 8000, 2000) == bytes(at % 251 for at in range(2000))
    file.close()


async def test_completions_come_in_order_and_nothing_submits_itself_twice(disk: Disk) -> None:
    file = disk.open("file", 64 * KiB)
    order = list[int]()
    done = trio.Event()

    def completed(number: int) -> Callable[[Outcome], None]:
        def on_done(outcome: Outcome) -> None:
            assert outcome is None
            order.append(number)
            if number < 90:
                file.submit((Write(number, (b"x",)),), completed(number + 10))
            if len(order) == 100:
                done.set()

        return on_done

    for number in range(10):
        file.submit((Write(number, (b"x",)),), completed(number))
    with trio.fail_after(20):
        await done.wait()
    assert order == sorted(order)
    file.close()


async def test_closing_waits_for_what_was_submitted(disk: Disk) -> None:
    file = disk.open("file", MiB)
    waiter = Waiter()
    for at in range(20):
        file.submit((Write(at * KiB, (bytes([at + 1]) * KiB,)),), waiter)
    file.close()
    assert await waiter.wait(20) == [None] * 20
    again = disk.open("file")
    assert await read(again, 19 * KiB, KiB) == bytes([20]) * KiB
    assert isinstance(await written(file, Write(0, (b"x",))), DiskFailed)
    again.close()


async def test_a_table_of_files_that_is_full_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    async with open_real_disk(tmp_path) as disk:
        disk.open("file", 4 * KiB).close()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(Busy, match="open files"):
                disk.open("file")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        disk.open("file").close()


async def test_blocking_reads_and_writes_for_start_up(disk: Disk) -> None:
    file = disk.open("file", 64 * KiB)
    file.write((Write(5, (b"start",)), Write(60 * KiB, (b"end",))))
    into = bytearray(10)
    file.read(0, memoryview(into))
    assert into == bytes(5) + b"start"
    with pytest.raises(DiskFailed):
        file.read(64 * KiB - 5, memoryview(into))
    file.forget_cached()
    assert await read(file, 60 * KiB, 3) == b"end"
    file.close()


async def test_files_are_made_and_removed_in_the_background(disk: Disk) -> None:
    made = Waiter()
    for number in range(3):
        disk.submit_open(f"slots/{number}", MiB, made)
    files = [file for file in await made.wait(3) if isinstance(file, RealFile | SimFile)]
    assert [file.name for file in files] == ["slots/0", "slots/1", "slots/2"]
    assert disk.names("slots") == ["0", "1", "2"]
    for file in files:
        file.close()
    removed = Waiter()
    disk.submit_remove("slots/1", removed)
    disk.submit_remove("slots/1", removed)
    assert await removed.wait(2) == [None, None]
    assert disk.names("slots") == ["0", "2"]
    disk.remove("slots/0")
    assert disk.names("slots") == ["2"]
    assert disk.names("elsewhere") == []


async def test_small_files_are_replaced_whole(disk: Disk) -> None:
    assert disk.read_file("small") is None
    for content in (b"one", b"", bytes(100_000)):
        disk.replace_file("small", content)
        assert disk.read_file("small") == content


async def test_everything_there_can_be_made_durable_at_once(disk: Disk) -> None:
    disk.replace_file("small", b"content")
    file = disk.open("large", 8192)
    file.write([Write(0, [b"first"])])
    disk.sync_all()
    assert disk.read_file("small") == b"content"
    assert (disk.read_file("large") or b"")[:5] == b"first"
    file.close()


async def test_more_than_there_is_space_for_is_refused_and_leaves_nothing(disk: Disk) -> None:
    before = disk.free_bytes()
    assert before > 0
    with pytest.raises(NoSpace):
        disk.open("huge", before + 1024 * MiB)
    waiter = Waiter()
    disk.submit_open("huge", before + 1024 * MiB, waiter)
    (outcome,) = await waiter.wait(1)
    assert isinstance(outcome, NoSpace)
    assert "huge" not in disk.names()
    assert disk.free_bytes() > before // 2


# --- the real one alone


async def test_a_second_opening_is_refused_also_by_this_process(tmp_path: Path) -> None:
    async with open_real_disk(tmp_path):
        with pytest.raises(StoreLocked) as refused:
            async with open_real_disk(tmp_path):
                pass
        assert refused.value.fields == (str(tmp_path), os.getpid())
    async with open_real_disk(tmp_path):
        pass
    with pytest.raises(NotFound):
        async with open_real_disk(tmp_path / "nowhere"):
            pass


async def test_a_real_error_is_final_for_the_handle(tmp_path: Path) -> None:
    """/dev/full refuses every write, and a sync of nothing written would succeed."""
    (tmp_path / "full").symlink_to("/dev/full")
    async with open_real_disk(tmp_path) as disk:
        file = disk.open("full")
        assert isinstance(await written(file, Write(0, (b"lost",))), NoSpace)
        assert isinstance(await written(file), NoSpace)
        with pytest.raises(NoSpace):
            file.write(())
        file.close()


# --- the simulated one alone


def settled(disk: SimDisk, file: File, *writes: Write) -> object:
    found = list[object]()
    file.submit(writes, found.append)
    disk.settle()
    return found[0]


def test_a_crash_loses_some_of_what_was_not_synced_and_nothing_else() -> None:
    seen = set[tuple[bool, bool]]()
    for seed in range(40):
        disk = SimDisk(Random(seed))
        file = disk.open("file", 64 * KiB)
        assert settled(disk, file, Write(0, (b"s" * 4096,))) is None
        file.submit((Write(0, (b"n" * 2048,)), Write(8192, (b"n" * 100,))), lambda outcome: None)
        for _ in range(3):
            disk.step()  # both are written, not synced
        assert disk.peek("file", 0, 1) == b"n"
        disk.crash()
        content = disk.peek("file", 0, 4096)
        assert content[2048:] == b"s" * 2048
        for at in range(0, 2048, 512):
            assert content[at : at + 512] in (b"s" * 512, b"n" * 512)
        other = disk.peek("file", 8192, 100)
        assert other in (bytes(100), b"n" * 100)
        seen.add((content[:1] == b"n", other[:1] == b"n"))
    assert len(seen) == 4, "every combination"


def test_what_a_process_did_not_live_to_sync_can_be_synced_by_the_next() -> None:
    for seed in range(20):
        disk = SimDisk(Random(seed))
        disk.open("file", 8192).submit([Write(0, [b"written"])], lambda error: None)
        disk.step()
        disk.step()
        disk.process_ended()
        disk.power_on()
        disk.sync_all()
        disk.crash()
        assert disk.peek("file", 0, 7) == b"written"


def test_a_name_means_the_old_or_the_new_after_a_crash_while_it_was_replaced() -> None:
    found = set[bytes | None]()
    for seed in range(40):
        disk = SimDisk(Random(seed))
        disk.replace_file("name", b"old")
        disk.cut_after(2)
        with pytest.raises(PowerLost):
            disk.replace_file("name", b"new")
        disk.crash()
        found.add(disk.read_file("name"))
    assert found == {b"old", b"new"}


def test_two_runs_of_one_seed_are_the_same() -> None:
    def run() -> list[bytes]:
        disk = SimDisk(Random(5))
        file = disk.open("file", 64 * KiB)
        for at in range(20):
            file.submit((Write(at * 700, (bytes([at + 1]) * 700,)),), lambda outcome: None)
        for _ in range(12):
            disk.step()
        disk.crash()
        return [disk.peek("file", 0, 64 * KiB)]

    assert run() == run()


def test_injected_errors_meet_the_operation_they_name() -> None:
    disk = SimDisk(Random(1))
    one, two = disk.open("one", 4096), disk.open("two", 4096)
    error = DiskFailed("sim", "EIO")
    disk.inject("sync", error, "one", after=1)
    assert settled(disk, one, Write(0, (b"x",))) is None
    assert settled(disk, two, Write(0, (b"x",))) is None
    assert settled(disk, one, Write(0, (b"y",))) is error
    assert settled(disk, one, Write(0, (b"z",))) is error, "final"
    disk.inject("read", error)
    assert not two.read_now(0, memoryview(bytearray(1)))
    with pytest.raises(DiskFailed):
        two.read(0, memoryview(bytearray(1)))


async def test_a_stalled_disk_answers_later(autojump_clock: trio.testing.MockClock) -> None:
    class TrioClock(RealClock):
        def now(self) -> float:
            return trio.current_time()

        async def sleep_until(self, when: float) -> None:
            await trio.sleep_until(when)

    disk = SimDisk(Random(1), TrioClock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.serve)
        file = disk.open("file", 4096)
        disk.stall(30)
        start = trio.current_time()
        assert await written(file, Write(0, (b"x",))) is None
        assert trio.current_time() - start >= 30
        nursery.cancel_scope.cancel()
