"""All sequences of two operations, every crash state of each: `explore.py`.

The long form is `python -m tests.crash --operations 3`.

A crash within recovery is tried here for all sequences of one operation; `python -m tests.crash` tries it for
those of two as well. The counts are asserted, so that an exploration that stops looking does not pass.
"""

from __future__ import annotations

from random import Random

import pytest

from blockstore.runtime.interfaces import Write
from blockstore.runtime.sim import disk as sim_disk
from tests.crash.explore import Explorer, Found
from tests.crash.losses import WatchedDisk, losses
from tests.crash.node import NodeFacts, NodeSubject
from tests.crash.raft import RaftFacts, RaftSubject
from tests.crash.shares import explore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("name", "n_operations", "depth", "sequences", "judged"),
    [
        ("node", 2, 0, 819, 11_000),
        ("node", 1, 1, 16, 2_000),
        ("raft", 2, 0, 1_272, 10_000),
        ("raft", 1, 1, 32, 1_500),
    ],
)
def test_every_crash_state_is_recovered(
    name: str, n_operations: int, depth: int, sequences: int, judged: int
) -> None:
    found = explore(name, n_operations, depth)
    print(f"{name}: {found.counts}; {found.cpu_seconds:.0f} CPU seconds")
    assert found.failures == []
    assert found.counts.sequences == sequences
    assert found.counts.judged >= judged


# --- the explorer finds what is planted


def test_an_acknowledgement_before_the_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_disk.SimFile, "_sync_content", _sync_nothing)
    node = Explorer[NodeFacts](NodeSubject(), depth=0)
    with node.subject.small_files(), pytest.raises(Found):
        node.run("few-slots", None, ("append", "append"))
    raft = Explorer[RaftFacts](RaftSubject(), depth=0)
    with raft.subject.small_files(), pytest.raises(Found):
        raft.run("one-segment", None, ("append", "append"))


def _sync_nothing(_: sim_disk.SimFile) -> None:
    pass


def test_losses_are_the_prefixes_of_each_sector() -> None:
    disk = WatchedDisk()
    file = disk.open("file", 4096)
    file.submit([Write(0, [b"a" * 1024]), Write(512, [b"b" * 512])], lambda error: None)
    for _ in range(3):
        disk.step()
    found = {tuple(dict(left.files)["file"].stored) for left in losses(disk.freeze())}
    # The first sector holds zeros or a; the second zeros, a or b.
    assert len(found) == 6


def test_every_loss_that_chance_finds_is_listed() -> None:
    disk = WatchedDisk()
    disk.replace_file("small", b"old")
    file = disk.open("file", 8192)
    file.submit([Write(0, [b"a" * 600]), Write(700, [b"b" * 700])], lambda error: None)
    for _ in range(3):
        disk.step()
    state = disk.freeze()
    listed = set(losses(state))
    for seed in range(300):
        crashed = WatchedDisk(state)
        crashed.crash(Random(seed))
        assert crashed.freeze() in listed
