"""The machine's clock.

`now` is CLOCK_BOOTTIME, shared by every process of the machine. It goes on while the machine is suspended,
which CLOCK_MONOTONIC does not: a lease must not outlast a closed lid. (macOS's monotonic clock stops there.)
trio's own clock runs at the same rate with a random offset, so instants of the two never mix: a wait hands
trio a duration, and looks at our clock again after.
"""

from __future__ import annotations

import time

import trio

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class RealClock:
    def now(self) -> float:
        return time.clock_gettime(_CLOCK)

    def wall(self) -> float:
        return time.time()

    async def sleep_until(self, when: float) -> None:
        await trio.lowlevel.checkpoint()
        while (left := when - self.now()) > 0:  # noqa: ASYNC110 - time is what we wait for
            await trio.sleep(left)
