"""Runs short sequences of operations, fails the power at every step, and has every outcome checked.

Knows nothing of what is on the disk: a `Subject` says what the operations are, and judges what is found. For
each sequence, and each way in which its operations may overlap, the disk is frozen before every step together
with what was asked and told so far (`facts`, opaque here). From each such moment:

- the power fails: every state of `losses` is recovered and judged;
- or only the process ends: what it wrote is still seen, though no disk has it yet; recovered and judged.

While recovery runs, the disk is frozen before each of *its* steps, and the same is done again: `depth` says
how many more times. What recovery found counts as told from then on: a later recovery must find the same,
after any failure behind it.

A state that was judged under the same facts is not judged again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Generic, Protocol, TypeVar

from tests.crash.losses import DiskState, WatchedDisk, losses

F = TypeVar("F")
F_co = TypeVar("F_co", covariant=True)
T = TypeVar("T")

STAGGERS = (0, 2, None)
"""Steps of the disk before the next operation is asked for; None: until it is idle."""

DEPTH = 1
"""Crashes within a recovery from a crash."""

USE_EVERY = 8
"""Of so many different recovered disks one is used further, and crashes again."""


class Story(Protocol[F_co]):
    """Operations on one disk, and what is known of them."""

    def ask(self, operation: str) -> None: ...

    def facts(self) -> F_co: ...


class Subject(Protocol[F]):
    @property
    def name(self) -> str: ...

    @property
    def operations(self) -> Sequence[str]: ...

    @property
    def starts(self) -> Sequence[str]: ...

    def small_files(self) -> AbstractContextManager[None]:
        """Within it, files are as small as the exploration needs."""
        ...

    def begin(self, start: str) -> tuple[WatchedDisk, Story[F]]:
        """The disk as sequences find it."""
        ...

    def is_worth(self, start: str, operations: Sequence[str]) -> bool:
        """Whether `start` makes a difference for them; the first start is for all."""
        ...

    def recover(self, disk: WatchedDisk, facts: F) -> F:
        """Recover and judge: an AssertionError says what is wrong. The answer is what is told now."""
        ...

    def go_on(self, disk: WatchedDisk, facts: F) -> F:
        """Recover, then use what is there; what is told then."""
        ...


@dataclass
class Counts:
    sequences: int = 0  # with their ways of overlapping
    moments: int = 0  # at which the power fails
    crashes: int = 0  # states that were left, and recovered
    judged: int = 0  # of them those that had not been seen before
    in_recovery: int = 0  # judged ones left by a crash in a recovery
    gone_on: int = 0

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        return (
            f"{self.sequences} sequences, {self.moments} moments, {self.crashes} crash states, "
            f"{self.judged} different ones judged ({self.in_recovery} of crashes within recovery), "
            f"{self.gone_on} used again"
        )


class Found(AssertionError):
    """What was found after which crash of which sequence."""


@dataclass
class Explorer(Generic[F]):
    subject: Subject[F]
    depth: int = DEPTH
    use_every: int = USE_EVERY
    counts: Counts = field(default_factory=Counts)
    _judged: dict[tuple[DiskState, F], int] = field(default_factory=dict[tuple[DiskState, F], int])
    _used: set[tuple[DiskState, F]] = field(default_factory=set[tuple[DiskState, F]])
    _path: list[str] = field(default_factory=list[str])

    def run(self, start: str, stagger: int | None, operations: Sequence[str]) -> None:
        disk, story = self.subject.begin(start)
        moments = list[tuple[DiskState, F]]()

        def freeze() -> None:
            moment = (disk.freeze(), story.facts())
            if not moments or moments[-1] != moment:
                moments.append(moment)

        disk.on_step = freeze
        self._path = [f"{self.subject.name}: {start}, {' + '.join(operations)}, stagger {stagger}"]

        def ask_all() -> None:
            for operation in operations:
                story.ask(operation)
                _advance(disk, stagger)
            disk.settle()
            freeze()

        self._judge(ask_all)
        self.counts.sequences += 1
        self.counts.moments += len(moments)
        for n, (state, facts) in enumerate(moments):
            self._path.append(f"moment {n}")
            self._fail_at(state, facts, self.depth)
            self._path.pop()

    def _fail_at(self, state: DiskState, facts: F, depth: int) -> None:
        for n, left in enumerate(losses(state)):
            self._recover(left, facts, depth, f"the power fails, loss {n}")
        self._recover(state, facts, depth, "the process ends")

    def _recover(self, state: DiskState, facts: F, depth: int, how: str) -> None:
        self.counts.crashes += 1
        key = (state, facts)
        if self._judged.get(key, -1) >= depth:
            return
        is_new = key not in self._judged
        self._judged[key] = depth
        self.counts.judged += is_new
        self.counts.in_recovery += is_new and depth < self.depth
        self._path.append(how)
        disk = WatchedDisk(state)
        moments = dict[DiskState, None]()
        if depth:
            disk.on_step = lambda: moments.update({disk.freeze(): None})
        found = self._judge(lambda: self.subject.recover(disk, facts))
        disk.on_step = None
        end = disk.freeze()
        moments.pop(end, None)
        if depth:
            for n, moment in enumerate(moments):
                self._path.append(f"recovery, step {n}")
                self._fail_at(moment, facts, depth - 1)
                self._path.pop()
            self._path.append("recovered")
            self._fail_at(end, found, depth - 1)
            self._path.pop()
        if (end, found) in self._used:
            self._path.pop()
            return
        self._used.add((end, found))
        if len(self._used) % self.use_every == 0:
            self.counts.gone_on += 1
            self._path.append("recovered and used")
            disk = WatchedDisk(end)
            after = self._judge(lambda: self.subject.go_on(disk, found))
            for n, left in enumerate(losses(disk.freeze())):
                self._path.append(f"the power fails, loss {n}")
                self._judge(partial(self.subject.recover, WatchedDisk(left), after))
                self._path.pop()
            self._path.pop()
        self._path.pop()

    def _judge(self, judge: Callable[[], T]) -> T:
        try:
            return judge()
        except Exception as error:
            raise Found("; ".join(self._path) + f": {error!r}") from error


def sequences(subject: Subject[F], n_operations: int) -> Iterator[tuple[str, int | None, tuple[str, ...]]]:
    """Start, stagger and operations of each."""
    for start in subject.starts:
        for operations in product(subject.operations, repeat=n_operations):
            if start != subject.starts[0] and not subject.is_worth(start, operations):
                continue
            for stagger in STAGGERS:
                if len(operations) > 1 or stagger is None:
                    yield start, stagger, operations


def _advance(disk: WatchedDisk, stagger: int | None) -> None:
    if stagger is None:
        disk.settle()
        return
    for _ in range(stagger):
        disk.step()
