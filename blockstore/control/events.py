"""What happened lately, for people to follow: `blockstore cluster events`.

Pure. Each node numbers the events that it hears of, from its own start on; numbers begin at the wall clock's
milliseconds, so that those of two runs, or of two nodes, are hardly ever the same. A reader that fell behind
the bound is told how many events it missed, and one whose last number is not of this log (it asked another
node, or the node was restarted) that some may be missing or told again: never a gap in silence.
"""

from __future__ import annotations

from collections import deque

from blockstore import config
from blockstore.codec.messages import Event, Events
from blockstore.ids import NodeId


class EventLog:
    def __init__(self, me: NodeId, started_wall: float, events_max: int = config.EVENTS_REMEMBERED) -> None:
        self._me = me
        self._started_wall = started_wall
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
        return self._last > after or self._is_strange(after)

    def _is_strange(self, after: int) -> bool:
        return after > 0 and not self._first - 1 <= after <= self._last

    def after(self, after: int, events_max: int = 200) -> Events:
        """Up to `events_max` events numbered above `after`; before them one that says what may be missing."""
        is_strange = self._is_strange(after)
        seen = self._first - 1 if is_strange else max(after, self._first - 1)
        found = [event for event in self._events if event.number > seen][:events_max]
        missed = self._events[0].number - 1 - seen if self._events else 0
        text = ""
        if is_strange:
            text = "Another node, or an earlier run, told before: events may be missing, or told again."
        elif missed > 0:
            text = f"{missed} earlier event{'' if missed == 1 else 's'} are no longer remembered here."
        if text:
            number, when = (found[0].number - 1, found[0].when) if found else (self._last, self._started_wall)
            found.insert(0, Event(number, when, self._me, "events-missed", text))
        return Events(tuple(found), found[-1].number if found else max(after, self._last))
