"""Which slots of a disk are free, which to make ahead, which to give back to the file system.

Pure. A slot is a preallocated file (appending to a growing one and syncing costs four to six times more).
Sizes are whole MiB, as the policies in use ask for them. Of each size used so far SPARES are kept free,
made in the background, so that opening a chunk waits for no preallocation; deleted fragments' slots are
used again, and beyond FREE_MAX of a size they are removed, so that deleting gives space back.
"""

from __future__ import annotations

from blockstore.codec.fragment_file import Header, file_bytes
from blockstore.config import CHUNK_BYTES_MAX
from blockstore.ids import MiB

SPARES = 2
FREE_MAX = 4
"""A garbage collector that frees many chunks at once must not keep their space; two more than SPARES absorb
a churn."""


def slot_bytes_for(capacity: int) -> int:
    return max(1, -(-capacity // MiB)) * MiB


class Slots:
    def __init__(self) -> None:
        self._free: dict[int, list[Header]] = {CHUNK_BYTES_MAX: []}
        self._n_making: dict[int, int] = {}
        self._next = 1

    def saw(self, slot: int) -> None:
        """`slot` is taken by something on the disk."""
        self._next = max(self._next, slot + 1)

    def number(self) -> int:
        """For a new file; never given twice."""
        self._next += 1
        return self._next - 1

    def put(self, header: Header) -> Header | None:
        """A slot is free. Perhaps it is the one too many, to be removed."""
        self.saw(header.slot)
        free = self._free.setdefault(header.slot_bytes, [])
        if len(free) >= FREE_MAX:
            return header
        free.append(header)
        return None

    def take(self, size: int) -> Header | None:
        """A free slot; its size is one to have spares of from now on."""
        free = self._free.setdefault(size, [])
        return free.pop() if free else None

    def take_any(self) -> Header | None:
        """Any free slot, to be removed for its space."""
        for free in self._free.values():
            if free:
                return free.pop()
        return None

    def to_make(self, size: int, n_waiting: int) -> int:
        """How many slots of `size` to begin to make now; they count as being made."""
        wanted = n_waiting + SPARES - len(self._free.setdefault(size, [])) - self._n_making.get(size, 0)
        n = max(0, wanted)
        self._n_making[size] = self._n_making.get(size, 0) + n
        return n

    def made(self, size: int) -> None:
        """Making one came to an end, well or badly."""
        self._n_making[size] -= 1

    @property
    def making_bytes(self) -> int:
        """What the files that are being made will take."""
        return sum(file_bytes(size) * n for size, n in self._n_making.items())

    def has_free(self, size: int) -> bool:
        return bool(self._free.get(size))

    @property
    def free_bytes(self) -> int:
        return sum(size * len(free) for size, free in self._free.items())
