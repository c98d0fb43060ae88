"""Files that are written rarely: every crash state of formatting a disk, founding a group, keeping members.

Each is frozen before every step, and all states of `losses` are taken up from there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from random import Random

import pytest

from blockstore.codec.control_record import ClusterRecord, Transaction, decode_snapshot, encode_record
from blockstore.codec.raft_messages import Members
from blockstore.codec.superblock import Superblock
from blockstore.consensus import raft_shell
from blockstore.consensus.raft_log import RaftLog
from blockstore.control import replica_shell
from blockstore.control.state import ControlState
from blockstore.control.views import CLUSTER
from blockstore.ids import DiskId, NodeId, RequestId, SessionId
from blockstore.node.disk_shell import DiskShell, format_disk, read_superblock
from tests.crash.losses import DiskState, WatchedDisk, losses

DISK = DiskId(3)


def crash_states(
    disk: WatchedDisk, operations: Sequence[Callable[[], None]]
) -> Generator[tuple[int, WatchedDisk]]:
    """The number of operations that had returned, and a disk in each state that a failure then may leave."""
    moments = dict[tuple[int, DiskState], None]()
    n_done = 0

    def freeze() -> None:
        moments[n_done, disk.freeze()] = None

    disk.on_step = freeze
    for operation in operations:
        operation()
        n_done += 1
    freeze()
    for n, moment in moments:
        for left in (*losses(moment), moment):
            yield n, WatchedDisk(left)


def test_formatting_is_done_or_can_be_repeated() -> None:
    disk = WatchedDisk()
    n_states = n_repeated = 0
    for n_done, left in crash_states(disk, [lambda: format_disk(disk, DISK, "c")]):
        n_states += 1
        found = read_superblock(left)
        assert found in (None, Superblock(DISK, "c"))
        assert found or not n_done
        if found is None:
            n_repeated += 1
            format_disk(left, DISK, "c")
        shell = DiskShell(left, DISK, "c", _no_event)
        shell.recover()
        assert not shell.suspect
        assert not shell._early_events
        shell.close()
    assert n_states > 10
    assert n_repeated


def test_another_disk_can_be_made_of_one_that_was_not_finished() -> None:
    disk = WatchedDisk()
    for _, left in crash_states(disk, [lambda: format_disk(disk, DISK, "c")]):
        if read_superblock(left) is None:
            format_disk(left, DiskId(9), "d")
            shell = DiskShell(left, DiskId(9), "d", _no_event)
            shell.recover()
            assert not shell._early_events
            shell.close()


def test_a_group_is_founded_or_can_be_founded_again() -> None:
    disk = WatchedDisk()

    def found(where: WatchedDisk) -> None:
        raft_shell.bootstrap(where, NodeId(1), b"state", Random(0))

    n_states = 0
    for n_done, left in crash_states(disk, [lambda: found(disk)]):
        n_states += 1
        if not raft_shell.is_bootstrapped(left):
            assert not n_done
            found(left)
        log = RaftLog(left, Random(1))
        loaded = log.load()
        log.close()
        assert not loaded.damage
        assert (loaded.snapshot.data, loaded.snapshot.members) == (b"state", Members((NodeId(1),)))
        assert loaded.hard_state.term == 0
        assert not loaded.entries
    assert n_states > 10


def _members(name: str) -> ControlState:
    state = ControlState()
    for number in range(1, 2 + len(name)):  # a later one has a later revision
        record = ClusterRecord("c", name, 0.0, "plain", bytes(32))
        state.apply(Transaction(RequestId(SessionId(1), number), (), ((CLUSTER, encode_record(record)),)))
    return state


def test_members_are_the_old_or_the_new_ones() -> None:
    disk = WatchedDisk()
    versions = [_members(name) for name in ("a", "bb", "ccc")]
    operations = [partial(replica_shell.write_members, disk, state) for state in versions]
    revisions = [state.revision for state in versions]
    n_states = 0
    for n_done, left in crash_states(disk, operations):
        n_states += 1
        contents = [left.read_file(name) for name in replica_shell.MEMBERS_FILES]
        found = [decode_snapshot(content).revision for content in contents if content is not None]
        allowed = [0, *revisions][n_done : n_done + 2]
        assert max(found, default=0) in allowed
    assert n_states > 10


def _no_event(code: str, text: str) -> None:
    pytest.fail(f"{code}: {text}")
