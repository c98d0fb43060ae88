"""Who is alive, and who may still act as if it were: heartbeats and node leases.

Pure; every `now` is this node's monotonic clock. Three questions, three classes:

`LiveSet`  which nodes were heard of lately. A hint: it chooses among nodes, it never takes anything from one.
`LeaseHolder`  until when may *this* node answer for the volumes that it owns?
`LeaseGranter`  at the control leader: which other node surely may no longer?

The argument that no two nodes hold a volume at one time:

1. A lease runs from the moment the holder *asked*, and on its clock shorter by the allowed drift; for the
   granter it runs its full length from the moment of its *answer*. So it is over at the holder first,
   whatever the message took.
2. A leader grants only while its Raft lease holds, that is while no other leader can have been elected. A
   new leader cannot know what was granted before it, so it takes every lease to run for its full length (and
   the drift) from its election.
3. While a leader takes volumes from a node it has barred it, and grants it nothing. When the transaction has
   been applied, the next grant names a revision that includes it; a holder counts a grant only once its copy
   of the state has come that far, and so knows what it lost.

Source: Gray & Cheriton, "Leases: an efficient fault-tolerant mechanism", SOSP 1989; Burrows, "The Chubby lock
service", OSDI 2006, section 2.4 (the lease of a new master).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from blockstore import config
from blockstore.ids import NodeId


@dataclass(slots=True)
class _Heard:
    incarnation: int
    when: float
    wall: float


FIRST_HEARING_SECONDS = 3.0
"""By then a bus that was refused before its key was known has dialled again, twice."""


class LiveSet:
    """Nodes heard of within one lease: after that, whatever they owned may be given away."""

    def __init__(self, me: NodeId, started: float, wall: float) -> None:
        self._me = me
        self._started = started
        self._started_wall = wall
        self._heard: dict[NodeId, _Heard] = {}

    def on_heartbeat(self, node: NodeId, incarnation: int, now: float, wall: float) -> bool:
        """Whether it counts: one of an earlier incarnation, come late, does not."""
        known = self._heard.get(node)
        if known is None:
            self._heard[node] = _Heard(incarnation, now, wall)
            return True
        if incarnation < known.incarnation:
            return False
        known.incarnation, known.when, known.wall = incarnation, now, wall
        return True

    def is_live(self, node: NodeId, now: float) -> bool:
        if node == self._me:
            return True
        heard = self._heard.get(node)
        return heard is not None and now - heard.when <= config.NODE_LEASE_SECONDS

    def may_live(self, node: NodeId, now: float) -> bool:
        """Whether it is worth trying: live, or not yet heard by a process that has only begun to listen. A
        chunk that such a member turns out to lack is ended at the first append; one opened without it lacks
        it for good."""
        if node == self._me or node in self._heard:
            return self.is_live(node, now)
        return now - self._started <= FIRST_HEARING_SECONDS

    def live(self, now: float) -> frozenset[NodeId]:
        return frozenset({self._me, *(node for node in self._heard if self.is_live(node, now))})

    def silent_seconds(self, node: NodeId, now: float) -> float:
        """How long it has not been heard of; of one never heard, since this process began to listen."""
        if node == self._me:
            return 0.0
        heard = self._heard.get(node)
        return now - (self._started if heard is None else heard.when)

    def last_heard_wall(self, node: NodeId) -> float:
        """For people; no decision is made by it."""
        heard = self._heard.get(node)
        return self._started_wall if heard is None else heard.wall


@dataclass(frozen=True, slots=True)
class _Grant:
    until: float
    revision: int


class LeaseHolder:
    """This node's lease. A grant counts only for a heartbeat that this very process sent."""

    ASKED_MAX = 4 * round(config.NODE_LEASE_SECONDS / config.HEARTBEAT_SECONDS)
    """Heartbeats that may still be answered. An answer to an older one would grant what is over by then."""

    def __init__(self) -> None:
        self._asked: deque[float] = deque(maxlen=self.ASKED_MAX)
        self._grants: deque[_Grant] = deque(maxlen=self.ASKED_MAX)
        self._until = float("-inf")

    def on_asked(self, now: float) -> None:
        self._asked.append(now)

    def on_granted(self, asked: float, seconds: float, revision: int) -> None:
        """The leader answered the heartbeat sent at `asked`; its own state was at `revision` then."""
        if asked not in self._asked or not 0 < seconds <= config.NODE_LEASE_SECONDS:
            return
        self._grants.append(_Grant(asked + seconds * (1 - config.CLOCK_DRIFT_MAX), revision))

    def until(self, revision: int) -> float:
        """The end of the lease for a node whose copy of the state is at `revision`."""
        grants = self._grants
        while grants and grants[0].revision <= revision:
            self._until = max(self._until, grants.popleft().until)
        return self._until

    def is_valid(self, now: float, revision: int) -> bool:
        return now < self._until or now < self.until(revision)


class LeaseGranter:
    """What this node, while it leads, has granted to others."""

    def __init__(self) -> None:
        self._granted: dict[NodeId, float] = {}  # until, on this node's clock
        self._unknown_until = float("inf")  # what a leader before may have granted
        self._barred: dict[NodeId, int] = {}  # how many transactions under way take volumes from it

    def on_elected(self, now: float) -> None:
        self._granted.clear()
        self._barred.clear()
        self._unknown_until = now + config.NODE_LEASE_SECONDS * (1 + config.CLOCK_DRIFT_MAX)

    def on_deposed(self) -> None:
        self._granted.clear()
        self._barred.clear()
        self._unknown_until = float("inf")

    def grant(self, node: NodeId, now: float, leading_until: float) -> float | None:
        """Seconds to grant, or None: barred, or it is not certain that this node still leads."""
        if node in self._barred or now >= leading_until:
            return None
        self._granted[node] = now + config.NODE_LEASE_SECONDS
        return config.NODE_LEASE_SECONDS

    def is_over(self, node: NodeId, now: float) -> bool:
        """Whether no lease of that node, whoever granted it, can still run at its holder."""
        return now >= self._unknown_until and now >= self._granted.get(node, self._unknown_until)

    def over(self, nodes: Iterable[NodeId], now: float) -> frozenset[NodeId]:
        return frozenset(node for node in nodes if self.is_over(node, now))

    def bar(self, nodes: Iterable[NodeId]) -> None:
        for node in nodes:
            self._barred[node] = self._barred.get(node, 0) + 1

    def unbar(self, nodes: Iterable[NodeId]) -> None:
        """The transaction was applied here, or it never can be."""
        for node in nodes:
            left = self._barred.get(node, 0) - 1
            if left > 0:
                self._barred[node] = left
            else:
                self._barred.pop(node, None)
