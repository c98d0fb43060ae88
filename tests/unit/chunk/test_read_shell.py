"""ChunkReader: the right bytes or a sentence, with whoever is left."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import combinations

import pytest

from blockstore.chunk.chunk_shell import ChunkReader, DataWriter, NodeTable
from blockstore.codec.messages import Extent, Placement
from blockstore.config import ATTEMPT_SECONDS
from blockstore.errors import Corrupt, DeadlineExceeded, InvalidRequest, QuorumLost
from blockstore.ids import ChunkId, KiB, MiB
from tests.unit.chunk.fake_nodes import FakeCluster, FakeNode, drive

DATA = random.Random(11).randbytes(5 * MiB + 777)


class Stored:
    """A value in a cluster, and a reader."""

    def __init__(self, k: int, m: int, data: bytes = DATA, n_nodes: int = 6) -> None:
        self.cluster = FakeCluster(n_nodes, blocking=True)
        self.nodes = NodeTable()
        self.nodes.update(self.cluster.view())
        writer = DataWriter(self.cluster, self.nodes, self.cluster.granter(k, m, 64 * MiB), random.Random(1))
        self.data = data
        self.extents = drive(writer.write(data, 60.0))
        self.reader = ChunkReader(self.cluster, self.nodes, random.Random(2))
        for node in self.cluster.nodes.values():
            node.n_messages = 0

    @property
    def placements(self) -> Mapping[ChunkId, Placement]:
        return self.cluster.placements

    def read(self, start: int = 0, end: int = -1, seconds: float = 10.0) -> bytes:
        end = len(self.data) if end < 0 else end
        deadline = self.cluster.now() + seconds
        result = drive(self.reader.read(self.extents, self.placements, start, end, deadline))
        assert self.cluster.n_given_back == self.cluster.n_payloads
        return result

    def node(self, number: int) -> FakeNode:
        return self.cluster.nodes[number]

    def n_messages(self) -> int:
        return sum(node.n_messages for node in self.cluster.nodes.values())


RANGES = [(0, 0), (0, 1), (0, 5 * MiB + 777), (4 * MiB - 1, 4 * MiB + 1), (MiB - 5, MiB + 5), (MiB, 2 * MiB),
          (100, 3 * MiB), (5 * MiB, 5 * MiB + 777), (4 * MiB, 5 * MiB + 777)]  # fmt: skip


@pytest.mark.parametrize(("k", "m"), [(1, 0), (1, 2), (2, 1), (4, 2)])
def test_any_range_is_read(k: int, m: int) -> None:
    stored = Stored(k, m)
    for start, end in RANGES:
        assert stored.read(start, end) == DATA[start:end]


@pytest.mark.parametrize("bad", ["is_dead", "is_paused", "rotten", "lost"])
@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 1), (4, 2)])
def test_as_many_members_as_promised_may_be_bad(k: int, m: int, bad: str) -> None:
    for lost in combinations(range(1, k + m + 1), m):
        stored = Stored(k, m, DATA[: MiB + 1000])
        for number in lost:
            spoil(stored.node(number), bad)
        for start, end in [(0, MiB + 1000), (0, 100), (MiB // 2 - 7, MiB // 2 + 7), (MiB, MiB + 1000)]:
            assert stored.read(start, end) == DATA[start:end], (lost, start, end)


def spoil(node: FakeNode, how: str) -> None:
    if how == "lost":
        node.fragments.clear()
    elif how == "rotten":
        for fragment in node.fragments.values():
            fragment.rotten = True
    elif how == "misplaced":
        for fragment in node.fragments.values():
            fragment.misplaced = True
    else:
        setattr(node, how, True)


@pytest.mark.parametrize(("k", "m"), [(1, 2), (3, 2), (4, 2)])
def test_a_node_that_returns_other_bytes_is_found_out(k: int, m: int) -> None:
    """Its own checksum fits them; the extent's does not."""
    for liar in range(1, k + m + 1):
        stored = Stored(k, m, DATA[: 40 * KiB])
        spoil(stored.node(liar), "misplaced")
        assert stored.read() == stored.data


def test_one_lies_and_one_is_gone() -> None:
    stored = Stored(4, 3, DATA[: 40 * KiB], n_nodes=7)
    spoil(stored.node(2), "misplaced")
    spoil(stored.node(4), "is_dead")
    assert stored.read() == stored.data


@pytest.mark.parametrize(("k", "m"), [(1, 2), (4, 2)])
def test_wrong_bytes_are_never_returned(k: int, m: int) -> None:
    stored = Stored(k, m, DATA[: 40 * KiB])
    for number in range(1, k + m + 1):
        spoil(stored.node(number), "misplaced")
    with pytest.raises(Corrupt, match=str(stored.extents[0].chunk)):
        stored.read()


@pytest.mark.parametrize(("k", "m"), [(1, 2), (4, 2)])
def test_rot_everywhere_is_said_to_be_rot(k: int, m: int) -> None:
    stored = Stored(k, m, DATA[: 40 * KiB])
    for number in range(1, k + m + 1):
        spoil(stored.node(number), "rotten")
    with pytest.raises(Corrupt, match=str(stored.extents[0].chunk)):
        stored.read()


@pytest.mark.parametrize(("k", "m"), [(1, 2), (4, 2)])
def test_too_few_members_is_something_to_retry(k: int, m: int) -> None:
    stored = Stored(k, m, DATA[: 40 * KiB])
    for number in range(1, m + 2):
        spoil(stored.node(number), "is_dead")
    with pytest.raises(QuorumLost) as lost:
        stored.read()
    assert lost.value.fields[1:] == (k - 1, k)


def test_a_hole_in_the_placement_is_read_around() -> None:
    stored = Stored(4, 2, DATA[: 100 * KiB], n_nodes=5)
    assert stored.placements[stored.extents[0].chunk].disks[5] == 0
    spoil(stored.node(2), "is_dead")
    assert stored.read() == stored.data


def test_a_slow_member_is_hedged() -> None:
    stored = Stored(1, 2, DATA[:MiB])
    for _ in range(40):
        stored.read()
    (asked,) = [node for node in stored.cluster.nodes.values() if node.n_messages]
    assert asked.n_messages == 40, "who has little to do is asked by one client always"
    asked.delay = 3.0
    started = stored.cluster.now()
    for _ in range(20):
        assert stored.read() == stored.data
    assert stored.cluster.now() - started < 20 * 0.02


def test_hedging_stops_when_everything_is_slow() -> None:
    stored = Stored(1, 2, DATA[:MiB])
    for node in stored.cluster.nodes.values():
        node.delay = 1.0
    for _ in range(100):
        stored.read()
    assert stored.n_messages() < 100 + 20 + 15 + 10


def test_a_healthy_stripe_needs_only_its_data_shards() -> None:
    stored = Stored(4, 2, DATA[: 4 * MiB])
    assert stored.read() == stored.data
    assert [stored.node(number).n_messages for number in range(1, 7)] == [1, 1, 1, 1, 0, 0]
    assert stored.read(10, 20) == stored.data[10:20]
    assert stored.n_messages() == 5


def test_one_lost_shard_costs_one_more_range() -> None:
    stored = Stored(4, 2, DATA[: 4 * MiB])
    spoil(stored.node(2), "lost")
    assert stored.read() == stored.data
    assert stored.n_messages() == 5
    assert stored.read(MiB + 100, MiB + 300) == stored.data[MiB + 100 : MiB + 300]
    asked = {one for number in (1, 3, 4, 5, 6) for one in stored.node(number).asked if one[2] == 200}
    assert asked == {(stored.extents[0].chunk, 100, 200)}, "only the range is read of the others"


def test_read_many_sends_one_message_to_each_node() -> None:
    stored = Stored(1, 2, DATA[:1])
    values = [random.Random(n).randbytes(n * 37 % 5_000 + 1) for n in range(300)]
    writer = DataWriter(
        stored.cluster, stored.nodes, stored.cluster.granter(1, 2, 64 * MiB), random.Random(1)
    )
    extents = [drive(writer.write(value, 60.0)) for value in values]
    for node in stored.cluster.nodes.values():
        node.n_messages = 0
    wants = [(one, stored.placements, 0, len(value)) for one, value in zip(extents, values, strict=True)]
    wants.insert(7, (extents[3], stored.placements, 1, 3))
    result = drive(stored.reader.read_many(wants, stored.cluster.now() + 10))
    assert result.pop(7) == values[3][1:3]
    assert result == values
    assert [stored.node(n).n_messages for n in (1, 2, 3)] == [1, 1, 1]
    spoil(stored.node(2), "is_dead")
    result = drive(stored.reader.read_many(wants, stored.cluster.now() + 10))
    assert result.pop(7) == values[3][1:3]
    assert result == values


def test_large_reads_are_asked_for_in_bounded_messages() -> None:
    data = random.Random(3).randbytes(40 * MiB)
    stored = Stored(1, 0, data, n_nodes=1)
    assert stored.read() == data
    assert stored.n_messages() == 10


def test_the_node_that_control_calls_dead_is_asked_last() -> None:
    stored = Stored(1, 2, DATA[:MiB])
    spoil(stored.node(1), "is_paused")
    stored.nodes.update(stored.cluster.view(dead=[1]))
    for _ in range(10):
        started = stored.cluster.now()
        assert stored.read() == stored.data
        assert stored.cluster.now() - started < 0.01
    ec = Stored(4, 2, DATA[:MiB])
    spoil(ec.node(1), "is_paused")
    ec.nodes.update(ec.cluster.view(dead=[1]))
    started = ec.cluster.now()
    assert ec.read() == ec.data
    assert ec.cluster.now() - started < 0.01


def test_nobody_answers_until_the_deadline() -> None:
    stored = Stored(1, 2, DATA[:MiB])
    for number in (1, 2, 3):
        spoil(stored.node(number), "is_paused")
    started = stored.cluster.now()
    with pytest.raises(DeadlineExceeded, match=str(stored.extents[0].chunk)):
        stored.read(seconds=ATTEMPT_SECONDS / 2)
    assert stored.cluster.now() - started == pytest.approx(ATTEMPT_SECONDS / 2)


def test_a_range_past_the_end_is_refused() -> None:
    stored = Stored(1, 2, DATA[:100])
    with pytest.raises(InvalidRequest):
        stored.read(50, 101)


def test_the_nearest_is_asked_first() -> None:
    stored = Stored(1, 2, DATA[:1000])
    near = NodeTable("host-2")
    near.update(stored.cluster.view())
    reader = ChunkReader(stored.cluster, near, random.Random(1))
    for _ in range(5):
        extents: tuple[Extent, ...] = stored.extents
        assert (
            drive(reader.read(extents, stored.placements, 0, 1000, stored.cluster.now() + 5)) == stored.data
        )
    assert stored.node(2).n_messages == 5
