from __future__ import annotations

import pytest

from blockstore.codec.control_record import CredentialRecord
from blockstore.control import commands
from blockstore.control.group_table import table_transaction, tables_due
from blockstore.errors import AlreadyExists, BlockStoreError, InvalidRequest, NotFound, TransactionConflict
from blockstore.ids import DiskId, GiB, NodeId, VolumeId
from tests.unit.control.cluster_state import Cluster, fingerprint, listening

# --- volumes


def test_a_new_volume_has_an_owner_an_epoch_and_a_table_at_once() -> None:
    cluster = Cluster(4)
    cluster.create("photos")
    volume = cluster.views.volume_by_name("photos")
    assert volume is not None
    assert (volume.volume, volume.epoch, volume.owner, volume.kind) == (VolumeId(1), 1, NodeId(1), "bucket")
    assert (volume.policy, volume.journal, volume.root) == ("replicated(3)", (), None)
    policy = cluster.views.policy("replicated(3)")
    assert policy is not None
    assert len(policy.groups) == 27  # 20 for each of 4 disks, 3 disks to a group
    assert all(len(set(group)) == 3 for group in policy.groups)


def test_ids_of_volumes_are_never_used_again() -> None:
    cluster = Cluster(1)
    cluster.create("a")
    cluster.apply(commands.delete_volume(cluster.views, name="a", request=cluster.requests.next()))
    assert cluster.views.volumes() == ()
    cluster.create("a")
    assert [volume.volume for volume in cluster.views.volumes()] == [2]


def test_exist_ok_accepts_the_same_and_nothing_else() -> None:
    cluster = Cluster(3)
    cluster.create("photos", "replicated(2)")
    revision = cluster.views.revision
    cluster.create("photos", "replicated(2)", exist_ok=True)
    cluster.create("photos", "", exist_ok=True)
    assert cluster.views.revision == revision
    with pytest.raises(AlreadyExists, match="bucket 'photos'"):
        cluster.create("photos", "replicated(2)")
    with pytest.raises(AlreadyExists, match="policy replicated\\(2\\), not replicated\\(3\\)"):
        cluster.create("photos", "replicated(3)", exist_ok=True)
    with pytest.raises(AlreadyExists, match="which is no block"):
        cluster.create("photos", exist_ok=True, kind="block")


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "A", "a/b", "a b", "ä", "a\n", "a" * 64, "a\0"])
def test_a_name_that_breaks_the_rules_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be a name"):
        Cluster(1).create(name)


@pytest.mark.parametrize("name", ["a", "7", "a.b_c-d", "a" * 63])
def test_a_name_that_keeps_the_rules_is_taken(name: str) -> None:
    Cluster(1).create(name)


def test_two_creations_at_one_time_do_not_get_one_id() -> None:
    cluster = Cluster(1)
    late = commands.create_volume(
        cluster.views, cluster.nodes, name="late", kind="bucket", policy="", exist_ok=False, created=0.0,
        request=cluster.requests.next(),
    )  # fmt: skip
    cluster.create("early")
    with pytest.raises(TransactionConflict):
        cluster.apply(late)


def test_deleting_what_is_not_there_says_so() -> None:
    cluster = Cluster(1)
    with pytest.raises(NotFound, match="volume 'x'"):
        commands.delete_volume(cluster.views, name="x", request=cluster.requests.next())


# --- policies


@pytest.mark.parametrize(
    ("n_nodes", "n_disks", "policy"),
    [
        (1, 1, "replicated(1,domain=disk)"),
        (1, 3, "replicated(3,domain=disk)"),
        (2, 2, "replicated(2)"),
        (9, 1, "replicated(3)"),
    ],
)
def test_the_default_policy_is_as_many_copies_as_there_are_domains_up_to_three(
    n_nodes: int, n_disks: int, policy: str
) -> None:
    cluster = Cluster(n_nodes, n_disks)
    cluster.create("v")
    assert cluster.views.volumes()[0].policy == policy


def test_the_default_policy_spreads_over_zones_where_there_are_enough() -> None:
    cluster = Cluster(6, zones=tuple((room,) for room in "aabbcc"))
    cluster.create("v")
    policy = cluster.views.policy("replicated(3,domain=zone)")
    assert policy is not None
    assert all(len({(disk + 1) // 2 for disk in group}) == 3 for group in policy.groups)


def test_an_impossible_policy_says_what_it_needs_and_what_would_fit() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Cluster(2).create("v", "ec(4,2)")
    assert str(caught.value) == (
        "Policy ec(4,2) needs 6 different nodes to spread over, and there are 2; replicated(2) would fit."
    )
    with pytest.raises(InvalidRequest, match="needs 3 different disks"):
        Cluster(1).create("v", "replicated(3)")


def test_a_policy_without_a_domain_matches_the_volume_made_when_the_store_had_one_node() -> None:
    cluster = Cluster(1, n_disks=3)
    cluster.create("v", "ec(2,1)")
    cluster.join(2)
    cluster.create("v", "ec(2,1)", exist_ok=True)
    with pytest.raises(AlreadyExists):
        cluster.create("v", "ec(2,1,domain=node)", exist_ok=True)


def test_tables_are_drawn_again_when_disks_join_and_members_keep_their_places() -> None:
    cluster = Cluster(3)
    cluster.create("v", "replicated(2)")
    assert tables_due(cluster.views) == ()
    before = cluster.views.policies()[0].groups
    cluster.join(4)
    assert tables_due(cluster.views) == ("replicated(2)",)
    cluster.apply(table_transaction(cluster.views, "replicated(2)", cluster.requests.next()))
    assert tables_due(cluster.views) == ()
    after = cluster.views.policies()[0].groups
    assert any(DiskId(4) in group for group in after)
    for old, new in zip(before, after, strict=False):
        assert all(new.index(disk) == old.index(disk) for disk in set(old) & set(new))


# --- nodes


def test_a_node_joins_with_its_disks() -> None:
    cluster = Cluster(1, n_disks=2)
    cluster.join(2, n_disks=2)
    node = cluster.views.node(NodeId(2))
    assert node is not None
    assert (node.incarnation, node.fingerprint) == (0, fingerprint(2))
    assert [disk.disk for disk in cluster.views.disks_of(NodeId(2))] == [3, 4]
    assert commands.find_joined(cluster.views, listening(2), fingerprint(2)) == node


def test_a_machine_that_is_there_already_does_not_join_again() -> None:
    cluster = Cluster(2)
    with pytest.raises(AlreadyExists, match="with this certificate: node 2"):
        cluster.join(2)
    with pytest.raises(AlreadyExists, match=r"at 127.0.0.1:7002: node 2"):
        commands.join_node(
            cluster.views, listening=listening(2), zone=(), fingerprint=fingerprint(9), disk_bytes=(GiB,),
            request=cluster.requests.next(),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("zone", "mark", "disk_bytes"),
    [
        (("a/b",), fingerprint(9), (GiB,)),
        (("a",) * 4, fingerprint(9), (GiB,)),
        ((), "", (GiB,)),
        ((), fingerprint(9), ()),
        ((), fingerprint(9), (0,)),
    ],
)
def test_a_malformed_join_is_refused(zone: tuple[str, ...], mark: str, disk_bytes: tuple[int, ...]) -> None:
    cluster = Cluster(1)
    with pytest.raises(InvalidRequest):
        commands.join_node(
            cluster.views, listening=listening(9), zone=zone, fingerprint=mark, disk_bytes=disk_bytes,
            request=cluster.requests.next(),
        )  # fmt: skip


def test_a_start_tells_the_next_incarnation_and_where_it_listens() -> None:
    cluster = Cluster(2)
    start = commands.node_started(
        cluster.views, node=NodeId(1), listening=listening(5), capacities={DiskId(1): 5 * GiB},
        request=cluster.requests.next(),
    )  # fmt: skip
    cluster.apply(start)
    node, disk = cluster.views.node(NodeId(1)), cluster.views.disk(DiskId(1))
    assert node is not None
    assert (node.incarnation, node.port, node.fingerprint) == (1, 7005, fingerprint(1))
    assert disk is not None
    assert disk.capacity == 5 * GiB


# --- credentials


def credential(cluster: Cluster, name: str, role: str, number: int) -> None:
    cluster.apply(
        commands.create_credential(
            cluster.views,
            name=name,
            role=role,
            fingerprint=fingerprint(number),
            request=cluster.requests.next(),
        )
    )


def revoke(cluster: Cluster, name: str) -> None:
    cluster.apply(commands.revoke_credential(cluster.views, name=name, request=cluster.requests.next()))


def test_a_credential_is_listed_and_revoked() -> None:
    cluster = Cluster(1)
    credential(cluster, "root", "admin", 100)
    credential(cluster, "loader", "read", 101)
    revoke(cluster, "loader")
    assert cluster.views.credential("loader") == CredentialRecord(
        "loader", "read", fingerprint(101), revoked=True
    )
    assert commands.revoke_credential(cluster.views, name="loader", request=cluster.requests.next()) is None
    credential(cluster, "loader", "write", 102)
    assert cluster.views.credential_by_fingerprint(fingerprint(101)) is None


def test_the_last_admin_is_not_revoked() -> None:
    cluster = Cluster(1)
    credential(cluster, "root", "admin", 100)
    with pytest.raises(InvalidRequest, match="last admin credential"):
        revoke(cluster, "root")
    credential(cluster, "second", "admin", 101)
    revoke(cluster, "root")
    with pytest.raises(InvalidRequest, match="last admin credential"):
        revoke(cluster, "second")


def test_two_admins_cannot_revoke_each_other_at_one_time() -> None:
    cluster = Cluster(1)
    credential(cluster, "a", "admin", 100)
    credential(cluster, "b", "admin", 101)
    late = commands.revoke_credential(cluster.views, name="a", request=cluster.requests.next())
    revoke(cluster, "b")
    with pytest.raises(TransactionConflict):
        cluster.apply(late)


@pytest.mark.parametrize(
    ("name", "role", "number", "error"),
    [
        ("root", "admin", 101, AlreadyExists),
        ("other", "admin", 100, AlreadyExists),
        ("other", "admin", 1, AlreadyExists),  # the node's
        ("other", "king", 101, InvalidRequest),
        ("No", "admin", 101, InvalidRequest),
    ],
)
def test_a_wrong_credential_is_refused(
    name: str, role: str, number: int, error: type[BlockStoreError]
) -> None:
    cluster = Cluster(1)
    credential(cluster, "root", "admin", 100)
    with pytest.raises(error):
        credential(cluster, name, role, number)
