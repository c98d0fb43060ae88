from __future__ import annotations

import random

import pytest

from blockstore import config
from blockstore.control.liveness import LeaseGranter, LeaseHolder, LiveSet
from blockstore.ids import NodeId

ME, OTHER = NodeId(1), NodeId(2)
LEASE = config.NODE_LEASE_SECONDS


def test_a_node_is_live_for_one_lease_after_it_was_heard() -> None:
    live = LiveSet(ME, 0.0, 1_000.0)
    assert live.live(0.0) == {ME}
    assert live.on_heartbeat(OTHER, 3, 5.0, 1_005.0)
    assert live.is_live(OTHER, 5.0 + LEASE)
    assert not live.is_live(OTHER, 5.1 + LEASE)
    assert live.silent_seconds(OTHER, 7.0) == 2.0
    assert live.silent_seconds(NodeId(9), 7.0) == 7.0
    assert live.last_heard_wall(OTHER) == 1_005.0


def test_a_heartbeat_of_an_earlier_run_does_not_count() -> None:
    live = LiveSet(ME, 0.0, 0.0)
    live.on_heartbeat(OTHER, 3, 5.0, 0.0)
    assert not live.on_heartbeat(OTHER, 2, 9.0, 0.0)
    assert not live.is_live(OTHER, 9.0)


def test_a_lease_counts_from_when_it_was_asked_and_is_shortened_by_the_drift() -> None:
    holder = LeaseHolder()
    holder.on_asked(10.0)
    holder.on_granted(10.0, LEASE, revision=4)
    assert holder.is_valid(10.0 + LEASE * 0.98, 4)
    assert not holder.is_valid(10.0 + LEASE * (1 - config.CLOCK_DRIFT_MAX), 4)


def test_a_lease_counts_only_once_the_copy_has_come_as_far_as_the_leaders() -> None:
    holder = LeaseHolder()
    holder.on_asked(10.0)
    holder.on_granted(10.0, LEASE, revision=4)
    assert not holder.is_valid(10.1, 3)
    assert holder.is_valid(10.1, 4)


@pytest.mark.parametrize(("asked", "seconds"), [(9.0, LEASE), (10.0, LEASE * 2), (10.0, 0.0), (10.0, -1.0)])
def test_a_grant_for_what_was_never_asked_is_ignored(asked: float, seconds: float) -> None:
    holder = LeaseHolder()
    holder.on_asked(10.0)
    holder.on_granted(asked, seconds, 0)
    assert not holder.is_valid(10.1, 0)


def test_a_new_leader_waits_out_what_the_last_may_have_granted() -> None:
    granter = LeaseGranter()
    assert not granter.is_over(OTHER, 1e9)
    granter.on_elected(100.0)
    assert not granter.is_over(OTHER, 100.0 + LEASE)
    assert granter.is_over(OTHER, 100.0 + LEASE * (1 + config.CLOCK_DRIFT_MAX))


def test_nothing_is_granted_without_the_certainty_to_lead_nor_to_a_barred_node() -> None:
    granter = LeaseGranter()
    granter.on_elected(0.0)
    assert granter.grant(OTHER, 5.0, leading_until=5.0) is None
    granter.bar([OTHER])
    granter.bar([OTHER])
    granter.unbar([OTHER])
    assert granter.grant(OTHER, 5.0, leading_until=9.0) is None
    granter.unbar([OTHER])
    assert granter.grant(OTHER, 5.0, leading_until=9.0) == LEASE
    assert not granter.is_over(OTHER, 5.0 + LEASE * 0.999)
    assert granter.is_over(OTHER, 5.0 + LEASE)


@pytest.mark.parametrize("seed", range(20))
def test_a_lease_is_over_for_its_holder_before_it_is_for_its_granter(seed: int) -> None:
    """Clocks with any offset, and rates that differ by all that is allowed; messages take any time."""
    rng = random.Random(seed)
    rate = 1 + rng.choice([-1, 1]) * config.CLOCK_DRIFT_MAX * 0.99
    offset = rng.uniform(-1e4, 1e4)
    holder, granter = LeaseHolder(), LeaseGranter()
    granter.on_elected(-10.0)
    true = 0.0
    for _ in range(200):
        true += rng.uniform(0.0, 0.3)
        asked = true * rate + offset  # the holder's clock; the granter's is the true one
        holder.on_asked(asked)
        if rng.random() < 0.5:
            true += rng.uniform(0.0, 0.2)
            seconds = granter.grant(OTHER, true, leading_until=true + 1)
            assert seconds is not None
            true += rng.uniform(0.0, 0.2)
            holder.on_granted(asked, seconds, 0)
        instants = [true + step / 50 for step in range(60)]
        assert not any(
            holder.is_valid(instant * rate + offset, 0) and granter.is_over(OTHER, instant)
            for instant in instants
        )


def test_a_process_that_has_just_begun_to_listen_gives_everybody_the_benefit_of_the_doubt() -> None:
    live = LiveSet(NodeId(1), 100.0, 0.0)
    assert live.may_live(NodeId(2), 101.0)
    assert not live.is_live(NodeId(2), 101.0)
    assert not live.may_live(NodeId(2), 104.0)
    live.on_heartbeat(NodeId(2), 1, 104.0, 0.0)
    assert live.may_live(NodeId(2), 104.5)
    assert not live.may_live(NodeId(2), 106.0)
