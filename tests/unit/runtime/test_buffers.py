from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockstore.config import FRAME_PAYLOAD_BYTES_MAX
from blockstore.runtime.buffers import BufferPool, size_class


@given(st.integers(1, FRAME_PAYLOAD_BYTES_MAX))
def test_a_class_holds_what_it_is_for_and_at_most_a_quarter_more(length: int) -> None:
    size = size_class(length)
    assert size >= length
    assert size % 4096 == 0
    assert size <= max(16 * 1024, length * 5 // 4 + 4096)
    assert size_class(size) == size


def test_there_are_few_classes() -> None:
    assert len({size_class(length) for length in range(1, FRAME_PAYLOAD_BYTES_MAX, 1000)}) <= 40


def test_a_released_buffer_is_used_again() -> None:
    pool = BufferPool()
    first = pool.take(100_000)
    first.view[:] = b"x" * 100_000
    first.release()
    first.release()  # again: nothing happens
    assert len(first) == 0
    again, fresh = pool.take(99_999), pool.take(99_999)
    assert bytes(again.view[:5]) == b"xxxxx"
    assert bytes(fresh.view[:5]) == bytes(5)


def test_idle_buffers_are_bounded() -> None:
    pool = BufferPool(idle_bytes_max=1 << 20)
    payloads = [pool.take(300_000) for _ in range(10)]
    for payload in payloads:
        payload.release()
    assert 0 < pool.idle_bytes <= 1 << 20
