"""Which runs become one, and how.

Runs are of sizes that differ by SIZE_RATIO; where RUNS_PER_SIZE of one size are, they and all that are newer
are merged into one, which is of a larger size, as a rule. So of a map that grows each key is rewritten once
for each size that it passes through, the number of runs stays below RUNS_PER_SIZE for each size, and most of
what is merged is young. Merged are always the newest: what they say of their keys, nothing in the runs says
anew. Keys that are gone are left out when the oldest run takes part: nothing older can say otherwise.

Merging drops nothing else. What no snapshot sees any more is dropped by `VersionedMap.purge`, which is a
change like any other, so that bytes are given back once.

Crash before the next checkpoint names the merged run: its chunks are garbage, and the runs it was made of are
still named. After: the other way round."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

from blockstore.codec.run_file import RunEntry, RunInfo

SIZE_RATIO = 4
RUNS_PER_SIZE = 4
SMALL_KEYS = 100_000
"""Runs of up to so many keys are of the smallest size."""
RUNS_MAX = 24
"""Then all are merged, whatever their sizes."""

_key = itemgetter(0)


def n_to_merge(runs: Sequence[RunInfo], small: int = SMALL_KEYS, per_size: int = RUNS_PER_SIZE) -> int:
    """How many of the newest runs to merge; `runs` from the oldest to the newest. 0: none."""
    sizes = [_size_of(run.n_keys, small) for run in reversed(runs)]
    if len(runs) >= RUNS_MAX:
        return len(runs)
    chosen = 0
    for size in sorted(set(sizes)):
        n = next((index for index, other in enumerate(sizes) if other > size), len(sizes))
        if sizes[:n].count(size) >= per_size:
            chosen = n
    return chosen


def _size_of(n_keys: int, small: int) -> int:
    size = 0
    while n_keys > small:
        n_keys //= SIZE_RATIO
        size += 1
    return size


class Merge:
    """Sources are numbered from the newest. `needs` says whose entries to `push` next, or to `end`; when it
    is nobody's, `take` gives what is merged so far."""

    def __init__(self, n_sources: int, *, with_oldest: bool) -> None:
        self._pending: list[list[RunEntry]] = [[] for _ in range(n_sources)]
        self._ended = [False] * n_sources
        self._with_oldest = with_oldest

    def needs(self) -> int | None:
        for source, (pending, is_ended) in enumerate(zip(self._pending, self._ended, strict=True)):
            if not pending and not is_ended:
                return source
        return None

    def push(self, source: int, entries: list[RunEntry]) -> None:
        self._pending[source] = entries

    def end(self, source: int) -> None:
        self._ended[source] = True

    @property
    def is_done(self) -> bool:
        return all(self._ended) and not any(self._pending)

    def take(self) -> list[RunEntry]:
        """Up to where every source that goes on has said what it has."""
        lasts = [
            pending[-1][0]
            for pending, is_ended in zip(self._pending, self._ended, strict=True)
            if not is_ended
        ]
        bound = min(lasts, default=None)
        merged: dict[bytes, RunEntry] = {}
        for source in range(len(self._pending) - 1, -1, -1):
            pending = self._pending[source]
            n = len(pending) if bound is None else bisect_right(pending, bound, key=_key)
            for entry in pending[:n]:
                merged[entry[0]] = entry
            self._pending[source] = pending[n:]
        entries = sorted(merged.values(), key=_key)
        if self._with_oldest:
            return [entry for entry in entries if entry[1] is not None]
        return entries
