"""How far one member has come, as the leader knows it, and what may be sent to it next.

Until the leader knows where the two logs agree it probes with empty Appends; then it streams entries without
waiting for answers, up to a window; a member that needs compacted entries is offered a snapshot. Whatever is
lost on the way is found by the next heartbeat, which names the last entry sent.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from blockstore.codec.raft_messages import Entry
from blockstore.config import RAFT_APPEND_BYTES_MAX, RAFT_APPENDS_IN_FLIGHT
from blockstore.consensus.log_view import LogView


class Mode(Enum):
    PROBE = "probe"
    STREAM = "stream"
    OFFER = "offer"


class Progress:
    __slots__ = ("doubt", "heal_index", "heard", "in_flight", "match", "mode", "next", "round")

    def __init__(self, last_index: int, now: float) -> None:
        self.match = 0  # its log equals the leader's up to here, durably
        self.next = last_index + 1  # the first entry not sent yet
        self.mode = Mode.PROBE
        self.in_flight: deque[int] = deque()  # the last index of each Append under way
        self.heard = now  # when it last answered in this term
        self.round = 0  # the latest heartbeat round that it answered
        self.doubt = 0  # its own word that it lost something: not counted until it is healed
        self.heal_index = 0

    def next_entries(self, log: LogView) -> tuple[Entry, ...]:
        """What to send now; empty if nothing is left, or must not be sent yet."""
        if self.mode is not Mode.STREAM or self.next > log.last_index:
            return ()
        if len(self.in_flight) >= RAFT_APPENDS_IN_FLIGHT:
            return ()
        if self.next <= log.base_index:
            self.mode = Mode.OFFER
            return ()
        entries = log.entries_from(self.next, RAFT_APPEND_BYTES_MAX)
        self.next = entries[-1].index + 1
        self.in_flight.append(entries[-1].index)
        return entries

    def on_match(self, match: int, log: LogView) -> None:
        self.match = max(self.match, match)  # answers arrive late, twice, reordered
        self.next = max(self.next, self.match + 1)
        self.on_unproven(match, log)

    def on_unproven(self, match: int, log: LogView) -> None:
        """It takes entries; whether it has those up to `match` is not certain."""
        while self.in_flight and self.in_flight[0] <= match:
            self.in_flight.popleft()
        if self.next > log.base_index:
            self.mode = Mode.STREAM

    def on_refused(self, prev_index: int, common_index: int) -> bool:
        """The logs agree at `common_index` at most. False: the answer to an Append of long ago, ignored."""
        stale = prev_index <= self.match or (self.mode is not Mode.STREAM and prev_index != self.next - 1)
        if stale:
            return False
        self.next = max(self.match + 1, min(prev_index, common_index + 1))
        self.mode = Mode.PROBE
        self.in_flight.clear()
        return True

    def on_doubt(self, doubt: int, heal_index: int) -> None:
        """It lost part of what it had acknowledged; it is healed once it has the entry at `heal_index`, which
        is newer than anything that an answer from before the loss, still under way, can name."""
        self.doubt, self.heal_index = doubt, heal_index
        self.match, self.mode = 0, Mode.PROBE
        self.in_flight.clear()
