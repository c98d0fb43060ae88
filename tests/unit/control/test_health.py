from __future__ import annotations

from collections.abc import Mapping

from blockstore.control.group_table import parity_of
from blockstore.control.health import Health, NodeFacts, Observed, assess
from blockstore.ids import GiB, NodeId, VolumeId
from tests.unit.control.cluster_state import Cluster
from tests.unit.control.test_assignment import with_journal


def look(
    cluster: Cluster,
    *dead: int,
    told: Mapping[int, NodeFacts] | None = None,
    leader: int = 1,
    voters: tuple[int, ...] = (1, 2, 3),
) -> Health:
    """What node 1 sees; owners serve what they own unless told otherwise."""
    live = cluster.nodes - {NodeId(number) for number in dead}
    serving = {
        node: NodeFacts(owned=tuple(volume.volume for volume in cluster.views.volumes_of(node)))
        for node in live
    }
    serving |= {NodeId(node): facts for node, facts in (told or {}).items()}
    observed = Observed(live, serving, lambda node: 5.0, NodeId(leader), frozenset(map(NodeId, voters)))
    return assess(cluster.views, observed, parity_of)


def codes(health: Health) -> list[str]:
    return [fact.code for fact in health.facts]


def owned_by(cluster: Cluster, owner: int) -> None:
    with_journal(cluster, "v", owner, (1, 2, 3))


def test_a_whole_cluster_is_healthy_and_says_what_may_fail() -> None:
    cluster = Cluster(6)
    cluster.create("v", "ec(4,2)")
    owned_by(cluster, 1)
    health = look(cluster)
    assert health.severity == 0
    assert health.facts == ()
    assert health.sentence == "All data is complete; any 2 more nodes may fail."


def test_a_dead_node_is_never_healthy_and_the_sentence_counts_what_is_left() -> None:
    cluster = Cluster(6)
    cluster.create("v", "ec(4,2)")
    owned_by(cluster, 1)
    health = look(cluster, 6)
    assert health.severity == 1
    assert codes(health) == ["node-down"]
    assert health.sentence == (
        "All data is readable, but node 6 is out and what is there is missing one copy until it is back; "
        "any 1 more node may fail."
    )
    assert "does not rebuild" in health.facts[0].doing


def test_the_last_failure_before_loss_is_danger() -> None:
    cluster = Cluster(6)
    cluster.create("v", "ec(4,2)")
    owned_by(cluster, 1)
    health = look(cluster, 5, 6)
    assert health.severity == 2
    assert health.sentence == (
        "All data is readable, but node 5 and node 6 are out, and losing any one node more may lose data."
    )


def test_data_that_cannot_be_read_is_said_first() -> None:
    cluster = Cluster(6)
    cluster.create("v", "ec(4,2)")
    owned_by(cluster, 1)
    health = look(cluster, 4, 5, 6)
    assert health.severity == 2
    assert health.sentence.startswith("Some data cannot be read: node 4 and node 5 and node 6 are out;")


def test_journals_count_even_where_the_policy_would_survive() -> None:
    cluster = Cluster(6)
    cluster.create("v", "ec(2,4)")
    owned_by(cluster, 4)
    assert look(cluster, 1, 2, voters=(4, 5, 6), leader=4).severity == 2


def test_several_fragments_on_one_node_fail_together() -> None:
    cluster = Cluster(2, n_disks=2)
    cluster.create("v", "replicated(2,domain=disk)")
    with_journal(cluster, "v", 1, (1, 3))
    health = look(cluster, voters=(1,))
    assert health.severity == 0
    assert "losing any one node more may lose data" in health.sentence


def test_a_store_of_one_node_counts_disks() -> None:
    cluster = Cluster(1, n_disks=3)
    cluster.create("v", "replicated(3)")
    owned_by(cluster, 1)
    assert look(cluster, voters=(1,)).sentence == "All data is complete; any 2 more disks may fail."


def test_a_suspect_disk_counts_as_missing() -> None:
    cluster = Cluster(3)
    cluster.create("v")
    owned_by(cluster, 1)
    disk = cluster.views.disks_of(NodeId(3))[0].disk
    health = look(cluster, told={3: NodeFacts(suspect=(disk,))})
    assert (health.severity, codes(health)) == (1, ["disk-suspect"])


def test_rot_that_was_found_is_not_healthy() -> None:
    cluster = Cluster(3)
    cluster.create("v")
    owned_by(cluster, 1)
    disks = [cluster.views.disks_of(NodeId(number))[0].disk for number in (1, 2, 3)]
    health = look(cluster, told={3: NodeFacts(damaged=((disks[2], 4),))})
    assert (health.severity, codes(health)) == (1, ["fragments-damaged"])
    assert "4 fragments" in health.facts[0].what
    assert health.sentence.endswith("not all is as promised (see the facts); any 1 more node may fail.")
    served = NodeFacts(owned=(VolumeId(1),), damaged=((disks[0], 1),))
    everywhere = {1: served, 2: NodeFacts(damaged=((disks[1], 1),)), 3: NodeFacts(damaged=((disks[2], 1),))}
    health = look(cluster, told=everywhere)
    assert health.severity == 2
    assert health.sentence == "All data is readable; losing any one node more may lose data."


def test_rot_in_what_is_kept_once_is_data_that_cannot_be_read() -> None:
    cluster = Cluster(1)
    cluster.create("v", "replicated(1)")
    with_journal(cluster, "v", 1, (1,))
    disk = cluster.views.disks_of(NodeId(1))[0].disk
    health = look(cluster, told={1: NodeFacts(owned=(VolumeId(1),), damaged=((disk, 1),))}, voters=(1,))
    assert health.severity == 2
    assert health.sentence.startswith("Some data cannot be read")


def test_chunks_written_with_too_few_fragments_are_not_healthy_when_all_are_back() -> None:
    cluster = Cluster(3)
    cluster.create("v")
    owned_by(cluster, 1)
    told = {1: NodeFacts(owned=(VolumeId(1),), under_protected=((VolumeId(1), 4, 1),))}
    health = look(cluster, told=told)
    assert (health.severity, codes(health)) == (1, ["under-protected"])
    assert health.sentence.endswith("any 1 more node may fail.")
    assert "4 chunks" in health.facts[0].what


def test_a_volume_without_a_live_owner_is_unreachable_and_one_taken_over_waits() -> None:
    cluster = Cluster(3)
    cluster.create("v")
    owned_by(cluster, 3)
    assert "no-owner" in codes(look(cluster, 3))
    starting = look(cluster, told={3: NodeFacts()})
    assert (starting.severity, codes(starting)) == (1, ["owner-starting"])


def test_a_node_without_a_leader_says_so() -> None:
    health = look(Cluster(3), leader=0)
    assert (health.severity, codes(health)) == (2, ["no-leader"])


def test_a_bare_majority_of_voters_and_a_full_disk_are_warnings() -> None:
    cluster = Cluster(4)
    used = ((cluster.views.disks_of(NodeId(2))[0].disk, GiB * 9 // 10),)
    health = look(cluster, 3, told={2: NodeFacts(used_bytes=used)})
    assert codes(health) == ["node-down", "no-voter-to-spare", "disk-nearly-full"]
    assert health.sentence == "There is no data yet; node 3 is out."
    full = NodeFacts(used_bytes=used, full=(used[0][0],))
    assert codes(look(cluster, told={2: full})) == ["disk-full"]


def test_keeping_data_once_is_told_but_no_fault() -> None:
    cluster = Cluster(1)
    cluster.create("v")
    with_journal(cluster, "v", 1, (1,))
    health = look(cluster, voters=(1,))
    assert (health.severity, codes(health)) == (0, ["kept-once"])
    assert health.sentence == "All data is readable; losing any one disk more may lose data."
