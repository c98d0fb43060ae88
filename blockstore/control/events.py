"""What happened lately, for people to follow: `blockstore cluster events`.

Pure. Each node numbers the events that it hears of, from its own start on; numbers begin at the wall clock's
milliseconds, so a reader that comes back after a restart is not told that it is ahead. A reader that fell
behind the bound is told how many events it missed, never handed a gap in silence.
"""

from __future__ import annotations

from collections import deque

from blockstore import config
from blockstore.codec.messages import Event, Events
from blockstore.ids import NodeId


class EventLog:
    def __init__(self, me: NodeId, started_wall: float, events_max: int = config.EVENTS_REMEMBERED) -> None:
        self._me = me
        self._first = int(started_wall * 1000)  # of all that this log ever had
        self._last = self._first - 1
        self._events: deque[Event] = deque(maxlen=events_max)

    @property
    def last(self) -> int:
        return self._last

    def add(self, node: NodeId, when: float, code: str, text: str) -> Event:
        self._last += 1
        event = Event(self._last, when, node, code, text[: config.EVENT_TEXT_CHARS_MAX])
        self._events.append(event)
        return event

    def has_after(self, after: int) -> bool:
        return self._last > after

    def after(self, after: int, events_max: int = 200) -> Events:
        """Up to `events_max` events numbered above `after`; of those forgotten, one that says how many."""
        if not self._events or after >= self._last:
            return Events((), max(after, self._last))
        oldest = self._events[0].number
        found = [event for event in self._events if event.number > after][:events_max]
        missed = oldest - 1 - after if after >= self._first else oldest - self._first
        if missed > 0 and found[0].number == oldest:
            text = f"{missed} earlier event{'' if missed == 1 else 's'} are no longer remembered here."
            found.insert(0, Event(oldest - 1, found[0].when, self._me, "events-missed", text))
        return Events(tuple(found), found[-1].number)
