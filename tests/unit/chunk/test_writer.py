"""ChunkWriter: what is acknowledged, and when a chunk ends."""

from __future__ import annotations

import pytest

from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.messages import FragmentSpec, Placement
from blockstore.config import MEMBER_LATE_SECONDS
from blockstore.errors import FragmentFull, ProtocolViolation
from blockstore.ids import ChunkId, DiskId, VolumeId

CHUNK = ChunkId(VolumeId(1), 2, 3)


def writer(*disks: int, k: int = 1, capacity: int = 100) -> ChunkWriter:
    placement = Placement(k, len(disks) - k, tuple(DiskId(disk) for disk in disks))
    return ChunkWriter(CHUNK, 2, placement, capacity)


def test_the_write_set_is_the_members_that_are_there() -> None:
    assert writer(11, 0, 13).members == [(0, 11), (2, 13)]


def test_offsets_follow_each_other_until_the_chunk_is_full() -> None:
    core = writer(11, 12)
    assert [core.reserve(40, 0.0), core.reserve(40, 0.0)] == [0, 40]
    with pytest.raises(FragmentFull):
        core.reserve(21, 0.0)
    assert core.reserve(20, 0.0) == 80


def test_acknowledged_is_what_every_member_has() -> None:
    core = writer(11, 0, 13)
    core.reserve(10, 0.0)
    core.reserve(10, 0.0)
    core.on_ack(0, 20)
    assert core.acknowledged == 0
    core.on_ack(2, 10)
    assert core.acknowledged == 10
    core.on_ack(2, 20)
    core.on_ack(2, 10)  # an old one, late
    assert core.acknowledged == 20


def test_a_failure_ends_the_chunk_where_it_is_acknowledged() -> None:
    core = writer(11, 12)
    core.reserve(10, 0.0)
    core.reserve(10, 0.0)
    core.on_ack(0, 20)
    core.on_ack(1, 10)
    core.on_failure(0)
    core.on_ack(1, 20)  # too late: the length was told to the owner
    assert core.broken
    assert core.acknowledged == 10


def test_who_owes_an_acknowledgement_for_too_long_is_late() -> None:
    core = writer(11, 12, 13)
    core.reserve(10, 5.0)
    core.reserve(10, 5.5)
    core.on_ack(1, 10)
    assert core.late(5.0 + MEMBER_LATE_SECONDS - 0.01) == []
    assert core.late(5.0 + MEMBER_LATE_SECONDS) == [(0, 11), (2, 13)]
    core.on_ack(0, 20)
    core.on_ack(2, 10)
    assert core.late(5.0 + MEMBER_LATE_SECONDS) == []
    assert core.late(5.5 + MEMBER_LATE_SECONDS) == [(1, 12), (2, 13)]
    core.on_ack(1, 20)
    core.on_ack(2, 20)
    assert core.late(1e9) == []


def test_the_first_append_creates_the_fragment() -> None:
    core = writer(11, 12, 13, k=2)
    assert core.spec(2, 0) == FragmentSpec(2, 2, 1, 100)
    assert core.spec(2, 64) is None


def test_a_member_that_acknowledges_what_was_not_sent_is_lying() -> None:
    core = writer(11, 12)
    core.reserve(10, 0.0)
    with pytest.raises(ProtocolViolation):
        core.on_ack(0, 11)
    assert core.acknowledged == 0
