"""Clusters of real daemons for the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blockstore.daemon.local_cluster import LocalCluster
from blockstore_cli.dev import wait_until_settled


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes with TLS, shared by the tests of a module, each of which uses buckets of its own."""
    with LocalCluster.create(tmp_path_factory.mktemp("cluster") / "lab", 3) as made:
        wait_until_settled(made)
        yield made


@pytest.fixture
def configured(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalCluster:
    """The cluster, named by the environment as a user would."""
    monkeypatch.setenv("BLOCKSTORE", cluster.location)
    monkeypatch.setenv("BLOCKSTORE_CREDENTIALS", str(cluster.credentials))  # it has TLS
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return cluster
