"""Which daemon is hurt when, and how: all from one seed, so that a run can be had again.

Pure. A fault aims at a role (the leader of control, the owner of a bucket, or anyone), because that is
where it hurts; which node has the role is found out when the time comes. Faults come in steps: those of one
step overlap, on different nodes, and the next step begins when all are over and every daemon is back.

Never more than the policies promise to survive: at most two nodes at once (replicated(3) loses nothing then,
though what needs more members waits). Bits rot on one node for the whole run, since there is no repair yet;
that node counts as one of those at once, so with rot no step has more than one other node down."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "kill", "freeze", "restart", "cut", "oneway", "flap", "slow", "full", "power", "blackout", "rot", "rotlog"
]
Aim = Literal["leader", "owner", "anyone"]

MEANINGS: dict[Kind, str] = {
    "kill": "kill -9, started again later",
    "freeze": "SIGSTOP, SIGCONT later: it lives, keeps its connections, and does nothing",
    "restart": "SIGTERM, started again later",
    "cut": "a node hears nobody and nobody hears it: all peers, the client too or not, or one peer only",
    "oneway": "what a node sends is lost, or what is sent to it",
    "flap": "a node's links are cut and healed several times a second",
    "slow": "a node's links carry little",
    "full": "a node's disk has no room left; every other time it is also killed and started so",
    "power": "a node's power fails: what was not synced is gone",
    "blackout": "the power of all nodes fails at the same time",
    "rot": "bits flip in fragments and journals, always on the same node",
    "rotlog": "a node is killed, a bit flips in its copy of control's log, and it is started",
}
KINDS: tuple[Kind, ...] = tuple(MEANINGS)
SIGNAL_KINDS: tuple[Kind, ...] = ("kill", "freeze", "restart", "rot", "rotlog")
"""These need nothing but processes and files; the others hosts and disks of their own (`lab.why_not`)."""
ALONE: tuple[Kind, ...] = ("blackout",)
AIMS: tuple[Aim, ...] = ("leader", "owner", "anyone")
AT_ONCE_MAX = 2

HOLD_SECONDS: dict[Kind, tuple[float, float]] = {"full": (4.0, 8.0), "rot": (1.0, 2.0)}
"""How long a fault lasts, from and to. A full disk hurts when the next slot is made."""
USUAL_HOLD_SECONDS = (0.5, 3.0)
PAUSE_SECONDS = (0.8, 1.8)


@dataclass(frozen=True, slots=True)
class Fault:
    """The daemon that has the role is hurt, and comes back after `hold` seconds."""

    kind: Kind
    aim: Aim
    index: int  # chooses among those that fit
    hold: float
    detail: int  # chooses among a kind's variants

    def __str__(self) -> str:
        return f"{self.kind} {self.aim} for {self.hold:.1f} s"


@dataclass(frozen=True, slots=True)
class Step:
    """`pause` seconds of calm, then these faults overlap."""

    pause: float
    faults: tuple[Fault, ...]

    @property
    def label(self) -> str:
        return "+".join(sorted(fault.kind for fault in self.faults))


def plan(
    seed: int,
    n_faults: int,
    kinds: Sequence[Kind] = ("kill",),
    at_once: int = 1,
    hold: tuple[float, float] | None = None,
    pause: tuple[float, float] = PAUSE_SECONDS,
) -> list[Step]:
    """The schedule of a run. Every kind and aim comes about equally often. `hold` for quicker faults."""
    assert 1 <= at_once <= AT_ONCE_MAX
    rng = random.Random(seed)
    faults: list[Fault] = []
    while len(faults) < n_faults:
        for kind in rng.sample(kinds, len(kinds)):
            aim = AIMS[len(faults) // len(kinds) % len(AIMS)]
            span = hold or HOLD_SECONDS.get(kind, USUAL_HOLD_SECONDS)
            faults.append(Fault(kind, aim, rng.randrange(1_000), rng.uniform(*span), rng.randrange(1_000)))
    is_rotting = "rot" in kinds
    steps: list[Step] = []
    waiting = faults[:n_faults]
    while waiting:
        together = [waiting.pop(0)]
        while waiting and len(together) < at_once and _may_join(together, waiting[0], is_rotting):
            together.append(waiting.pop(0))
        steps.append(Step(rng.uniform(*pause), tuple(together)))
    return steps


def _may_join(together: Sequence[Fault], fault: Fault, is_rotting: bool) -> bool:
    if any(one.kind in ALONE for one in (*together, fault)):
        return False
    n_rots = sum(one.kind == "rot" for one in (*together, fault))
    return n_rots == 1 if is_rotting else True
