"""Which nodes vote on control, as one small change at a time.

Pure. Every node has a full copy of the state, as a voter or as a learner: 1 votes in a cluster of one or two
(two voters would only be two ways to stop), 3 of up to four, else 5. Voters are spread over zones as they
are chosen and then kept: moving a vote has its own risk. A voter silent for `VOTER_DEAD_SECONDS` gives way
when another node is live and close behind the leader; it is removed before its successor is added, so that
at no time does a majority include the dead one and the newcomer both.

Source: Ongaro, "Consensus: Bridging Theory and Practice", chapter 4 (one server at a time; learners catch up
first).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from blockstore import config
from blockstore.codec.control_record import NodeRecord
from blockstore.ids import NodeId


@dataclass(frozen=True, slots=True)
class Membership:
    voters: frozenset[NodeId]
    learners: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the leader knows of a node."""

    record: NodeRecord
    live: bool
    silent_seconds: float
    lag: int  # entries that its log is behind the leader's


def voters_wanted(n_nodes: int) -> int:
    if n_nodes < 3:
        return 1
    return 3 if n_nodes < 5 else 5


def next_membership(now: Membership, nodes: Collection[Candidate], leader: NodeId) -> Membership | None:
    """The next single change towards what it should be; None when nothing needs or can be done now."""
    known = {one.record.node: one for one in nodes}
    present = now.voters | now.learners

    newcomers = sorted(known.keys() - present)
    if newcomers:
        return Membership(now.voters, now.learners | {newcomers[0]})
    gone = sorted(now.learners - known.keys())
    if gone:
        return Membership(now.voters, now.learners - {gone[0]})

    wanted = voters_wanted(len(known))
    ready = _ready(now, known)
    best = _best_candidate(now, known, ready)
    if len(now.voters) < wanted:
        # An even number of voters survives no more failures than one less, and stops more easily: it is only
        # passed through when the next is ready as well.
        if best is None or (len(now.voters) % 2 == 1 and len(ready) < 2):
            return None
        return Membership(now.voters | {best}, now.learners - {best})
    spare = [node for node in sorted(now.voters - {leader}) if node not in known]
    dead = [
        node
        for node in sorted(now.voters - {leader})
        if node in known and known[node].silent_seconds > config.VOTER_DEAD_SECONDS
    ]
    leaving = spare or (dead if best is not None or len(now.voters) > wanted else [])
    if not leaving and len(now.voters) > wanted:
        leaving = [max(now.voters - {leader})]
    if not leaving:
        return None
    demoted = leaving[0]
    learners = now.learners | {demoted} if demoted in known else now.learners
    return Membership(now.voters - {demoted}, learners)


def _ready(now: Membership, known: dict[NodeId, Candidate]) -> list[NodeId]:
    """Learners that live and are close behind."""
    return [
        node
        for node in sorted(now.learners & known.keys())
        if known[node].live and known[node].lag <= config.VOTER_LAG_ENTRIES_MAX
    ]


def _best_candidate(now: Membership, known: dict[NodeId, Candidate], ready: list[NodeId]) -> NodeId | None:
    """Of the zones with fewest voters, the lowest id."""
    if not ready:
        return None
    depth = max(len(one.record.zone) for one in known.values())

    def crowding(node: NodeId) -> tuple[int, ...]:
        """Voters with which it would share a room, a rack, a host, in that order."""
        shared: list[int] = []
        for level in range(1, depth + 1):
            zones = Counter(known[voter].record.zone[:level] for voter in now.voters if voter in known)
            shared.append(zones[known[node].record.zone[:level]])
        return tuple(shared)

    return min(ready, key=lambda node: (crowding(node), node))
