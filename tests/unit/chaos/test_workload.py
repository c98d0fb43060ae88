"""The clients of a run on a store that is fine, and on one whose data somebody spoils behind their backs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from blockstore import aio
from blockstore.errors import NotFound
from chaos.history import HEAD_BYTES, History, content
from chaos.workload import Gaps, Load, Workload

N_WRITES = 60
SEED = 11


@dataclass(slots=True)
class StopsAfter(Gaps):
    """Stops the clients when enough is acknowledged."""

    workload: Workload | None = None
    n_left: int = N_WRITES

    def acknowledged(self) -> None:
        Gaps.acknowledged(self)
        self.n_left -= 1
        if self.n_left == 0:
            assert self.workload is not None
            self.workload.stop()


@asynccontextmanager
async def after_work(directory: Path) -> AsyncGenerator[tuple[aio.Bucket, Workload, History]]:
    """The clients have written and read, there is a snapshot of it, and nothing is wrong."""
    async with aio.open(directory) as store:
        bucket = await store.create_bucket("b")
        history, gaps = History(SEED), StopsAfter()
        workload = gaps.workload = Workload(bucket, history, gaps, SEED, Load(n_writers=2, pace=0.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(workload.run)
        await workload.snapshot("s")
        await workload.verify()
        assert history.violations == []
        assert history.n_writes >= N_WRITES
        yield bucket, workload, history


def sure(history: History) -> str:
    """An object that must be there."""
    return next(name for name in sorted(history.registers) if history.is_there(name))


async def lose(bucket: aio.Bucket, history: History) -> None:
    await bucket.delete(sure(history))


async def put_back_an_older_version(bucket: aio.Bucket, history: History) -> None:
    for name, register in sorted(history.registers.items()):
        size = register.sizes.get(register.asked - 1)
        if size is not None:
            await bucket.put(name, content(SEED, name, register.asked - 1, size))
            return
    raise AssertionError("no object was written twice")


async def flip(bucket: aio.Bucket, history: History) -> None:
    registers = sorted(history.registers.items())
    long = (name for name, register in registers if (register.sizes[register.asked] or 0) > HEAD_BYTES)
    name = next(long)
    data = bytearray(await bucket.get(name))
    data[-1] ^= 1
    await bucket.put(name, bytes(data))


async def show_what_nobody_wrote(bucket: aio.Bucket, history: History) -> None:
    await bucket.put("stranger", b"?")


async def lose_a_snapshot(bucket: aio.Bucket, history: History) -> None:
    await bucket.delete_snapshot("s")


async def move_a_snapshot(bucket: aio.Bucket, history: History) -> None:
    """As it would look if a snapshot were no fixed moment."""
    for name, register in sorted(history.registers.items()):
        size = register.sizes[register.asked]
        await (bucket.delete(name) if size is not None else bucket.put(name, b"?"))
    await bucket.delete_snapshot("s")
    await bucket.snapshot("s")
    for name, register in history.registers.items():
        size = register.sizes[register.asked]
        if size is not None:
            await bucket.put(name, content(SEED, name, register.asked, size))
            continue
        with suppress(NotFound):
            await bucket.delete(name)


Spoil = Callable[[aio.Bucket, History], Awaitable[None]]


@pytest.mark.parametrize(
    ("spoil", "accusation"),
    [
        (lose, "is missing"),
        (put_back_an_older_version, "were possible"),
        (flip, "wrong bytes"),
        (show_what_nobody_wrote, "stranger is listed; nobody wrote it"),
        (lose_a_snapshot, "opening snapshot s failed"),
        (move_a_snapshot, "@s "),
    ],
)
async def test_what_somebody_spoils_is_found(tmp_path: Path, spoil: Spoil, accusation: str) -> None:
    async with after_work(tmp_path / "store") as (bucket, workload, history):
        await spoil(bucket, history)
        await workload.verify()
        assert any(accusation in violation for violation in history.violations), history.violations
