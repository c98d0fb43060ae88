"""The cores keep their promises under every mixture of faults; see `timed.py` and `walk.py`.

Red also when the runs were not enough: each timed seed has its faults and its acknowledged operations, each
walk all of its steps. Replay one: `python -m tests.simulation.cores timed SEED`."""

from __future__ import annotations

import pytest

from tests.simulation.cores import kept_seeds
from tests.simulation.cores.pool import run_seeds, tell
from tests.simulation.cores.timed import ACKNOWLEDGED_MIN, FAULTS_MIN, run_timed
from tests.simulation.cores.walk import STEPS, run_walk

N_TIMED = 200
N_WALKS = 1_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_timed_seeds() -> None:
    seeds = dict.fromkeys([*kept_seeds.TIMED, *range(N_TIMED)])
    outcome = run_seeds(run_timed, seeds)
    assert not outcome.failures, tell("timed", outcome)
    assert len(outcome.reports) == len(seeds) >= N_TIMED
    assert min(report.n_faults for report in outcome.reports) >= FAULTS_MIN
    assert min(report.n_acknowledged for report in outcome.reports) >= ACKNOWLEDGED_MIN
    assert sum(report.n_replayed for report in outcome.reports) > N_TIMED, "hardly anything was ever replayed"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_untimed_walks() -> None:
    seeds = dict.fromkeys([*kept_seeds.WALKS, *range(N_WALKS)])
    outcome = run_seeds(run_walk, seeds)
    assert not outcome.failures, tell("walk", outcome)
    assert len(outcome.reports) == len(seeds) >= N_WALKS
    assert min(report.n_steps for report in outcome.reports) >= STEPS
    assert sum(report.n_faults for report in outcome.reports) > 3 * N_WALKS
    assert sum(report.n_acknowledged for report in outcome.reports) > 10 * N_WALKS


def test_one_seed_always_gives_the_same_run() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        run_timed(1, trace)
        run_walk(1, trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 300
