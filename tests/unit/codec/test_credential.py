"""Credentials: what they say, and how a wrong file is refused."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from blockstore.codec.credential import (
    Bundle,
    create_authority,
    identity_of,
    is_signed_by,
    issue,
    parse_bundle,
    read_bundle,
    write_bundle,
)
from blockstore.errors import InvalidRequest, PermissionDenied

AUTHORITY = create_authority("photos")
ADMIN = issue(AUTHORITY, "client", "admin", with_authority=True)
NODE = issue(AUTHORITY, "node", "3")


def test_a_certificate_names_its_holder() -> None:
    assert identity_of(NODE.der) == ("node", "3")
    assert ADMIN.identity == ("client", "admin")
    assert len(NODE.fingerprint) == 64
    assert NODE.fingerprint != issue(AUTHORITY, "node", "3").fingerprint


def test_a_certificate_lasts_ten_years_and_serves_both_sides() -> None:
    certificate = x509.load_der_x509_certificate(NODE.der)
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc < now
    assert certificate.not_valid_after_utc - now > datetime.timedelta(days=3650)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def test_only_its_own_authority_signed_it() -> None:
    assert is_signed_by(NODE.der, AUTHORITY.certificate)
    assert not is_signed_by(NODE.der, create_authority("photos").certificate)
    assert not is_signed_by(b"nonsense", AUTHORITY.certificate)


def test_a_bundle_comes_back_from_its_file(tmp_path: Path) -> None:
    for bundle in (ADMIN, NODE):
        path = tmp_path / "bundle.pem"
        write_bundle(str(path), bundle)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert read_bundle(str(path)) == bundle
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle.pem"]


def test_blocks_may_come_in_any_order_with_words_between() -> None:
    text = ADMIN.ca_key + "the key\n" + ADMIN.key + ADMIN.certificate + "\n" + ADMIN.ca_certificate
    assert parse_bundle(text.encode(), "x") == ADMIN


def test_the_administrator_signs_others_and_nobody_else_does() -> None:
    assert issue(ADMIN.authority, "client", "alice").identity == ("client", "alice")
    with pytest.raises(PermissionDenied, match="cannot sign"):
        _ = NODE.authority


def test_private_keys_are_not_shown() -> None:
    assert "PRIVATE" not in repr(ADMIN)
    assert "PRIVATE" not in repr(AUTHORITY)


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 49, "ä", "a\n", "a/b"])
def test_a_name_that_would_not_be_readable_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be a name"):
        issue(AUTHORITY, "client", name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"There is no credential file '.*none\.pem'"):
        read_bundle(str(tmp_path / "none.pem"))
    with pytest.raises(InvalidRequest, match="is not a file"):
        read_bundle(str(tmp_path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_use_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my bundle.pem"
    write_bundle(str(path), NODE)
    path.chmod(mode)
    with pytest.raises(PermissionDenied, match=r"run: chmod 600 '.*my bundle\.pem'"):
        read_bundle(str(path))


def test_a_file_is_never_replaced_by_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "bundle.pem"
    write_bundle(str(path), NODE)
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_bundle(str(tmp_path / "missing" / "bundle.pem"), ADMIN)
    os.mkdir(f"{path}.d")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_bundle(f"{path}.d", ADMIN)
    assert read_bundle(str(path)) == NODE
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundle.pem", "bundle.pem.d"]


OTHER = issue(create_authority("other"), "node", "3")
WRONG: dict[str, tuple[bytes, str]] = {
    "no PEM": (b"hello", "no PEM block"),
    "not text": (b"\xff\x00" * 40, "cannot be decoded"),
    "empty": (b"", "no PEM block"),
    "damaged": (NODE.to_pem().replace("MII", "M!!").encode(), "cannot be decoded"),
    "no key": ((NODE.ca_certificate + NODE.certificate).encode(), "no private key in it fits"),
    "another's key": (
        (NODE.ca_certificate + NODE.certificate + OTHER.key).encode(),
        "no private key in it fits",
    ),
    "a key too many": ((NODE.to_pem() + OTHER.key).encode(), "fits none"),
    "no authority": ((NODE.certificate + NODE.key).encode(), "0 authority's and 1 holder's"),
    "two holders": ((NODE.to_pem() + OTHER.certificate).encode(), "1 authority's and 2 holder's"),
    "another's authority": (
        Bundle(OTHER.ca_certificate, NODE.certificate, NODE.key).to_pem().encode(),
        "not signed by",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_bundle_is_refused_by_name(case: str) -> None:
    content, why = WRONG[case]
    with pytest.raises(InvalidRequest, match=why) as caught:
        parse_bundle(content, "some.pem")
    assert "'some.pem' is not a credential bundle" in str(caught.value)


def test_a_file_of_beginnings_without_ends_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="no PEM block"):
        parse_bundle(b"-----BEGIN PRIVATE KEY-----\n" * 30_000, "a.pem")


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot be the name"):
        read_bundle("a\0b.pem")
