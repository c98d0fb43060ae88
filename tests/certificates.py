"""A throw-away certificate authority for tests of TLS lanes."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    def __init__(self, directory: Path, name: str = "test authority") -> None:
        self._directory = directory
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, self._key, name, self._key, is_authority=True)
        self._path = directory / f"{name}.pem"
        self._path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server_context(self, name: str = "server") -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_SERVER, name)

    def client_context(self, name: str = "client") -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_CLIENT, name)

    def anonymous_context(self) -> ssl.SSLContext:
        """A client that trusts us and shows no certificate."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT, "")

    def _context(self, protocol: int, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self._path)
        if name:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _certificate(name, key, self._name, self._key, is_authority=False)
            path = self._directory / f"{self._name} {name}.pem"
            path.write_bytes(
                certificate.public_bytes(serialization.Encoding.PEM)
                + key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            context.load_cert_chain(path)
        return context


def common_name(der: bytes) -> str:
    names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
