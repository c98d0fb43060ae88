from __future__ import annotations

import pytest

from blockstore import config
from blockstore.codec.control_record import NodeRecord
from blockstore.control.voters import Candidate, Membership, next_membership, voters_wanted
from blockstore.ids import NodeId

LONG = config.VOTER_DEAD_SECONDS + 1


def node(
    number: int, *, silent: float = 0.0, lag: int = 0, zone: tuple[str, ...] = (), state: str = "active"
) -> Candidate:
    record = NodeRecord(NodeId(number), 1, "host", number, number, "", "", b"", zone, "", state)
    return Candidate(record, silent < config.NODE_LEASE_SECONDS, silent, lag)


def members(voters: set[int], learners: set[int] = set()) -> Membership:  # noqa: B006  # never changed
    return Membership(frozenset(map(NodeId, voters)), frozenset(map(NodeId, learners)))


def settle(now: Membership, nodes: list[Candidate], leader: int = 1) -> Membership:
    """Follow the changes to their end; each is of one voter at most, and never too many steps."""
    for _ in range(80):
        following = next_membership(now, nodes, NodeId(leader))
        if following is None:
            return now
        assert len(now.voters ^ following.voters) <= 1
        assert not following.voters & following.learners
        assert NodeId(leader) in following.voters
        now = following
    raise AssertionError("it never comes to rest")


@pytest.mark.parametrize(("n_nodes", "n_voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (50, 5)])
def test_one_three_or_five_nodes_vote_and_all_others_learn(n_nodes: int, n_voters: int) -> None:
    assert voters_wanted(n_nodes) == n_voters
    final = settle(members({1}), [node(number) for number in range(1, n_nodes + 1)])
    assert len(final.voters) == n_voters
    assert len(final.voters | final.learners) == n_nodes


def test_voters_are_spread_over_zones() -> None:
    rooms = ["a", "a", "a", "b", "b", "c"]
    nodes = [node(number, zone=(room, f"rack-{number}")) for number, room in enumerate(rooms, 1)]
    final = settle(members({1}, {2, 3, 4, 5, 6}), nodes[:4] + nodes[5:])
    assert {1, 4, 6} <= final.voters


def test_a_learner_far_behind_or_dead_is_not_promoted() -> None:
    late = [node(1), node(2, lag=config.VOTER_LAG_ENTRIES_MAX + 1), node(3)]
    assert next_membership(members({1}, {2, 3}), late, NodeId(1)) is None
    dead = [node(1), node(2, silent=5.0), node(3)]
    assert next_membership(members({1}, {2, 3}), dead, NodeId(1)) is None


def test_a_voter_dead_for_long_is_replaced_if_another_is_live() -> None:
    nodes = [node(1), node(2, silent=LONG), node(3), node(4)]
    first = next_membership(members({1, 2, 3}, {4}), nodes, NodeId(1))
    assert first == members({1, 3}, {2, 4})  # out first: a majority never needs the dead one and the new one
    assert settle(members({1, 2, 3}, {4}), nodes) == members({1, 3, 4}, {2})


def test_a_voter_dead_for_a_short_time_or_without_a_successor_stays() -> None:
    assert (
        next_membership(members({1, 2, 3}, {4}), [node(1), node(2, silent=60.0), node(3), node(4)], NodeId(1))
        is None
    )
    assert next_membership(members({1, 2, 3}), [node(1), node(2, silent=LONG), node(3)], NodeId(1)) is None
    both = [node(1), node(2, silent=LONG), node(3), node(4, silent=LONG)]
    assert next_membership(members({1, 2, 3}, {4}), both, NodeId(1)) is None


def test_nodes_that_are_gone_leave_and_the_leader_keeps_its_vote() -> None:
    assert settle(members({1, 2, 3}, {4}), [node(1)], leader=1) == members({1})
    assert 3 in settle(members({1, 2, 3}), [node(1), node(3)], leader=3).voters
