"""Which faults happen to a simulated cluster, drawn from its seed before anything runs.

A fault has an aim (the leader of control, the owner of a bucket, anyone) and may wait for a moment: the next
message of a kind, sent or received by whom it aims at. Faults stay within what the store promises to
survive:

- Of the faults that take a node away (`NODE_KINDS`) at most one lasts at a time, except in a storm. In a
  storm any number of nodes is away, even all: then nothing is promised but that nothing is lost.
- Bytes rot or go astray on one node alone, the victim, chosen once for each seed, which then has no storm and
  only policies that survive two failures: the victim's, and one node that is away.
- Clocks differ by less than `CLOCK_DRIFT_MAX`, stops included. The wall's clock jumps: nothing rests on it.
- A disk whose write failed is suspect for good, so whoever watches over the cluster restarts its daemon.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from blockstore.codec.messages import (
    AppendFragment,
    DeleteFragment,
    Fence,
    SealFragment,
    Transact,
    VolumeCall,
)

Kind = Literal[
    "kill", "power", "power at a write", "freeze", "isolate", "deaf", "mute", "flapping",
    "pair", "slow link", "lossy", "reset",
    "stall", "slow disk", "write error", "sync error", "read error", "full",
    "drift", "clock stops", "wall clock",
    "rot", "misdirected", "lost write", "bad sector",
]  # fmt: skip
Aim = Literal["leader", "owner", "anyone"]

NODE_KINDS: tuple[Kind, ...] = (
    "kill", "power", "power at a write", "freeze", "isolate", "deaf", "mute", "flapping",
)  # fmt: skip
"""These take a node away, or half away."""
LINK_KINDS: tuple[Kind, ...] = ("pair", "slow link", "lossy", "reset")
DISK_KINDS: tuple[Kind, ...] = ("stall", "slow disk", "write error", "sync error", "read error", "full")
CLOCK_KINDS: tuple[Kind, ...] = ("drift", "clock stops", "wall clock")
ROT_KINDS: tuple[Kind, ...] = ("rot", "misdirected", "lost write", "bad sector")
ALL_KINDS: tuple[Kind, ...] = (*NODE_KINDS, *LINK_KINDS, *DISK_KINDS, *CLOCK_KINDS, *ROT_KINDS)
AIMS: tuple[Aim, ...] = ("leader", "owner", "anyone")

MOMENTS: tuple[type, ...] = (AppendFragment, Transact, Fence, SealFragment, DeleteFragment, VolumeCall)
"""A switch of the journal, a takeover, a checkpoint, a write: each begins with one of these."""

MOMENT_SECONDS_MAX = 2.0
"""Then the moment has not come, and the fault begins without."""


CLOCK_RATES = (0.997, 1.003)
CLOCK_STOP_SECONDS = 0.001
"""How long a clock stands still, once a second at most: over the time of a lease, half a second or more, no
two clocks differ by CLOCK_DRIFT_MAX."""


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    aim: Aim
    index: int  # chooses among those that fit
    pause: float  # seconds since the fault before began
    hold: float
    moment: int  # of MOMENTS; -1: at once
    nth: int  # the how manieth such message


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of one seed."""

    faults: tuple[Fault, ...]
    kinds: tuple[Kind, ...]
    is_storm: bool
    victim: int  # the node whose bytes rot; 0: none


def draw_plan(rng: random.Random, n_nodes: int, n_faults: int) -> Plan:
    """A random subset of kinds, and faults of these."""
    mood = rng.random()
    is_storm, rots = mood < 0.3, mood > 0.55 and n_nodes > 5
    pool = ALL_KINDS if rots else ALL_KINDS[: -len(ROT_KINDS)]
    kinds: list[Kind] = [kind for kind in pool if rng.random() < (0.7 if kind in ROT_KINDS else 0.4)]
    if not any(kind in NODE_KINDS for kind in kinds):
        kinds.append(rng.choice(NODE_KINDS[:4]))
    if rots and not any(kind in ROT_KINDS for kind in kinds):
        kinds.append(rng.choice(ROT_KINDS))
    aims: list[Aim] = [aim for aim in AIMS if rng.random() < 0.6] or ["anyone"]
    pace = rng.choice((0.3, 0.8, 1.5))
    hold = rng.choice((0.4, 1.2, 2.5))
    moment_share = rng.choice((0.0, 0.3, 0.8))
    faults = tuple(
        Fault(
            rng.choice(kinds),
            rng.choice(aims),
            rng.randrange(1_000),
            rng.expovariate(1 / pace),
            min(5.0, rng.expovariate(1 / hold) + 0.05),
            rng.randrange(len(MOMENTS)) if rng.random() < moment_share else -1,
            rng.choice((0, 0, 1, 3, 10)),
        )
        for _ in range(n_faults)
    )
    return Plan(faults, tuple(kinds), is_storm, rng.randint(1, n_nodes) if rots else 0)
