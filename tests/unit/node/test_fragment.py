"""What an append writes."""

from __future__ import annotations

import pytest

from blockstore.codec.checksum import crc32c
from blockstore.codec.fragment_file import DATA_START, Header, State
from blockstore.codec.messages import FragmentSpec
from blockstore.ids import ChunkId, DiskId, KiB, MiB, VolumeId
from blockstore.node.fragment import PREPARED_APPEND_BYTES_MAX, PREPARED_BYTES, Fragment

CHUNK = ChunkId(VolumeId(1), 1, 1)
CAPACITY = 1 * MiB + 100


def new_fragment(tenancy: int) -> Fragment:
    free = Header(State.FREE, 1, DiskId(1), 5, tenancy, 2 * MiB)
    return Fragment.create(CHUNK, FragmentSpec(0, 1, 2, CAPACITY), free)


def append(fragment: Fragment, n_bytes: int) -> tuple[int, int, bytes]:
    """From where to where the data's write goes, and its bytes."""
    data = b"x" * n_bytes
    pending = fragment.append(fragment.length, memoryview(data), crc32c(data))
    assert pending is not None
    write = pending.writes[-1]
    content = b"".join(write.buffers)
    start = write.offset - DATA_START
    assert start == pending.offset
    return start, start + len(content), content


def test_small_appends_to_a_new_file_are_written_ahead_of_now_and_then() -> None:
    fragment = new_fragment(0)
    image = bytearray(CAPACITY)
    n_ahead = 0
    while fragment.length + 4_300 <= CAPACITY:
        start, end, content = append(fragment, 4_300)
        image[start:end] = content
        n_ahead += end > fragment.length
        assert end in (fragment.length, min(-(-fragment.length // PREPARED_BYTES) * PREPARED_BYTES, CAPACITY))
        assert image == b"x" * fragment.length + bytes(CAPACITY - fragment.length)
    assert n_ahead == CAPACITY // PREPARED_BYTES


@pytest.mark.parametrize(("tenancy", "n_bytes"), [(1, 4 * KiB), (0, PREPARED_APPEND_BYTES_MAX + 1)])
def test_nothing_is_written_ahead_of_large_ones_or_in_a_file_used_before(tenancy: int, n_bytes: int) -> None:
    fragment = new_fragment(tenancy)
    for _ in range(5):
        _, end, _ = append(fragment, n_bytes)
        assert end == fragment.length
