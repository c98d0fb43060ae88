"""A client whose whole cluster is killed or frozen gives up in time, says what it tried, and closes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import blockstore
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import BlockStoreError, Unavailable

TIMEOUT = 2.0


def outcome_of(bucket: blockstore.Bucket, number: int) -> tuple[BlockStoreError | None, float]:
    """Put or get until it fails; the error, and how long that call took."""
    while True:
        began = time.monotonic()
        try:
            if number % 2:
                bucket.put(f"{number}", bytes(1_000), timeout=TIMEOUT)
            else:
                assert bucket.get("x", timeout=TIMEOUT) == b"1"
        except BlockStoreError as error:
            return error, time.monotonic() - began


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_client_gives_up_in_time_and_closes(tmp_path: Path, how: str) -> None:
    with LocalCluster.create(tmp_path / "c", 2, security="plain") as cluster:
        store = blockstore.connect(cluster.location)
        bucket = store.create_bucket("b")
        bucket.put("x", b"1")
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(outcome_of, bucket, number) for number in range(4)]
            for node in cluster.nodes:
                node.kill() if how == "kill" else node.freeze()
            for call in calls:
                error, seconds = call.result()
                assert isinstance(error, Unavailable)
                assert "tried" in str(error)
                assert seconds < TIMEOUT + 3.0
            began = time.monotonic()
            under_way = pool.submit(bucket.get, "x", timeout=TIMEOUT)
            store.close()
            assert time.monotonic() - began < 1.0
            with pytest.raises(BlockStoreError):
                under_way.result()
        with pytest.raises(BlockStoreError, match=r"closed|not open"):
            bucket.get("x")
