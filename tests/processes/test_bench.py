"""`blockstore bench` on a cluster of its own: what it answers, and that it leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

BENCH = [sys.executable, "-m", "blockstore_cli.main", "bench", "--objects", "1000", "--json", "--dir"]


def test_very_many_objects_are_put_and_survive_their_owner(tmp_path: Path) -> None:
    done = subprocess.run([*BENCH, tmp_path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["objects"], facts["nodes"], facts["object_bytes"]) == (1_000, 6, 1_024)
    assert (facts["keys_after_restart"], facts["wrong"]) == (2_000, 0)
    assert len(facts["puts_per_second"]) == 10
    assert min(facts["puts_per_second"]) > 0
    assert min(*facts["at_few"].values(), *facts["at_all"].values()) > 0
    assert facts["owner_rss_bytes"] > 2**24
    assert 0 < facts["restart_to_first_answer_seconds"] < 30
    assert "1,000 objects:" in done.stderr, "it tells how far it is"
    assert not list(tmp_path.iterdir())


def test_ctrl_c_removes_what_was_made(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*BENCH, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stderr is not None
        assert "objects" in bench.stderr.readline()  # it is at work
        bench.send_signal(signal.SIGINT)
        said, told = bench.communicate(timeout=60)
    assert bench.returncode == 130, told
    assert (said, told.splitlines()[-1]) == ("", "Interrupted.")
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_what_a_data_set_takes_is_measured(tmp_path: Path) -> None:
    bench = [*BENCH[:4], "--space", "1000", "--seconds", "0.1", "--json", "--dir", str(tmp_path)]
    done = subprocess.run(bench, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert 1.5 < facts["disk_bytes"] / facts["put_bytes"] < 3.5, "parity, and what is not packed yet"
    assert 2.9 < facts["written_bytes"] / facts["put_bytes"] < 5.5
    assert facts["system_written_bytes"] > 2.5 * facts["put_bytes"]
    assert min(facts["objects_per_second"].values()) > 0
    assert len(facts["objects_per_second"]) == 5
    assert not list(tmp_path.iterdir())
