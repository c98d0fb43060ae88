"""What a run comes to, for a person and for a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blockstore.ids import MiB
from chaos.run import Verdict
from chaos.schedule import KINDS, MEANINGS

GAP_SECONDS_MAX: dict[str, float] = {"kill": 3.0, "restart": 3.0, "power": 3.0, "freeze": 5.0, "cut": 5.0}
"""What is promised when one node is hurt on a machine that is idle otherwise. Else the promise is that no
request fails, within its 30 seconds."""

VIOLATIONS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Report:
    """Of one or more rounds. `problems` empty: the store kept what it was given, and its promises."""

    verdicts: tuple[Verdict, ...]
    skipped: dict[str, str]  # kinds that could not be had here, and why
    is_busy: bool = False
    """Other work runs on this machine: gaps are told and not judged."""

    @property
    def problems(self) -> list[str]:
        problems = [
            f"seed {verdict.seed}: {violation}"
            for verdict in self.verdicts
            for violation in verdict.violations
        ]
        for kind, limit in self._promises().items():
            for verdict in self.verdicts:
                longest = verdict.longest_gap(kind)
                if longest > limit:
                    gap = f"no write for {longest:.2f} s after a {kind} ({limit:.0f} promised)"
                    problems.append(f"seed {verdict.seed}: {gap}")
        return problems

    def counts(self) -> Counter[str]:
        return Counter(kind for verdict in self.verdicts for one in verdict.struck for kind in one.kinds)

    def longest_gap(self, kind: str) -> float:
        return max((verdict.longest_gap(kind) for verdict in self.verdicts), default=0.0)

    def longest_gap_together(self) -> float:
        """When several nodes were hurt at once, or one in two ways."""
        return max(
            (one.longest_gap for verdict in self.verdicts for one in verdict.struck if len(one.kinds) > 1),
            default=0.0,
        )

    def total(self, what: str) -> int:
        return sum(getattr(verdict, what) for verdict in self.verdicts)

    def _promises(self) -> dict[str, float]:
        return {} if self.is_busy else GAP_SECONDS_MAX

    def lines(self) -> list[str]:
        counts = self.counts()
        seconds = sum(verdict.seconds for verdict in self.verdicts)
        lines = ["", f"{'kind':<10} {'times':>5} {'longest gap':>12} {'promised':>9}   what"]
        for kind in KINDS:
            if kind in counts:
                gap, limit = self.longest_gap(kind), self._promises().get(kind)
                lines.append(
                    f"{kind:<10} {counts[kind]:>5} {f'{gap:.2f} s' if gap else '-':>12} "
                    f"{f'< {limit:.0f} s' if limit and gap else '':>9}   {MEANINGS[kind]}"
                )
        lines += [f"{kind:<10} skipped: {why}" for kind, why in self.skipped.items()]
        if self.longest_gap_together():
            lines.append(f"Longest gap when faults overlapped: {self.longest_gap_together():.2f} s.")
        lines.append(
            f"{counts.total()} faults in {seconds:.0f} s ({len(self.verdicts)} clusters, "
            f"{self.total('n_kills')} processes killed, {self.total('n_flips')} bits flipped)."
        )
        lines.append(
            f"Verified: {self.total('n_writes')} acknowledged writes ({self.total('n_bytes') / MiB:.0f} MiB) "
            f"by {self.total('n_reads')} reads, all objects of {self.total('n_snapshots')} snapshots, "
            "the names listed; each after a fresh start of all daemons too."
        )
        lines.append(
            f"Verified: {self.total('n_device_writes')} numbered writes to two block devices, "
            f"{self.total('n_device_snapshots')} snapshots of both, each a state that existed at one instant."
        )
        problems = self.problems
        lines += [f"VIOLATION: {problem}" for problem in problems[:VIOLATIONS_SHOWN]]
        if len(problems) > VIOLATIONS_SHOWN:
            lines.append(f"… and {len(problems) - VIOLATIONS_SHOWN} more.")
        lines.append("FAILED." if problems else "Nothing was lost, nothing was made up.")
        return lines

    def facts(self, seeds: Sequence[int]) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "passed": not self.problems,
            "problems": self.problems,
            "seeds": list(seeds),
            "kinds": {
                kind: {
                    "times": times,
                    "longest_gap_seconds": self.longest_gap(kind),
                    "promised_seconds": self._promises().get(kind),
                }
                for kind, times in sorted(self.counts().items())
            },
            "longest_gap_seconds_overlapping": self.longest_gap_together(),
            "skipped": self.skipped,
            "rounds": [asdict(verdict) for verdict in self.verdicts],
        }
