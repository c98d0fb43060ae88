"""On which disks shall a new chunk live?

In a group of the policy whose members are all live, if there is one; of two drawn at random the one that
this owner has used less, which spreads load nearly as well as asking everybody (Mitzenmacher, "The Power of
Two Choices", 2001). If no group is whole: in the one with the most live members, on these alone, as long as
they are enough for a write set (DESIGN invariant 1); the chunk then is under-protected, and its placement
says so by its holes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence

from blockstore.codec.messages import Placement
from blockstore.errors import QuorumLost
from blockstore.ids import DiskId
from blockstore.placement.policy import Policy

NO_DISK = DiskId(0)


def choose_placement(
    policy: Policy,
    groups: Sequence[tuple[DiskId, ...]],
    usable: Collection[DiskId],
    preferred: Collection[DiskId],
    used: Counter[DiskId],
    rng: random.Random,
) -> Placement:
    """`usable`: disks that are live, sound and not avoided; `preferred`: those that save a round trip (the
    owner's own).

    Raise QuorumLost when no group has enough usable members."""
    whole = [group for group in groups if all(disk in usable for disk in group)]
    near = [group for group in whole if any(disk in preferred for disk in group)]
    candidates = near or whole
    if candidates:
        pair = [rng.choice(candidates), rng.choice(candidates)]
        group = min(pair, key=lambda group: sum(used[disk] for disk in group))
    else:
        ranked = [(sum(disk in usable for disk in group), group) for group in groups]
        n_most = max((n for n, _ in ranked), default=0)
        if n_most < policy.min_write:
            raise QuorumLost(f"A new chunk under {policy.text}", n_most, policy.min_write)
        chosen = rng.choice([group for n, group in ranked if n == n_most])
        group = tuple(disk if disk in usable else NO_DISK for disk in chosen)
    used.update(disk for disk in group if disk != NO_DISK)
    return Placement(policy.k, policy.m, group)


def has_room(policy: Policy, groups: Sequence[tuple[DiskId, ...]], usable: Collection[DiskId]) -> bool:
    """Whether a chunk could be opened on these disks."""
    return any(sum(disk in usable for disk in group) >= policy.min_write for group in groups)
