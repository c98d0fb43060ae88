"""Whose turn is it? Which writes of one writer of a block device may be under way together.

Pure, but for the lock: a device may be written from many threads. A write waits until nothing that it
overlaps is under way or waiting before it. A write of which it is not known whether it was carried out
leaves the device *in doubt*: no other write begins before somebody who waits has settled that (see
docs/design/block.md).

Small writes share turns, so that under load one request carries many of them: only some such
turns are under way at once, and what comes meanwhile joins the one that waits.

Invariants: no two turns overlap; while the device is in doubt, or that is being settled, no turn begins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from blockstore.codec.messages import KeyWrite
from blockstore.errors import BlockStoreError

TURNS_MAX = 64
"""Writes of one writer under way at once: more only fill the owner's queue."""

WAITERS_EXAMINED_MAX = 256
"""Of those that wait, so many are looked at when a turn ends."""

SHARED_TURNS_MAX = 8
"""Of turns that small writes share, under way at once: enough for the journal to have the next at hand when
one append is acknowledged, few enough that the rest gather."""


class Wake(Protocol):
    """Lets one wait until another says so; a `trio.Event`, or the like of it for threads."""

    def set(self) -> object: ...

    async def wait(self) -> object: ...


class Share:
    """One write's part in a turn that several have; `done` is when it is known what became of it. Given up:
    whoever saw it through was cancelled, so it must be done once more."""

    __slots__ = ("changes", "done", "error", "given_up", "values")

    def __init__(self, changes: Sequence[KeyWrite], values: Sequence[memoryview], done: Wake) -> None:
        self.changes, self.values, self.done = changes, values, done
        self.error: BlockStoreError | None = None
        self.given_up = False


class Turn:
    """One write of the bytes [start, end); or the blocks that begin at `points`, of several writes that share
    it. Before it `is_running`, it may be the one that `settles` what is in doubt."""

    __slots__ = ("end", "is_running", "points", "settles", "shares", "start", "wake")

    def __init__(self, start: int, end: int, points: Iterable[int] = ()) -> None:
        self.start, self.end = start, end
        self.points = set(points)
        self.shares: list[Share] = []
        self.is_running = self.settles = False
        self.wake: Wake | None = None

    def overlaps(self, other: Turn) -> bool:
        if not self.points:
            if other.points:
                return other.overlaps(self)
            return self.start < other.end and other.start < self.end
        if other.points:
            return not self.points.isdisjoint(other.points)
        return any(other.start <= point < other.end for point in self.points)


class Turns:
    def __init__(self, new_wake: Callable[[], Wake], n_turns_max: int = TURNS_MAX) -> None:
        self._n_turns_max = n_turns_max
        self._new_wake = new_wake
        self._lock = threading.Lock()
        self._running: set[Turn] = set()
        self._waiting: dict[Turn, None] = {}  # in order
        self._in_doubt = self._is_settling = False
        self._shared: Turn | None = None  # it waits, and may be joined
        self._n_shared = 0  # that are running
        self.is_lost = False  # another writer took the device over

    @property
    def is_certain(self) -> bool:
        """Whether all that was ever sent, and is not under way, is known to be carried out or not."""
        return not (self._in_doubt or self._is_settling or self.is_lost)

    def enter(self, start: int, end: int) -> Turn:
        turn = Turn(start, end)
        with self._lock:
            self._waiting[turn] = None
            self._advance()
            if turn in self._waiting:
                turn.wake = self._new_wake()
        return turn

    def join(self, points: Sequence[int], n_points_max: int, share: Share) -> tuple[Turn, bool]:
        """A turn for the blocks that begin there, with others' if there is one that waits and has room; and
        whether it is a new one, which the caller must see through."""
        with self._lock:
            shared = self._shared
            if (
                shared is not None
                and len(shared.points) + len(points) <= n_points_max
                and shared.points.isdisjoint(points)
            ):
                shared.points.update(points)
                shared.shares.append(share)
                return shared, False
            turn = Turn(0, 0, points)
            turn.shares.append(share)
            self._waiting[turn] = None
            self._shared = turn
            self._advance()
            if turn in self._waiting:
                turn.wake = self._new_wake()
            return turn, True

    def new_wake(self) -> Wake:
        return self._new_wake()

    def is_ready(self, turn: Turn) -> bool:
        """Whether there is something to do: it has its turn, or a doubt to settle, or all is lost."""
        return turn.is_running or turn.settles or self.is_lost

    def rearm(self, turn: Turn) -> None:
        """Before waiting once more."""
        with self._lock:
            if not self.is_ready(turn):
                turn.wake = self._new_wake()

    def leave(self, turn: Turn, *, in_doubt: bool) -> None:
        """The turn is over, or it is given up while it waits. In doubt: what it sent may come true yet."""
        with self._lock:
            self._waiting.pop(turn, None)
            if turn is self._shared:
                self._shared = None
            if turn.is_running:
                self._running.remove(turn)
                self._n_shared -= bool(turn.points)
                self._in_doubt = self._in_doubt or in_doubt
            elif turn.settles:  # whoever settles gave up; another one shall
                turn.settles = self._is_settling = False
                self._in_doubt = True
            self._advance()

    def settled(self, turn: Turn) -> None:
        """What was in doubt when the turn was told to settle it is certain now."""
        with self._lock:
            assert turn.settles
            turn.settles = self._is_settling = False
            self._advance()

    def lose(self) -> None:
        """Another writer took the device over: nobody here has a turn any more."""
        with self._lock:
            self.is_lost = True
            for turn in self._waiting:
                _wake(turn)

    def _advance(self) -> None:
        if self._is_settling:
            return
        if self._in_doubt:
            turn = next(iter(self._waiting), None)
            if turn is not None:
                self._in_doubt, self._is_settling, turn.settles = False, True, True
                _wake(turn)
            return
        before: list[Turn] = []
        for turn in list(self._waiting)[:WAITERS_EXAMINED_MAX]:
            if len(self._running) >= self._n_turns_max:
                return
            if (
                (turn.points and self._n_shared >= SHARED_TURNS_MAX)
                or any(map(turn.overlaps, self._running))
                or any(map(turn.overlaps, before))
            ):
                before.append(turn)
                continue
            if turn is self._shared:
                self._shared = None
            self._n_shared += bool(turn.points)
            del self._waiting[turn]
            self._running.add(turn)
            turn.is_running = True
            _wake(turn)


def _wake(turn: Turn) -> None:
    if turn.wake is not None:
        turn.wake.set()
