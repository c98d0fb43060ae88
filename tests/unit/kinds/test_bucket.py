"""Names, metadata and etags of objects."""

from __future__ import annotations

import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.errors import Corrupt, InvalidRequest, UnknownFormat
from blockstore.kinds.bucket import (
    METADATA_BYTES_MAX,
    OBJECT_NAME_BYTES_MAX,
    check_bucket_name,
    check_snapshot_name,
    decode_meta,
    encode_meta,
    etag_of,
    info_of,
    key_of,
    name_of,
    object_words,
    prefix_key,
    sequence_of_etag,
)


@pytest.mark.parametrize(
    "name",
    [".", "..", "a//b", "/", "line\nbreak", "\x1b[31m", " ", "日本/🐈.jpg", "x" * OBJECT_NAME_BYTES_MAX],
)
def test_odd_names_are_names_and_come_back(name: str) -> None:
    assert name_of(key_of(name)) == name


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=256))
def test_every_text_within_the_bound_round_trips(name: str) -> None:
    assert name_of(key_of(name)) == name


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
    )
)
def test_keys_sort_by_code_points(names: list[str]) -> None:
    assert [name_of(key) for key in sorted(map(key_of, names))] == sorted(names)


def test_composed_and_decomposed_spellings_are_two_objects() -> None:
    assert key_of(unicodedata.normalize("NFC", "é")) != key_of(unicodedata.normalize("NFD", "é"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "must not be empty"),
        ("a\0b", "NUL"),
        ("x" * (OBJECT_NAME_BYTES_MAX + 1), "1025 bytes"),
        ("é" * 513, "1026 bytes"),
        ("a\ud800", "lone surrogate at position 1"),
        (b"bytes", "not bytes"),
    ],
)
def test_a_refused_name_says_why(name: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        key_of(name)


def test_a_prefix_may_be_empty() -> None:
    assert prefix_key("") == b""
    assert prefix_key("cats/") == b"cats/"


def test_errors_show_control_characters() -> None:
    assert object_words("photos", "a\nb\x1b") == r"object 'a\nb\x1b' in bucket 'photos'"


def test_a_key_that_is_not_utf8_is_damage() -> None:
    with pytest.raises(Corrupt, match="not UTF-8"):
        name_of(b"\xff")


@pytest.mark.parametrize("name", ["photos", "a", "0", "vm1.images_old-2", "x" * 63])
def test_bucket_and_snapshot_names(name: str) -> None:
    check_bucket_name(name)
    check_snapshot_name(name)


@pytest.mark.parametrize("name", ["Before", "2026-01-31T12+01", "x" * 128])
def test_names_that_only_snapshots_may_have(name: str) -> None:
    check_snapshot_name(name)
    with pytest.raises(InvalidRequest, match="1 to 63 of a-z 0-9"):
        check_bucket_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a@b", "a:b", "a b", "a\n", "é", "x" * 129])
def test_refused_bucket_and_snapshot_names(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot name a bucket"):
        check_bucket_name(name)
    with pytest.raises(InvalidRequest, match="cannot name a snapshot"):
        check_snapshot_name(name)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=8), st.floats(0, 1e10))
def test_metadata_round_trips(metadata: dict[str, str], modified: float) -> None:
    assert decode_meta(encode_meta(metadata, modified)) == (modified, metadata)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"k": "v" * METADATA_BYTES_MAX}, "8193 bytes"),
        ({"": "v"}, "empty"),
        ({"k": 1}, "int"),
        ({"k": "\udc00"}, "surrogate"),
    ],
)
def test_refused_metadata_says_why(metadata: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        encode_meta(metadata, 0.0)


def test_metadata_up_to_the_bound() -> None:
    metadata = {"k": "v" * (METADATA_BYTES_MAX - 1)}
    assert decode_meta(encode_meta(metadata, 0.0))[1] == metadata


@pytest.mark.parametrize("fields", [[2, 0.0, {}], [2, "another shape"], [2]])
def test_metadata_of_a_later_version_is_refused(fields: list[object]) -> None:
    with pytest.raises(UnknownFormat, match="format version 2"):
        decode_meta(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "meta", [b"", b"\xc1", msgspec.msgpack.encode([1]), msgspec.msgpack.encode([1, 0.0, {1: 2}])]
)
def test_damaged_metadata_is_refused(meta: bytes) -> None:
    with pytest.raises(Corrupt, match="metadata"):
        decode_meta(meta)


@given(st.integers(1, 2**63), st.integers(0, 2**32 - 1))
def test_an_etag_names_its_sequence(sequence: int, crc: int) -> None:
    assert sequence_of_etag(etag_of(sequence, crc)) == sequence


@pytest.mark.parametrize("etag", ["", "1", "1-2", "0-00000000", "G-00000000", "1-000000001", "1-00000001\n"])
def test_what_is_not_an_etag(etag: str) -> None:
    with pytest.raises(InvalidRequest, match="not an etag"):
        sequence_of_etag(etag)


def test_an_entry_becomes_an_info() -> None:
    info = info_of(b"cats/1.jpg", 26, encode_meta({"who": "me"}, 5.5), 3, 0xAB)
    assert (info.name, info.size, info.etag) == ("cats/1.jpg", 3, "1a-000000ab")
    assert (info.modified, info.metadata, info.sequence) == (5.5, {"who": "me"}, 26)
