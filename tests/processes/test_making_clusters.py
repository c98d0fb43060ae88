"""`cluster init`, `cluster join` and `node start`: what is made, and what is refused before it is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import blockstore
from blockstore.daemon import setup
from blockstore.daemon.local_cluster import LocalCluster, free_ports
from blockstore_cli import main
from blockstore_cli.dev import wait_until_settled


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    """What the command said when it refused with this code."""
    assert main.run([str(argument) for argument in arguments]) == code, capsys.readouterr().err
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    return told.err


def init(capsys: pytest.CaptureFixture[str], directory: Path, *more: str) -> dict[str, str]:
    assert main.run(["cluster", "init", str(directory), "--json", *more]) == 0
    made: dict[str, str] = json.loads(capsys.readouterr().out)
    return made


def test_a_cluster_is_made_started_stopped_and_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = free_ports(2)
    made = init(capsys, tmp_path / "1", "--listen", f"127.0.0.1:{first}", "--zone", "room/rack-1")
    assert made["store"] == f"tcp://127.0.0.1:{first}"
    key = Path(made["credentials"])
    assert key.stat().st_mode & 0o077 == 0
    node = [sys.executable, "-m", "blockstore_cli.main", "node", "start", "--json", str(tmp_path / "1")]
    with subprocess.Popen(node, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert (ready["node"], ready["pid"]) == (1, process.pid)
            whom = ("--store", made["store"], "--credentials", str(key))
            listen = ("--listen", f"127.0.0.1:{first + 2}", "--zone", "room/rack-2")
            assert main.run(["cluster", "join", str(tmp_path / "2"), *whom, *listen, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["node"] == 2
            assert main.run(["node", "list", *whom, "--json"]) == 0
            nodes = json.loads(capsys.readouterr().out)["nodes"]
            assert [one["zone"] for one in nodes] == [["room", "rack-1"], ["room", "rack-2"]]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:0", "127.0.0.1:99999", "127.0.0.1:http", ":"])
def test_an_address_that_is_none_is_refused(
    listen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 64, "cluster", "init", tmp_path / "n", "--listen", listen)
    assert not (tmp_path / "n").exists()


def test_plain_is_for_loopback_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, 64, "cluster", "init", tmp_path / "n", "--plain", "--listen", "10.0.0.1:7440")
    assert "loopback only" in told
    assert not (tmp_path / "n").exists()


def test_a_directory_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    assert "not empty" in refused(capsys, 66, "cluster", "init", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["precious"]
    init(capsys, tmp_path / "n")
    facts = (tmp_path / "n" / "node.json").read_bytes()
    assert "already a node" in refused(capsys, 73, "cluster", "init", tmp_path / "n")
    assert (tmp_path / "n" / "node.json").read_bytes() == facts


def test_what_is_no_node_is_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refused(capsys, 66, "node", "start", tmp_path / "missing")
    assert "no node.json" in refused(capsys, 66, "node", "start", tmp_path)
    (tmp_path / "node.json").write_text("not JSON")
    assert "cannot be understood" in refused(capsys, 66, "node", "start", tmp_path)
    (tmp_path / "node.json").write_text('{"version": 99}')
    told = refused(capsys, 65, "node", "start", tmp_path)
    assert "format version 99" in told
    assert "newer" in told


def test_a_port_in_use_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_ports(1)
    init(capsys, tmp_path / "n", "--listen", f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", port)):
        assert f"127.0.0.1:{port} is already in use" in refused(capsys, 69, "node", "start", tmp_path / "n")
    with socket.create_server(("127.0.0.1", port + 1)):
        assert f"127.0.0.1:{port + 1} is already in use" in refused(
            capsys, 69, "node", "start", tmp_path / "n"
        )


def test_a_node_runs_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LocalCluster.create(tmp_path / "c", 1) as cluster:
        told = refused(capsys, 75, "node", "start", cluster.nodes[0].directory)
        assert "in use by process" in told
        told = refused(capsys, 66, "--store", str(cluster.nodes[0].directory), "ls")
        assert "node of a cluster" in told


def test_only_the_administrator_brings_nodes_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LocalCluster.create(tmp_path / "c", 1) as cluster:
        wait_until_settled(cluster)
        with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
            store.create_credential("writer", "write", tmp_path / "writer.pem")
        where = ("cluster", "join", tmp_path / "n", "--store", cluster.location)
        port = free_ports(1)
        listen = ("--listen", f"127.0.0.1:{port}")
        told = refused(capsys, 64, *where, *listen, "--credentials", tmp_path / "writer.pem")
        assert "administrator" in told
        refused(capsys, 64, *where, *listen, "--credentials", tmp_path / "missing.pem")
        (tmp_path / "rubbish.pem").write_text("rubbish")
        (tmp_path / "rubbish.pem").chmod(0o600)
        refused(capsys, 64, *where, *listen, "--credentials", tmp_path / "rubbish.pem")
    assert not (tmp_path / "n").exists()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = init(capsys, tmp_path / "n", "--listen", f"127.0.0.1:{free_ports(1)}")
    Path(made["credentials"]).chmod(0o644)
    told = refused(capsys, 77, "ls", "--store", made["store"], "--credentials", made["credentials"])
    assert "chmod" in told


def test_the_names_that_lead_to_a_new_store_are_durable_before_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = list[Path]()
    fsync, replace = os.fsync, Path.replace

    def watch_fsync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def watch_replace(path: Path, target: Path) -> Path:
        assert target.name == "node.json"
        for folder in (
            tmp_path,
            tmp_path / "a",
            tmp_path / "a" / "b",
            target.parent,
            target.parent / "disk-1",
        ):
            assert folder in synced, folder
        synced.clear()
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(Path, "replace", watch_replace)
    setup.init_embedded([tmp_path / "a" / "b" / "store"])
    assert synced == [tmp_path / "a" / "b" / "store"], "and so is the file's own name"


def test_a_log_level_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOCKSTORE_LOG", "LOUD")
    assert "'LOUD'" in refused(capsys, 64, "node", "start", tmp_path)


def test_a_node_file_with_an_unknown_key_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(capsys, tmp_path / "1", "--listen", f"127.0.0.1:{free_ports(2)}")
    file = tmp_path / "1" / "node.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_memory": "2G"}))
    assert "max_memory" in refused(capsys, 66, "node", "start", tmp_path / "1")
