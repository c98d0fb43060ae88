"""What happens next in a simulation without tasks: the order of events, by the clock or by chance alone.

Two orders behind one interface. `Heap` runs events by their time. `Bag` knows no time for what is on its
way: any message and any disk's answer may be next, and timers run in their order at moments chosen by
chance, so it reaches interleavings that no plausible delays would give.

What a step causes at once (`soon`) is run before the next step, in the order it was asked for.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

Event = Callable[..., None]


class Schedule(Protocol):
    now: float
    n_steps: int

    def after(self, seconds: float, event: Event, *args: Any) -> None:
        """A timer: run once so much time has passed."""
        ...

    def arrive(self, seconds: float, event: Event, *args: Any) -> None:
        """Something on its way that takes about so long: a message, a disk's answer."""
        ...

    def soon(self, event: Event, *args: Any) -> None: ...

    def step(self) -> bool:
        """Run the next event and what it causes at once. False: there is none."""
        ...

    def __len__(self) -> int: ...


class Heap:
    def __init__(self) -> None:
        self.now = 0.0
        self.n_steps = 0
        self._events: list[tuple[float, int, Event, tuple[Any, ...]]] = []
        self._n_added = 0
        self._soon: deque[tuple[Event, tuple[Any, ...]]] = deque()

    def after(self, seconds: float, event: Event, *args: Any) -> None:
        self._n_added += 1
        heapq.heappush(self._events, (self.now + seconds, self._n_added, event, args))

    arrive = after

    def soon(self, event: Event, *args: Any) -> None:
        self._soon.append((event, args))

    def step(self) -> bool:
        if not self._events:
            return False
        self.now, _, event, args = heapq.heappop(self._events)
        self.n_steps += 1
        event(*args)
        soon = self._soon
        while soon:
            event, args = soon.popleft()
            event(*args)
        return True

    def run_until(self, when: float) -> None:
        events, soon = self._events, self._soon
        n_steps = 0
        while events and events[0][0] <= when:
            self.now, _, event, args = heapq.heappop(events)
            n_steps += 1
            event(*args)
            while soon:
                event, args = soon.popleft()
                event(*args)
        self.now = when
        self.n_steps += n_steps

    def __len__(self) -> int:
        return len(self._events)


class Bag:
    """`p_timer`: how often a timer is next although something is on its way. Time passes only by timers."""

    def __init__(self, rng: random.Random, p_timer: float) -> None:
        self.now = 0.0
        self.n_steps = 0
        self._rng = rng
        self.p_timer = p_timer
        self._timers: list[tuple[float, int, Event, tuple[Any, ...]]] = []
        self._n_added = 0
        self._on_their_way: list[tuple[Event, tuple[Any, ...]]] = []
        self._soon: deque[tuple[Event, tuple[Any, ...]]] = deque()

    def after(self, seconds: float, event: Event, *args: Any) -> None:
        self._n_added += 1
        heapq.heappush(self._timers, (self.now + seconds, self._n_added, event, args))

    def arrive(self, seconds: float, event: Event, *args: Any) -> None:
        del seconds
        self._on_their_way.append((event, args))

    def soon(self, event: Event, *args: Any) -> None:
        self._soon.append((event, args))

    def step(self) -> bool:
        waiting, rng = self._on_their_way, self._rng
        if waiting and (rng.random() >= self.p_timer or not self._timers):
            at = int(rng.random() * len(waiting))
            waiting[at], waiting[-1] = waiting[-1], waiting[at]
            event, args = waiting.pop()
        elif self._timers:
            self.now, _, event, args = heapq.heappop(self._timers)
        else:
            return False
        self.n_steps += 1
        event(*args)
        soon = self._soon
        while soon:
            event, args = soon.popleft()
            event(*args)
        return True

    def __len__(self) -> int:
        return len(self._timers) + len(self._on_their_way)
