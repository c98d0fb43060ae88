"""Recovery of a fragment, against a model that knows what was written and what was damaged."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.codec.checksum import crc32c
from blockstore.codec.fragment_file import DATA_START, LOG_START, RECORD_BYTES, Header, State
from blockstore.codec.messages import FragmentSpec
from blockstore.config import FRAGMENT_LOG_BYTES, PIECE_BYTES
from blockstore.errors import Corrupt
from blockstore.ids import ChunkId, DiskId, KiB, MiB, VolumeId
from blockstore.node.fragment import Fragment, Pending
from blockstore.node.recovery import judge, scan_log

FREE = Header(State.FREE, 1, DiskId(1), 5, 0, MiB)
SPEC = FragmentSpec(2, 4, 2, MiB)
STREAM = Random(1).randbytes(MiB)

batches = st.lists(
    st.lists(st.sampled_from([1, 31, 512, 4096, PIECE_BYTES, 40 * KiB]), min_size=1, max_size=3),
    min_size=1,
    max_size=5,
)


class Model:
    """A fragment's file, and of each append where it lies."""

    def __init__(self, lengths: list[list[int]], tenant: int = 1) -> None:
        self.chunk = ChunkId(VolumeId(1), 1, tenant)
        self.fragment = Fragment.create(self.chunk, SPEC, FREE)
        self.file = bytearray(LOG_START + FRAGMENT_LOG_BYTES + MiB)
        self.ends = [0]
        for batch in lengths:
            self.durable_before_last = self.ends[-1]
            pendings = [self.append(length) for length in batch]
            for pending in pendings:
                self.fragment.on_durable(pending)

    def append(self, length: int) -> Pending:
        offset = self.ends[-1]
        data = memoryview(STREAM)[offset : offset + length]
        pending = self.fragment.append(offset, data, crc32c(data))
        assert pending is not None
        for write in pending.writes:
            content = b"".join(write.buffers)
            self.file[write.offset : write.offset + len(content)] = content
        self.ends.append(offset + length)
        return pending

    @property
    def n_records(self) -> int:
        index = self.fragment.index
        assert index is not None
        return len(index.ends)

    def recover(self) -> Fragment:
        header = self.fragment.header
        scan = scan_log(header, self.file[LOG_START : LOG_START + FRAGMENT_LOG_BYTES])
        start, end = scan.tail
        verdict = judge(header, scan, memoryview(self.file)[DATA_START + start : DATA_START + end])
        return Fragment.recovered(header, scan.index, verdict)

    def sound_ranges(self, fragment: Fragment) -> list[tuple[int, int]]:
        """Each piece that can be read; what is read must be what was written."""
        index = fragment.index
        assert index is not None
        found = list[tuple[int, int]]()
        start = 0
        for end in index.ends:
            try:
                span = fragment.find(start, end - start)
                data = memoryview(self.file)[DATA_START + span.start : DATA_START + span.end]
                fragment.verify(span, data)
            except Corrupt:
                pass
            else:
                assert data == STREAM[start:end]
                found.append((start, end))
            start = end
        return found


@given(batches)
@settings(max_examples=30, deadline=None)
def test_what_is_whole_is_found_whole(lengths: list[list[int]]) -> None:
    model = Model(lengths)
    fragment = model.recover()
    assert (fragment.length, fragment.doubtful, fragment.damaged) == (model.ends[-1], False, False)
    assert sum(end - start for start, end in model.sound_ranges(fragment)) == model.ends[-1]


@given(batches, st.data())
@settings(max_examples=60, deadline=None)
def test_damage_is_cut_above_what_was_synced_and_named_below(
    lengths: list[list[int]], data: st.DataObject
) -> None:
    model = Model(lengths)
    in_log = data.draw(st.booleans())
    if in_log:
        at = LOG_START + data.draw(st.integers(0, model.n_records * RECORD_BYTES - 1))
    else:
        at = DATA_START + data.draw(st.integers(0, model.ends[-1] - 1))
    model.file[at] ^= 1 << data.draw(st.integers(0, 7))
    fragment = model.recover()
    synced = model.durable_before_last
    assert fragment.length in model.ends
    assert fragment.length >= synced, "nothing that was acknowledged and followed by another batch is cut"
    sound = model.sound_ranges(fragment)
    hurt = fragment.length - sum(end - start for start, end in sound)
    assert hurt <= PIECE_BYTES, "one flipped bit costs one piece"
    if fragment.length < model.ends[-1]:
        assert fragment.doubtful
    if in_log and hurt:
        assert fragment.damaged


@given(batches, st.data())
@settings(max_examples=40, deadline=None)
def test_any_loss_of_sectors_of_the_last_batch_cuts_to_a_whole_append(
    lengths: list[list[int]], data: st.DataObject
) -> None:
    model = Model(lengths)
    before = Model(lengths[:-1]).file if len(lengths) > 1 else bytearray(len(model.file))
    changed = [
        sector
        for sector in range(0, len(model.file), 512)
        if sector >= LOG_START and model.file[sector : sector + 512] != before[sector : sector + 512]
    ]
    for sector in changed:
        if data.draw(st.booleans()):
            model.file[sector : sector + 512] = before[sector : sector + 512]
    fragment = model.recover()
    assert fragment.length in model.ends
    assert fragment.length >= model.durable_before_last
    assert not fragment.damaged
    assert sum(end - start for start, end in model.sound_ranges(fragment)) == fragment.length


@given(batches, batches)
@settings(max_examples=30, deadline=None)
def test_an_earlier_tenant_of_the_slot_is_never_seen(old: list[list[int]], new: list[list[int]]) -> None:
    earlier = Model(old, tenant=1)
    free = earlier.fragment.free()
    later = Model(new, tenant=2)
    later.fragment = Fragment.create(later.chunk, SPEC, free)
    later.file[:] = earlier.file
    later.ends = [0]
    for batch in new:
        later.durable_before_last = later.ends[-1]
        for pending in [later.append(length) for length in batch]:
            later.fragment.on_durable(pending)
    fragment = later.recover()
    assert (fragment.length, fragment.doubtful, fragment.damaged) == (later.ends[-1], False, False)
