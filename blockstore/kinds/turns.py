"""Whose turn is it? Which writes of one writer of a block device may be under way together.

Pure, but for the lock: a device may be written from many threads. A write waits until it has a *permit* (see
docs/design/block.md) and nothing that it overlaps is under way or waiting before it. A write of which it is
not known whether it was carried out leaves its permit *in doubt*, and what it touched: no other write begins
before somebody who waits has settled it.

Small writes share turns, so that under load one request carries many of them: only some such
turns are under way at once, and what comes meanwhile joins the one that waits.

Invariants: no two turns overlap; a permit belongs to one turn, or is free, or in doubt; while a permit is in
doubt no turn begins."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from blockstore.codec.messages import KeyWrite
from blockstore.errors import BlockStoreError

WAITERS_EXAMINED_MAX = 256
"""Of those that wait, so many are looked at when a turn ends: four for each permit."""

SHARED_TURNS_MAX = 8
"""Of turns that small writes share, under way at once: enough for the journal to have the next at hand when
one append is acknowledged, few enough that the rest gather."""


class Wake(Protocol):
    """Lets one wait until another says so; a `trio.Event`, or the like of it for threads."""

    def set(self) -> object: ...

    async def wait(self) -> object: ...


class Doubt:
    """A permit whose last write may or may not have been carried out, or may be later; and the spans that it
    may have reserved a side in."""

    __slots__ = ("permit", "spans")

    def __init__(self, permit: int, spans: Sequence[int]) -> None:
        self.permit, self.spans = permit, tuple(spans)


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
    it. It has its turn when it has a permit; before that, `doubt` is what it must settle first."""

    __slots__ = ("doubt", "end", "permit", "points", "shares", "spans", "start", "wake")

    def __init__(self, start: int, end: int, points: Iterable[int] = ()) -> None:
        self.start, self.end = start, end
        self.points = set(points)
        self.shares: list[Share] = []
        self.permit = -1
        self.doubt: Doubt | None = None
        self.wake: Wake | None = None
        self.spans: Sequence[int] = ()  # in which it reserved a side

    def overlaps(self, other: Turn) -> bool:
        if not self.points:
            if other.points:
                return other.overlaps(self)
            return self.start < other.end and other.start < self.end
        if other.points:
            return not self.points.isdisjoint(other.points)
        return any(other.start <= point < other.end for point in self.points)


class Turns:
    """The permits, each with the sequence that its key has, and the turns."""

    def __init__(self, sequence: int, n_permits: int, new_wake: Callable[[], Wake]) -> None:
        self._sequences = [sequence] * n_permits
        self._free = deque(range(n_permits))
        self._new_wake = new_wake
        self._lock = threading.Lock()
        self._running: set[Turn] = set()
        self._waiting: dict[Turn, None] = {}  # in order
        self._doubts: list[Doubt] = []
        self._is_settling = False
        self._shared: Turn | None = None  # it waits, and may be joined
        self._n_shared = 0  # that are running
        self.is_lost = False  # another writer took the device over

    def sequence(self, turn: Turn) -> int:
        """Of the permit that the turn has."""
        return self._sequences[turn.permit]

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
        return turn.permit >= 0 or turn.doubt is not None or self.is_lost

    def rearm(self, turn: Turn) -> None:
        """Before waiting once more."""
        with self._lock:
            if not self.is_ready(turn):
                turn.wake = self._new_wake()

    def advance(self, turn: Turn, sequence: int) -> None:
        """The turn's permit was written."""
        self._sequences[turn.permit] = sequence

    def leave(self, turn: Turn, *, in_doubt: bool) -> None:
        """The turn is over, or it is given up while it waits. In doubt: its last write may come true yet."""
        with self._lock:
            self._waiting.pop(turn, None)
            if turn is self._shared:
                self._shared = None
            if turn in self._running:
                self._running.remove(turn)
                self._n_shared -= bool(turn.points)
                if in_doubt:
                    self._doubts.append(Doubt(turn.permit, turn.spans))
                else:
                    self._free.append(turn.permit)
            elif turn.doubt is not None:  # whoever settles gave up; another one shall
                self._doubts.append(turn.doubt)
                turn.doubt = None
                self._is_settling = False
            self._advance()

    def settled(self, turn: Turn, sequence: int) -> None:
        """The doubt that the turn was given is settled; its permit has this sequence."""
        with self._lock:
            assert turn.doubt is not None
            self._sequences[turn.doubt.permit] = sequence
            self._free.append(turn.doubt.permit)
            turn.doubt = None
            self._is_settling = False
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
        if self._doubts:
            for turn in self._waiting:
                turn.doubt = self._doubts.pop()
                self._is_settling = True
                _wake(turn)
                return
            return
        before: list[Turn] = []
        for turn in list(self._waiting)[:WAITERS_EXAMINED_MAX]:
            if not self._free:
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
            turn.permit = self._free.popleft()
            _wake(turn)


def _wake(turn: Turn) -> None:
    if turn.wake is not None:
        turn.wake.set()
