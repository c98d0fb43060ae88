"""Who is hurt when: the same for a seed, all kinds and aims in turn, and never too many."""

from __future__ import annotations

from collections import Counter

import pytest

from chaos.schedule import AIMS, ALONE, HOLD_SECONDS, KINDS, USUAL_HOLD_SECONDS, plan


def test_a_seed_is_a_schedule() -> None:
    assert plan(7, 30, KINDS, 2) == plan(7, 30, KINDS, 2)
    assert plan(7, 30, KINDS, 2) != plan(8, 30, KINDS, 2)


def test_every_kind_comes_once_before_any_comes_twice_and_the_aims_take_turns() -> None:
    faults = [fault for step in plan(1, 3 * len(KINDS), KINDS) for fault in step.faults]
    assert Counter(fault.kind for fault in faults) == dict.fromkeys(KINDS, 3)
    for kind in KINDS:
        assert tuple(fault.aim for fault in faults if fault.kind == kind) == AIMS


@pytest.mark.parametrize("n_faults", [1, 2, 9, 30])
@pytest.mark.parametrize("at_once", [1, 2])
def test_as_many_faults_as_asked_for_come_in_order(n_faults: int, at_once: int) -> None:
    alone = [fault for step in plan(3, n_faults, KINDS) for fault in step.faults]
    steps = plan(3, n_faults, KINDS, at_once)
    assert [fault for step in steps for fault in step.faults] == alone
    assert len(alone) == n_faults
    assert all(1 <= len(step.faults) <= at_once for step in steps)


@pytest.mark.parametrize("seed", range(20))
def test_what_comes_alone_and_what_may_overlap(seed: int) -> None:
    """What rotted stays lost, so beside that node one other may be down, no more."""
    steps = plan(seed, 40, KINDS, 2)
    assert any(len(step.faults) == 2 for step in steps)
    for step in steps:
        kinds = [fault.kind for fault in step.faults]
        if len(kinds) == 2:
            assert not set(kinds) & set(ALONE)
            assert kinds.count("rot") == 1
    without_rot = plan(seed, 40, ("kill", "freeze"), 2)
    assert [len(step.faults) for step in without_rot] == [2] * 20


def test_faults_last_as_long_as_their_kind_wants_or_the_caller_does() -> None:
    for step in plan(5, 60, KINDS):
        for fault in step.faults:
            shortest, longest = HOLD_SECONDS.get(fault.kind, USUAL_HOLD_SECONDS)
            assert shortest <= fault.hold <= longest
    quick = plan(5, 20, ("kill",), hold=(0.1, 0.2), pause=(0.3, 0.4))
    assert all(0.1 <= fault.hold <= 0.2 for step in quick for fault in step.faults)
    assert all(0.3 <= step.pause <= 0.4 for step in quick)


def test_a_step_has_a_name_whatever_the_order() -> None:
    labels = {step.label for step in plan(2, 40, ("kill", "freeze"), 2)}
    assert labels <= {"freeze+kill", "freeze+freeze", "kill+kill"}
    assert "freeze+kill" in labels
