"""The machine's clock.

`now` is CLOCK_MONOTONIC, shared by every process of the machine. trio's own clock runs at the same rate with
a random offset, so instants of the two never mix: a wait hands trio a duration, and looks at our clock again
after.
"""

from __future__ import annotations

import time

import trio


class RealClock:
    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    async def sleep_until(self, when: float) -> None:
        await trio.lowlevel.checkpoint()
        while (left := when - time.monotonic()) > 0:  # noqa: ASYNC110 - time is what we wait for
            await trio.sleep(left)
