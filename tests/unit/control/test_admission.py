from __future__ import annotations

import pytest

from blockstore.codec.messages import (
    CreateVolume,
    FetchStatus,
    JoinNode,
    RevokeCredential,
    Transact,
)
from blockstore.control import commands
from blockstore.control.admission import Role, admit, check_allowed, listed_fingerprints
from blockstore.errors import PermissionDenied
from blockstore.ids import RequestId, SessionId
from blockstore.runtime.interfaces import Peer
from tests.unit.control.cluster_state import Cluster, fingerprint

REQUEST = RequestId(SessionId(1), 1)


def cluster_with_clients() -> Cluster:
    cluster = Cluster(2)
    for number, (name, role) in enumerate([("root", "admin"), ("loader", "read")], 100):
        create = commands.create_credential(
            cluster.views,
            name=name,
            role=role,
            fingerprint=fingerprint(number),
            request=cluster.requests.next(),
        )
        cluster.apply(create)
    return cluster


def test_a_listed_certificate_is_who_it_is_listed_as() -> None:
    views = cluster_with_clients().views
    assert admit(views, fingerprint(2), "node", "2") == Peer("node", "2", "node", fingerprint(2))
    assert admit(views, fingerprint(2), "node", "rack7-b") == Peer("node", "2", "node", fingerprint(2))
    assert admit(views, fingerprint(101), "client", "loader") == Peer(
        "client", "loader", "read", fingerprint(101)
    )


@pytest.mark.parametrize(
    ("number", "kind", "name", "why"),
    [
        (2, "node", "1", "listed for node 2 says that it is node 1"),
        (9, "node", "2", "does not list"),
        (9, "client", "root", "does not list"),
        (100, "node", "1", "does not list"),  # a client's certificate is no node's
        (1, "client", "root", "does not list"),
        (101, "client", "root", "listed as 'loader' says that it is 'root'"),
    ],
)
def test_any_other_certificate_is_refused_with_a_sentence(
    number: int, kind: str, name: str, why: str
) -> None:
    with pytest.raises(PermissionDenied, match=why):
        admit(cluster_with_clients().views, fingerprint(number), kind, name)


def test_a_revoked_credential_is_refused_and_not_listed() -> None:
    cluster = cluster_with_clients()
    before = listed_fingerprints(cluster.views)
    cluster.apply(commands.revoke_credential(cluster.views, name="loader", request=cluster.requests.next()))
    assert before - listed_fingerprints(cluster.views) == {fingerprint(101)}
    with pytest.raises(PermissionDenied, match="'loader' has been revoked"):
        admit(cluster.views, fingerprint(101), "client", "loader")


@pytest.mark.parametrize(
    ("message", "roles"),
    [
        (FetchStatus(), {"read", "write", "admin", "node"}),
        (CreateVolume("a", "bucket", "", False, REQUEST), {"write", "admin"}),
        (JoinNode(b"", "h", 1, 2, "", "", b"", (), (1,), REQUEST), {"admin"}),
        (RevokeCredential("a", REQUEST), {"admin"}),
        (Transact(REQUEST, (), ()), {"node"}),
    ],
)
def test_each_message_needs_a_role(message: object, roles: set[Role]) -> None:
    every: tuple[Role, ...] = ("read", "write", "admin", "node")
    for role in every:
        peer = Peer("client", "somebody", role)
        if role in roles:
            check_allowed(peer, message)
        else:
            with pytest.raises(PermissionDenied, match="Client somebody has the role"):
                check_allowed(peer, message)
