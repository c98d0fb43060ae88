"""`blockstore block …` on a real cluster, and a device whose nodes are killed while it is written."""

from __future__ import annotations

import io
import random
import sys
import threading
from pathlib import Path

import pytest

import blockstore
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import TakenOver
from blockstore.ids import KiB, MiB
from blockstore_cli.dev import wait_until_settled
from tests.processes.test_command import Command, command

__all__ = ["command"]

configured = pytest.mark.usefixtures("configured")


@configured
def test_a_device_is_made_filled_read_and_deleted(command: Command, tmp_path: Path) -> None:
    made = command("block", "create", "vm1", "6M", "--policy", "replicated(3)", "--json").json()
    assert made == {"name": "vm1", "size_bytes": 6 * MiB, "policy": "replicated(3)"}
    assert "already a block device 'vm1'" in command("block", "create", "vm1", "6M", code=73).err
    assert {**made, "clone_of": ""} in (command("block", "list", "--json").json()["devices"])
    image = random.Random(1).randbytes(3 * MiB + 5)
    (tmp_path / "in").write_bytes(image)
    command("block", "write", "vm1", tmp_path / "in", "--offset", "1M")
    command("block", "snapshot", "create", "vm1", "one")
    command("block", "discard", "vm1", "--offset", "2M", "--length", "1MiB", "--yes")
    command("block", "read", "vm1", tmp_path / "out")
    expected = bytearray(6 * MiB)
    expected[MiB : 4 * MiB + 5] = image
    then = bytes(expected)
    expected[2 * MiB : 3 * MiB] = bytes(MiB)
    assert (tmp_path / "out").read_bytes() == expected
    command("block", "read", "vm1@one", tmp_path / "then", "--offset", "1K", "--length", "5M")
    assert (tmp_path / "then").read_bytes() == then[KiB : KiB + 5 * MiB]
    assert command("block", "diff", "vm1@one", "--json").lines() == [
        {"change": "zeroed", "offset": 2 * MiB, "length": MiB},
        {"written_bytes": 0, "zeroed_bytes": MiB},
    ]
    command("block", "resize", "vm1", "8M")
    command("block", "snapshot", "create", "vm1", "two")
    listed = command("block", "snapshot", "list", "vm1", "--json").json()["snapshots"]
    assert [(one["name"], one["size_bytes"]) for one in listed] == [("one", 6 * MiB), ("two", 8 * MiB)]
    shown = command("block", "show", "vm1", "--json").json()
    assert (shown["size_bytes"], shown["snapshots"]) == (8 * MiB, ["one", "two"])
    for arguments in (
        ("show", "vm1"),
        ("list",),
        ("snapshot", "list", "vm1"),
        ("diff", "vm1@one", "vm1@two"),
    ):
        assert command("block", *arguments).out
    made = command("block", "snapshot", "together", "both", "vm1", "--json").json()["snapshots"]
    assert [(one["device"], one["name"], one["size_bytes"]) for one in made] == [("vm1", "both", 8 * MiB)]
    command("block", "snapshot", "delete", "vm1", "both", "--yes")
    command("block", "snapshot", "delete", "vm1", "one", "--yes")
    assert command("block", "delete", "vm1", "--yes", "--json").json() == {"deleted": "vm1"}
    assert "no block device 'vm1'" in command("block", "show", "vm1", code=66).err


@configured
def test_standard_input_goes_in_and_output_comes_out(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("block", "create", "vm2", "100")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    command("block", "write", "vm2", "-", "--offset", "10")
    assert command("block", "read", "vm2", "--offset", "10", "--length", "6").out == "hello\n"


@configured
def test_what_cannot_be_is_refused(command: Command, tmp_path: Path) -> None:
    command("block", "create", "vm3", "1M")
    command("bucket", "create", "b3")
    (tmp_path / "large").write_bytes(bytes(2 * MiB))
    kept = str(tmp_path / "kept")
    (tmp_path / "kept").write_bytes(b"mine")
    for arguments, code, said in (
        (("create", "vm4", "65T"), 64, "1 byte to 64 TiB"),
        (("create", "vm4", "1.5G"), 64, "no number of bytes"),
        (("create", "UPPER", "1G"), 64, "cannot name a block device"),
        (("create", "b3", "1G"), 73, "already a bucket 'b3'"),
        (("show", "b3"), 64, "'b3' is a bucket, not a block device"),
        (("show", "none"), 66, "no block device 'none'"),
        (("write", "vm3", str(tmp_path / "large")), 64, "do not fit"),
        (("write", "vm3", str(tmp_path / "missing")), 64, "No such file"),
        (("read", "vm3", kept, "--length", "2M"), 64, "vm3 has 1,048,576 bytes"),
        (("read", "vm3", kept, "--offset", "2M"), 64, "past the end of vm3"),
        (("discard", "vm3", "--offset", "1M", "--length", "1"), 64, "vm3 has 1,048,576 bytes"),
        (("read", "vm3@gone"), 66, "no snapshot 'gone' of block device 'vm3'"),
        (("read", "vm3:x"), 64, "names an object"),
        (("resize", "vm3", "1K"), 64, "--yes"),
        (("resize", "vm3", "0"), 64, "block delete vm3"),
        (("discard", "vm3", "--offset", "0", "--length", "1K"), 64, "--yes"),
        (("delete", "vm3"), 64, "--yes"),
        (("diff", "vm3"), 64, "begins at a snapshot"),
        (("diff", "vm3@a", "vm1@b"), 64, "within one device"),
        (("snapshot", "delete", "vm3", "x", "--yes"), 66, "no snapshot 'x'"),
        (("read", "vm3", str(tmp_path)), 64, "Is a directory"),
    ):
        assert said in command("block", *arguments, code=code).err, arguments
    assert (tmp_path / "kept").read_bytes() == b"mine"
    assert "'vm3' is a block device, not a bucket" in command("bucket", "show", "vm3", code=64).err
    assert (
        "already a block device 'vm3', which is no bucket"
        in command("bucket", "create", "vm3", "--exist-ok", code=73).err
    )
    assert "already a block device 'vm3'" in command("bucket", "create", "vm3", code=73).err


def test_killed_nodes_lose_no_acknowledged_write(tmp_path: Path) -> None:
    """A writer numbers its blocks; its owner's node dies; then another writer takes over: all is there."""
    n_blocks = 64
    with (
        LocalCluster.create(tmp_path / "c", 3, security="plain") as cluster,
        blockstore.connect(cluster.location) as store,
    ):
        wait_until_settled(cluster)
        first = store.create_block_device("vm", 4 * MiB, policy="replicated(3)")
        acknowledged = [0] * n_blocks
        large = 0
        stop = threading.Event()
        refused: list[BaseException] = []

        def write(mine: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                for index in range(mine, n_blocks, 4):
                    first.write(index * 4 * KiB, number.to_bytes(4, "big") * KiB)
                    acknowledged[index] = number

        def write_large() -> None:
            nonlocal large
            try:
                while True:
                    first.write(MiB, (large + 1).to_bytes(4, "big") * (MiB // 2))
                    large += 1
            except TakenOver as error:
                refused.append(error)

        threads = [threading.Thread(target=write, args=(mine,)) for mine in range(4)]
        ending = threading.Thread(target=write_large)
        for thread in (*threads, ending):
            thread.start()
        while not (all(acknowledged) and large):
            assert all(thread.is_alive() for thread in threads)
            threads[0].join(0.01)
        victim = next(node for node in cluster.nodes if node.node == store.block_devices()[0].owner)
        victim.kill()
        seen = list(acknowledged)
        while not all(now > then for now, then in zip(acknowledged, seen, strict=True)):
            assert all(thread.is_alive() for thread in threads)
            threads[0].join(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        second = store.block_device("vm", writable=True)
        ending.join()
        assert refused
        for index, number in enumerate(acknowledged):
            assert second.read(index * 4 * KiB, 4 * KiB) == number.to_bytes(4, "big") * KiB
        spans = second.read(MiB, 2 * MiB)
        for half in (spans[:MiB], spans[MiB:]):
            assert int.from_bytes(half[:4], "big") in (large, large + 1)
            assert half == half[:4] * (MiB // 4)
