"""The bytes of an object's metadata, version 1, as they were when it was made, and what the page says."""

from __future__ import annotations

from pathlib import Path

from blockstore.kinds import bucket

PAGE = (Path(__file__).parents[2] / "docs/formats/bucket.md").read_text()

GOLDEN: dict[str, tuple[float, dict[str, str]]] = {
    "9301cb000000000000000080": (0.0, {}),
    "9301cb3ff800000000000081a377686fa26d65": (1.5, {"who": "me"}),
}


def test_metadata_has_the_bytes_that_it_always_had() -> None:
    for packed, (modified, metadata) in GOLDEN.items():
        assert bucket.encode_meta(metadata, modified).hex() == packed
        assert bucket.decode_meta(bytes.fromhex(packed)) == (modified, metadata)


def test_an_etag_is_spelled_as_it_always_was() -> None:
    assert bucket.etag_of(0x1A2B, 0xC0FFEE) == "1a2b-00c0ffee"


def test_the_page_says_what_the_code_does() -> None:
    assert f"Metadata record, version {bucket.META_VERSION}\n" in PAGE
    assert f"1 to {bucket.OBJECT_NAME_BYTES_MAX} bytes" in PAGE
    assert f"at most {bucket.METADATA_BYTES_MAX} bytes" in PAGE
