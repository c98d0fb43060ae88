"""What `blockstore bench` asks of a block device: small ones anywhere, large ones one after the other."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable

from blockstore import aio
from blockstore.ids import GiB, MiB
from blockstore_cli.copying import in_flight

DEVICE_BYTES = 4 * GiB
FILLED_BYTES = 64 * MiB
"""At the device's start, in writes of 1 MiB: what is read, so the page cache holds it."""

SMALL_END = 1 * GiB
"""Behind what is filled, up to here, small writes go; large ones from here on."""


async def fill(device: aio.BlockDevice, content: bytes) -> None:
    async def write(span: int) -> None:
        await device.write(span * MiB, content[:MiB])

    await in_flight(range(FILLED_BYTES // MiB), write)


def request(device: aio.BlockDevice, operation: str, value: bytes) -> Callable[[], Awaitable[int]]:
    """One read or write of as many bytes as `value` has; 1 when it is done."""
    chance = random.Random(0)
    size = len(value)
    places = itertools.cycle(range(SMALL_END, DEVICE_BYTES, size))

    async def write() -> int:
        offset = next(places) if size >= MiB else chance.randrange(FILLED_BYTES, SMALL_END, size)
        await device.write(offset, value)
        return 1

    async def read() -> int:
        assert len(await device.read(chance.randrange(0, FILLED_BYTES, size), size)) == size
        return 1

    return write if operation == "device write" else read
