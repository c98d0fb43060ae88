from __future__ import annotations

from collections import Counter

from blockstore.codec.control_record import JournalChunk, Transaction, VolumeRecord, encode_record
from blockstore.control.assignment import move_transaction, plan_handover, plan_moves
from blockstore.control.views import volume_key
from blockstore.ids import ChunkId, DiskId, NodeId
from tests.unit.control.cluster_state import Cluster


def with_journal(cluster: Cluster, name: str, owner: int, disks: tuple[int, ...]) -> None:
    volume = cluster.views.volume_by_name(name)
    assert volume is not None
    chunk = JournalChunk(ChunkId(volume.volume, 1, 1), tuple(map(DiskId, disks)), -1)
    record = VolumeRecord(
        volume.volume, name, volume.kind, volume.policy, volume.epoch, NodeId(owner), None, (chunk,), 1.0
    )
    put = (volume_key(volume.volume), encode_record(record))
    cluster.apply(Transaction(cluster.requests.next(), (), (put,)))


def test_new_volumes_are_spread_over_live_nodes() -> None:
    cluster = Cluster(3)
    for number in range(6):
        cluster.create(f"v{number}")
    assert Counter(volume.owner for volume in cluster.views.volumes()) == {1: 2, 2: 2, 3: 2}


def test_an_owner_is_replaced_only_when_it_is_silent_and_its_lease_is_surely_over() -> None:
    cluster = Cluster(3)
    cluster.create("v")
    with_journal(cluster, "v", 1, ())
    others = {NodeId(2), NodeId(3)}
    assert plan_moves(cluster.views, others, over=()) == ()
    assert plan_moves(cluster.views, {NodeId(1), *others}, over={NodeId(1)}) == ()
    [move] = plan_moves(cluster.views, others, over={NodeId(1)})
    assert (move.old_owner, move.new_owner, move.epoch) == (1, 2, 2)


def test_the_new_owner_has_the_open_journal_on_its_disks_if_it_can() -> None:
    cluster = Cluster(4)
    cluster.create("v")
    with_journal(cluster, "v", 1, (1, 4))
    [move] = plan_moves(cluster.views, {NodeId(2), NodeId(3), NodeId(4)}, over={NodeId(1)})
    assert move.new_owner == 4
    [move] = plan_moves(cluster.views, {NodeId(2), NodeId(3)}, over={NodeId(1)})
    assert move.new_owner in (2, 3)


def test_a_dead_nodes_volumes_are_shared_among_the_living() -> None:
    cluster = Cluster(3)
    for number in range(10):
        cluster.create(f"v{number}")
        with_journal(cluster, f"v{number}", 1, (1, 2, 3))
    moves = plan_moves(cluster.views, {NodeId(2), NodeId(3)}, over={NodeId(1)})
    assert Counter(move.new_owner for move in moves) == {2: 5, 3: 5}
    cluster.apply(move_transaction(cluster.views, moves, cluster.requests.next()))
    assert all(volume.epoch == 2 and volume.owner in (2, 3) for volume in cluster.views.volumes())
    assert all(len(volume.journal) == 1 for volume in cluster.views.volumes())
    assert plan_moves(cluster.views, {NodeId(2), NodeId(3)}, over={NodeId(1)}) == ()


def test_nothing_is_assigned_while_nobody_lives() -> None:
    cluster = Cluster(2)
    cluster.create("v")
    assert plan_moves(cluster.views, (), over={NodeId(1), NodeId(2)}) == ()


def test_a_node_that_stops_names_the_next_owners_of_its_volumes_and_of_no_others() -> None:
    cluster = Cluster(3)
    for number in range(6):
        cluster.create(f"v{number}")
    everybody = {NodeId(1), NodeId(2), NodeId(3)}
    moves = plan_handover(cluster.views, everybody, NodeId(1))
    assert {move.old_owner for move in moves} == {1}
    assert Counter(move.new_owner for move in moves) == {2: 1, 3: 1}
    cluster.apply(move_transaction(cluster.views, moves, cluster.requests.next()))
    assert cluster.views.volumes_of(NodeId(1)) == ()
    assert plan_handover(cluster.views, everybody, NodeId(1)) == ()
    assert plan_handover(cluster.views, {NodeId(2)}, NodeId(2)) == ()  # to whom?
