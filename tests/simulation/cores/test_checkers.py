"""Each checker, shown a history that cannot be: it must say so. And ones that can be: it must not."""

from __future__ import annotations

import pytest

from blockstore.codec.journal_record import DeleteRecord, PutRecord
from blockstore.codec.messages import ANY, Extent, Written
from blockstore.codec.raft_messages import COMMAND, Entry
from blockstore.codec.run_file import StoredVersion
from blockstore.ids import ChunkId, DiskId, NodeId, RequestId, SessionId, VolumeId
from blockstore.volume.state import VolumeState
from tests.simulation.cores.history import (
    History,
    Read,
    Snapshot,
    SnapshotRead,
    Violation,
    Write,
    check_expectations,
    check_key,
    check_order,
    check_snapshots,
)
from tests.simulation.cores.raft_member import RaftWitness
from tests.simulation.cores.witness import Witness

K = b"key"
VOLUME = VolumeId(1)


def write(
    value: bytes | None, start: float, end: float | None, sequence: int = 0, expected: int = -1
) -> Write:
    done = Write(K, value, start, sequence=sequence, expected=expected)
    if end is not None:
        done.end = end
    return done


def read(value: bytes | None, start: float, end: float) -> Read:
    return Read(K, value, start, end)


GOOD_KEYS: dict[str, tuple[list[Write], list[Read]]] = {
    "nothing": ([], [read(None, 0, 1)]),
    "one after the other": (
        [write(b"a", 1, 2), write(b"b", 3, 4), write(None, 5, 6)],
        [read(None, 0, 0.5), read(b"a", 2, 3), read(b"b", 4, 5), read(None, 7, 8)],
    ),
    "writes at one time are in either order": (
        [write(b"a", 1, 4), write(b"b", 2, 3)],
        [read(b"b", 3.1, 3.2), read(b"a", 4, 5)],
    ),
    "an unknown write takes effect late": (
        [write(b"a", 1, None), write(b"b", 2, 3)],
        [read(b"b", 4, 5), read(b"a", 6, 7)],
    ),
    "an unknown write never takes effect": ([write(b"a", 1, None)], [read(None, 5, 6)]),
    "an unknown delete took effect": ([write(b"a", 1, 2), write(None, 3, None)], [read(None, 5, 6)]),
    "a read at the time of a delete sees either": (
        [write(b"a", 1, 2), write(None, 3, 6)],
        [read(None, 4, 5), read(b"a", 3.5, 4.5)],
    ),
}


@pytest.mark.parametrize("name", GOOD_KEYS)
def test_what_can_be_is_accepted(name: str) -> None:
    check_key(K, *GOOD_KEYS[name])


BAD_KEYS: dict[str, tuple[list[Write], list[Read], str]] = {
    "lost": ([write(b"a", 1, 2)], [read(None, 3, 4)], "nothing had deleted it"),
    "one, the other, and the one again": (
        [write(b"a", 1, 2), write(b"b", 3, 4)],
        [read(b"a", 5, 6), read(b"b", 7, 8), read(b"a", 9, 10)],
        "replaced each other",
    ),
    "stale": (
        [write(b"a", 1, 2), write(b"b", 3, 4)],
        [read(b"a", 5, 6)],
        "was written or read while|replaced each other",
    ),
    "stale, after it was read": (
        [write(b"a", 1, 2), write(b"b", 3, None)],
        [read(b"b", 5, 6), read(b"a", 7, 8)],
        "was written or read while|replaced each other",
    ),
    "never written": ([write(b"a", 1, 2)], [read(b"z", 3, 4)], "nobody wrote"),
    "before it was written": ([write(b"a", 5, 6)], [read(b"a", 1, 2)], "before it was written"),
    "deleted and back": ([write(b"a", 1, 2), write(None, 3, 4)], [read(b"a", 5, 6)], "deleted from"),
    "gone for a moment": (
        [write(b"a", 1, 2)],
        [read(b"a", 3, 4), read(None, 5, 6), read(b"a", 7, 8)],
        "not found from",
    ),
    "an old delete took effect twice": (
        [write(None, 1, 2), write(b"a", 3, 4)],
        [read(b"a", 5, 6), read(None, 7, 8)],
        "nothing had deleted it",
    ),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_what_cannot_be_is_found(name: str) -> None:
    writes, reads, why = BAD_KEYS[name]
    with pytest.raises(Violation, match=why):
        check_key(K, writes, reads)


def with_batch(y: bytes | None) -> History:
    """x and y are 1 and 2; a batch of which nobody knows the outcome makes x 3, and y this."""
    history = History()
    batch = history.new_batch()
    history.writes = [
        Write(b"x", b"1", 1, 2),
        Write(b"y", b"2", 1, 2),
        Write(b"x", b"3", 3, batch=batch),
        Write(b"y", y, 3, batch=batch),
    ]
    return history


def test_a_batch_is_true_as_a_whole() -> None:
    history = with_batch(b"4")
    history.reads = [Read(b"y", b"2", 4, 5), Read(b"x", b"3", 6, 7), Read(b"y", b"4", 8, 9)]
    history.check()
    history.reads.append(Read(b"y", b"2", 10, 11))
    with pytest.raises(Violation):
        history.check()


def test_half_of_a_batch_is_found() -> None:
    history = with_batch(None)
    history.reads = [Read(b"x", b"3", 4, 5), Read(b"y", b"2", 6, 7)]
    with pytest.raises(Violation):
        history.check()


def test_sequences_follow_time() -> None:
    check_order([write(b"a", 1, 4, 2), write(b"b", 2, 3, 1)])
    with pytest.raises(Violation, match="smaller one"):
        check_order([write(b"a", 1, 2, 2), write(b"b", 3, 4, 1)])
    with pytest.raises(Violation, match="given twice"):
        check_order([write(b"a", 1, 2, 1), write(b"b", 3, 4, 1)])


def test_a_condition_that_held_was_true() -> None:
    first = write(b"a", 1, 2, 1)
    check_expectations([first, write(b"b", 3, 4, 2, expected=1)])
    with pytest.raises(Violation, match="was to replace sequence 1"):
        check_expectations([first, write(b"b", 3, 4, 2), write(b"c", 5, 6, 3, expected=1)])
    with pytest.raises(Violation, match="was to be the first"):
        check_expectations([first, write(b"b", 3, 4, 2, expected=0)])
    check_expectations([first, write(None, 2, None), write(b"b", 3, 4, 3, expected=0)])


SNAPSHOT = Snapshot("s", 5, 6, 10)


@pytest.mark.parametrize(
    ("writes", "seen", "why"),
    [
        ([write(b"a", 1, 2, 1), write(b"b", 3, 4, 2)], b"a", "not what it was then"),  # too old
        ([write(b"a", 1, 2, 1), write(b"b", 7, 8, 12)], b"b", "not what it was then"),  # too new
        ([write(b"a", 1, 2, 1)], None, "not what it was then"),
        ([write(b"a", 1, 2, 1)], b"z", "nobody wrote"),
        (
            [write(b"a", 1, 5.5, 3), write(b"b", 2, 5.5, 4)],
            b"a",
            "not what it was then",
        ),  # by the sequences alone
    ],
)
def test_a_snapshot_shows_its_moment(writes: list[Write], seen: bytes | None, why: str) -> None:
    with pytest.raises(Violation, match=why):
        check_snapshots(writes, [SNAPSHOT], [SnapshotRead("s", K, seen)])


def test_a_snapshot_at_the_time_of_a_write_shows_either_but_always_the_same() -> None:
    writes = [write(b"a", 1, 2), write(b"b", 5, 6)]
    check_snapshots(writes, [SNAPSHOT], [SnapshotRead("s", K, b"a")] * 2)
    check_snapshots(writes, [SNAPSHOT], [SnapshotRead("s", K, b"b")] * 2)
    with pytest.raises(Violation, match="became"):
        check_snapshots(writes, [SNAPSHOT], [SnapshotRead("s", K, b"a"), SnapshotRead("s", K, b"b")])


def test_a_history_checks_all_of_it() -> None:
    history = History([write(b"a", 1, 2, 1)], [read(b"a", 3, 4)], [SNAPSHOT], [SnapshotRead("s", K, b"a")])
    history.check()
    history.reads.append(read(None, 5, 6))
    with pytest.raises(Violation):
        history.check()


# --- the witness


class Standing:
    def __init__(self, name: str, *, holds: bool) -> None:
        self.name, self._holds = name, holds

    def holds(self, volume: VolumeId) -> bool:
        return self._holds


def test_one_run_for_an_epoch() -> None:
    witness = Witness()
    witness.claim(VOLUME, 2, "node 1")
    witness.claim(VOLUME, 3, "node 1")
    with pytest.raises(Violation, match="epoch 2 of volume 1 belongs to"):
        witness.claim(VOLUME, 2, "node 2")


def test_a_chunk_is_named_once() -> None:
    witness = Witness()
    witness.on_chunk_named(ChunkId(VOLUME, 1, 1))
    with pytest.raises(Violation, match="opened twice"):
        witness.on_chunk_named(ChunkId(VOLUME, 1, 1))


def test_one_holder_of_a_lease() -> None:
    witness = Witness()
    one, other = Standing("node 1", holds=True), Standing("node 2", holds=False)
    witness.holders = [one, other]
    witness.check_alone(VOLUME, one)
    with pytest.raises(Violation, match="node 2 serves volume 1 while node 1 may answer"):
        witness.check_alone(VOLUME, other)


REQUEST = RequestId(SessionId(5), 1)
PUT = PutRecord(REQUEST, 0, K, b"", 1, 0, ANY, True)
DELETE = DeleteRecord(REQUEST, 0, K, ANY)


def test_whoever_applies_a_sequence_applies_the_same() -> None:
    state, witness = VolumeState(VOLUME), Witness()
    witness.on_applied(state, PUT, 1, Written(1))
    witness.on_applied(state, PUT, 1, Written(1))
    with pytest.raises(Violation, match="sequence 1 was applied twice"):
        witness.on_applied(state, DELETE, 1, Written(1))
    with pytest.raises(Violation, match="sequence 3 follows 1"):
        witness.on_applied(state, DELETE, 3, Written(3))


def test_a_request_takes_effect_once() -> None:
    state, witness = VolumeState(VOLUME), Witness()
    witness.on_applied(state, PUT, 1, Written(1))
    witness.on_applied(state, PUT, 2, Written(1))  # recognised: the answer of the first time
    with pytest.raises(Violation, match="took effect at sequence 1 and at 3"):
        witness.on_applied(state, PUT, 3, Written(3))


def test_nothing_refers_to_what_is_dropped() -> None:
    state, witness, chunk = VolumeState(VOLUME), Witness(), ChunkId(VOLUME, 1, 2)
    witness.on_dropped(state, chunk)
    state.map.put(K, StoredVersion(1, b"", 5, 0, (Extent(chunk, 0, 5, 5, 0),)), 0)
    with pytest.raises(Violation, match="is deleted, and b'key'"):
        witness.on_dropped(state, chunk)


def test_what_is_sealed_stays() -> None:
    disk, chunk = DiskId(1), ChunkId(VOLUME, 1, 2)
    witness = Witness()
    witness.see_sealed(disk, [(chunk, 3, b"abc")])
    witness.see_sealed(disk, [(chunk, 3, b"abc")])
    with pytest.raises(Violation, match="was sealed at 3 and is 2 long"):
        witness.see_sealed(disk, [(chunk, 2, b"ab")])
    with pytest.raises(Violation, match="changed after it was sealed"):
        witness.see_sealed(disk, [(chunk, 3, b"abd")])
    witness.on_rot(disk, chunk)
    witness.see_sealed(disk, [(chunk, 3, b"abd")])  # we did that


def test_replicas_have_the_same_bytes_as_far_as_both_go() -> None:
    chunk, witness = ChunkId(VOLUME, 1, 2), Witness()
    witness.see_sealed(DiskId(1), [(chunk, 3, b"abc")])
    witness.see_sealed(DiskId(2), [(chunk, 2, b"ab")])
    witness.check_replicas(lambda _: True)
    witness.see_sealed(DiskId(3), [(chunk, 3, b"abd")])
    witness.check_replicas(lambda _: False)  # shards differ
    with pytest.raises(Violation, match="differs between disks"):
        witness.check_replicas(lambda _: True)


def test_one_leader_for_a_term_and_one_entry_for_an_index() -> None:
    witness = RaftWitness()
    witness.on_elected(3, NodeId(1))
    with pytest.raises(AssertionError, match="two leaders in term 3"):
        witness.on_elected(3, NodeId(2))
    witness.on_applied(Entry(1, 3, COMMAND, b"a"))
    with pytest.raises(AssertionError, match="two entries at index 1"):
        witness.on_applied(Entry(1, 3, COMMAND, b"b"))
