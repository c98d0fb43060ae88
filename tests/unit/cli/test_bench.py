from __future__ import annotations

from pathlib import Path

import pytest

from blockstore.ids import KiB, MiB
from blockstore_cli import main, raw_figures
from blockstore_cli.bench import MB, Rates, Raw, Scenario, report, scenarios, text
from blockstore_cli.bench_objects import objects_text


def rates_of(per_second: float) -> Rates:
    return {scenario: [per_second, 2 * per_second, 4 * per_second] for scenario in scenarios()}


RAW = Raw(disk=[900 * MB, 1_200 * MB], disk_direct=[1_000 * MB], loopback=[3_000 * MB])


def test_every_scenario_is_measured_and_named_once() -> None:
    names = [str(scenario) for scenario in scenarios()]
    assert len(set(names)) == len(names)
    for policy in ("replicated(3)", "ec(4,2)"):
        for size in ("4 MiB", "128 KiB", "4 KiB"):
            for operation in ("put", "get"):
                for n_in_flight in (1, 16):
                    assert f"{operation} {size} {policy} x{n_in_flight} plain" in names
        assert f"put 4 KiB {policy} x64 plain" in names
        for operation in ("device write", "device read"):
            assert f"{operation} 4 KiB {policy} x64 plain" in names
            assert f"{operation} 1 MiB {policy} x16 plain" in names
        assert f"get 4 MiB {policy} x16 tls" in names


def test_the_median_is_held_against_the_goal() -> None:
    facts = report(RAW, rates_of(50), n_nodes=6, runs=3, seconds=1.0)
    found = {
        (one["operation"], one["size_bytes"], one["policy"], one["in_flight"], one["security"]): one
        for one in facts["results"]
    }
    put = found["put", 4 * MiB, "replicated(3)", 16, "plain"]
    assert (put["per_second"], put["per_second_min"], put["per_second_max"]) == (100, 50, 200)
    goal = 0.6 * 1_050 * MB / 3 / (4 * MiB)  # of the median of this run's own raw figures
    assert put["target_per_second"] == pytest.approx(goal, abs=0.1)
    assert put["of_target"] == pytest.approx(100 / goal, abs=0.01)
    assert found["put", 4 * MiB, "ec(4,2)", 16, "plain"]["target_per_second"] == pytest.approx(
        0.5 * 1_050 * MB / 1.5 / (4 * MiB), abs=0.1
    )
    assert (
        found["get", 128 * KiB, "ec(4,2)", 16, "plain"]["target_per_second"] == 100
    )  # as fast as replicated
    assert found["get", 4 * MiB, "replicated(3)", 16, "tls"]["of_target"] == 3  # as fast as plain
    assert found["put", 4 * KiB, "replicated(3)", 1, "plain"]["of_target"] is None


def test_the_table_shows_bytes_for_large_objects_and_counts_for_small_ones() -> None:
    only = Scenario("get", "replicated(3)", 4 * MiB, 16), Scenario("get", "replicated(3)", 4 * KiB, 16)
    shown = text(report(RAW, {scenario: [300.0] for scenario in only}, n_nodes=6, runs=1, seconds=1.0))
    large, small = shown.splitlines()[1:3]
    assert "1,258 MB/s" in large
    assert "300/s" in small
    assert "0.03" in small  # of 12,000
    assert "1,050 MB/s" in shown.splitlines()[4]


def test_the_raw_loopback_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_figures, "SENT_BYTES", 16 * MiB)
    assert raw_figures.loopback_bytes_per_second() > MB


def test_the_raw_disk_is_measured_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_figures, "FILE_BYTES", 8 * MiB)
    assert raw_figures.disk_write_bytes_per_second(tmp_path) > MB
    assert raw_figures.disk_write_bytes_per_second(tmp_path, direct=True) >= 0
    assert not list(tmp_path.iterdir())


def test_what_very_many_objects_do_is_told_in_sentences() -> None:
    cost = {
        "get_ms": 0.5, "get_among_many_ms": 0.1, "snapshot_ms": 2.0, "snapshot_delete_ms": 3.0,
        "list_ms": 9.0, "diff_ms": 40.0,
    }  # fmt: skip
    told = objects_text(
        {
            "objects": 1_000_000, "object_bytes": 1_024, "in_flight": 64, "nodes": 6,
            "puts_per_second": [2_000.0] * 9 + [1_500.0], "few": 100_000, "at_few": cost, "at_all": cost,
            "owner_rss_bytes": 300 * MiB,
            "restart_to_first_answer_seconds": 2.5, "owner_moved": True, "keys_after_restart": 1_000_000,
            "wrong": 0,
        }
    )  # fmt: skip
    assert "1,000,000 objects of 1,024 bytes" in told
    assert "2,000/s up to 100,000 objects, 1,500/s in the last tenth, which is 75% of it" in told
    assert "0.50 ms then, 0.50 ms at the end (1.00 times); 64 in flight: 10,000/s" in told
    assert "1,000 objects: 40 ms, 40 ms" in told
    assert "300 MiB" in told
    assert "after 2.5 s, by another node" in told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--only", "frob"], "No scenario has 'frob' in its name"),
        (["--objects", "1000", "--only", "put"], "leave --only out"),
        (["--dir", "missing"], "missing is not a directory"),
        (["--objects", "1000", "--dir", "missing"], "missing is not a directory"),
    ],
)
def test_what_cannot_be_measured_is_said_before_a_cluster_is_made(
    line: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["bench", *line]) == 64
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
