"""`python -m tests.crash.setup_kills SCENARIO DIRECTORY [--at N] [--again M]`: making a node is killed.

One process for each attempt, forked from this one, which has no threads. In an attempt every call to the
system that changes something is counted, and before the one of the given number the process ends at once.
What it had done stays, as after `kill -9`. The setup is then repeated; every seventh time it is killed again,
at another point. Judged is what there is after each: a directory is either a whole node, or none and the
setup can be repeated there.

Prints one line of JSON: the number of points, and for the first failure what to say to see it again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from blockstore.codec import credential, raft_file
from blockstore.codec.control_record import ClusterRecord, NodeRecord
from blockstore.codec.messages import Joined, JoinNode
from blockstore.codec.superblock import NAME, decode_superblock
from blockstore.consensus.raft_log import SNAPSHOT_NAMES, RaftLog
from blockstore.control.bootstrap import bootstrap_cluster
from blockstore.daemon import setup
from blockstore.daemon.node_directory import NodeDirectory, NodeFile
from blockstore.errors import NotAStore
from blockstore.ids import DiskId, NodeId
from blockstore.runtime.sim.disk import SimDisk

CALLS = (
    "open", "mkdir", "rename", "replace", "unlink", "rmdir",
    "fsync", "fdatasync", "posix_fallocate", "pwrite", "pwritev", "ftruncate",
)  # fmt: skip

KILLED = 9
KILL_AGAIN_EVERY = 7


class Scenario:
    """In a directory of its own: the node is `node`, its second disk `disk`."""

    n_disks = 2

    def make(self, directory: Path) -> None:
        raise NotImplementedError

    def judge(self, directory: Path, facts: NodeFile) -> None:
        """The node is whole; AssertionError says what is wrong with it otherwise."""


class Init(Scenario):
    def make(self, directory: Path) -> None:
        setup.init_cluster(
            directory / "node",
            name="lab",
            disks=[directory / "node" / "disk-1", directory / "disk"],
            credentials_out=directory / "admin.pem",
        )

    def judge(self, directory: Path, facts: NodeFile) -> None:
        node = credential.read_bundle(str(directory / "node" / "node.pem"))
        admin = credential.read_bundle(str(directory / "admin.pem"))
        assert node.ca_certificate == admin.ca_certificate
        assert admin.authority


class Embedded(Scenario):
    def make(self, directory: Path) -> None:
        setup.init_embedded([directory / "node", directory / "other"])


class Join(Scenario):
    """The cluster is a file: what it has applied. It takes a node in, and then the answer may be lost."""

    n_disks = 1

    def make(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        if not (directory / "admin.pem").exists():
            authority = credential.create_authority("lab")
            bundle = credential.issue(authority, "client", "admin", with_authority=True)
            credential.write_bundle(str(directory / "admin.pem"), bundle)

        async def join(_: object, __: object, request: JoinNode) -> tuple[Joined, bytes]:
            identity = [request.certificate.hex(), str(request.request), request.curve_public.hex()]
            with (directory / "asked").open("a") as asked:
                asked.write(json.dumps(identity) + "\n")
                asked.flush()
                os.fsync(asked.fileno())  # a point before, and with the next a point after
            return Joined("a" * 16, NodeId(2), (DiskId(5),)), _snapshot()

        def listens(host: str, port: int) -> None: ...

        with patch.object(setup, "_join", join), patch.object(setup, "_try_to_listen", listens):
            setup.join_cluster(
                directory / "node", store="tcp://10.0.0.1:7440", credentials=directory / "admin.pem"
            )

    def judge(self, directory: Path, facts: NodeFile) -> None:
        assert (facts.cluster, facts.node) == ("a" * 16, 2)
        asked = set((directory / "asked").read_text().splitlines())
        assert len(asked) == 1, "a repeated join is another node's"


def _snapshot() -> bytes:
    """What a member of the cluster sends."""
    disk = SimDisk(Random(0))
    record = NodeRecord(NodeId(1), 0, "10.0.0.1", 7440, 7441, "", "", b"", ("a",), "")
    bootstrap_cluster(
        disk,
        cluster=ClusterRecord("a" * 16, "lab", 0.0, "tls", bytes(32)),
        node=record,
        disk_bytes=(1,),
        admin=None,
        rng=Random(0),
    )
    log = RaftLog(disk, Random(0))
    loaded = log.load()
    log.close()
    return raft_file.encode_snapshot(loaded.snapshot)


SCENARIOS: dict[str, Scenario] = {"init": Init(), "embedded": Embedded(), "join": Join()}


def kill_before(number: int | None) -> None:
    """End this process before the call of that number that changes something. Nothing is synced here: what a
    process has written outlives it."""
    left = [number or 0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **more: Any) -> Any:
            reads_only = call is open_ and not arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            left[0] -= not reads_only
            if left[0] == 0:
                os._exit(KILLED)
            return call(*arguments, **more)

        return instead

    open_ = os.open
    for name in ("fsync", "fdatasync"):
        setattr(os, name, _sync_nothing)
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def _sync_nothing(fd: int) -> None: ...


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a process that does it; 1 after an error, which is told."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attempt(scenario: Scenario, directory: Path, kill_at: int | None) -> int:
    def work() -> None:
        kill_before(kill_at)
        scenario.make(directory)

    return in_child(work)


def judge(scenario: Scenario, directory: Path) -> None:
    node = NodeDirectory(directory / "node")
    facts = node.read()
    assert len(facts.disks) == scenario.n_disks
    for place in facts.disks:
        block = (node.path / place.directory / NAME).read_bytes()
        found = decode_superblock(block, place.directory)
        assert (found.disk, found.cluster) == (place.disk, facts.cluster)
    assert any((node.control / name).exists() for name in SNAPSHOT_NAMES)
    left_over = [path.name for path in node.path.rglob("*") if path.name.endswith((".new", ".json.part"))]
    assert left_over == [], left_over
    assert [path.name for path in node.path.iterdir() if path.name.startswith(".")] == []
    scenario.judge(directory, facts)


def try_point(scenario: Scenario, directory: Path, kill_at: int, again_at: int | None) -> bool:
    """Whether there is such a point."""
    directory.mkdir(parents=True)
    code = attempt(scenario, directory, kill_at)
    assert code in (0, KILLED), "the first attempt failed by itself"
    if again_at is not None and not NodeDirectory(directory / "node").exists():
        assert attempt(scenario, directory, again_at) in (0, KILLED), "repeating it failed"
    node = NodeDirectory(directory / "node")
    if not node.exists():
        try:
            node.read()
        except NotAStore:
            pass
        else:
            raise AssertionError("half a node is taken for a whole one")
        assert attempt(scenario, directory, None) == 0, "it cannot be repeated"
    judge(scenario, directory)
    return code == KILLED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.setup_kills")
    parser.add_argument("scenario", choices=tuple(SCENARIOS))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--at", type=int, help="only this point")
    parser.add_argument("--again", type=int, help="and then this one")
    options = parser.parse_args()
    scenario = SCENARIOS[options.scenario]
    rng = Random(0)
    n = 0
    failure = ""
    while not failure:
        kill_at = options.at or n + 1
        again_at = options.again or (rng.randrange(1, 30) if kill_at % KILL_AGAIN_EVERY == 0 else None)
        try:
            if not try_point(scenario, options.directory / str(kill_at), kill_at, again_at):
                break
        except Exception as error:
            replay = f"python -m tests.crash.setup_kills {options.scenario} DIR"
            again = "" if again_at is None else f" --again {again_at}"
            failure = f"{error!r}: {replay} --at {kill_at}{again}"
        n += 1
        if options.at:
            break
    print(json.dumps({"points": n, "failure": failure}))
    return bool(failure)


if __name__ == "__main__":
    sys.exit(main())
