"""What seeds came to, in words a person can read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.seed import Outcome

REPLAY = "python -m tests.simulation --seed {seed}"
VIOLATIONS_SHOWN_MAX = 10


def show(outcome: Outcome) -> str:
    """One line, and for a seed that failed why, and the command that shows how it came about."""
    lines = [
        f"seed {outcome.seed}: {outcome.n_faults} faults, {outcome.n_acknowledged} acknowledged, "
        f"{outcome.n_given_up} given up, {outcome.n_reads} reads, {outcome.n_sealed} sealed, "
        f"{outcome.n_own_ends} ended by themselves, gap {outcome.longest_gap:.1f} s, "
        f"well after {outcome.recovery_seconds:.1f} s, {outcome.seconds:.0f} s simulated, "
        f"{outcome.cpu_seconds:.2f} CPU s, trace {outcome.trace_sum:08x} of {outcome.n_events}"
    ]
    if outcome.violations:
        lines += [f"    {violation}" for violation in outcome.violations[:VIOLATIONS_SHOWN_MAX]]
        if len(outcome.violations) > VIOLATIONS_SHOWN_MAX:
            lines.append(f"    and {len(outcome.violations) - VIOLATIONS_SHOWN_MAX} more")
        lines.append(f"    {outcome.description}")
        lines.append(f"    replay: {REPLAY.format(seed=outcome.seed)}")
    return "\n".join(lines)


@dataclass
class Total:
    """Of many seeds."""

    n_seeds: int = 0
    n_acknowledged: int = 0
    n_checked: int = 0
    cpu_seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter[str])
    mishaps: Counter[str] = field(default_factory=Counter[str])
    seen: Counter[str] = field(default_factory=Counter[str])
    failed: list[int] = field(default_factory=list[int])

    def add(self, outcome: Outcome) -> None:
        self.n_seeds += 1
        self.n_acknowledged += outcome.n_acknowledged
        self.n_checked += outcome.n_checked
        self.cpu_seconds += outcome.cpu_seconds
        self.faults.update(outcome.faults)
        self.mishaps.update(outcome.mishaps)
        self.seen.update(outcome.seen)
        if outcome.violations:
            self.failed.append(outcome.seed)

    def summary(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.faults.items()))
        mishaps = ", ".join(f"{n:,} {what}" for what, n in self.mishaps.items())
        seen = ", ".join(f"{n:,} {what}" for what, n in self.seen.items())
        failed = ", ".join(map(str, self.failed)) or "none"
        return (
            f"{self.n_seeds} seeds, {self.n_acknowledged:,} acknowledged, {self.n_checked:,} operations "
            f"checked for linearizability, {self.faults.total():,} faults ({kinds}): {mishaps}; "
            f"looked at: {seen}; {self.cpu_seconds:.1f} CPU seconds; failed: {failed}"
        )
