"""Many keys in order, of which some come and go.

A list of lists of some hundred keys each, and the last key of each: finding is two bisections, adding and
removing move one short list (as in `sortedcontainers`, by Grant Jenks). In place of that package because
keys that come in order, from a checkpoint, are taken as they are: sorting a million again in one call stops
everything for longer than a node's lease allows."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import islice

PART_KEYS = 512
"""A part is split at twice this. Half or double costs the same."""


class KeyOrder:
    """Keys are distinct: the caller adds what is not there, and removes what is."""

    def __init__(self) -> None:
        self._parts: list[list[bytes]] = []  # none is empty
        self._lasts: list[bytes] = []  # of each part

    def add(self, key: bytes) -> None:
        parts, lasts = self._parts, self._lasts
        at = bisect_left(lasts, key)
        if at == len(parts):
            if not parts:
                parts.append([key])
                lasts.append(key)
                return
            at -= 1
            part = parts[at]
            part.append(key)
            lasts[at] = key
        else:
            part = parts[at]
            insort(part, key)
        if len(part) > 2 * PART_KEYS:
            parts.insert(at + 1, part[PART_KEYS:])
            del part[PART_KEYS:]
            lasts.insert(at, part[-1])

    def extend(self, keys: Sequence[bytes]) -> None:
        """Add ascending keys, quickly if all are beyond those that are there."""
        if self._lasts and keys and keys[0] <= self._lasts[-1]:
            for key in keys:
                self.add(key)
            return
        for start in range(0, len(keys), PART_KEYS):
            part = list(keys[start : start + PART_KEYS])
            self._parts.append(part)
            self._lasts.append(part[-1])

    def remove(self, key: bytes) -> None:
        at = bisect_left(self._lasts, key)
        part = self._parts[at]
        index = bisect_left(part, key)
        assert part[index] == key, "it is there"
        del part[index]
        if not part:
            del self._parts[at], self._lasts[at]
        elif index == len(part):
            self._lasts[at] = part[-1]

    def parts_from(self, key: bytes) -> Iterator[list[bytes]]:
        """All from `key` on, some hundred at a time. Nothing may be added or removed meanwhile."""
        at = bisect_left(self._lasts, key)
        if at < len(self._parts):
            part = self._parts[at]
            yield part[bisect_left(part, key) :]
            yield from islice(self._parts, at + 1, None)

    def starting_at(self, key: bytes) -> Iterator[bytes]:
        """All from `key` on. Nothing may be added or removed meanwhile."""
        at = bisect_left(self._lasts, key)
        if at < len(self._parts):
            part = self._parts[at]
            yield from islice(part, bisect_left(part, key), None)
            for part in islice(self._parts, at + 1, None):
                yield from part

    def copy(self) -> list[list[bytes]]:
        """The parts, in order, as they are now."""
        return [part.copy() for part in self._parts]
