"""Who waits for which part of the control state to change.

Pure: a waiter is any value that whoever waits can recognise again. A watch never loses a change: it names
the revision that it has seen, and is answered at once if anything under its prefix changed since. How far
back that is known is bounded; a watch that is further behind, or that slept through the installation of a
snapshot, is told that anything may have changed, never that nothing did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from blockstore import config


class Watches:
    def __init__(self, changes_max: int = config.CHANGES_REMEMBERED) -> None:
        self.revision = 0
        self._floor = 0  # of changes after it, every key is known
        self._changes_max = changes_max
        self._changes: deque[tuple[int, tuple[str, ...]]] = deque()
        self._waiting: dict[Hashable, str] = {}  # waiter -> prefix

    def has_changed(self, prefix: str, after: int) -> bool:
        """Whether a key under `prefix` changed, or may have, after that revision."""
        if after >= self.revision:
            return False
        if not prefix or after < self._floor:
            return True
        for revision, keys in reversed(self._changes):
            if revision <= after:
                return False
            if any(key.startswith(prefix) for key in keys):
                return True
        return False

    def add(self, prefix: str, waiter: Hashable) -> None:
        """Wake `waiter` at the next change under `prefix`; the caller has asked `has_changed` just before."""
        self._waiting[waiter] = prefix

    def remove(self, waiter: Hashable) -> None:
        self._waiting.pop(waiter, None)

    def on_change(self, revision: int, keys: tuple[str, ...]) -> tuple[Hashable, ...]:
        """A transaction was applied. Returns who is to be woken; they wait no more."""
        self.revision = revision
        self._changes.append((revision, keys))
        if len(self._changes) > self._changes_max:
            self._floor, _ = self._changes.popleft()
        woken = tuple(
            waiter for waiter, prefix in self._waiting.items() if any(key.startswith(prefix) for key in keys)
        )
        for waiter in woken:
            del self._waiting[waiter]
        return woken

    def on_snapshot(self, revision: int) -> tuple[Hashable, ...]:
        """The state was replaced by that of a snapshot. Everybody is to be woken."""
        self.revision = self._floor = revision
        self._changes.clear()
        woken = tuple(self._waiting)
        self._waiting.clear()
        return woken
