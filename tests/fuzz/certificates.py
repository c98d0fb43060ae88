"""Decoders of certificates and of files of credentials.

The certificates that mutations start from are made anew in every process, and yet are always the same: keys
are derived from numbers, signatures are deterministic, time stands still.
"""

from __future__ import annotations

import base64
import datetime
from functools import partialmethod
from itertools import count
from types import SimpleNamespace
from unittest.mock import patch

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from blockstore.codec import credential
from blockstore.errors import InvalidRequest
from tests.fuzz.decoder import Decoder
from tests.fuzz.mutator import TEXT


def _bundle() -> credential.Bundle:
    """An administrator's."""
    numbers = count(1)
    then = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def now(_: datetime.tzinfo) -> datetime.datetime:
        return then

    def key(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(next(numbers), curve)

    sign = partialmethod(x509.CertificateBuilder.sign, ecdsa_deterministic=True)
    with (
        patch.object(ec, "generate_private_key", key),
        patch.object(x509, "random_serial_number", lambda: next(numbers)),
        patch.object(
            credential, "datetime", SimpleNamespace(datetime=SimpleNamespace(now=now), UTC=datetime.UTC)
        ),
        patch.object(x509.CertificateBuilder, "sign", sign),
    ):
        authority = credential.create_authority("c1")
        return credential.issue(authority, "client", "admin", with_authority=True)


_BUNDLE = _bundle()


def _certificate() -> Decoder:
    def decode(data: bytes) -> object:
        is_ours = credential.is_signed_by(data, _BUNDLE.ca_certificate)
        return is_ours, credential.identity_of(data)

    return Decoder(decode, [_BUNDLE.der])


_MARKS = (
    b"-----BEGIN CERTIFICATE-----\n",
    b"-----END CERTIFICATE-----\n",
    b"-----BEGIN PRIVATE KEY-----\n",
    b"-----BEGIN A-----\n" * 3_000,
)


def _credential_bundle() -> Decoder:
    """The file; or, beginning with the tag of a sequence, only what the holder's certificate says: it is
    signed by the authority then, in a file that is whole otherwise."""
    authority = load_pem_private_key(_BUNDLE.ca_key.encode(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    signing = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    certificate = x509.load_der_x509_certificate(_BUNDLE.der)
    said = certificate.tbs_certificate_bytes
    start = _BUNDLE.der.index(said)
    algorithm = _BUNDLE.der[start + len(said) : _BUNDLE.der.index(certificate.signature) - 3]

    def signed(data: bytes, signature: bytes) -> bytes:
        return _der(0x30, data + algorithm + _der(0x03, b"\0" + signature))  # no bit is unused

    def parse(der: bytes) -> credential.Bundle:
        content = _BUNDLE.ca_certificate + _armoured(der) + _BUNDLE.key
        return credential.parse_bundle(content.encode(), "here")

    def decode(data: bytes) -> object:
        if data[:1] != _SEQUENCE:
            return credential.parse_bundle(data, "here")
        try:
            return parse(signed(data, certificate.signature))
        except InvalidRequest as error:
            if _NOT_SIGNED not in str(error):
                raise
        # Nothing else is wrong with it. Few inputs come so far, and signing takes longer than the rest.
        return parse(signed(data, authority.sign(data, signing)))

    assert signed(said, certificate.signature) == _BUNDLE.der
    return Decoder(decode, [_BUNDLE.to_pem().encode(), said], tokens=(*TEXT, *_MARKS))


_SEQUENCE = b"\x30"
_NOT_SIGNED = "its certificate was not signed by its authority"


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 128:
        return bytes((tag, length)) + content
    size = -(-length.bit_length() // 8)
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + content


def _armoured(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"


CERTIFICATES = {
    "certificate": _certificate(),
    "credential-bundle": _credential_bundle(),
}
