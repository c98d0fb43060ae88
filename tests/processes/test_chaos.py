"""Real daemons killed under load: what was acknowledged is there, and nothing else is.

The same run as `python -m chaos`, with more kills in less time: two daemons at once, the leader of control
and the owners of the buckets among them, and lighter clients, so that the processors are free for the
daemons that start again. A gap of at most 3 s is promised for one kill on an idle machine; here the promise
is that no request fails within its 30 s, and the longest gap is told.

Replayed, under the command's own load, by `python -m chaos --seed 20 --faults 20 --at-once 2`."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.report import Report
from chaos.run import run
from chaos.schedule import plan
from chaos.workload import Load

SEED = 20
N_KILLS = 20
N_NODES = 6
LIGHT = Load(n_writers=2, pace=0.01)
CALL_SECONDS_MAX = 30.0


@pytest.mark.slow
@pytest.mark.timeout(600)  # it takes 60 s; a machine that is busy otherwise is no failure
async def test_twenty_kills_under_load_lose_nothing_and_make_nothing_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    steps = plan(SEED, N_KILLS, ("kill",), 2, hold=(0.2, 1.0), pause=(0.2, 0.6))
    verdict = await run(
        tmp_path / "cluster", SEED, steps, n_nodes=N_NODES, plain=False, tell=told.append, load=LIGHT
    )
    report = Report((verdict,), {})
    told += report.lines()
    assert verdict.violations == [], "\n".join(told)

    assert report.counts() == {"kill": N_KILLS}
    assert verdict.n_kills == N_KILLS + N_NODES  # and all of them before everything is read back
    assert verdict.n_hits("leader") >= 5
    assert verdict.n_hits("owner") >= 5
    assert verdict.n_writes >= 500
    assert verdict.n_reads >= 1_000
    assert verdict.n_snapshots == 2 * 2 * len(steps)  # of two buckets, before and during each step
    assert verdict.n_device_writes >= 300
    assert verdict.n_device_snapshots == len(steps)
    assert report.longest_gap_together() < CALL_SECONDS_MAX
    with capsys.disabled():
        print(
            f"\n{verdict.n_kills} kills, {verdict.n_writes} acknowledged writes, {verdict.n_reads} reads "
            f"checked, longest gap {report.longest_gap_together():.2f} s, in {verdict.seconds:.0f} s"
        )
