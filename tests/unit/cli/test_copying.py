from __future__ import annotations

import pytest
import trio

from blockstore.errors import NotFound
from blockstore_cli import copying
from blockstore_cli.tree import Download


def download(name: str, size: int) -> Download:
    return Download(name, (name,), size)


def test_small_neighbours_travel_together_and_large_ones_alone() -> None:
    large = copying.BATCH_BYTES_MAX + 1
    items = [download("a", 10), download("b", 20), download("c", large), download("d", 1)]
    assert [[item.name for item in batch] for batch in copying.batches(items)] == [["a", "b"], ["c"], ["d"]]
    many = [download(str(number), 1) for number in range(150)]
    assert [len(batch) for batch in copying.batches(many)] == [64, 64, 22]
    assert list(copying.batches([])) == []


def test_so_many_are_in_flight_and_no_more() -> None:
    now = most = done = 0

    async def work(_: int) -> None:
        nonlocal now, most, done
        now += 1
        most = max(most, now)
        await trio.lowlevel.checkpoint()
        now -= 1
        done += 1

    async def program() -> None:
        await copying.in_flight(range(50), work, 7)

    copying.run(program)
    assert (most, done) == (7, 50)


def test_the_first_error_comes_out_bare() -> None:
    async def work(number: int) -> None:
        await trio.lowlevel.checkpoint()
        raise NotFound(f"object {number}")

    async def program() -> None:
        await copying.in_flight(range(5), work, 5)

    with pytest.raises(NotFound):
        copying.run(program)


def test_ctrl_c_comes_before_the_errors_that_it_causes() -> None:
    async def interrupted() -> None:
        raise BaseExceptionGroup("", [NotFound("object x"), BaseExceptionGroup("", [KeyboardInterrupt()])])

    with pytest.raises(KeyboardInterrupt):
        copying.run(interrupted)
