"""Where a new chunk goes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from blockstore.errors import QuorumLost
from blockstore.ids import DiskId, VolumeId
from blockstore.placement.policy import Policy
from blockstore.volume.chunk_choice import choose_placement, has_room
from blockstore.volume.chunk_places import AVOID_SECONDS, ChunkPlaces

POLICY = Policy.parse("replicated(3)")


def disks(*numbers: int) -> tuple[DiskId, ...]:
    return tuple(DiskId(number) for number in numbers)


GROUPS = [disks(1, 2, 3), disks(2, 3, 4), disks(3, 4, 5), disks(4, 5, 6)]


def choose(usable: tuple[DiskId, ...], preferred: tuple[DiskId, ...] = ()) -> tuple[DiskId, ...]:
    return choose_placement(POLICY, GROUPS, usable, preferred, Counter(), random.Random(1)).disks


def test_a_whole_group_is_taken_if_there_is_one() -> None:
    for _ in range(10):
        assert choose(disks(1, 2, 3, 4)) in GROUPS[:2]


def test_of_whole_groups_one_with_a_preferred_disk() -> None:
    for _ in range(10):
        assert choose(disks(1, 2, 3, 4, 5, 6), disks(1)) == GROUPS[0]


def test_without_a_whole_one_the_most_complete_with_a_hole() -> None:
    assert choose(disks(1, 2, 5)) == disks(1, 2, 0)


def test_too_few_are_refused() -> None:
    with pytest.raises(QuorumLost):
        choose(disks(1, 6))
    with pytest.raises(QuorumLost):
        choose_placement(POLICY, [], disks(1, 2, 3), (), Counter(), random.Random(1))


def test_load_spreads() -> None:
    used: Counter[DiskId] = Counter()
    chance = random.Random(1)
    for _ in range(400):
        choose_placement(POLICY, GROUPS, disks(1, 2, 3, 4, 5, 6), (), used, chance)
    by_group = used[DiskId(1)], used[DiskId(6)]  # each is in one group alone
    assert min(by_group) > 60


def test_a_disk_that_failed_is_avoided_for_a_while_unless_it_is_needed() -> None:
    places = ChunkPlaces(VolumeId(1), 3, random.Random(1))
    live = disks(1, 2, 3, 4)
    places.avoid(DiskId(1), 0.0)
    for _ in range(10):
        assert places.choose(POLICY, GROUPS, live, (), 1.0).disks == GROUPS[1]
    chosen = {places.choose(POLICY, GROUPS, live, (), AVOID_SECONDS + 1.0).disks for _ in range(50)}
    assert chosen == set(GROUPS[:2])
    places.avoid(DiskId(2), 0.0)
    assert places.choose(POLICY, GROUPS[:1], live, (), 1.0).disks == GROUPS[0], "one is not enough"


def test_what_a_client_avoids_is_avoided_for_it_alone() -> None:
    places = ChunkPlaces(VolumeId(1), 3, random.Random(1))
    live = disks(1, 2, 3, 4)
    for _ in range(10):
        assert places.choose(POLICY, GROUPS, live, (), 0.0, disks(1)).disks == GROUPS[1]
    assert {places.choose(POLICY, GROUPS, live, (), 0.0).disks for _ in range(50)} == set(GROUPS[:2])


def test_chunk_ids_count_up_under_the_epoch() -> None:
    places = ChunkPlaces(VolumeId(1), 3, random.Random(1))
    assert [places.next_chunk() for _ in range(2)] == [(1, 3, 1), (1, 3, 2)]


def test_there_is_room_if_a_write_set_is() -> None:
    assert has_room(POLICY, GROUPS, disks(1, 4, 5))
    assert not has_room(POLICY, GROUPS, disks(1, 5))
    assert not has_room(POLICY, [], disks(1, 2, 3))
