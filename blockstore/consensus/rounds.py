"""Does this leader still lead? Heartbeat rounds, the lease they give, and the reads they make safe.

A round that a majority answered proves that no other leader was elected before the round began: a read that
came before the round may then be served at the commit index it found (Ongaro's dissertation, section 6.4). It
also proves that a majority refuses to vote until ELECTION_SECONDS_MIN after it heard of the round, so until
then, counted from when the round was *sent* and shortened by what clocks may differ, there is no other leader
(section 6.4.1).
"""

from __future__ import annotations

from collections import deque

from blockstore.config import CLOCK_DRIFT_MAX, ELECTION_SECONDS_MIN
from blockstore.ids import NodeId

LEASE_SECONDS = ELECTION_SECONDS_MIN * (1 - CLOCK_DRIFT_MAX)


class Rounds:
    __slots__ = ("_sent", "answered", "last", "lease_until", "unanswered")

    def __init__(self) -> None:
        self.last = 0
        self.answered = 0  # the latest one that a majority answered
        self.unanswered = 0  # begun since a majority last answered any
        self.lease_until = 0.0
        self._sent: deque[tuple[int, float]] = deque()

    def begin(self, now: float) -> int:
        self.last += 1
        self.unanswered += 1
        self._sent.append((self.last, now))
        return self.last

    def on_answered(self, round: int) -> bool:
        """A majority answered `round`. True if that is news."""
        if round <= self.answered:
            return False
        self.answered, self.unanswered = round, self.last - round
        while self._sent and self._sent[0][0] <= round:
            self.lease_until = self._sent.popleft()[1] + LEASE_SECONDS
        return True


class Reads:
    """Reads that wait for a round: of this node, and of members that asked."""

    __slots__ = ("_pending", "_seen")

    def __init__(self) -> None:
        self._pending: deque[tuple[int, NodeId, int, int]] = (
            deque()
        )  # round, who, number, index; rounds ascend
        self._seen: set[tuple[NodeId, int]] = set()

    def add(self, round: int, who: NodeId, number: int, index: int) -> None:
        """A member asks again when it has heard nothing for a while; the first asking stands."""
        if (who, number) not in self._seen:
            self._seen.add((who, number))
            self._pending.append((round, who, number, index))

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def last_round(self) -> int:
        """The round that the youngest waits for; 0 if none waits."""
        return self._pending[-1][0] if self._pending else 0

    def take(self, answered: int) -> list[tuple[NodeId, int, int]]:
        """`(who, number, index)` of those whose round a majority has answered."""
        done: list[tuple[NodeId, int, int]] = []
        while self._pending and self._pending[0][0] <= answered:
            _, who, number, index = self._pending.popleft()
            self._seen.discard((who, number))
            done.append((who, number, index))
        return done
