"""Which daemon is hurt when, and how: all from one seed, so that a run can be had again.

Pure. A fault aims at a role (the leader of control, the owner of a bucket, or anyone), because that is
where it hurts; which node has the role is found out when the time comes. One fault at a time: the next
begins when the daemon is back and the cluster has had a moment to notice, since two at once are beyond what
replicated(3) promises to write through."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "freeze"]
Aim = Literal["leader", "owner", "anyone"]
KINDS: tuple[Kind, ...] = ("kill", "freeze")
AIMS: tuple[Aim, ...] = ("leader", "owner", "anyone")


@dataclass(frozen=True, slots=True)
class Fault:
    """`pause` seconds of calm, then the daemon is hurt, and comes back after `hold` seconds."""

    kind: Kind
    aim: Aim
    index: int  # chooses among those that fit
    pause: float
    hold: float

    def __str__(self) -> str:
        return f"{self.kind} {self.aim} for {self.hold:.1f} s"


def plan(seed: int, n_faults: int, kinds: Sequence[Kind] = KINDS) -> list[Fault]:
    """The schedule of a run. Every kind and aim comes about equally often."""
    rng = random.Random(seed)
    return [
        Fault(
            kinds[i % len(kinds)],
            AIMS[(i // len(kinds)) % len(AIMS)],
            rng.randrange(1_000),
            rng.uniform(0.8, 1.8),
            rng.uniform(0.5, 3.0),
        )
        for i in range(n_faults)
    ]
