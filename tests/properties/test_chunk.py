"""Chunks against models: the arithmetic of stripes, reads under every kind of failure, what a writer may
claim."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from blockstore.chunk.reader import Ask, Member, extent_read
from blockstore.chunk.striping import data_shards, parts_of, unit_of, used_bytes
from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.checksum import crc32c
from blockstore.codec.erasure import erasure_code
from blockstore.codec.messages import Extent, Placement
from blockstore.errors import BlockStoreError, ConnectionLost, Corrupt, FragmentFull, QuorumLost
from blockstore.ids import ChunkId, DiskId, VolumeId

CHUNK = ChunkId(VolumeId(1), 1, 1)


@st.composite
def ranges(draw: st.DrawFn, length_max: int = 3_000) -> tuple[bytes, int, int]:
    length = draw(st.integers(1, length_max))
    start = draw(st.one_of(st.just(0), st.integers(0, length - 1)))
    end = draw(st.one_of(st.just(length), st.integers(start + 1, length)))
    return random.Random(draw(st.integers(0, 1_000))).randbytes(length), start, end


@given(ranges(), st.integers(2, 7))
def test_the_parts_of_a_range_are_the_range(value: tuple[bytes, int, int], k: int) -> None:
    data, start, end = value
    unit = unit_of(len(data), k)
    shards = data_shards(memoryview(data), k, unit)
    extent = Extent(CHUNK, 0, len(data), unit, 0)
    assert all(len(shard) == unit for shard in shards)
    assert b"".join(shards) == data.ljust(k * unit, b"\0")
    assert (
        b"".join(shards[part.shard_index][part.start : part.end] for part in parts_of(extent, start, end))
        == (data[start:end])
    )
    assert sum(used_bytes(extent, shard) for shard in range(k)) == len(data)


@given(
    ranges(),
    st.sampled_from([(1, 0), (1, 2), (2, 1), (4, 2), (3, 3)]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=500, deadline=None)
def test_a_read_gives_the_right_bytes_while_k_members_are_right(
    value: tuple[bytes, int, int], code: tuple[int, int], shares: bool, data: st.DataObject
) -> None:
    """Members fail, rot, lie about a whole extent, hang for ever and answer in any order. The value has a
    stripe of its own, or shares one with others."""
    content, start, end = value
    k, m = code
    unit = unit_of(len(content), k)
    shards: list[bytes] = [content] * (m + 1)
    shard = -1
    if k > 1:
        plain = [bytes(part) for part in data_shards(memoryview(content), k, unit)]
        if shares:
            unit, shard = len(content), data.draw(st.integers(0, k - 1))
            plain = [random.Random(other).randbytes(unit) for other in range(k)]
            plain[shard] = content
        shards = [*plain, *(bytes(parity) for parity in erasure_code(k, m).encode(plain))]
    extent = Extent(CHUNK, 0, len(content), unit, crc32c(content), shard)
    is_whole = (start, end) == (0, len(content))

    behaviours = ["hole", "fails", "rots", "garbles", "hangs"]
    bad = data.draw(st.dictionaries(st.integers(0, k + m - 1), st.sampled_from(behaviours), max_size=m + 1))
    # A liar is found out by the whole's checksum; in a stripe that takes a shard more than there is to lose.
    if is_whole and len(bad) < (m if k == 1 else m - 1) and data.draw(st.booleans()):
        bad[data.draw(st.integers(0, k + m - 1))] = "lies"
    disks = tuple(DiskId(0 if bad.get(shard) == "hole" else shard + 1) for shard in range(k + m))
    read = extent_read(extent, Placement(k, m, disks), start, end)
    unsound = data.draw(st.sets(st.integers(1, k + m)))

    def in_order(members: list[Member]) -> list[Member]:
        return data.draw(st.permutations(members))

    def is_sound(disk: DiskId) -> bool:
        return disk not in unsound

    under_way = read.next_asks(False, in_order, is_sound)
    failure: BlockStoreError | None = None
    while read.result is None:
        answerable = [ask for ask in under_way if bad.get(ask.shard_index) != "hangs"]
        if answerable and not data.draw(st.booleans()):
            ask = data.draw(st.sampled_from(answerable))
            under_way.remove(ask)
            answer(ask, bad.get(ask.shard_index, "right"), shards)
            more = read.next_asks(False, in_order, is_sound) if read.result is None else []
        else:
            more = read.next_asks(True, in_order, is_sound)
            if not more and not answerable and read.result is None:
                for ask in under_way:  # their time is up
                    read.on_failed(ask, ConnectionLost("hung up"))
                under_way.clear()
                more = read.next_asks(False, in_order, is_sound)
        under_way += more
        if read.result is None and read.is_stuck:
            failure = read.failure()
            break
    if failure is None:
        assert read.result is not None
        assert b"".join(read.result) == content[start:end]
    else:
        assert len(bad) > m
        assert isinstance(failure, (Corrupt, QuorumLost))


def answer(ask: Ask, behaviour: str, shards: list[bytes]) -> None:
    part = shards[ask.shard_index][ask.start : ask.end]
    if behaviour == "fails":
        ask.read.on_failed(ask, ConnectionLost("hung up"))
    elif behaviour == "rots":
        ask.read.on_failed(ask, Corrupt("a fragment", "a disk"))
    elif behaviour == "garbles":
        ask.read.on_data(ask, memoryview(part[:-1] + bytes([part[-1] ^ 1])), crc32c(part))
    elif behaviour == "lies":
        other = bytes(byte ^ 0x33 for byte in part)
        ask.read.on_data(ask, memoryview(other), crc32c(other))
    else:
        ask.read.on_data(ask, memoryview(part), crc32c(part))


class WriterMachine(RuleBasedStateMachine):
    """The model is what each member's disk holds; acknowledgements arrive late, twice and out of order."""

    CAPACITY = 1_000

    def __init__(self) -> None:
        super().__init__()
        self.core = ChunkWriter(
            CHUNK, 1, Placement(1, 3, (DiskId(1), DiskId(0), DiskId(3), DiskId(4))), self.CAPACITY
        )
        self.sent = 0
        self.disks = {0: 0, 2: 0, 3: 0}
        self.told = {0: 0, 2: 0, 3: 0}
        self.now = 0.0
        self.at_the_end: int | None = None

    @precondition(lambda self: not self.core.broken)
    @rule(size=st.integers(1, 400), pause=st.floats(0, 2))
    def send(self, size: int, pause: float) -> None:
        self.now += pause
        try:
            assert self.core.reserve(size, self.now) == self.sent
            self.sent += size
        except FragmentFull:
            assert self.sent + size > self.CAPACITY

    @rule(member=st.sampled_from([0, 2, 3]), data=st.data())
    def write_and_acknowledge(self, member: int, data: st.DataObject) -> None:
        self.disks[member] = data.draw(st.integers(self.disks[member], self.sent))
        acknowledged = data.draw(st.integers(0, self.disks[member]))
        self.core.on_ack(member, acknowledged)
        if not self.core.broken:
            self.told[member] = max(self.told[member], acknowledged)

    @rule(member=st.sampled_from([0, 2, 3]))
    def fail(self, member: int) -> None:
        self.core.on_failure(member)
        self.at_the_end = self.core.acknowledged if self.at_the_end is None else self.at_the_end

    @invariant()
    def acknowledged_is_on_every_disk(self) -> None:
        assert all(held >= self.core.acknowledged for held in self.disks.values())
        assert self.core.acknowledged == min(self.told.values())

    @invariant()
    def an_ended_chunk_stays_as_it_is(self) -> None:
        assert self.at_the_end is None or self.core.acknowledged == self.at_the_end

    @invariant()
    def the_late_are_behind(self) -> None:
        late = {member for member, _ in self.core.late(self.now + 10)}
        assert late <= {member for member in self.told if self.told[member] < self.sent}
        if not self.core.broken and min(self.told.values()) < self.sent:
            assert late


TestWriter = WriterMachine.TestCase
TestWriter.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
