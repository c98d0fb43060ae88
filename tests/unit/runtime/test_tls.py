"""TLS contexts: who gets in, shown by handshakes over a socket pair in memory."""

from __future__ import annotations

import os
import ssl

import pytest

from blockstore.codec.credential import Bundle, create_authority, identity_of, issue
from blockstore.errors import InvalidRequest
from blockstore.runtime.tls import client_context, fingerprint_of, server_context

AUTHORITY = create_authority("photos")
NODE = issue(AUTHORITY, "node", "1")
CLIENT = issue(AUTHORITY, "client", "alice")


def of(bundle: Bundle) -> tuple[str, str, str]:
    return bundle.ca_certificate, bundle.certificate, bundle.key


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake; raises what either raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    )
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return ends


def test_both_sides_learn_who_the_other_is() -> None:
    server, client = shake_hands(server_context(*of(NODE)), client_context(*of(CLIENT)))
    assert server.version() == client.version() == "TLSv1.3"
    seen_by_server, seen_by_client = server.getpeercert(True), client.getpeercert(True)
    assert seen_by_server is not None
    assert seen_by_client is not None
    assert identity_of(seen_by_server) == ("client", "alice")
    assert fingerprint_of(seen_by_server) == CLIENT.fingerprint
    assert identity_of(seen_by_client) == ("node", "1")


def test_another_clusters_certificate_is_refused_by_either_side() -> None:
    other = issue(create_authority("photos"), "client", "alice")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(*of(NODE)), client_context(*of(other)))
    posing = Bundle(AUTHORITY.certificate, other.certificate, other.key)  # trusts us, is not ours
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(*of(NODE)), client_context(*of(posing)))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(*of(posing)), client_context(*of(CLIENT)))


def test_a_client_without_a_certificate_is_refused() -> None:
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname = False
    anonymous.load_verify_locations(cadata=AUTHORITY.certificate)
    with pytest.raises(ssl.SSLError, match=r"(?i)did not return a certificate"):
        shake_hands(server_context(*of(NODE)), anonymous)


def test_older_versions_are_refused() -> None:
    old = client_context(*of(CLIENT))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        shake_hands(server_context(*of(NODE)), old)


def test_a_key_that_does_not_fit_is_refused_with_a_sentence() -> None:
    with pytest.raises(InvalidRequest, match="cannot be used for TLS"):
        server_context(NODE.ca_certificate, NODE.certificate, CLIENT.key)


def test_no_descriptor_is_left_open() -> None:
    before = os.listdir("/proc/self/fd")
    client_context(*of(CLIENT))
    assert os.listdir("/proc/self/fd") == before
