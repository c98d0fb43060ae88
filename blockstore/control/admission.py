"""Who is let in, and what they may ask of control.

Pure. A certificate that the cluster's authority signed opens nothing by itself: its fingerprint must be
listed, a node's under the node, a client's under a credential with a role (DESIGN invariant 12).
"""

from __future__ import annotations

from typing import Literal, cast

from blockstore.codec.messages import (
    CreateCredential,
    CreateVolume,
    DeleteVolume,
    FetchControlSnapshot,
    FetchEvents,
    FetchStatus,
    FetchView,
    FlattenVolume,
    JoinNode,
    ListCredentials,
    ListVolumes,
    RevokeCredential,
    Transact,
)
from blockstore.control.views import Views
from blockstore.errors import PermissionDenied
from blockstore.runtime.interfaces import Peer
from blockstore.runtime.roles import check_role

Role = Literal["node", "admin", "write", "read"]

_EVERYBODY = frozenset({"read", "write", "admin", "node"})
_WRITERS = frozenset({"write", "admin"})
_ADMINS = frozenset({"admin"})
_NODES = frozenset({"node"})

ALLOWED: dict[type, frozenset[str]] = {
    FetchView: _EVERYBODY,
    ListVolumes: _EVERYBODY,
    FetchStatus: _EVERYBODY,
    FetchEvents: _EVERYBODY,
    CreateVolume: _WRITERS,
    DeleteVolume: _WRITERS,
    FlattenVolume: _WRITERS,
    JoinNode: _ADMINS,
    CreateCredential: _ADMINS,
    RevokeCredential: _ADMINS,
    ListCredentials: _ADMINS,
    Transact: _NODES,
    FetchControlSnapshot: _NODES,
}
"""Every message to control, and the roles that may send it."""


def check_allowed(peer: Peer, message: object) -> None:
    check_role(peer, type(message).__name__, ALLOWED[type(message)])


def admit(views: Views, fingerprint: str, kind: str, name: str) -> Peer:
    """Who shows this certificate, which says that it is `kind` `name`. PermissionDenied says what is
    wrong."""
    if kind == "node":
        return _admit_node(views, fingerprint, name)
    record = views.credential_by_fingerprint(fingerprint)
    if record is None:
        raise PermissionDenied(
            f"Client {name!r} shows a certificate that this cluster does not list "
            f"(fingerprint {fingerprint[:16]}…); list it with `blockstore credential create`."
        )
    if record.revoked:
        raise PermissionDenied(f"The credential {record.name!r} has been revoked.")
    if record.name != name:
        raise PermissionDenied(
            f"A certificate listed as {record.name!r} says that it is {name!r}; it is not accepted."
        )
    return Peer("client", record.name, cast(Role, record.role), fingerprint)


def _admit_node(views: Views, fingerprint: str, name: str) -> Peer:
    record = views.node_by_fingerprint(fingerprint) if fingerprint else None
    if record is None:
        raise PermissionDenied(
            f"Node {name!r} shows a certificate that this cluster does not list "
            f"(fingerprint {fingerprint[:16]}…); bring it in with `blockstore cluster join`."
        )
    if name.isdecimal() and int(name) != record.node:
        raise PermissionDenied(
            f"A certificate listed for node {record.node} says that it is node {name}; it is not accepted."
        )
    return Peer("node", str(record.node), "node", fingerprint)


def listed_fingerprints(views: Views) -> frozenset[str]:
    """Of every certificate that is let in."""
    clients = (one.fingerprint for one in views.credentials() if not one.revoked)
    return frozenset({*clients, *(node.fingerprint for node in views.nodes() if node.fingerprint)})
