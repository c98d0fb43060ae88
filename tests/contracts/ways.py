"""Ways to a store: both twins, embedded and connected.

Tests speak to the async twin; `Awaited` lets the blocking one answer in a thread, under the same names."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import trio

import blockstore
from blockstore import aio


class Awaited:
    """A blocking object whose methods run in a thread."""

    def __init__(self, wrapped: object) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._wrapped, name)
        if not callable(found) or name in ("seek", "tell"):
            return found
        if name == "batch":
            return lambda: _AwaitedBatch(cast("blockstore.Batch", found()))
        if name in ("list", "diff"):
            return partial(_async_iterator, found)

        async def call(*args: object, **kwargs: object) -> object:
            return _awaited(await trio.to_thread.run_sync(partial(found, *args, **kwargs)))

        return call

    async def __aenter__(self) -> Awaited:
        return self

    async def __aexit__(self, *_: object) -> None:
        cast("io.BufferedReader", self._wrapped).close()


class _AwaitedBatch:
    """Collecting is the same in both twins."""

    def __init__(self, wrapped: blockstore.Batch) -> None:
        self._wrapped = wrapped
        self.put, self.delete = wrapped.put, wrapped.delete

    async def commit(self) -> object:
        return await trio.to_thread.run_sync(self._wrapped.commit)

    async def __aenter__(self) -> _AwaitedBatch:
        return self

    async def __aexit__(self, *raised: Any) -> None:
        await trio.to_thread.run_sync(self._wrapped.__exit__, *raised)


def _awaited(result: object) -> object:
    if isinstance(result, list):
        return [_awaited(one) for one in cast("list[object]", result)]
    kinds = (
        blockstore.Bucket,
        blockstore.Snapshot,
        blockstore.ObjectReader,
        blockstore.BlockDevice,
        blockstore.DeviceSnapshot,
    )
    return Awaited(result) if isinstance(result, kinds) else result


async def _async_iterator(
    listing: Callable[..., Any], *args: object, **kwargs: object
) -> AsyncIterator[object]:
    for entry in await trio.to_thread.run_sync(lambda: list(listing(*args, **kwargs))):
        yield entry


@dataclass(frozen=True)
class Way:
    """How to open the store, as its twin takes it."""

    twin: str
    arguments: dict[str, Any]

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[aio.Store]:
        if self.twin == "aio":
            async with aio.open(**self.arguments) as store:
                yield store
        else:
            with await trio.to_thread.run_sync(partial(blockstore.open, **self.arguments)) as blocking:
                yield cast("aio.Store", Awaited(blocking))
