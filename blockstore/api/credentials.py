"""What a client does with credential bundles: use its own, make others.

Imports cryptography, which takes a tenth of a second: the rest of `api/` imports this module when it is
needed.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

from blockstore.codec.credential import identity_of, issue, read_bundle, write_bundle
from blockstore.errors import AlreadyExists, PermissionDenied
from blockstore.runtime.interfaces import Address
from blockstore.runtime.tls import client_context


def load(path: str) -> tuple[ssl.SSLContext, Callable[[Address, bytes], None]]:
    """For TLS with the bundle at `path`: the context, and the check of who answers."""
    bundle = read_bundle(path)
    return client_context(bundle.ca_certificate, bundle.certificate, bundle.key), check_server


def check_server(address: Address, der: bytes) -> None:
    """The authority has signed clients too; only a node may pose as a server."""
    kind, name = identity_of(der)
    if kind != "node":
        raise PermissionDenied(f"what answers there shows the certificate of {kind} {name}, not of a node")


def make(own: str, name: str, role: str, path: str) -> str:
    """Sign a new client credential with the authority's key in the bundle at `own`, write it to `path`, and
    return its fingerprint. It opens nothing before control lists that."""
    if os.path.lexists(path):
        raise AlreadyExists(f"file {path}")
    bundle = issue(read_bundle(own).authority, "client", name, with_authority=role == "admin")
    write_bundle(path, bundle)
    return bundle.fingerprint
