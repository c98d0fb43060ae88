"""What control compares before a clone is made, and what it forgets when one is gone or independent."""

from __future__ import annotations

from itertools import pairwise

import pytest

from blockstore.codec.control_record import Base, Transaction, VolumeRecord, encode_record
from blockstore.codec.messages import Compare
from blockstore.control import commands
from blockstore.control.views import is_to_flatten, volume_key
from blockstore.errors import AlreadyExists, InvalidRequest, NotFound, TransactionConflict
from blockstore.ids import VolumeId
from tests.unit.control.cluster_state import Cluster


def volume(cluster: Cluster, name: str) -> VolumeRecord:
    found = cluster.views.volume_by_name(name)
    assert found is not None
    return found


def cloning(
    cluster: Cluster, parent: str, name: str, anchor: int = 5, lineage: commands.Lineage | None = None
) -> Transaction:
    record = volume(cluster, parent)
    return commands.create_clone(
        cluster.views,
        cluster.nodes,
        parent=record,
        lineage=lineage or commands.lineage_of(cluster.views, record.volume),
        snapshot="s",
        anchor=anchor,
        name=name,
        root=b"root",
        created=2.0,
        request=cluster.requests.next(),
    )


def flat(cluster: Cluster, name: str) -> Transaction:
    ended = commands.end_clone(
        cluster.views, volume=volume(cluster, name).volume, request=cluster.requests.next()
    )
    assert ended is not None
    return ended


def delete(cluster: Cluster, name: str) -> None:
    cluster.apply(commands.delete_volume(cluster.views, name=name, request=cluster.requests.next()))


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(3)
    made.create("a", "replicated(2)")
    return made


def test_a_clone_has_its_parents_kind_and_policy_and_names_what_keeps_its_chunks(cluster: Cluster) -> None:
    cluster.apply(cloning(cluster, "a", "b"))
    made = volume(cluster, "b")
    assert (made.kind, made.policy, made.root, made.journal, made.epoch) == (
        "bucket",
        "replicated(2)",
        b"root",
        (),
        1,
    )
    cluster.apply(cloning(cluster, "b", "c", anchor=7))
    record = cluster.views.clone(volume(cluster, "c").volume)
    assert record is not None
    assert (record.parent, record.snapshot) == ("b", "s")
    assert record.bases == (Base(VolumeId(2), 7), Base(VolumeId(1), 5))
    assert cluster.views.bases() == {1, 2}
    assert cluster.views.anchors_of(VolumeId(1)) == {5}


def test_what_a_clone_of_a_clone_needs_is_kept_when_the_one_in_the_middle_goes(cluster: Cluster) -> None:
    cluster.apply(cloning(cluster, "a", "b"))
    cluster.apply(cloning(cluster, "b", "c", anchor=7))
    delete(cluster, "b")
    assert cluster.views.bases() == {1, 2}
    cluster.apply(flat(cluster, "c"))
    assert cluster.views.bases() == set()


def test_no_clone_is_made_by_an_owner_that_another_has_followed(cluster: Cluster) -> None:
    """Its anchor may be released by then."""
    late = cloning(cluster, "a", "b")
    key, record = volume_key(VolumeId(1)), volume(cluster, "a")
    compare = Compare(key, cluster.views.modified(key))
    cluster.apply(Transaction(cluster.requests.next(), (compare,), ((key, encode_record(record)),)))
    with pytest.raises(TransactionConflict):
        cluster.apply(late)


def test_no_clone_is_made_of_a_volume_that_was_deleted_meanwhile(cluster: Cluster) -> None:
    late = cloning(cluster, "a", "b")
    delete(cluster, "a")
    with pytest.raises(TransactionConflict):
        cluster.apply(late)


def test_no_clone_is_made_with_bases_that_ended_meanwhile(cluster: Cluster) -> None:
    cluster.apply(cloning(cluster, "a", "b"))
    lineage = commands.lineage_of(cluster.views, volume(cluster, "b").volume)
    assert lineage.bases == (Base(VolumeId(1), 5),)
    cluster.apply(flat(cluster, "b"))
    with pytest.raises(TransactionConflict):
        cluster.apply(cloning(cluster, "b", "c", lineage=lineage))
    cluster.apply(cloning(cluster, "b", "c", anchor=7))
    assert cluster.views.bases() == {2}


def test_a_name_that_is_taken_or_none_is_refused(cluster: Cluster) -> None:
    with pytest.raises(AlreadyExists, match="bucket 'a'"):
        cloning(cluster, "a", "a")
    with pytest.raises(InvalidRequest, match="cannot be a name"):
        cloning(cluster, "a", "No")


def test_clones_of_clones_end_somewhere(cluster: Cluster) -> None:
    names = ["a", *(f"c{number}" for number in range(commands.BASES_MAX + 1))]
    for parent, name in pairwise(names[:-1]):
        cluster.apply(cloning(cluster, parent, name))
    with pytest.raises(InvalidRequest, match="flatten one"):
        cloning(cluster, names[-2], names[-1])


def test_a_clone_is_to_become_independent_when_asked_or_when_a_base_is_deleted(cluster: Cluster) -> None:
    views = cluster.views

    def wanted(name: str) -> bool:
        record = views.clone(volume(cluster, name).volume)
        assert record is not None
        return is_to_flatten(views, record)

    for name in ("b", "c"):
        cluster.apply(cloning(cluster, "a", name))
    cluster.apply(commands.flatten_volume(views, name="b", request=cluster.requests.next()))
    assert (wanted("b"), wanted("c")) == (True, False)
    assert commands.flatten_volume(views, name="b", request=cluster.requests.next()) is None
    assert commands.flatten_volume(views, name="a", request=cluster.requests.next()) is None
    with pytest.raises(NotFound):
        commands.flatten_volume(views, name="x", request=cluster.requests.next())
    delete(cluster, "a")
    assert wanted("c")


def test_only_its_present_owner_says_that_it_is_independent(cluster: Cluster) -> None:
    cluster.apply(cloning(cluster, "a", "b"))
    late = flat(cluster, "b")
    key, record = volume_key(VolumeId(2)), volume(cluster, "b")
    compare = Compare(key, cluster.views.modified(key))
    cluster.apply(Transaction(cluster.requests.next(), (compare,), ((key, encode_record(record)),)))
    with pytest.raises(TransactionConflict):
        cluster.apply(late)
    cluster.apply(flat(cluster, "b"))
    assert commands.end_clone(cluster.views, volume=VolumeId(2), request=cluster.requests.next()) is None
