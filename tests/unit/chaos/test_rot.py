"""Bits flip where data is, one at a time, by the seed, and can be flipped back."""

from __future__ import annotations

import os
import random
from pathlib import Path

from chaos.rot import REGIONS, data_extents, rot_file, rot_fragments

PIECE = 4_096


def fragment(path: Path) -> bytes:
    """A header, a log of pieces and some data, with a hole before the data, as preallocated files have."""
    data = bytearray(REGIONS[2][0] + 4 * PIECE)
    for start in (0, REGIONS[1][0], REGIONS[2][0]):
        data[start : start + PIECE] = b"\xaa" * PIECE
    with path.open("wb") as file:
        file.truncate(len(data))
        for start in (0, REGIONS[1][0], REGIONS[2][0]):
            file.seek(start)
            file.write(data[start : start + PIECE])
    return bytes(data)


def test_one_bit_flips_in_a_place_that_holds_data(tmp_path: Path) -> None:
    (tmp_path / "fragments").mkdir()
    path = tmp_path / "fragments" / "1-1-1"
    before = fragment(path)
    regions: set[int] = set()
    rng = random.Random(1)
    for _ in range(60):
        (flip,) = rot_fragments(tmp_path, rng, 1)
        after = path.read_bytes()
        at = flip.offset
        assert (before[:at], before[at + 1 :]) == (after[:at], after[at + 1 :])
        assert (before[at] ^ after[at]).bit_count() == 1
        assert before[flip.offset] == flip.before == 0xAA, "a hole is read by nobody"
        regions |= {index for index, (start, end) in enumerate(REGIONS) if start <= flip.offset < end}
        flip.undo()
        assert path.read_bytes() == before
    assert regions == {0, 1, 2}


def test_the_newest_fragments_are_preferred(tmp_path: Path) -> None:
    (tmp_path / "fragments").mkdir()
    for number in range(30):
        path = tmp_path / "fragments" / f"{number}"
        fragment(path)
        os.utime(path, (number, number))
    hit = [int(flip.path.name) for flip in rot_fragments(tmp_path, random.Random(2), 60)]
    assert sum(number >= 20 for number in hit) > len(hit) / 2


def test_there_may_be_nothing_to_flip(tmp_path: Path) -> None:
    (tmp_path / "fragments").mkdir()
    assert rot_fragments(tmp_path, random.Random(1), 3) == []
    assert rot_file(tmp_path, random.Random(1)) == []


def test_a_file_of_a_folder_rots_by_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(PIECE))
    (first,) = rot_file(tmp_path, random.Random(3))
    first.undo()
    assert rot_file(tmp_path, random.Random(3)) == [first]


def test_holes_are_told_from_data(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    assert data_extents(path) == []
    with path.open("r+b") as file:
        file.seek(1 << 19)
        file.write(b"x" * PIECE)
    assert all(start <= 1 << 19 < (1 << 19) + PIECE <= end for start, end in data_extents(path))
