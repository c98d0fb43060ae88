"""Files of which a disk cannot read some sector any more: for whoever keeps a second copy they are damaged,
like those with a wrong checksum, and no reason not to start."""

from __future__ import annotations

from blockstore.errors import DiskFailed
from blockstore.runtime.interfaces import Disk


def read_or_nothing(disk: Disk, name: str) -> bytes | None:
    """The whole file; None if there is none, and b"" if it cannot be read, which no format is."""
    try:
        return disk.read_file(name)
    except DiskFailed:
        return b""
