"""The cores keep their promises under every mixture of faults; see `timed.py` and `walk.py`.

Red also when the runs were not enough: each timed seed has its faults and its acknowledged operations, each
walk all of its steps. Replay one: `python -m tests.simulation.cores SEED`, with `--walk` for a walk."""

from __future__ import annotations

import pytest

from tests.simulation.cores import kept_seeds
from tests.simulation.cores.pool import run_seeds, tell
from tests.simulation.cores.timed import ACKNOWLEDGED_MIN, FAULTS_MIN, run_timed
from tests.simulation.cores.walk import STEPS, run_walk

N_TIMED = 1_000
N_WALKS = 5_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_timed_seeds() -> None:
    seeds = dict.fromkeys([*kept_seeds.TIMED, *range(N_TIMED)])
    outcome = run_seeds(run_timed, seeds)
    assert not outcome.failures, tell(outcome, "")
    reports = outcome.reports
    assert len(reports) == len(seeds) >= N_TIMED
    assert min(report.n_faults for report in reports) >= FAULTS_MIN
    assert min(report.n_acknowledged for report in reports) >= ACKNOWLEDGED_MIN
    assert sum(report.n_replayed for report in reports) > 20 * N_TIMED, "hardly anything was ever replayed"
    assert sum(report.n_packed for report in reports) > N_TIMED, "hardly anything was ever packed"
    assert sum(report.n_merged for report in reports) > N_TIMED, "hardly any runs were ever merged"
    assert sum(report.n_blocks_fetched for report in reports) > N_TIMED, "hardly any block was ever missing"
    print(
        f"{len(reports):,} timed seeds: {sum(report.n_faults for report in reports):,} faults, "
        f"{sum(report.n_acknowledged for report in reports):,} operations acknowledged, "
        f"{sum(report.cpu_seconds for report in reports):.0f} CPU s"
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_untimed_walks() -> None:
    seeds = dict.fromkeys([*kept_seeds.WALKS, *range(N_WALKS)])
    outcome = run_seeds(run_walk, seeds)
    assert not outcome.failures, tell(outcome, " --walk")
    reports = outcome.reports
    assert len(reports) == len(seeds) >= N_WALKS
    assert min(report.n_steps for report in reports) >= STEPS
    assert sum(report.n_faults for report in reports) > 3 * N_WALKS
    assert sum(report.n_acknowledged for report in reports) > 10 * N_WALKS
    print(
        f"{len(reports):,} walks: {sum(report.n_steps for report in reports):,} steps, "
        f"{sum(report.n_faults for report in reports):,} faults, "
        f"{sum(report.cpu_seconds for report in reports):.0f} CPU s"
    )


def test_one_seed_always_gives_the_same_run() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        run_timed(1, trace)
        run_walk(1, trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 300
