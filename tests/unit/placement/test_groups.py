"""The groups table: the same for ever, fair, and refused in words when it cannot be."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import pytest

from blockstore.errors import InvalidRequest
from blockstore.ids import DiskId, NodeId, TiB
from blockstore.placement.groups import _minus_log2, groups, weight_of
from blockstore.placement.policy import Policy
from blockstore.placement.topology import Disk, DiskState, Topology


def disk(number: int, node: int, zone: str = "", tib: int = 1, state: DiskState = "active") -> Disk:
    return Disk(DiskId(number), NodeId(node), (zone,) if zone else (), tib * TiB, state)


MIXED = Topology(disk(number, number // 2, f"rack-{number % 5}", 1 + number % 4) for number in range(1, 21))


@pytest.mark.parametrize(
    ("policy", "first", "digest"),
    [
        ("replicated(3)", (10, 15, 20), "2f7e4d38f4fafcfe5008ba759423f455524b5175aaafe50be60c91141830bd45"),
        (
            "ec(4,2)",
            (11, 17, 9, 3, 7, 14),
            "949e423f817a3241a5219b4950c2ae6be2a92023183afc58c279566bc208cc15",
        ),
        (
            "ec(2,1,domain=disk)",
            (3, 4, 11),
            "77f96aae4226a5a88f716b575b3ec07e1089043afbdbb980ecc9b588c427598e",
        ),
        (
            "ec(3,2,domain=zone)",
            (15, 19, 2, 11, 3),
            "7e75afcdc678de662bf1810900a35663ed17fecb937009b5eb2e962e2bae6aab",
        ),
    ],
)
def test_golden_a_table_is_the_same_on_every_machine_and_release(
    policy: str, first: tuple[int, ...], digest: str
) -> None:
    table = groups(MIXED, Policy.parse(policy), 2_000)
    assert table[0] == first
    assert hashlib.sha256(repr(table).encode()).hexdigest() == digest


def test_a_longer_table_begins_with_the_shorter() -> None:
    policy = Policy.parse("replicated(3)")
    assert groups(MIXED, policy, 1_100)[:100] == groups(MIXED, policy, 100)
    assert groups(MIXED, policy, 0) == ()


def test_the_order_in_which_disks_are_named_does_not_matter() -> None:
    backwards = Topology(reversed(MIXED.disks))
    assert groups(backwards, Policy.parse("ec(4,2)"), 64) == groups(MIXED, Policy.parse("ec(4,2)"), 64)


def test_too_few_domains_are_refused_in_words() -> None:
    two_nodes = Topology([disk(1, 1), disk(2, 1), disk(3, 2), disk(4, 3, state="leaving"), disk(5, 4, tib=0)])
    with pytest.raises(
        InvalidRequest, match=r"replicated\(3\) needs disks in 3 different nodes; 2 can take data\."
    ):
        groups(two_nodes, Policy.parse("replicated(3)"), 8)
    assert groups(two_nodes, Policy.parse("replicated(3,domain=disk)"), 8)


@pytest.mark.parametrize("policy", ["replicated(3)", "ec(2,1,domain=disk)"])
def test_disks_are_filled_in_proportion_to_their_capacity(policy: str) -> None:
    topology = Topology(disk(number, number, tib=2 if number <= 10 else 4) for number in range(1, 31))
    share = Counter(member for group in groups(topology, Policy.parse(policy), 6_000) for member in group)
    small = sum(share[DiskId(number)] for number in range(1, 11)) / 10
    large = sum(share[DiskId(number)] for number in range(11, 31)) / 20
    assert large / small == pytest.approx(2.0, rel=0.08)  # a little under 2: nobody is taken twice in a group
    for number in range(1, 31):
        fair = small if number <= 10 else large
        assert abs(share[DiskId(number)] - fair) < 6 * math.sqrt(fair)


def test_a_disk_of_a_large_node_gets_what_one_of_a_small_node_gets() -> None:
    topology = Topology(disk(number, number if number <= 8 else 8 + number // 4) for number in range(1, 41))
    share = Counter(
        member for group in groups(topology, Policy.parse("replicated(2)"), 8_000) for member in group
    )
    alone = sum(share[DiskId(number)] for number in range(1, 9)) / 8
    together = sum(share[DiskId(number)] for number in range(9, 41)) / 32
    assert together / alone == pytest.approx(1.0, rel=0.08)


def test_members_that_stay_keep_their_position() -> None:
    policy = Policy.parse("ec(4,2)")
    before = groups(MIXED, policy, 500)
    without = Topology(one for one in MIXED.disks if one.node != 3)
    after = groups(without, policy, 500, before)
    for old, new in zip(before, after, strict=True):
        for position, member in enumerate(old):
            assert new[position] == member or member not in new
    assert {frozenset(group) for group in after} == {
        frozenset(group) for group in groups(without, policy, 500)
    }


def test_nearly_equal_disks_weigh_the_same() -> None:
    assert weight_of(1_000_204_886_016) == weight_of(1_000_000_000_000)
    assert weight_of(31) == 31
    assert all(0.93 < weight_of(capacity) / capacity <= 1 for capacity in range(1, 5_000))


def test_the_logarithm_is_right() -> None:
    for draw in (0, 1, 2, 12_345, 2**32 - 1, 2**63, 2**64 - 2**40, 0x0123_4567_89AB_CDEF):
        assert _minus_log2(draw) / 2**32 == pytest.approx(64 - math.log2(draw + 0.5), abs=2e-9)
    assert _minus_log2(2**64 - 1) > 0
