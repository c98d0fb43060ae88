"""Cases of a stripe's read that were wrong once."""

from __future__ import annotations

from blockstore.chunk.reader import Member, StripeRead
from blockstore.chunk.striping import data_shards
from blockstore.codec.checksum import crc32c
from blockstore.codec.erasure import erasure_code
from blockstore.codec.messages import Extent, Placement
from blockstore.ids import ChunkId, DiskId, VolumeId


def keep(members: list[Member]) -> list[Member]:
    return members


def test_a_window_for_one_lost_shard_does_not_stand_in_for_another_that_is_waited_for() -> None:
    content = bytes(range(192))
    plain = [bytes(shard) for shard in data_shards(memoryview(content), 3, 64)]
    shards = [*plain, *(bytes(parity) for parity in erasure_code(3, 3).encode(plain))]
    extent = Extent(ChunkId(VolumeId(1), 1, 1), 0, 192, 64, crc32c(content))
    read = StripeRead(extent, Placement(3, 3, tuple(DiskId(disk) for disk in range(1, 7))), 1, 65)
    asks = read.next_asks(False, lambda members: members[::-1], lambda disk: disk != 1)
    assert [(ask.shard_index, ask.start, ask.end) for ask in asks] == [
        (1, 0, 1), (5, 1, 64), (4, 1, 64), (3, 1, 64),
    ]  # fmt: skip
    for ask in asks[1:]:
        part = shards[ask.shard_index][ask.start : ask.end]
        read.on_data(ask, memoryview(part), crc32c(part))
    assert read.result is None
    assert read.next_asks(False, keep, lambda disk: True) == []
    read.on_data(asks[0], memoryview(shards[1][:1]), crc32c(shards[1][:1]))
    assert read.result is not None
    assert b"".join(read.result) == content[1:65]
