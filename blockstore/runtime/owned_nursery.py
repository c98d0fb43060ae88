"""A nursery that belongs to an object with a block of its own.

Leaving the block cancels the tasks. What the block itself raises goes on unwrapped: inside a plain nursery a
user's `ValueError` would turn into a group. A task that fails still takes the block down, as a group that
names it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class OwnedNursery:
    __slots__ = ("_manager", "_nursery")

    def __init__(self) -> None:
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def open(self) -> None:
        self._nursery = await self._manager.__aenter__()

    async def close(self) -> None:
        """Cancel every task and wait for the last; raises what one of them raised."""
        nursery, self._nursery = self._nursery, None
        assert nursery is not None
        nursery.cancel_scope.cancel()
        await self._manager.__aexit__(None, None, None)

    def start_soon(self, run: Callable[[], Awaitable[object]]) -> bool:
        """False when it is closed, or about to be."""
        nursery = self._nursery
        if nursery is None or nursery.cancel_scope.cancel_called:
            return False
        nursery.start_soon(_protected, run)
        return True


@trio.lowlevel.enable_ki_protection
async def _protected(run: Callable[[], Awaitable[object]]) -> None:
    """Ctrl-C meets the program's own task, and never one of ours between two steps."""
    await run()
