"""Bringing back what was: objects become what a snapshot shows, without copying a byte.

First a *safety snapshot* of now is taken, and then what differs between it and the wanted one is restored, in
records of up to `RESTORE_KEYS_MAX` keys, each all or nothing. A reader may see some of them before the
others. Repeating it after an interruption restores the rest; restoring the same to the safety snapshot
undoes it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from blockstore.api.history import Moment, fetch_changes, fetch_snapshots, successor
from blockstore.api.reading import KeyPages
from blockstore.api.session import VolumeSession
from blockstore.api.snapshot import choose_snapshot
from blockstore.codec.messages import (
    Entry,
    Restore,
    SnapshotCreate,
    SnapshotRecord,
)
from blockstore.config import RESTORE_KEY_BYTES_MAX, RESTORE_KEYS_MAX
from blockstore.errors import AlreadyExists, InvalidRequest, NotFound
from blockstore.kinds.bucket import info_of, key_of, name_of, object_words, prefix_key
from blockstore.kinds.object_history import Change, Restored, change_between, change_of

OnChanges = Callable[[Sequence[Change]], None]
"""Told of each page of changes when it is carried out (when it is found, by a dry run): for progress."""

PAGE_KEYS = 1_000
SAFETY_NAMES_MAX = 100
"""Names tried for one safety snapshot: one for each of so many restores in one second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to restore: objects by name, or all with a prefix (`names` None); in place, or to `to`: the name
    of the one, or the prefix in place of theirs."""

    names: tuple[str, ...] | None
    prefix: str
    to: str | None
    label: str = "restore"


def plan_restore(names: str | Iterable[str] | None, prefix: str | None, to: str | None) -> Plan:
    """Raise InvalidRequest when that cannot be."""
    if (names is None) == (prefix is None):
        raise InvalidRequest("Say which objects to restore: their names, or a prefix, and not both.")
    if names is None:
        return Plan(None, prefix or "", to)
    chosen = (names,) if isinstance(names, str) else tuple(names)
    if to is not None and len(chosen) != 1:
        raise InvalidRequest("Only one object can be restored to a name; give a prefix to restore many.")
    return Plan(chosen, "", to)


class _Step(NamedTuple):
    key: bytes
    target: bytes
    change: Change


async def restore(
    session: VolumeSession,
    wall: Callable[[], float],
    plan: Plan,
    at: Moment,
    *,
    dry_run: bool,
    on_changes: OnChanges | None,
    timeout: float,
) -> Restored:
    """Carry out `plan`. `timeout` is for each request."""
    then = choose_snapshot(session.name, await fetch_snapshots(session, timeout), at)
    counts = {"added": 0, "changed": 0, "removed": 0}
    safety, since = "", 0
    if not dry_run:
        if not await _is_needed(session, plan, then, timeout):
            return Restored(then.name, 0, 0, 0, "")
        taken = await _take_safety(session, f"before-{plan.label}", wall(), timeout)
        safety, since = taken.name, taken.sequence
    async with aclosing(_pages(session, plan, since, then, timeout)) as pages:
        async for page in pages:
            if not dry_run:
                for batch in _batches(page):
                    targets = () if plan.to is None else tuple(step.target for step in batch)
                    op = Restore(tuple(step.key for step in batch), then.sequence, targets)
                    await session.change(op, timeout)
            for step in page:
                counts[step.change.kind] += 1
            if on_changes is not None:
                on_changes([step.change for step in page])
    return Restored(then.name, counts["added"], counts["changed"], counts["removed"], safety)


async def _is_needed(session: VolumeSession, plan: Plan, then: SnapshotRecord, timeout: float) -> bool:
    async with aclosing(_pages(session, plan, 0, then, timeout)) as pages:
        async for _ in pages:
            return True
    return False


async def _take_safety(session: VolumeSession, label: str, now: float, timeout: float) -> SnapshotRecord:
    """A snapshot named for the moment."""
    stem = f"{label}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"
    for number in range(1, SAFETY_NAMES_MAX):
        name = stem if number == 1 else f"{stem}-{number}"
        try:
            return await session.ask(SnapshotCreate(name), SnapshotRecord, timeout)
        except AlreadyExists:
            continue
    raise AlreadyExists(f"snapshot {stem!r}, and {SAFETY_NAMES_MAX} like it")


def _batches(page: Sequence[_Step]) -> Iterator[Sequence[_Step]]:
    """Parts that fit one record each."""
    start = n_bytes = 0
    for index, step in enumerate(page):
        length = len(step.key) + len(step.target)
        if index - start == RESTORE_KEYS_MAX or n_bytes + length > RESTORE_KEY_BYTES_MAX:
            yield page[start:index]
            start, n_bytes = index, 0
        n_bytes += length
    if start < len(page):
        yield page[start:]


# --- what there is to do: pages of it, none empty; `since` is the safety snapshot, or 0 for the head


def _pages(
    session: VolumeSession, plan: Plan, since: int, then: SnapshotRecord, timeout: float
) -> AsyncGenerator[list[_Step]]:
    if plan.to is None:
        if plan.names is None:
            start = prefix_key(plan.prefix)
            return _range_in_place(session, start, successor(start), since, then.sequence, timeout)
        return _names_in_place(session, plan.names, since, then, timeout)
    if plan.names is None:
        source, target = prefix_key(plan.prefix), prefix_key(plan.to)
        return _prefix_elsewhere(session, source, target, since, then.sequence, timeout)
    return _name_elsewhere(session, plan.names[0], plan.to, since, then, timeout)


async def _range_in_place(
    session: VolumeSession, start: bytes, end: bytes, since: int, until: int, timeout: float
) -> AsyncGenerator[list[_Step]]:
    while True:
        page = await fetch_changes(session, since, until, start, end, timeout)
        if page.changes:
            yield [_Step(change.key, change.key, change_of(change)) for change in page.changes]
        if not page.next:
            return
        start = page.next


async def _names_in_place(
    session: VolumeSession, names: Sequence[str], since: int, then: SnapshotRecord, timeout: float
) -> AsyncGenerator[list[_Step]]:
    """NotFound for a name that is there neither now nor then, before anything is done."""
    steps: list[_Step] = []
    for key in dict.fromkeys(key_of(name) for name in names):
        page = await fetch_changes(session, since, then.sequence, key, key + b"\0", timeout)
        steps += [_Step(key, key, change_of(change)) for change in page.changes]
        if not page.changes:
            await _fetch_then(session, key, then, timeout, "neither now nor in")
    for start in range(0, len(steps), PAGE_KEYS):
        yield steps[start : start + PAGE_KEYS]


async def _name_elsewhere(
    session: VolumeSession, name: str, to: str, since: int, then: SnapshotRecord, timeout: float
) -> AsyncGenerator[list[_Step]]:
    key, target = key_of(name), key_of(to)
    new = await _fetch_then(session, key, then, timeout, "not in")
    try:
        old = await session.fetch_entry(target, since, timeout)
    except NotFound as error:
        if not str(error.fields[0]).startswith("object "):
            raise
        old = None
    if old is None or not _are_alike(old, new):
        yield [_step(key, target, old, new)]


async def _fetch_then(
    session: VolumeSession, key: bytes, then: SnapshotRecord, timeout: float, where: str
) -> Entry:
    try:
        return await session.fetch_entry(key, then.sequence, timeout)
    except NotFound as error:
        if not str(error.fields[0]).startswith("object "):
            raise
        words = object_words(session.name, name_of(key))
        raise NotFound(f"{words}, {where} snapshot {then.name!r}") from None


async def _prefix_elsewhere(
    session: VolumeSession, source: bytes, target: bytes, since: int, until: int, timeout: float
) -> AsyncGenerator[list[_Step]]:
    """Both listings in step: a prefix replaced, names keep their order. Under the target, what has no
    counterpart stays."""
    steps: list[_Step] = []
    async with (
        aclosing(_entries(session, target, since, timeout)) as present,
        aclosing(_entries(session, source, until, timeout)) as wanted,
    ):
        old = await anext(present, None)
        async for new in wanted:
            key = key_of(name_of(target + new.key[len(source) :]))  # it may be too long now
            while old is not None and old.key < key:
                old = await anext(present, None)
            replaced = old if old is not None and old.key == key else None
            if replaced is not None and _are_alike(replaced, new):
                continue
            steps.append(_step(new.key, key, replaced, new))
            if len(steps) == PAGE_KEYS:
                yield steps
                steps = []
    if steps:
        yield steps


async def _entries(session: VolumeSession, prefix: bytes, at: int, timeout: float) -> AsyncGenerator[Entry]:
    pages = KeyPages(prefix, b"", at)
    while page := await pages.fetch(session, timeout):
        for entry in page:
            yield entry


def _are_alike(old: Entry, new: Entry) -> bool:
    return (old.crc, old.size, old.meta) == (new.crc, new.size, new.meta)


def _step(key: bytes, target: bytes, old: Entry | None, new: Entry) -> _Step:
    was = None if old is None else info_of(target, old.sequence, old.meta, old.size, old.crc)
    becomes = info_of(target, new.sequence, new.meta, new.size, new.crc)
    return _Step(key, target, change_between(name_of(target), was, becomes))
