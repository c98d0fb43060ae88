from __future__ import annotations

import pytest

from blockstore_cli.output import shown, size, table


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (200 * 1024, "200 KiB"),
        (4 << 20, "4.0 MiB"),
        (3 << 40, "3.0 TiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_sizes_are_for_people(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("NAME", "N"), [("a", 1), ("long one", 22)], right="N") == (
        "NAME       N\na          1\nlong one  22"
    )
    assert table(("NAME",), []) == ""


def test_names_cannot_steer_the_terminal() -> None:
    assert shown("caf\u00e9 \u732b.jpg") == "caf\u00e9 \u732b.jpg"
    assert shown("a\x1b[2Jb\nc\u009b") == "a\\x1b[2Jb\\nc\\x9b"
    assert shown("\u202egpj.exe") == "\\u202egpj.exe"  # an override of the writing direction
    assert shown(b"\xff".decode(errors="surrogateescape")) == "\\xff"
