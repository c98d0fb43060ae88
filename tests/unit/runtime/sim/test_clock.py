"""A machine's clock drifts and stands still and never goes back; nobody wakes before his time by it."""

from __future__ import annotations

import trio

from blockstore.runtime.sim.clock import MachineClock
from blockstore.runtime.sim.scheduler import run_simulated, simulated_time


def test_a_change_of_rate_changes_what_comes_and_not_what_is_shown() -> None:
    async def main() -> None:
        clock = MachineClock(simulated_time(), 100.0)
        await trio.sleep(10)
        clock.rate = 2.0
        assert clock.now() == 110.0
        await trio.sleep(10)
        assert clock.now() == 130.0

    run_simulated(1, main)


def test_a_clock_that_stands_still_goes_on_where_it_stood() -> None:
    async def main() -> None:
        clock = MachineClock(simulated_time())
        await trio.sleep(10)
        clock.stand_still(3)
        shown: list[float] = []
        for _ in range(5):
            shown.append(clock.now())
            await trio.sleep(1)
        assert shown == [10.0, 10.0, 10.0, 10.0, 11.0]

    run_simulated(1, main)


def test_who_sleeps_wakes_late_and_not_early_when_the_clock_loses_time() -> None:
    async def main() -> None:
        clock = MachineClock(simulated_time())

        async def sleeper() -> None:
            await clock.sleep_until(10.0)
            assert clock.now() >= 10.0
            assert trio.current_time() == 12.0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleeper)
            await trio.sleep(5)
            clock.stand_still(2)

    run_simulated(1, main)


def test_the_walls_clock_is_set_and_ours_is_not() -> None:
    async def main() -> None:
        clock = MachineClock(simulated_time())
        before = clock.wall()
        clock.set_wall(-3_600)
        assert clock.wall() == before - 3_600
        assert clock.now() == 0.0

    run_simulated(1, main)
