"""What clients asked and were told, and whether any of it can be true.

Every value is written once, so a read names its write and each check takes time linear in the history, up
to sorting (Gibbons & Korach, "Testing shared memories", SIAM J. Comput. 1997, section 4: with a known
read-mapping, atomicity is a question of zones). Times are the simulation's, not any node's.

A write whose outcome its client does not know has no end: it may take effect at any time, or never.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

NEVER = math.inf


class Violation(AssertionError):
    """Something was told that cannot be."""


@dataclass(slots=True, eq=False)
class Write:
    key: bytes
    value: bytes | None  # None: it deletes
    start: float
    end: float = NEVER
    sequence: int = 0  # that the store gave it; 0 where that is not known
    expected: int = -1  # sequence that the version before it must have had; -1: none asked for
    batch: int = 0  # those of one batch become true together, or none does

    @property
    def is_certain(self) -> bool:
        return self.end != NEVER


@dataclass(frozen=True, slots=True)
class Read:
    key: bytes
    value: bytes | None
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    start: float
    end: float
    sequence: int


@dataclass(frozen=True, slots=True)
class SnapshotRead:
    snapshot: str
    key: bytes
    value: bytes | None


@dataclass
class History:
    writes: list[Write] = field(default_factory=list[Write])
    reads: list[Read] = field(default_factory=list[Read])
    snapshots: list[Snapshot] = field(default_factory=list[Snapshot])
    snapshot_reads: list[SnapshotRead] = field(default_factory=list[SnapshotRead])
    n_acknowledged: int = 0
    n_batches: int = 0

    def new_batch(self) -> int:
        self.n_batches += 1
        return self.n_batches

    def forget(self, writes: Sequence[Write]) -> None:
        """They were refused."""
        self.writes = [write for write in self.writes if write not in writes]

    def check(self) -> None:
        settle_batches(self.writes, self.reads)
        by_key: dict[bytes, tuple[list[Write], list[Read]]] = {}
        for write in self.writes:
            by_key.setdefault(write.key, ([], []))[0].append(write)
        for read in self.reads:
            by_key.setdefault(read.key, ([], []))[1].append(read)
        for key, (writes, reads) in by_key.items():
            check_key(key, writes, reads)
        check_order(self.writes)
        check_expectations(self.writes)
        check_snapshots(self.writes, self.snapshots, self.snapshot_reads)


def settle_batches(writes: Iterable[Write], reads: Iterable[Read]) -> None:
    """Of a batch whose outcome its client does not know, and of which a value was read, all was true by
    then."""
    batches: dict[int, list[Write]] = {}
    for write in writes:
        if write.batch and not write.is_certain:
            batches.setdefault(write.batch, []).append(write)
    by_value: dict[tuple[bytes, bytes | None], int] = {
        (write.key, write.value): write.batch
        for of_batch in batches.values()
        for write in of_batch
        if write.value is not None
    }
    for read in reads:
        batch = by_value.get((read.key, read.value))
        if batch is not None:
            for write in batches[batch]:
                write.end = min(write.end, read.end)


# --- one key


@dataclass(slots=True)
class _Zone:
    """A write with the reads that saw it: it was the truth at some time not after `first`, and at some time
    not before `last`."""

    write: Write
    first: float  # the earliest end
    last: float  # the latest start


def check_key(key: bytes, writes: Sequence[Write], reads: Sequence[Read]) -> None:
    """Linearizability of one register that begins absent."""
    zones: dict[bytes, _Zone] = {}
    absent = [Write(key, None, -NEVER, -NEVER)]
    for write in writes:
        if write.value is None:
            absent.append(write)
        else:
            if write.value in zones:
                raise Violation(f"{key!r}: the generator wrote {show(write.value)} twice")
            zones[write.value] = _Zone(write, write.end, write.start)
    missing: list[Read] = []
    for read in reads:
        if read.value is None:
            missing.append(read)
            continue
        zone = zones.get(read.value)
        if zone is None:
            raise Violation(f"{key!r}: read {show(read.value)}, which nobody wrote")
        if read.end < zone.write.start:
            raise Violation(f"{key!r}: read {show(read.value)} before it was written")
        zone.first, zone.last = min(zone.first, read.end), max(zone.last, read.start)
    known = [zone for zone in zones.values() if zone.first != NEVER]  # those that took effect
    _check_forward(key, known, absent, missing)
    for read in missing:
        _check_missing(key, read, absent, known)


def _check_forward(key: bytes, known: list[_Zone], absent: Iterable[Write], missing: Iterable[Read]) -> None:
    """While a value is seen early and late, nothing else can have been the truth in between."""
    forward = sorted((zone for zone in known if zone.first < zone.last), key=lambda zone: zone.first)
    for before, after in pairwise(forward):
        if after.first < before.last:
            raise Violation(
                f"{key!r}: {show(before.write.value)} and {show(after.write.value)} replaced each "
                f"other: the first was read until {before.last:.4f}, the second from {after.first:.4f} on"
            )
    firsts = [zone.first for zone in forward]

    def inside(start: float, end: float) -> _Zone | None:
        at = bisect_right(firsts, start) - 1
        return forward[at] if at >= 0 and forward[at].first < start and end < forward[at].last else None

    for zone in known:
        if zone.first >= zone.last and (around := inside(zone.last, zone.first)) is not None:
            raise Violation(
                f"{key!r}: {show(zone.write.value)} was written or read while {show(around.write.value)} "
                f"was the truth, which was read before and after"
            )
    for write in absent:
        if write.is_certain and (around := inside(write.start, write.end)) is not None:
            raise Violation(
                f"{key!r}: deleted from {write.start:.4f} to {write.end:.4f}, but "
                f"{show(around.write.value)} was there before and is after"
            )
    for read in missing:
        if (around := inside(read.start, read.end)) is not None:
            raise Violation(
                f"{key!r}: not found from {read.start:.4f} to {read.end:.4f}, but "
                f"{show(around.write.value)} was there before and is after"
            )


def _check_missing(key: bytes, read: Read, absent: Iterable[Write], known: list[_Zone]) -> None:
    """Somebody deleted it, and nothing certain lies between that and the read."""
    for delete in absent:
        if delete.start <= read.end and not any(
            zone.last > delete.end and zone.first < read.start for zone in known
        ):
            return
    raise Violation(f"{key!r}: not found from {read.start:.4f} to {read.end:.4f}, but nothing had deleted it")


# --- all keys, by the sequences that the store gave


def check_order(writes: Iterable[Write]) -> None:
    """Sequences are unique, and what ended before another began has the smaller one."""
    known = sorted((write for write in writes if write.sequence), key=lambda write: write.sequence)
    latest_start = -NEVER
    last = batch = 0
    for write in known:
        if write.sequence == last and not (write.batch and write.batch == batch):
            raise Violation(f"sequence {last} was given twice, the second time to {show(write.value)}")
        last, batch = write.sequence, write.batch
        if write.end < latest_start:
            raise Violation(
                f"{write.key!r} = {show(write.value)} ended at {write.end:.4f} with sequence "
                f"{write.sequence}, and something that began only at {latest_start:.4f} has a smaller one"
            )
        latest_start = max(latest_start, write.start)


def check_expectations(writes: Iterable[Write]) -> None:
    """A write that was to replace one certain version did: no other lies between."""
    by_key: dict[bytes, list[Write]] = {}
    doubtful: dict[bytes, float] = {}  # since when a delete may have taken effect of which nobody knows
    for write in writes:
        if write.sequence:
            by_key.setdefault(write.key, []).append(write)
        elif write.value is None:
            doubtful[write.key] = min(write.start, doubtful.get(write.key, NEVER))
    for of_key in by_key.values():
        of_key.sort(key=lambda write: write.sequence)
        for before, write in pairwise(of_key):
            if write.expected > 0 and before.sequence > write.expected:
                raise Violation(
                    f"{write.key!r} = {show(write.value)} was to replace sequence {write.expected}, "
                    f"and replaced {before.sequence}"
                )
            if (
                write.expected == 0
                and before.value is not None
                and doubtful.get(write.key, NEVER) > write.end
            ):
                raise Violation(
                    f"{write.key!r} = {show(write.value)} was to be the first, and replaced "
                    f"{show(before.value)}"
                )


# --- snapshots


def check_snapshots(
    writes: Iterable[Write], snapshots: Iterable[Snapshot], reads: Iterable[SnapshotRead]
) -> None:
    """Each shows the writes that ended before it began, none that began after it ended, and always the
    same."""
    taken = {snapshot.name: snapshot for snapshot in snapshots}
    by_key: dict[bytes, list[Write]] = {}
    for write in writes:
        by_key.setdefault(write.key, []).append(write)
    seen: dict[tuple[str, bytes], bytes | None] = {}
    for read in reads:
        before = seen.setdefault((read.snapshot, read.key), read.value)
        if before != read.value:
            raise Violation(
                f"snapshot {read.snapshot}: {read.key!r} was {show(before)} and became {show(read.value)}"
            )
        _check_snapshot_read(taken[read.snapshot], read, by_key.get(read.key, []))


def _check_snapshot_read(snapshot: Snapshot, read: SnapshotRead, writes: list[Write]) -> None:
    candidates = [write for write in writes if write.value == read.value]
    if read.value is None:
        candidates.append(Write(read.key, None, -NEVER, -NEVER))
    if not candidates:
        raise Violation(f"snapshot {snapshot.name}: {read.key!r} is {show(read.value)}, which nobody wrote")
    for shown in candidates:
        if shown.start <= snapshot.end and not any(
            _is_between(shown, other, snapshot) for other in writes if other is not shown
        ):
            return
    raise Violation(
        f"snapshot {snapshot.name} of sequence {snapshot.sequence}, taken from {snapshot.start:.4f} to "
        f"{snapshot.end:.4f}: {read.key!r} is {show(read.value)}, which is not what it was then"
    )


def _is_between(shown: Write, other: Write, snapshot: Snapshot) -> bool:
    """Whether `other` certainly came after `shown` and before the snapshot."""
    if not other.is_certain:
        return False
    if shown.end < other.start and other.end < snapshot.start:
        return True
    if not other.sequence or not (shown.sequence or shown.start == -NEVER):
        return False
    return shown.sequence < other.sequence < snapshot.sequence


def show(value: bytes | None) -> str:
    return "nothing" if value is None else repr(value[:24].rstrip(b"."))
