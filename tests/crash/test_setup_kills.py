"""Making a node is killed before every call that changes something, and repeated: `setup_kills.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import blockstore
from blockstore.daemon import setup
from blockstore.daemon.node_directory import NodeDirectory
from blockstore.daemon.setup_places import SetupPlaces
from blockstore.errors import AlreadyExists, NotAStore, StoreLocked
from tests.crash.setup_kills import SCENARIOS

POINTS_MIN = 60


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_was_killed_can_be_repeated(scenario: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.crash.setup_kills", scenario, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    print(f"{scenario}: {found['points']} points")
    assert found["failure"] == "", done.stderr
    assert found["points"] >= POINTS_MIN


def test_a_store_whose_making_was_interrupted_is_made_by_the_next_open(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    _interrupt(directory)
    assert not NodeDirectory(directory).exists()
    with blockstore.open(directory) as store:
        store.create_bucket("b").put("name", b"value")
    with blockstore.open(directory) as store:
        assert store.bucket("b").get("name") == b"value"


def _interrupt(directory: Path, *disks: Path) -> None:
    with suppress(KeyboardInterrupt), SetupPlaces(directory, disks) as places:
        places.keep()
        (places.disks[0] / "fences-0.new").write_bytes(b"half")
        raise KeyboardInterrupt


def test_a_disk_that_holds_anything_else_by_now_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    _interrupt(directory)
    (directory / "disk-1" / "precious").write_text("x")
    with pytest.raises(NotAStore, match="not empty"):
        setup.init_embedded([directory])
    assert (directory / "disk-1" / "precious").read_text() == "x"


def test_a_disk_that_another_setup_formatted_is_left_alone(tmp_path: Path) -> None:
    directory, disk = tmp_path / "a", tmp_path / "disk"
    _interrupt(directory, disk)
    (disk / "fences-0.new").unlink()
    setup.init_cluster(tmp_path / "b", name="b", disks=[disk], security="plain")
    superblock = (disk / "superblock").read_bytes()
    with pytest.raises(AlreadyExists):
        setup.init_cluster(directory, name="a", disks=[disk], security="plain")
    assert (disk / "superblock").read_bytes() == superblock


def test_only_one_makes_a_node_in_a_directory(tmp_path: Path) -> None:
    with SetupPlaces(tmp_path / "n", ()), pytest.raises(StoreLocked):
        setup.init_cluster(tmp_path / "n", name="n", security="plain")
    assert (tmp_path / "n").exists()


def test_an_administrators_credential_is_never_replaced(tmp_path: Path) -> None:
    setup.init_cluster(tmp_path / "a", name="a", credentials_out=tmp_path / "admin.pem")
    before = (tmp_path / "admin.pem").read_bytes()
    with pytest.raises(AlreadyExists, match=r"admin\.pem"):
        setup.init_cluster(tmp_path / "b", name="b", credentials_out=tmp_path / "admin.pem")
    assert (tmp_path / "admin.pem").read_bytes() == before
    assert not (tmp_path / "b").exists()
