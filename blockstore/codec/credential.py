"""Who may speak: a cluster's certificate authority, the certificates it signs, and the files they travel in.

An identity is the certificate's common name, `node NAME` or `client NAME`. It is what a person reads; what
admits a peer is its fingerprint, which control lists with a role: a signed certificate alone opens nothing.

A *bundle* is one text file of PEM blocks: the authority's certificate, the holder's certificate, the holder's
private key, and in the administrator's the authority's private key too, so that it can sign others. Blocks
may come in any order: certificates are told apart by their basic constraints, keys by the one that they fit.

Keys are ECDSA P-256: every TLS library has it, and a signature costs some 30 us.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blockstore.errors import InvalidRequest, PermissionDenied
from blockstore.runtime.secret_file import read_secret_file, write_secret_file
from blockstore.runtime.tls import fingerprint_of

Kind = Literal["node", "client"]

VALIDITY = datetime.timedelta(days=3652)
"""Ten years. Access ends by revoking the fingerprint in control, not by waiting for a date; a cluster must
not go down because one passed."""

BACKDATING = datetime.timedelta(days=1)
"""The verifier's wall clock may be behind the signer's."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")  # X.509 allows 64 characters of common name
_IDENTITY = re.compile(rf"(node|client) ({_NAME.pattern})")
_MARK = re.compile(r"-----(BEGIN|END) ([A-Z0-9 ]+)-----\n?")

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises for bytes that are no certificate or key."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A cluster's certificate authority; whoever has the key can sign."""

    certificate: str  # PEM
    key: str = field(repr=False)  # PEM


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one holder needs to take part: PEM texts."""

    ca_certificate: str
    certificate: str
    key: str = field(repr=False)
    ca_key: str = field(default="", repr=False)  # only in an administrator's

    @property
    def der(self) -> bytes:
        return x509.load_pem_x509_certificate(self.certificate.encode()).public_bytes(Encoding.DER)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.der)

    @property
    def identity(self) -> tuple[Kind, str]:
        return identity_of(self.der)

    @property
    def authority(self) -> Authority:
        """PermissionDenied when this bundle cannot sign."""
        if not self.ca_key:
            raise PermissionDenied(
                "This credential has no authority's key, so it cannot sign others; "
                "use the one that `blockstore cluster init` wrote."
            )
        return Authority(self.ca_certificate, self.ca_key)

    def to_pem(self) -> str:
        return self.ca_certificate + self.certificate + self.key + self.ca_key


# --- making


def create_authority(cluster: str) -> Authority:
    """A new authority for the cluster of that name. Its key fits no other, whatever that is called."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _common_name(f"blockstore {_checked(cluster)}")
    builder = (
        _builder(subject, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(_certificate_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def issue(authority: Authority, kind: Kind, name: str, *, with_authority: bool = False) -> Bundle:
    """A new key and a certificate that says it is `kind` `name`. `with_authority`: for an administrator."""
    ca = x509.load_pem_x509_certificate(authority.certificate.encode())
    ca_key = load_pem_private_key(authority.key.encode(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise InvalidRequest("The authority's key is not an elliptic curve key.")
    key = ec.generate_private_key(ec.SECP256R1())
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # a node is both
    builder = (
        _builder(_common_name(f"{kind} {_checked(name)}"), ca.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_ways), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    return Bundle(
        ca_certificate=authority.certificate,
        certificate=_certificate_pem(builder.sign(ca_key, hashes.SHA256())),
        key=_key_pem(key),
        ca_key=authority.key if with_authority else "",
    )


# --- reading


def identity_of(der: bytes) -> tuple[Kind, str]:
    """Whom a certificate names. InvalidRequest when none of ours; that it is signed, TLS has checked."""
    try:
        names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except _UNREADABLE as error:
        raise InvalidRequest(f"A certificate cannot be read: {error}.") from error
    match = _IDENTITY.fullmatch(str(names[0].value)) if len(names) == 1 else None
    if match is None:
        raise InvalidRequest("A certificate does not name a node or a client of a blockstore cluster.")
    return ("node" if match[1] == "node" else "client"), match[2]


def is_signed_by(der: bytes, ca_certificate: str) -> bool:
    """Whether the authority signed this certificate; for those that come in a message, not by TLS."""
    try:
        certificate = x509.load_der_x509_certificate(der)
    except _UNREADABLE:
        return False
    return _is_issued_by(certificate, x509.load_pem_x509_certificate(ca_certificate.encode()))


def read_bundle(path: str) -> Bundle:
    """InvalidRequest when it is missing or no bundle, PermissionDenied when others can read it."""
    return parse_bundle(read_secret_file(path, "credential file"), path)


def write_bundle(path: str, bundle: Bundle) -> None:
    write_secret_file(path, bundle.to_pem().encode(), "credential file")


def parse_bundle(content: bytes, path: str) -> Bundle:
    """The bundle in `content`, checked: signed by its authority, and each key fits. `path` is for errors."""

    def refuse(why: str) -> NoReturn:
        raise InvalidRequest(f"The credential file {path!r} is not a credential bundle: {why}.")

    try:
        blocks = _blocks(content.decode("ascii"))
        certificates = [
            x509.load_pem_x509_certificate(text.encode()) for label, text in blocks if label == "CERTIFICATE"
        ]
        keys = {
            _public_bytes(load_pem_private_key(text.encode(), None)): text
            for label, text in blocks
            if label.endswith("PRIVATE KEY")
        }
        authorities, holders = list[x509.Certificate](), list[x509.Certificate]()
        for certificate in certificates:
            (authorities if _is_authority(certificate) else holders).append(certificate)
    except _UNREADABLE as error:
        refuse(f"it cannot be decoded ({error})")
    if not blocks:
        refuse("there is no PEM block in it")
    if len(authorities) != 1 or len(holders) != 1:
        refuse(
            f"it has {len(authorities)} authority's and {len(holders)} holder's certificates, not one of each"
        )
    [ca], [holder] = authorities, holders
    try:
        key = keys.pop(_public_bytes(holder), None)
        ca_key = keys.pop(_public_bytes(ca), "")
    except _UNREADABLE as error:
        refuse(f"a certificate's key cannot be decoded ({error})")
    if key is None:
        refuse("no private key in it fits the certificate")
    if keys:
        refuse("a private key in it fits none of its certificates")
    if not _is_issued_by(holder, ca):
        refuse("its certificate was not signed by its authority")
    bundle = Bundle(_certificate_pem(ca), _certificate_pem(holder), key, ca_key)
    try:
        bundle.identity  # noqa: B018
    except InvalidRequest:
        refuse("its certificate names neither a node nor a client")
    return bundle


# --- pieces


def _blocks(text: str) -> list[tuple[str, str]]:
    """The label and the text of each PEM block: an END right after its BEGIN. Words between are skipped."""
    marks = list(_MARK.finditer(text))
    return [
        (begin[2], text[begin.start() : end.end()])
        for begin, end in pairwise(marks)
        if (begin[1], end[1], end[2]) == ("BEGIN", "END", begin[2])
    ]


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} cannot be a name: 1 to 48 letters, digits, '.', '_' or '-', a letter or digit first."
        )
    return name


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + VALIDITY)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (*_UNREADABLE, InvalidSignature):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _public_bytes(holder: object) -> bytes:
    """The public key of a certificate or a private key, in the one form that can be compared."""
    if not isinstance(holder, (x509.Certificate, ec.EllipticCurvePrivateKey)):
        raise ValueError("a private key in it is not an elliptic curve key")
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
