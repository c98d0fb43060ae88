"""Whole clusters from seeds, some in two processes: nothing is wrong in any, and enough happened."""

from __future__ import annotations

import pytest

from tests.simulation.kept_seeds import KEPT
from tests.simulation.plan import ALL_KINDS
from tests.simulation.report import Total, show
from tests.simulation.seed import N_FAULTS, OPERATIONS_MIN, Outcome
from tests.simulation.shares import run_shares

SEEDS = range(1, 19)
TWICE = (1, 2)
"""These run in both processes, whose hashes differ, and after other seeds."""

N_CHECKED_MIN = 10_000
FAULTS_OF_A_KIND_MIN = 5

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    seeds = sorted({*SEEDS, *KEPT})
    first, second = seeds[0::2], seeds[1::2]
    shares = [
        [*first, *(seed for seed in TWICE if seed not in first)],
        [*second, *(seed for seed in TWICE if seed not in second)],
    ]
    return list(run_shares(shares))


def test_nothing_is_wrong_in_any_seed(outcomes: list[Outcome]) -> None:
    failed = [show(outcome) for outcome in outcomes if outcome.violations]
    assert not failed, "\n".join(failed)


def test_enough_was_asked_and_enough_went_wrong(outcomes: list[Outcome]) -> None:
    total = Total()
    for outcome in outcomes:
        total.add(outcome)
        assert outcome.n_faults == N_FAULTS, show(outcome)
        assert outcome.n_acknowledged >= OPERATIONS_MIN, show(outcome)
    print(total.summary())
    assert total.n_checked >= N_CHECKED_MIN
    assert all(total.mishaps.values()), f"some never happened: {total.mishaps}"
    assert all(total.seen.values()), f"some were never looked at: {total.seen}"
    few = [f"{kind}: {total.faults[kind]}" for kind in ALL_KINDS if total.faults[kind] < FAULTS_OF_A_KIND_MIN]
    assert not few, f"of some kinds of faults there were fewer than {FAULTS_OF_A_KIND_MIN}: {few}"


def test_a_seed_takes_the_same_course_in_every_process(outcomes: list[Outcome]) -> None:
    for seed in TWICE:
        courses = [(one.trace_sum, one.n_events) for one in outcomes if one.seed == seed]
        assert len(courses) == 2
        assert courses[0] == courses[1], f"seed {seed}"
