"""Whether what many clients saw of one object can be explained by one order in time.

Pure. Every write has a value of its own, so each read names the write that it saw. All operations on one
value make a *zone*, from the first end among them to the last begin. If the first end is before the last
begin, the object surely had this value all that time (a forward zone). Else there is only an instant for
it, anywhere between the last begin and the first end (a backward zone). There is an order if and only if no
two forward zones meet and no backward zone lies within a forward one (Gibbons and Korach, "Testing Shared
Memories", 1997, theorem 4.2). A write whose answer was lost ends never: it may have happened at any time
since it began, or not at all."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import pairwise

ABSENT: Hashable = None
"""The value before the first write."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client asked for at `begin` and was told at `end`; `end` infinity: it was never told."""

    kind: str  # "write" or "read"
    value: Hashable
    begin: float
    end: float = math.inf


@dataclass(slots=True)
class _Zone:
    value: Hashable
    first_end: float
    last_begin: float

    @property
    def start(self) -> float:
        return min(self.first_end, self.last_begin)

    @property
    def end(self) -> float:
        return max(self.first_end, self.last_begin)

    @property
    def is_forward(self) -> bool:
        return self.first_end < self.last_begin


def find_contradiction(operations: Iterable[Operation]) -> str:
    """Why these, all on one object, cannot have happened in one order; "" when they can."""
    operations = list(operations)
    writes: dict[Hashable, Operation] = {ABSENT: Operation("write", ABSENT, -math.inf, -math.inf)}
    for one in operations:
        if one.kind == "write":
            assert one.value not in writes, "every write has a value of its own"
            writes[one.value] = one
    zones: dict[Hashable, _Zone] = {}
    for one in [*writes.values(), *(one for one in operations if one.kind == "read")]:
        write = writes.get(one.value)
        if write is None:
            return f"{one.value!r} was read at {one.end:.3f} and never written"
        if one.end < write.begin:
            return f"{one.value!r} was read by {one.end:.3f}, before it was written at {write.begin:.3f}"
        zone = zones.setdefault(one.value, _Zone(one.value, math.inf, -math.inf))
        zone.first_end = min(zone.first_end, one.end)
        zone.last_begin = max(zone.last_begin, one.begin)
    certain = [zone for zone in zones.values() if zone.first_end < math.inf]
    return _find_overlap(sorted(certain, key=lambda zone: (zone.start, zone.end)))


def _find_overlap(zones: list[_Zone]) -> str:
    """`zones` in order of their start."""
    forward = [zone for zone in zones if zone.is_forward]
    for before, after in pairwise(forward):
        if after.start < before.end:
            return (
                f"both {before.value!r} (from {before.start:.3f} to {before.end:.3f}) and {after.value!r} "
                f"(from {after.start:.3f} to {after.end:.3f}) must have been there at {after.start:.3f}"
            )
    starts = [zone.start for zone in forward]
    for zone in zones:
        at = bisect_left(starts, zone.start) - 1
        if zone.is_forward or at < 0:
            continue
        around = forward[at]  # the others end before it begins
        if zone.end < around.end:
            return (
                f"{zone.value!r} was there between {zone.start:.3f} and {zone.end:.3f}, while "
                f"{around.value!r} was there from {around.start:.3f} to {around.end:.3f}"
            )
    return ""
