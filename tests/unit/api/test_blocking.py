"""What is particular to the blocking twin: threads, forks, closing, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import blockstore
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import InvalidRequest, NotAStore, StoreLocked, Unavailable


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[LocalCluster]:
    with LocalCluster.create(tmp_path_factory.mktemp("cluster"), 1, security="plain") as running:
        yield running


def in_child(work: Callable[[], None]) -> None:
    """Run in a forked child, and fail if it fails."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_importing_it_is_cheap_and_has_no_effects() -> None:
    code = (
        "import sys, threading, blockstore; "
        "print('trio' in sys.modules, 'cryptography' in sys.modules, threading.active_count())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False", "1"]


def test_every_name_is_there() -> None:
    for name in blockstore.__all__:
        assert getattr(blockstore, name) is not None
    assert set(blockstore.__all__) <= set(dir(blockstore))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        blockstore.nothing  # noqa: B018  # pyright: ignore


def test_children_of_a_fork_connect_by_themselves(cluster: LocalCluster) -> None:
    with blockstore.connect(cluster.location) as store:
        bucket = store.create_bucket("forks", exist_ok=True)
        bucket.put("x", b"parent")

        def child(number: int) -> None:
            for turn in range(20):
                bucket.put(f"{number}", b"%d" % turn)
                assert bucket.get(f"{number}") == b"%d" % turn
                assert bucket.get("x") == b"parent"

        for number in range(3):
            in_child(lambda number=number: child(number))  # type: ignore[misc]
            bucket.put("x", b"parent")
        assert bucket.read_many(["0", "1", "2", "x"]) == [b"19", b"19", b"19", b"parent"]


def test_any_thread_may_call(cluster: LocalCluster) -> None:
    with blockstore.connect(cluster.location) as store:
        bucket = store.create_bucket("threads", exist_ok=True)
        before = threading.active_count()

        def work(index: int) -> None:
            for turn in range(10):
                bucket.put(f"{index}", b"%d" % turn)
                assert bucket.get(f"{index}") == b"%d" % turn

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(32)))
        assert bucket.read_many([f"{index}" for index in range(32)]) == [b"9"] * 32
        assert threading.active_count() == before, "there is no thread of ours"


def test_closed_is_closed(cluster: LocalCluster, tmp_path: Path) -> None:
    for store in (blockstore.connect(cluster.location), blockstore.open(tmp_path / "store")):
        bucket = store.create_bucket("closing", exist_ok=True)
        store.close()
        store.close()
        with pytest.raises(InvalidRequest, match="store is closed"):
            bucket.get("x")
    with blockstore.open(tmp_path / "store") as again:
        assert [one.name for one in again.buckets()] == ["closing"]


def test_lines_and_pieces_of_a_file(cluster: LocalCluster) -> None:
    lines = [b"line %d\n" % number for number in range(100_000)]
    with blockstore.connect(cluster.location) as store:
        bucket = store.create_bucket("files", exist_ok=True)
        bucket.put("x", b"".join(lines))
        with bucket.open("x") as file:
            assert list(file) == lines
            file.seek(5)
            assert file.read(3) == b"0\nl"
            assert file.info.name == "x"
        with pytest.raises(ValueError, match="closed file"):
            file.read()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"Nobody answers at tcp://127\.0\.0\.1:1: .*refused.*credentials"):
        blockstore.connect("tcp://127.0.0.1:1", timeout=0.3)
    with pytest.raises(InvalidRequest, match=r"open it with blockstore\.open"):
        blockstore.connect(str(tmp_path))
    with pytest.raises(NotAStore):
        blockstore.open(tmp_path / "none", create=False)


def test_an_embedded_store_has_one_process(tmp_path: Path) -> None:
    with blockstore.open(tmp_path / "store") as store:
        bucket = store.create_bucket("b")
        bucket.put("x", b"1")

        def child() -> None:
            with pytest.raises(InvalidRequest, match="a child cannot use it"):
                bucket.get("x")
            with pytest.raises(StoreLocked):
                blockstore.open(tmp_path / "store")
            store.close()  # must not stop the parent's

        in_child(child)
        with pytest.raises(StoreLocked):
            blockstore.open(tmp_path / "store")
        assert bucket.get("x") == b"1"


def test_leaving_without_closing_loses_nothing(tmp_path: Path) -> None:
    code = f"""
import blockstore
store = blockstore.open({str(tmp_path / "store")!r})
store.create_bucket("b").put("x", b"1")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30, capture_output=True)
    with blockstore.open(tmp_path / "store") as store:
        assert store.bucket("b").get("x") == b"1"


def test_interrupted_calls_leave_the_store_usable(cluster: LocalCluster) -> None:
    class Interrupting:
        def read(self, size: int) -> bytes:
            raise KeyboardInterrupt

    with blockstore.connect(cluster.location) as store:
        bucket = store.create_bucket("interrupts", exist_ok=True)
        with pytest.raises(KeyboardInterrupt):
            bucket.put("x", Interrupting())  # type: ignore[arg-type]  # pyright: ignore
        bucket.put("x", b"1")
        assert bucket.get("x") == b"1"
