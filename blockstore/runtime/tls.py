"""TLS contexts for lanes: version 1.3 only, both sides show a certificate of the cluster's authority.

Host names are not compared: machines move, and a name says nothing about who may do what. Who the peer is
follows from its certificate: the fingerprint, which control lists, and the identity (`codec/credential.py`).
"""

from __future__ import annotations

import hashlib
import os
import ssl
import tempfile
from collections.abc import Generator
from contextlib import contextmanager

from blockstore.errors import InvalidRequest


def server_context(ca_pem: str, certificate_pem: str, key_pem: str) -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_SERVER, ca_pem, certificate_pem, key_pem)


def client_context(ca_pem: str, certificate_pem: str, key_pem: str) -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_CLIENT, ca_pem, certificate_pem, key_pem)


def fingerprint_of(der: bytes) -> str:
    """What control lists a certificate under: SHA-256 of its DER form, in hex."""
    return hashlib.sha256(der).hexdigest()


def _context(protocol: int, ca_pem: str, certificate_pem: str, key_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # Connections are kept for hours, so resuming buys nothing, and a revoked certificate must not resume.
        context.num_tickets = 0
    try:
        context.load_verify_locations(cadata=ca_pem)
        with _secret_path(certificate_pem + key_pem) as path:
            context.load_cert_chain(path)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequest(f"The certificate or its key cannot be used for TLS: {error}.") from error
    return context


@contextmanager
def _secret_path(content: str) -> Generator[str]:
    """A path that OpenSSL can read `content` from. On Linux it is memory, and never in any directory."""
    fd: int
    if hasattr(os, "memfd_create"):
        fd, named = os.memfd_create("credential", os.MFD_CLOEXEC), ""
        path = f"/proc/self/fd/{fd}"
    else:
        fd, named = tempfile.mkstemp()  # mode 0600
        path = named
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(content)
            file.flush()
            yield path
    finally:
        if named:
            os.unlink(named)
