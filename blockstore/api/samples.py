"""Samples for training: the objects of a snapshot in batches, each once an epoch, in an order that only a
seed and the epoch's number decide (`kinds/samples.py`). Batches are read ahead while the program works on
the last.

Both twins. The blocking one reads ahead in threads of the process that iterates, begun by the first batch, so
that it may be made before a fork, or pickled for a spawned process: data loaders' workers do either."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import trio

from blockstore.errors import InvalidRequest
from blockstore.kinds.samples import Share

Batch = list[tuple[str, bytes]]
"""Names and contents."""


def check_prefetch(prefetch: int) -> None:
    if not 0 <= prefetch <= 64:
        raise InvalidRequest(f"prefetch is how many batches are read ahead, 0 to 64, not {prefetch}.")


class Samples:
    """An iterator over the batches of one process's share of an epoch. `len` is how many the whole share has,
    `position` how many were taken: pass it as `start` to go on there another time."""

    def __init__(
        self,
        names: Sequence[str],
        share: Share,
        start: int,
        prefetch: int,
        read: Callable[[list[str]], list[bytes]],
    ) -> None:
        check_prefetch(prefetch)
        self.position = start
        self._names, self._share, self._prefetch, self._read = names, share, prefetch, read
        self._chosen: Iterator[list[int]] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._coming: deque[tuple[list[str], Future[list[bytes]]]] = deque()
        share.batches(start)

    def __len__(self) -> int:
        return len(self._share)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._chosen is None:
            self._chosen = self._share.batches(self.position)
        if not self._prefetch:
            numbers = next(self._chosen)
            names = [self._names[number] for number in numbers]
            values = self._read(names)
        else:
            self._read_ahead(self._chosen)
            if not self._coming:
                self.close()
                raise StopIteration
            names, future = self._coming.popleft()
            values = future.result()
        self.position += 1
        return list(zip(names, values, strict=True))

    def _read_ahead(self, chosen: Iterator[list[int]]) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._prefetch, "blockstore-samples")
        while len(self._coming) <= self._prefetch:
            numbers = next(chosen, None)
            if numbers is None:
                return
            names = [self._names[number] for number in numbers]
            self._coming.append((names, self._threads.submit(self._read, names)))

    def close(self) -> None:
        """Stop reading ahead. Not needed at the end of an epoch."""
        self._coming.clear()
        self._chosen = iter(())
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if self._chosen is not None:
            raise InvalidRequest(
                "Samples that have begun cannot be sent to another process; make them there, with "
                f"start={self.position}."
            )
        return self.__dict__


@asynccontextmanager
async def reading_ahead(
    names: Sequence[str],
    share: Share,
    start: int,
    prefetch: int,
    read: Callable[[list[str]], Awaitable[list[bytes]]],
) -> AsyncGenerator[AsyncIterator[Batch]]:
    """The batches, read ahead by tasks that end with the block."""
    check_prefetch(prefetch)
    chosen = share.batches(start)
    coming: deque[tuple[trio.Event, list[tuple[str, bytes]]]] = deque()

    async def fetch(wanted: list[str], done: trio.Event, batch: Batch) -> None:
        batch += zip(wanted, await read(wanted), strict=True)
        done.set()

    async with trio.open_nursery() as nursery:

        async def batches() -> AsyncGenerator[Batch]:
            while True:
                while len(coming) <= prefetch and (numbers := next(chosen, None)) is not None:
                    done, batch = trio.Event(), Batch()
                    coming.append((done, batch))
                    nursery.start_soon(fetch, [names[number] for number in numbers], done, batch)
                if not coming:
                    return
                done, batch = coming.popleft()
                await done.wait()
                yield batch

        async with aclosing(batches()) as stream:
            yield stream
        nursery.cancel_scope.cancel()
