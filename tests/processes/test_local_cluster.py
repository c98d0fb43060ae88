"""Clusters of daemon processes: made, killed, started again, refused in words."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from blockstore.daemon.local_cluster import LocalCluster, free_ports
from blockstore.errors import AddressInUse, InvalidRequest, NotAStore, Unavailable


def state_of(pid: int) -> str:
    """`R`, `S`, `T` (stopped), … as the kernel says it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_daemons_are_killed_frozen_and_started_again(tmp_path: Path) -> None:
    with LocalCluster.create(tmp_path / "c", 2, security="plain") as cluster:
        first, second = cluster.nodes
        pid = first.pid
        assert pid
        first.start()  # it runs: nothing happens
        assert first.pid == pid
        first.freeze()
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        assert state_of(pid) == "T"
        first.thaw()
        first.freeze()
        first.kill()  # a frozen one dies too
        assert first.pid == 0
        first.kill()  # nothing happens
        first.start()
        assert first.pid not in {0, pid}
        second.freeze()
    assert [node.pid for node in cluster.nodes] == [0, 0]


def test_a_plain_cluster_has_no_credential_and_says_where_it_is(tmp_path: Path) -> None:
    with LocalCluster.create(tmp_path / "c", 1, security="plain") as cluster:
        facts = cluster.facts()
        assert facts["credentials"] is None
        assert facts["store"] == f"tcp://{facts['nodes'][0]['address']}"
    again = LocalCluster.open(tmp_path / "c")
    assert again.location == cluster.location
    assert (again.security, [node.node for node in again.nodes]) == ("plain", [1])
    again.start()
    again.stop()


def test_what_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    with LocalCluster.create(tmp_path / "c", 1, security="plain") as cluster:
        (node,) = cluster.nodes
        node.stop()
        (node.directory / "node.json").write_text("{}")
        with pytest.raises(Unavailable, match=r"node\.json cannot be understood"):
            node.start()


def test_a_taken_address_is_said_before_anything_is_made(tmp_path: Path) -> None:
    port = free_ports(1)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(AddressInUse, match=str(port)):
        LocalCluster.create(tmp_path / "c", 1, first_port=port)
    assert not list((tmp_path / "c").iterdir())


def test_the_preferred_ports_are_taken_if_all_are_free() -> None:
    first = free_ports(2)
    assert free_ports(2, preferred=first) == first
    with socket.create_server(("127.0.0.1", first + 3)):
        assert free_ports(2, preferred=first) != first


def test_directories_that_hold_no_whole_cluster_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAStore, match=r"no cluster\.json"):
        LocalCluster.open(tmp_path)
    (tmp_path / "cluster.json").write_text(json.dumps({"nodes": 3}))
    with pytest.raises(NotAStore, match="cannot be understood"):
        LocalCluster.open(tmp_path)
    with pytest.raises(NotAStore, match="holds something else"):
        LocalCluster.create(tmp_path, 1)
    with pytest.raises(InvalidRequest, match="at least 1 node"):
        LocalCluster.create(tmp_path / "c", 0)


def test_a_daemon_that_never_answers_is_not_waited_for_longer_than_said(tmp_path: Path) -> None:
    with LocalCluster.create(tmp_path / "c", 1, security="plain") as cluster:
        (node,) = cluster.nodes
        node.stop()
        node.spawn()
        node.freeze()
        with pytest.raises(Unavailable, match="was not ready after 0 s"):
            node.wait_ready(0.2)
