"""The keys and the header of a block device, as they were when they were made, and what the page says."""

from __future__ import annotations

from pathlib import Path

from blockstore.kinds import block

PAGE = (Path(__file__).parents[2] / "docs/formats/block.md").read_text()


def test_keys_and_header_have_the_bytes_that_they_always_had() -> None:
    assert block.encode_header(5).hex() == "940105cd1000ce00100000"
    assert block.encode_header(2**46).hex() == "9401cf0000400000000000cd1000ce00100000"
    assert (block.HEADER_KEY, block.WRITER_KEY) == (b"h", b"w")
    assert block.span_key(0x01020304).hex() == "6201020304"
    assert block.block_key(0x01020304, 255).hex() == "6201020304ff"


def test_the_page_says_what_the_code_does() -> None:
    assert f"spans of {block.SPAN_BYTES} bytes" in PAGE
    assert f"blocks of {block.BLOCK_BYTES}." in PAGE
    assert f"the header, version {block.HEADER_VERSION}:" in PAGE
    assert f"kind `{block.KIND}`" in PAGE
