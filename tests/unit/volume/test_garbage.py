"""Which fragments of dropped chunks are deleted when."""

from __future__ import annotations

from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.volume.garbage import DELETES_PER_DISK, WAITING_PER_DISK_MAX, Garbage

ONE, TWO, NOBODY = DiskId(1), DiskId(2), DiskId(0)


def chunk(number: int) -> ChunkId:
    return ChunkId(VolumeId(1), 1, number)


def test_each_member_is_told_once() -> None:
    garbage = Garbage()
    garbage.add(chunk(1), (ONE, NOBODY, TWO))
    assert garbage.next([ONE, TWO]) == [(ONE, chunk(1)), (TWO, chunk(1))]
    assert garbage.next([ONE, TWO]) == []
    garbage.on_deleted(ONE, chunk(1))
    garbage.on_deleted(TWO, chunk(1))
    assert garbage.n_fragments == 0


def test_a_member_that_does_not_answer_is_told_again() -> None:
    garbage = Garbage()
    garbage.add(chunk(1), (ONE,))
    assert garbage.next([ONE]) == [(ONE, chunk(1))]
    garbage.on_failed(ONE, chunk(1))
    assert garbage.next([ONE]) == [(ONE, chunk(1))]


def test_a_member_that_is_away_is_told_when_it_is_back() -> None:
    garbage = Garbage()
    garbage.add(chunk(1), (ONE, TWO))
    assert garbage.next([TWO]) == [(TWO, chunk(1))]
    assert garbage.next([ONE, TWO]) == [(ONE, chunk(1))]


def test_a_few_are_under_way_at_a_disk_and_the_others_wait() -> None:
    garbage = Garbage()
    for number in range(DELETES_PER_DISK + 5):
        garbage.add(chunk(number), (ONE,))
    first = garbage.next([ONE])
    assert len(first) == DELETES_PER_DISK
    assert garbage.next([ONE]) == []
    for disk, done in first[:3]:
        garbage.on_deleted(disk, done)
    assert len(garbage.next([ONE])) == 3


def test_what_waits_for_a_disk_has_a_bound() -> None:
    garbage = Garbage()
    for number in range(WAITING_PER_DISK_MAX + 5):
        garbage.add(chunk(number), (ONE,))
    assert garbage.n_fragments == WAITING_PER_DISK_MAX
