"""Frames: whatever is spelled comes back, and whatever arrives is either a message or refused by name."""

from __future__ import annotations

import typing

import msgspec
import pytest
from fastcrc import crc32
from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.codec import messages
from blockstore.codec.frame import PREFIX_BYTES, BusWire, FrameWire
from blockstore.errors import BlockStoreError, Busy, OffsetMismatch, ProtocolViolation, UnknownFormat
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import ANSWER, CLOSING, HELLO, REQUEST, Message, Prefix
from tests.frame_feed import feed

WIRE = FrameWire()
BUS = BusWire()

u32 = st.integers(0, 0xFFFF_FFFF)
chunks = st.builds(ChunkId, st.integers(1, 99).map(VolumeId), st.integers(0, 2**40), st.integers(0, 2**40))
disks = st.integers(0, 2**31).map(DiskId)
placements = st.builds(
    messages.Placement, st.integers(1, 8), st.integers(0, 4), st.lists(disks, max_size=12).map(tuple)
)
extents = st.builds(messages.Extent, chunks, u32, u32, u32, u32)
operations = st.one_of(
    st.builds(messages.Put, st.binary(), st.binary(), u32, u32, st.lists(extents, max_size=3).map(tuple)),
    st.builds(messages.Delete, st.binary()),
    st.builds(messages.Lookup, st.binary()),
    st.builds(messages.Grant, st.lists(st.tuples(chunks, u32), max_size=3).map(tuple)),
)
some_messages: st.SearchStrategy[Message] = st.one_of(
    st.just(messages.Ok()),
    st.just(messages.Ping()),
    st.builds(messages.AppendFragment, disks, chunks, u32, u32, u32),
    st.builds(messages.FragmentData, st.lists(u32).map(tuple)),
    st.builds(messages.Granted, chunks, u32, placements, u32),
    st.builds(messages.View, st.text(), u32, u32, st.just(()), st.none()),
    st.builds(
        messages.VolumeCall,
        st.just(VolumeId(1)),
        u32,
        st.builds(RequestId, st.integers(0, 2**64 - 1).map(SessionId), u32),
        u32,
        operations,
    ),
)


@given(st.sampled_from((REQUEST, ANSWER)), u32, some_messages, st.integers(0, 8 << 20), u32)
def test_a_frame_comes_back(
    kind: int, call_id: int, message: Message, payload_bytes: int, budget: int
) -> None:
    frame = WIRE.encode(kind, call_id, message, payload_bytes, budget)
    prefix = WIRE.parse_prefix(frame)
    assert prefix[:5] == (kind, call_id, len(frame) - PREFIX_BYTES, payload_bytes, budget)
    assert WIRE.decode(prefix, frame[PREFIX_BYTES:]) == message


@given(st.binary(min_size=PREFIX_BYTES, max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((ProtocolViolation, UnknownFormat)):
        WIRE.parse_prefix(data)


@given(st.binary(max_size=300), st.sampled_from((REQUEST, ANSWER, HELLO, CLOSING)))
def test_any_header_is_a_message_or_refused(header: bytes, kind: int) -> None:
    prefix = Prefix(kind, 1, len(header), 0, 0, crc32.iscsi(header))
    try:
        message = WIRE.decode(prefix, header)
    except ProtocolViolation:
        return
    assert type(message) in typing.get_args(messages.WireMessage)


@given(
    st.recursive(
        st.none() | st.integers(-5, 100) | st.text(max_size=3) | st.binary(max_size=3) | st.floats(),
        lambda inner: st.lists(inner, max_size=6),
    )
)
def test_any_array_is_a_message_or_refused(value: object) -> None:
    header = msgspec.msgpack.encode(value)
    try:
        WIRE.decode(Prefix(REQUEST, 1, len(header), 0, 0, crc32.iscsi(header)), header)
    except ProtocolViolation:
        return


@given(some_messages, st.data())
def test_a_flipped_bit_is_found(message: Message, data: st.DataObject) -> None:
    frame = bytearray(WIRE.encode(REQUEST, 5, message, 0, 9))
    bit = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ProtocolViolation, UnknownFormat)):
        WIRE.decode(WIRE.parse_prefix(frame), memoryview(frame)[PREFIX_BYTES:])


@given(st.sampled_from([Busy("the queue"), OffsetMismatch(17), BlockStoreError("a", 1)]))
def test_an_error_comes_back(error: BlockStoreError) -> None:
    again = WIRE.error_of(WIRE.failed(error))
    assert again is not None
    assert type(again) is type(error)
    assert again.fields == error.fields


@given(st.binary(max_size=100))
def test_random_bus_messages_are_refused(data: bytes) -> None:
    with pytest.raises((ProtocolViolation, UnknownFormat)):
        BUS.decode_bus(data)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(some_messages, st.sampled_from([0, 1, 100, 16_384, 16_385, 70_000, 200_000])), max_size=8
    ),
    st.data(),
)
def test_frames_come_out_of_a_stream_however_it_is_cut(
    frames: list[tuple[Message, int]], data: st.DataObject
) -> None:
    """The model is the list itself; the inbox sees the stream in pieces of any size."""
    stream = b"".join(
        WIRE.encode(REQUEST, number, message, size, 0) + bytes([number]) * size
        for number, (message, size) in enumerate(frames)
    )
    piece_sizes = data.draw(st.lists(st.integers(1, 100_000), min_size=1, max_size=20))
    found = feed(WIRE, stream, [*piece_sizes, 50_000])  # the last keeps a run short
    assert found == [
        (number, message, bytes([number]) * size) for number, (message, size) in enumerate(frames)
    ]
