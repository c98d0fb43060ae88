from __future__ import annotations

import time

from blockstore.runtime.real_clock import RealClock


def test_it_goes_on_while_the_machine_is_suspended() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = RealClock().now()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def test_a_wait_ends_by_that_clock() -> None:
    clock = RealClock()
    until = clock.now() + 0.01
    await clock.sleep_until(until)
    assert clock.now() >= until
