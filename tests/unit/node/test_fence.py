"""What a disk refuses for ever, and what it may forget."""

from __future__ import annotations

import pytest

from blockstore.codec.fence_file import Fact, Kind
from blockstore.errors import StaleEpoch
from blockstore.ids import VolumeId
from blockstore.node.fence import TOMBSTONES_MAX, Fences
from tests.unit.node.disks import VOLUME, chunk


def again(fences: Fences) -> Fences:
    """What a restart knows."""
    fresh = Fences()
    fresh.recall(reversed(fences.facts()))
    return fresh


def test_the_highest_epoch_stands() -> None:
    fences = Fences()
    fences.check(VOLUME, 0)
    for epoch in (3, 7, 5):
        fences.raise_to(VOLUME, epoch)
    for known in (fences, again(fences)):
        assert known.highest(VOLUME) == 7
        known.check(VOLUME, 7)
        with pytest.raises(StaleEpoch):
            known.check(VOLUME, 6)
        known.check(VolumeId(8), 0)


def test_it_is_told_only_when_it_is_durable() -> None:
    fences = Fences()
    fences.raise_to(VOLUME, 7)
    assert not fences.is_durable(VOLUME, 7)
    fences.on_durable(VOLUME, 6)
    assert not fences.is_durable(VOLUME, 7)
    fences.on_durable(VOLUME, 7)
    assert fences.is_durable(VOLUME, 7)
    assert fences.is_durable(VOLUME, 5)


def test_a_tombstone_lasts_as_long_as_its_epoch() -> None:
    fences = Fences()
    assert fences.bury(chunk(4, 2)) == (Fact(Kind.TOMBSTONE, VOLUME, 2, 4),)
    fences.recall([Fact(Kind.TOMBSTONE, VOLUME, 2, 9)])
    for known in (fences, again(fences)):
        assert known.is_buried(chunk(4, 2))
        assert known.is_buried(chunk(9, 2))
        assert not known.is_buried(chunk(5, 2))
        assert known.highest(VOLUME) == 2, "a chunk that was deleted shows that its epoch was"
    fences.raise_to(VOLUME, 3)
    assert fences.facts() == [Fact(Kind.FENCE, VOLUME, 3)]
    assert fences.is_buried(chunk(5, 2)), "by the fence"


def test_too_many_tombstones_become_a_floor() -> None:
    fences = Fences()
    facts = list[Fact]()
    for number in range(TOMBSTONES_MAX + 1):
        facts += fences.bury(chunk(number, 2))
    assert facts[-1] == Fact(Kind.FLOOR, VOLUME, 2, TOMBSTONES_MAX // 2)
    from_file = Fences()
    from_file.recall(facts)
    for known in (fences, again(fences), from_file):
        kinds = [fact.kind for fact in known.facts()]
        assert (kinds.count(Kind.FLOOR), kinds.count(Kind.TOMBSTONE)) == (1, TOMBSTONES_MAX // 2)
        for number in (0, TOMBSTONES_MAX // 2, TOMBSTONES_MAX):
            assert known.is_buried(chunk(number, 2))
        assert not known.is_buried(chunk(TOMBSTONES_MAX + 1, 2))
        assert not known.is_tombstoned(chunk(0, 2))
    for number in range(TOMBSTONES_MAX + 1, 3 * TOMBSTONES_MAX):
        fences.bury(chunk(number, 2))
    assert len(fences.facts()) <= TOMBSTONES_MAX + 2
