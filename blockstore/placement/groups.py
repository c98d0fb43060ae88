"""Which disks hold a chunk's fragments: a table of groups, computed from the topology and the policy alone.

Every group draws a number for every failure domain and takes those that come first in a race: a domain of
weight w arrives at -log(u) / w for a uniform u. That is weighted rendezvous hashing: each domain is taken in
proportion to its weight, and a domain that joins or leaves moves only what it gains or had (Thaler and
Ravishankar, 1998; Weil et al., "CRUSH", 2006, whose straw2 bucket is this race). The disk within a domain is
drawn in the same way, weighted by capacity.

All of it is integer arithmetic on SHAKE-128, so the table is the same on every machine and in every release;
a golden test holds it there. The numbers of one domain for 1,024 groups come from one call of the hash, and
within domains of equal weight the order of the u is the order of arrival, so that logarithms are needed of a
few finalists only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from hashlib import shake_128
from heapq import nlargest

from blockstore.errors import InvalidRequest
from blockstore.ids import DiskId
from blockstore.placement.policy import Policy
from blockstore.placement.topology import Disk, Topology

Group = tuple[DiskId, ...]

_BLOCK = 1_024
"""Groups whose draws are made at once: 8 KiB for each domain, so memory does not grow with the table."""
_SALT = b"blockstore placement 1"
"""Another salt would be another table: it changes only with a plan to move the data."""
_LOG_BITS = 32
"""Fraction bits of a logarithm: the race among 10,000 is decided by differences of about 2^-14."""


def groups(
    topology: Topology, policy: Policy, n_groups: int, previous: Sequence[Group] = ()
) -> tuple[Group, ...]:
    """`n_groups` groups of `policy.n` disks each, in distinct failure domains, filled in proportion to
    capacity.

    With the table that was valid until now as `previous`, members that stay keep their position in the group,
    so that a shard stays where it is. InvalidRequest when there are fewer domains than the policy needs.
    """
    domains = _domains(topology, policy)
    if len(domains) < policy.n:
        raise InvalidRequest(
            f"{policy} needs disks in {policy.n} different {policy.domain}s; {len(domains)} can take data."
        )
    return tuple(
        _keep_positions(chosen, previous[number]) if number < len(previous) else chosen
        for number, chosen in enumerate(_draw(domains, policy, n_groups))
    )


def _domains(topology: Topology, policy: Policy) -> Mapping[str, tuple[Disk, ...]]:
    found: dict[str, list[Disk]] = {}
    for disk in topology.disks:
        if disk.takes_data:
            if policy.domain == "disk":
                name = f"disk/{disk.disk}"
            elif policy.domain == "node":
                name = f"node/{disk.node}"
            else:
                name = "zone/" + "/".join(part.replace("%", "%25").replace("/", "%2F") for part in disk.zone)
            found.setdefault(name, []).append(disk)
    return {name: tuple(found[name]) for name in sorted(found)}


def _draw(domains: Mapping[str, tuple[Disk, ...]], policy: Policy, n_groups: int) -> Iterator[Group]:
    seeds = [_seed(policy, name) for name in domains]
    pickers = [_DiskPicker(policy, disks) for disks in domains.values()]
    race = _Race([picker.weight for picker in pickers])
    for first in range(0, n_groups, _BLOCK):
        size = min(_BLOCK, n_groups - first)
        columns = [_draws(seed + str(first // _BLOCK).encode(), size) for seed in seeds]
        for group, draws in enumerate(zip(*columns, strict=True), first):
            yield tuple(pickers[domain].pick(group) for domain in race.first(draws, policy.n))


def _seed(policy: Policy, name: str) -> bytes:
    return b"\0".join((_SALT, policy.text.encode(), name.encode(), b""))


def _draws(seed: bytes, size: int) -> tuple[int, ...]:
    """That many numbers below 2^64. A longer draw begins with the shorter one."""
    return struct.unpack(f"<{size}Q", shake_128(seed).digest(8 * size))


def weight_of(capacity: int) -> int:
    """Five significant bits of the capacity: a disk formatted a little smaller moves no data, and disks of
    one model have one weight."""
    shift = max(0, capacity.bit_length() - 5)
    return capacity >> shift << shift


class _DiskPicker:
    """Draws the disk within one domain, for one group at a time."""

    def __init__(self, policy: Policy, disks: tuple[Disk, ...]) -> None:
        self._disks = disks
        self._seeds = [_seed(policy, f"within/{disk.disk}") for disk in disks]
        weights = [weight_of(disk.capacity) for disk in disks]
        self.weight = sum(weights)
        self._race = _Race(weights)

    def pick(self, group: int) -> DiskId:
        if len(self._disks) == 1:
            return self._disks[0].disk
        number = str(group).encode()
        draws = [_draws(seed + number, 1)[0] for seed in self._seeds]
        return self._disks[self._race.first(draws, 1)[0]].disk


class _Race:
    """Who comes first, of competitors with fixed weights."""

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = weights
        by_weight: dict[int, list[int]] = {}
        for index, weight in enumerate(weights):
            by_weight.setdefault(weight, []).append(index)
        self._classes = list(by_weight.values())

    def first(self, draws: Sequence[int], n: int) -> list[int]:
        """Indices of the first n, in order of arrival; of equal arrivals (2^-32) the lower index is first."""
        draw_of = draws.__getitem__
        if len(self._classes) == 1:
            return nlargest(n, self._classes[0], key=draw_of)
        finalists = [index for same in self._classes for index in nlargest(n, same, key=draw_of)]
        arrival = {index: (_minus_log2(draws[index]) << 64) // self._weights[index] for index in finalists}
        return sorted(finalists, key=lambda index: (arrival[index], index))[:n]


def _minus_log2(draw: int) -> int:
    """-log2 of (draw + 1/2) / 2^64 with _LOG_BITS fraction bits, rounded up. Squaring the mantissa doubles
    its logarithm, whose integer part is the next bit."""
    odd = 2 * draw + 1
    length = odd.bit_length()
    mantissa = odd << (65 - length)  # in [2^64, 2^65), standing for [1, 2)
    log = length - 1
    for _ in range(_LOG_BITS):
        mantissa = (mantissa * mantissa) >> 64
        log <<= 1
        if mantissa >> 65:
            mantissa >>= 1
            log |= 1
    return (65 << _LOG_BITS) - log


def _keep_positions(chosen: Group, previous: Group) -> Group:
    """The chosen disks, those that were there before at the position they had."""
    if len(previous) != len(chosen):
        return chosen
    staying = set(chosen) & set(previous)
    arriving = iter(disk for disk in chosen if disk not in staying)
    return tuple(disk if disk in staying else next(arriving) for disk in previous)
