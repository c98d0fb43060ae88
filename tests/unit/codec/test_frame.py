"""Frames and bus messages: the examples of what is spelled how, and what is refused with which words."""

from __future__ import annotations

import struct

import msgspec
import pytest
from fastcrc import crc32

from blockstore.codec.frame import FRAME_VERSION, PREFIX_BYTES, BusWire, FrameWire
from blockstore.codec.messages import (
    Failed,
    Hello,
    LeaseGranted,
    Ok,
    Ping,
    Put,
    RaftEnvelope,
    VolumeCall,
)
from blockstore.config import FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX
from blockstore.errors import BlockStoreError, InvalidRequest, NotOwner, ProtocolViolation, UnknownFormat
from blockstore.ids import RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import ANSWER, CLOSING, HELLO, REQUEST, Message, Prefix

WIRE = FrameWire()


def parse(frame: bytes) -> tuple[Prefix, Message]:
    prefix = WIRE.parse_prefix(frame)
    return prefix, WIRE.decode(prefix, frame[PREFIX_BYTES : PREFIX_BYTES + prefix.header_bytes])


def prefix_of(
    kind: int = REQUEST,
    header_bytes: int = 2,
    payload_bytes: int = 0,
    magic: bytes = b"bsl",
    version: int = FRAME_VERSION,
) -> bytes:
    """Spelled here once more, by the table in the module's docstring."""
    checked = struct.pack(
        "<3sBB3xIIIII", magic, version, kind, 7, header_bytes, payload_bytes, 1000, crc32.iscsi(b"hh")
    )
    return checked + struct.pack("<I", crc32.iscsi(checked))


def frame_of(header: bytes, kind: int = REQUEST) -> bytes:
    checked = struct.pack("<3sBB3xIIIII", b"bsl", 1, kind, 7, len(header), 0, 1000, crc32.iscsi(header))
    return checked + struct.pack("<I", crc32.iscsi(checked)) + header


def test_a_frame_is_spelled_as_documented() -> None:
    frame = WIRE.encode(REQUEST, 7, Ping(), 5, 1000)
    header = msgspec.msgpack.encode([4])
    assert (
        frame
        == struct.pack("<3sBB3xIIIII", b"bsl", 1, 1, 7, len(header), 5, 1000, crc32.iscsi(header))
        + struct.pack("<I", crc32.iscsi(frame[:28]))
        + header
    )
    assert parse(frame) == (Prefix(REQUEST, 7, len(header), 5, 1000, crc32.iscsi(header)), Ping())


def test_a_prefix_is_found_at_an_offset_of_any_buffer() -> None:
    frame = WIRE.encode(ANSWER, 9, Ok(), 0, 0)
    for buffer in (b"xyz" + frame, bytearray(b"xyz" + frame), memoryview(b"xyz" + frame)):
        assert WIRE.parse_prefix(buffer, 3).call_id == 9


def test_errors_cross_as_types_with_fields() -> None:
    error = NotOwner(3, 2, 17)
    _, message = parse(WIRE.encode(ANSWER, 1, WIRE.failed(error), 0, 0))
    again = WIRE.error_of(message)
    assert type(again) is NotOwner
    assert again.fields == (3, 2, 17)
    assert WIRE.error_of(Ok()) is None


def test_the_answer_to_a_hello_is_ok() -> None:
    assert WIRE.hello_answer() == Ok()


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (prefix_of(header_bytes=0xFFFF_FFFF), "header of 4294967295 bytes"),
        (prefix_of(header_bytes=FRAME_HEADER_BYTES_MAX + 1), "header of 1048577 bytes"),
        (prefix_of(payload_bytes=0xFFFF_FFFF), "payload of 4294967295 bytes"),
        (prefix_of(payload_bytes=FRAME_PAYLOAD_BYTES_MAX + 1), "payload of 8388609 bytes"),
        (prefix_of(kind=0), "unknown kind 0"),
        (prefix_of(kind=5), "unknown kind 5"),
        (b"GET / HTTP/1.1\r\nHost: localhost:7440\r\n\r\n", "begins with b'GET '"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), "not this protocol"),
        (bytes(32), "not this protocol"),
    ],
)
def test_a_bad_prefix_is_refused_in_words(prefix: bytes, words: str) -> None:
    with pytest.raises(ProtocolViolation, match=words):
        WIRE.parse_prefix(prefix)


def test_another_version_is_refused_as_such() -> None:
    with pytest.raises(UnknownFormat, match="format version 2"):
        WIRE.parse_prefix(prefix_of(version=2))


def test_the_largest_lengths_allowed_are_believed() -> None:
    prefix = WIRE.parse_prefix(
        prefix_of(header_bytes=FRAME_HEADER_BYTES_MAX, payload_bytes=FRAME_PAYLOAD_BYTES_MAX)
    )
    assert prefix.payload_bytes == FRAME_PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("bit", range(8 * len(WIRE.encode(REQUEST, 1, Hello("me", "1"), 0, 1000))))
def test_every_flipped_bit_is_found(bit: int) -> None:
    damaged = bytearray(WIRE.encode(REQUEST, 1, Hello("me", "1"), 0, 1000))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ProtocolViolation, UnknownFormat)):
        parse(bytes(damaged))


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x91\xcc\xfa",  # a tag that there is not
        b"\x91\x5a",  # a bus message's tag
        b"\x90",
        b"\xc0",
        b"\x81\x01\x02",
        b"\x91\x01\xc0",  # something behind it
        b"\x92\x0d\xdd\xff\xff\xff\xff",  # 2^32 ranges
        b"\xdd\xff\xff\xff\xff\x01",
        b"\x93\x03\xa2\xff\xfe\xa1x",  # not UTF-8
        b"\x93\x03\x01\x02",  # numbers for strings
        b"\x92\x01" + b"\x91" * 100_000,
        b"\x92\x0d" + b"\x91" * 100_000 + b"\xc0",
        b"\xdc\xff\xff" + b"\xc0" * 65_535,
        b"\xc4\xff",
    ],
    ids=lambda header: header[:12].hex(),
)
def test_a_header_that_is_no_message_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="none of ours"):
        parse(frame_of(header))


def test_fields_of_a_newer_release_are_passed_over() -> None:
    assert parse(frame_of(b"\x93\x01\x05\xa1x"))[1] == Ok()


def test_each_kind_carries_only_its_message() -> None:
    for kind in (HELLO, CLOSING):
        with pytest.raises(ProtocolViolation, match="carries Ping"):
            parse(WIRE.encode(kind, 0, Ping(), 0, 0))
    assert parse(WIRE.encode(HELLO, 0, Hello("a", "b"), 0, 0))[1] == Hello("a", "b")
    assert isinstance(parse(WIRE.encode(CLOSING, 0, WIRE.failed(NotOwner(1, 2, 3)), 0, 0))[1], Failed)


def test_what_the_peer_would_refuse_is_not_sent() -> None:
    call = VolumeCall(
        VolumeId(1), 1, RequestId(SessionId(1), 1), 0, Put(b"k" * FRAME_HEADER_BYTES_MAX, b"", 0, 0)
    )
    with pytest.raises(InvalidRequest, match="too large"):
        WIRE.encode(REQUEST, 1, call, 0, 1)
    with pytest.raises(InvalidRequest, match="too large"):
        WIRE.encode(REQUEST, 1, Ping(), FRAME_PAYLOAD_BYTES_MAX + 1, 1)


# --- bus


BUS = BusWire()


def test_a_bus_message_comes_back() -> None:
    for message in (LeaseGranted(1.5, 0.8, 3), RaftEnvelope(b"\x00" * 1000)):
        assert BUS.decode_bus(BUS.encode_bus(message)) == message


def test_bad_bus_messages_are_refused_in_words() -> None:
    good = BUS.encode_bus(LeaseGranted(1.5, 0.8, 3))
    cases: list[tuple[bytes, type[BlockStoreError], str]] = [
        (b"", ProtocolViolation, "0 bytes"),
        (good[:4], ProtocolViolation, "4 bytes"),
        (good[:-1], ProtocolViolation, "checksum"),
        (good + b"x", ProtocolViolation, "checksum"),
        (b"\x02" + good[1:], UnknownFormat, "version 2"),
        (
            good[:1] + struct.pack("<I", crc32.iscsi(b"\x91\x01")) + b"\x91\x01",
            ProtocolViolation,
            "none of ours",
        ),
    ]
    for data, kind, words in cases:
        with pytest.raises(kind, match=words):
            BUS.decode_bus(data)


def test_an_oversized_bus_message_is_not_sent() -> None:
    with pytest.raises(InvalidRequest):
        BUS.encode_bus(RaftEnvelope(bytes(FRAME_HEADER_BYTES_MAX)))
