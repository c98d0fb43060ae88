from __future__ import annotations

import pytest

from blockstore.errors import InvalidRequest
from blockstore_cli.address import Place, is_place, parse_head, parse_place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("photos", Place("photos")),
        ("photos:", Place("photos")),
        ("photos:2026/cat.jpg", Place("photos", "2026/cat.jpg")),
        ("photos@before:2026/cat.jpg", Place("photos", "2026/cat.jpg", "before")),
        ("photos@before", Place("photos", "", "before")),
        ("photos:a:b@c", Place("photos", "a:b@c")),  # only the first colon counts: names hold any text
    ],
)
def test_a_place_is_a_bucket_a_snapshot_and_a_name(text: str, place: Place) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", ":name", "@snapshot:name", "photos@:name"])
def test_what_names_no_bucket_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="BUCKET:NAME"):
        parse_place(text)


def test_a_name_that_is_needed_must_be_there() -> None:
    with pytest.raises(InvalidRequest, match="write photos:NAME"):
        parse_place("photos", name_needed=True)


def test_snapshots_are_not_written_to() -> None:
    with pytest.raises(InvalidRequest, match="never changes"):
        parse_head("photos@before:x")


@pytest.mark.parametrize(
    ("text", "in_store"),
    [
        ("photos:x", True),
        ("photos:", True),
        ("photos", False),
        ("./a:b", False),
        ("/a/b:c", False),
        ("a/b:c", False),
    ],
)
def test_an_argument_with_a_slash_before_its_colon_is_a_path(text: str, in_store: bool) -> None:
    assert is_place(text) is in_store
