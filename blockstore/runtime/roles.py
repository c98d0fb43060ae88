"""The sentence for who asks for what its role does not allow."""

from __future__ import annotations

from collections.abc import Collection

from blockstore.errors import PermissionDenied
from blockstore.runtime.interfaces import Peer


def check_role(peer: Peer, what: str, allowed: Collection[str]) -> None:
    """PermissionDenied names who, what, and the role it takes."""
    if peer.role not in allowed:
        raise PermissionDenied(
            f"{str(peer).capitalize()} has the role {peer.role}; {what} needs {' or '.join(sorted(allowed))}."
        )
