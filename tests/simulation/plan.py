"""Which faults happen to a simulated cluster, drawn from its seed before anything runs.

A fault has an aim (the leader of control, the owner of a bucket, anyone) and may wait for a moment: the next
message of a kind, sent or received by whom it aims at. Faults stay within what the store promises to
survive:

- Of the faults that take a node away (`NODE_KINDS`) at most one lasts at a time, except in a storm. In a
  storm any number of nodes is away, even all: then nothing is promised but that nothing is lost.
- Bytes rot on one node alone, the victim, chosen once for each seed; its other faults are rot too, and there
  is no storm: two damaged places of three would be one too many.
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
    "kill", "power", "freeze", "isolate", "deaf", "mute", "pair", "flapping", "slow link", "lossy",
    "stall", "write error", "sync error", "read error", "full", "rot", "misdirected",
]  # fmt: skip
Aim = Literal["leader", "owner", "anyone"]

NODE_KINDS: tuple[Kind, ...] = ("kill", "power", "freeze", "isolate", "deaf", "mute", "flapping")
"""These take a node away, or half away."""
LINK_KINDS: tuple[Kind, ...] = ("pair", "slow link", "lossy")
DISK_KINDS: tuple[Kind, ...] = ("stall", "write error", "sync error", "read error", "full")
ROT_KINDS: tuple[Kind, ...] = ("rot", "misdirected")
AIMS: tuple[Aim, ...] = ("leader", "owner", "anyone")

MOMENTS: tuple[type, ...] = (AppendFragment, Transact, Fence, SealFragment, DeleteFragment, VolumeCall)
"""A switch of the journal, a takeover, a checkpoint, a write: each begins with one of these."""

MOMENT_SECONDS_MAX = 2.0
"""Then the moment has not come, and the fault begins without."""


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
    is_storm, rots = mood < 0.3, mood > 0.6
    pool: list[Kind] = [*NODE_KINDS, *LINK_KINDS, *DISK_KINDS, *(ROT_KINDS if rots else ())]
    kinds: list[Kind] = [kind for kind in pool if rng.random() < 0.4]
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
