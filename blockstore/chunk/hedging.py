"""Whom to read from first, and when to ask another.

Pure. The delay before a second member is asked is the observed 95th percentile of reads of about that size
(Dean and Barroso, "The tail at scale", 2013): one read in twenty is hedged, whatever the machine. When
everything is slow at once, asking twice makes it slower, so hedges come out of a budget that reads fill."""

from __future__ import annotations

from blockstore.config import HEDGE_SECONDS_MIN
from blockstore.ids import KiB, MiB

_SAMPLES = 128
"""Of each size class: the p95 is the seventh largest, and the last minute's weather is forgotten."""
_REFRESH = 16
"""Samples between two looks: sorting 128 floats takes 5 us."""
_HEDGE_SECONDS_UNKNOWN = 0.05
"""Before there are samples."""
_BUDGET_PER_READ = 0.1
_BUDGET_MAX = 20.0


class Quantile:
    """The 95th percentile of recent samples."""

    __slots__ = ("_n_since", "_samples", "p95")

    def __init__(self, initial: float) -> None:
        self.p95 = initial
        self._samples: list[float] = []
        self._n_since = 0

    def add(self, seconds: float) -> None:
        samples = self._samples
        if len(samples) == _SAMPLES:
            samples.pop(0)
        samples.append(seconds)
        self._n_since += 1
        if self._n_since >= _REFRESH:
            self._n_since = 0
            self.p95 = sorted(samples)[len(samples) * 95 // 100]


class HedgeDelay:
    """When a read that is not answered is late enough to be asked elsewhere as well."""

    def __init__(self) -> None:
        self._classes = tuple(Quantile(_HEDGE_SECONDS_UNKNOWN) for _ in range(3))
        self._budget = _BUDGET_MAX

    def on_read(self, n_bytes: int, seconds: float) -> None:
        self._of(n_bytes).add(seconds)
        self._budget = min(self._budget + _BUDGET_PER_READ, _BUDGET_MAX)

    def delay(self, n_bytes: int) -> float:
        return max(self._of(n_bytes).p95, HEDGE_SECONDS_MIN)

    @property
    def may_spend(self) -> bool:
        return self._budget >= 1.0

    def try_spend(self) -> bool:
        """Whether one more request may be a hedge."""
        if not self.may_spend:
            return False
        self._budget -= 1.0
        return True

    def _of(self, n_bytes: int) -> Quantile:
        return self._classes[0 if n_bytes <= 64 * KiB else 1 if n_bytes <= MiB else 2]
