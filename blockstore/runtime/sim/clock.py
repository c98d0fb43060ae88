"""A machine's clock in simulated time: begun at an instant of its own, and as fast as its crystal."""

from __future__ import annotations

import trio

WALL_SECONDS = 1_700_000_000.0
"""What the wall shows when a simulation begins: November 2023."""


class MachineClock:
    """`interfaces.Clock`. `rate` is how many of its seconds pass in a second of the simulation."""

    __slots__ = ("_offset", "rate")

    def __init__(self, offset: float = 0.0, rate: float = 1.0) -> None:
        self._offset, self.rate = offset, rate

    def now(self) -> float:
        return self._offset + self.rate * trio.current_time()

    def wall(self) -> float:
        return WALL_SECONDS + self.rate * trio.current_time()

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until((when - self._offset) / self.rate)


class WorldClock(MachineClock):
    """The simulation's own, by which all others are wrong."""

    __slots__ = ()

    def now(self) -> float:
        return trio.current_time()

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)
