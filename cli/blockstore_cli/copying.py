"""Copies trees of files into a bucket and back, and deletes many objects, with several requests in flight.

One trio program. Small objects are fetched many at a time with `read_many`, which is where the store is
fastest; large ones piece by piece, so that memory holds `IN_FLIGHT` pieces and no more, whatever their size.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar, cast

import trio

from blockstore import aio
from blockstore.errors import BlockStoreError, InvalidRequest, NotFound
from blockstore.ids import MiB
from blockstore_cli.address import Place
from blockstore_cli.output import Progress
from blockstore_cli.settings import Settings
from blockstore_cli.tree import Download, Refused, TargetTree, Upload, as_folder, plan_downloads

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 16
"""Where the rate of small puts stops growing steeply on two cores; beyond it, only waiting grows."""

BATCH_OBJECTS_MAX = 64
BATCH_BYTES_MAX = 4 * MiB
PIECE_BYTES = 4 * MiB


def run(program: Callable[[], Awaitable[Result]]) -> Result:
    """`trio.run`, with the first error instead of a group: the others are of transfers that it cut short.
    Ctrl-C ends it where it waits, never within a step."""
    try:
        return trio.run(program, restrict_keyboard_interrupt_to_checkpoints=True)
    except BaseExceptionGroup as group:
        raise _first(group) from group


async def upload(settings: Settings, place: Place, uploads: list[Upload]) -> Progress:
    """Put every file. What is already there is overwritten: an interrupted copy may simply be repeated."""
    progress = Progress("copied", len(uploads), sum(item.size for item in uploads))
    async with _opened(settings) as store:
        bucket = await store.bucket(place.bucket)

        async def put(item: Upload) -> None:
            try:
                await bucket.put(item.name, item.path)
            except OSError as error:
                raise InvalidRequest(f"{item.path} cannot be read: {error.strerror}.") from error
            progress.advance(1, item.size)

        await in_flight(uploads, put)
    progress.end()
    return progress


async def list_downloads(settings: Settings, place: Place) -> tuple[list[Download], Refused]:
    """Plan the copy of everything below `place`."""
    async with _opened(settings) as store:
        source = await reading(store, place)
        found = [(entry.name, entry.size) async for entry in source.list(prefix=as_folder(place.name))]
    return plan_downloads(found, place.name)


async def download(settings: Settings, place: Place, downloads: list[Download], target: Path) -> Progress:
    progress = Progress("copied", len(downloads), sum(item.size for item in downloads))
    async with _opened(settings) as store:
        source = await reading(store, place)
        with TargetTree(target) as tree:

            async def fetch(batch: list[Download]) -> None:
                if batch[0].size > BATCH_BYTES_MAX:
                    await _fetch_pieces(source, batch[0], tree, progress)
                    return
                for item, content in zip(
                    batch, await source.read_many([item.name for item in batch]), strict=True
                ):
                    with tree.create(item.parts) as file:
                        file.write(content)
                        file.finish()
                    progress.advance(1, len(content))

            await in_flight(batches(downloads), fetch)
    progress.end()
    return progress


async def remove(settings: Settings, place: Place, names: list[str]) -> None:
    progress = Progress("deleted", len(names), 0)
    async with _opened(settings) as store:
        bucket = await store.bucket(place.bucket)

        async def delete(name: str) -> None:
            with suppress(NotFound):  # somebody else was faster; it is gone
                await bucket.delete(name)
            progress.advance(1, 0)

        await in_flight(names, delete)
    progress.end()


async def in_flight(
    items: Iterable[Item], work: Callable[[Item], Awaitable[None]], n: int = IN_FLIGHT
) -> None:
    """`work` on every item, at most `n` at once, begun in order."""
    pending = iter(items)

    async def worker() -> None:
        for item in pending:
            await work(item)

    async with trio.open_nursery() as nursery:
        for _ in range(n):
            nursery.start_soon(worker)


def batches(downloads: Iterable[Download]) -> Iterator[list[Download]]:
    """Neighbours that one `read_many` takes; an object larger than a batch is one by itself."""
    batch: list[Download] = []
    n_bytes = 0
    for item in downloads:
        if batch and (n_bytes + item.size > BATCH_BYTES_MAX or len(batch) == BATCH_OBJECTS_MAX):
            yield batch
            batch, n_bytes = [], 0
        batch.append(item)
        n_bytes += item.size
    if batch:
        yield batch


async def reading(store: aio.Store, place: Place) -> aio.Bucket | aio.Snapshot:
    bucket = await store.bucket(place.bucket)
    return await bucket.at(place.snapshot) if place.snapshot else bucket


def _opened(settings: Settings) -> aio.Store:
    return aio.open(settings.store or None, credentials=settings.credentials or None, create=False)


async def _fetch_pieces(
    source: aio.Bucket | aio.Snapshot, item: Download, tree: TargetTree, progress: Progress
) -> None:
    """A large object, all of one version: `open` holds on to the one that was there when it was called."""
    with tree.create(item.parts) as file:
        async with await source.open(item.name) as reader:
            while piece := await reader.read(PIECE_BYTES):
                file.write(piece)
                progress.advance(0, len(piece))
        file.finish()
    progress.advance(1, 0)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Ctrl-C before any error that it caused; else an error of ours; else whatever came first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending += cast("tuple[BaseException, ...]", error.exceptions)[::-1]
        else:
            leaves.append(error)
    for kind in (KeyboardInterrupt, BlockStoreError):
        for error in leaves:
            if isinstance(error, kind):
                return error
    return leaves[0]
