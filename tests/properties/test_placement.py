"""Properties of groups that repair and rebalancing rely on, over random clusters."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.ids import DiskId, NodeId, TiB
from blockstore.placement.groups import Group, groups
from blockstore.placement.policy import Policy
from blockstore.placement.topology import Disk, Topology

POLICIES = st.sampled_from(["replicated(2)", "replicated(3)", "ec(2,1)", "ec(3,2)", "ec(2,1,domain=zone)"])
N_GROUPS = 60


@st.composite
def clusters(draw: st.DrawFn) -> Topology:
    """5 to 9 zones, one to three nodes in each, one to three disks in each of these."""
    disks: list[Disk] = []
    for zone in range(draw(st.integers(5, 9))):
        for node in range(draw(st.integers(1, 3))):
            for _ in range(draw(st.integers(1, 3))):
                capacity = draw(st.integers(1, 16)) * TiB
                disks.append(Disk(DiskId(len(disks) + 1), NodeId(10 * zone + node), (f"z{zone}",), capacity))
    return Topology(disks)


def domain_of(topology: Topology, policy: Policy) -> dict[DiskId, object]:
    return {disk.disk: disk.zone if policy.domain == "zone" else disk.node for disk in topology.disks}


@given(clusters(), POLICIES)
@settings(max_examples=60, deadline=None)
def test_members_are_in_distinct_domains(topology: Topology, text: str) -> None:
    policy = Policy.parse(text)
    domains = domain_of(topology, policy)
    for group in groups(topology, policy, N_GROUPS):
        assert len(group) == policy.n
        assert len({domains[member] for member in group}) == policy.n


def moved(before: tuple[Group, ...], after: tuple[Group, ...]) -> list[tuple[set[DiskId], set[DiskId]]]:
    """For each group that changed, what it lost and what it gained."""
    pairs = [(set(old), set(new)) for old, new in zip(before, after, strict=True)]
    return [(old - new, new - old) for old, new in pairs if old != new]


@given(clusters(), POLICIES, st.integers(1, 16), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_disk_that_joins_moves_data_only_to_its_domain(
    topology: Topology, text: str, tib: int, new_node: bool, data: st.DataObject
) -> None:
    policy = Policy.parse(text)
    beside = data.draw(st.sampled_from(topology.disks))
    node = NodeId(1_000) if new_node else beside.node
    zone = ("new",) if new_node else beside.zone
    joined = Disk(DiskId(1_000), node, zone, tib * TiB)
    larger = Topology([*topology.disks, joined])
    domains = domain_of(larger, policy)
    before = groups(topology, policy, N_GROUPS)
    for lost, gained in moved(before, groups(larger, policy, N_GROUPS, before)):
        assert len(lost) == len(gained) == 1, "one member of a group moves at most"
        assert {domains[member] for member in gained} == {domains[joined.disk]}


@given(clusters(), POLICIES, st.data())
@settings(max_examples=60, deadline=None)
def test_a_disk_that_leaves_moves_only_what_its_domain_held(
    topology: Topology, text: str, data: st.DataObject
) -> None:
    policy = Policy.parse(text)
    left = data.draw(st.sampled_from(topology.disks))
    smaller = Topology(disk for disk in topology.disks if disk != left)
    domains = domain_of(topology, policy)
    if len({domains[disk.disk] for disk in smaller.disks}) < policy.n:
        return
    before = groups(topology, policy, N_GROUPS)
    after = groups(smaller, policy, N_GROUPS, before)
    assert not any(left.disk in group for group in after)
    for lost, gained in moved(before, after):
        assert len(lost) == len(gained) == 1
        assert {domains[member] for member in lost} == {domains[left.disk]}
