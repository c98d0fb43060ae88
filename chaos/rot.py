"""Bits that flip in a node's files while nobody looks.

Flips go where data is (holes are skipped: nobody reads them), a third of them each to a fragment's header,
its log of pieces, and its data: journals are fragments too. They are written through the page cache, so the
daemon's next read sees them."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

REGIONS = ((0, 8_192), (8_192, 1_056_768), (1_056_768, 1 << 40))
"""Of a fragment file (docs/formats/disk.md)."""


@dataclass(frozen=True, slots=True)
class Flip:
    path: Path
    offset: int
    before: int  # the byte that was there

    def undo(self) -> None:
        _write(self.path, self.offset, self.before)


def rot_fragments(disk: Path, rng: random.Random, n_flips: int) -> list[Flip]:
    """Flip bits in fragments, the newest preferred: those are read and written."""
    files = sorted((disk / "fragments").glob("[0-9]*"), key=lambda path: -path.stat().st_mtime)
    flips: list[Flip] = []
    for _ in range(n_flips if files else 0):
        path = files[min(int(rng.expovariate(0.3)), len(files) - 1)]
        flips += _flip(path, rng, *rng.choice(REGIONS))
    return flips


def rot_file(folder: Path, rng: random.Random) -> list[Flip]:
    """Flip one bit in one of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return _flip(rng.choice(files), rng, 0, 1 << 40) if files else []


def _flip(path: Path, rng: random.Random, start: int, end: int) -> list[Flip]:
    extents = [(max(first, start), min(last, end)) for first, last in data_extents(path)]
    extents = [(first, last) for first, last in extents if first < last]
    if not extents:
        return []
    first, last = rng.choice(extents)
    offset = rng.randrange(first, last)
    with path.open("rb") as file:
        file.seek(offset)
        before = file.read(1)[0]
    _write(path, offset, before ^ 1 << rng.randrange(8))
    return [Flip(path, offset, before)]


def data_extents(path: Path) -> list[tuple[int, int]]:
    """Where the file system has data of the file."""
    extents: list[tuple[int, int]] = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = 0
        while True:
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return extents
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            extents.append((start, end))
    finally:
        os.close(descriptor)


def _write(path: Path, offset: int, byte: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, bytes([byte]), offset)
    finally:
        os.close(descriptor)
