"""How a frame of a lane, and a message of the bus, are spelled in bytes.

A frame, little endian:

    offset size
         0    3  magic "bsl"
         3    1  version
         4    1  kind: 1 request, 2 answer, 3 hello, 4 closing
         5    3  zero
         8    4  call id: chosen by the client, repeated in the answer; 0 belongs to the connection
        12    4  header length
        16    4  payload length
        20    4  budget: milliseconds that the sender still has; 0 in answers
        24    4  crc32c of the header
        28    4  crc32c of the 28 bytes before
        32       header: one message of `codec/messages.py`, MessagePack
                 payload: raw bytes, whose checksum is a field of the message

The prefix has a checksum of its own, so no length is believed that a flipped bit could have changed: a
damaged one is refused at once, instead of waiting for bytes that never come.

A bus message: version (1 byte), crc32c of the rest (4 bytes), one message in MessagePack.

Pure. Errors name what was wrong in a sentence; `UnknownFormat` is another version's.
"""

from __future__ import annotations

import struct
from typing import Final, TypeVar

import msgspec
from fastcrc import crc32

from blockstore import errors
from blockstore.codec import messages
from blockstore.config import FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX
from blockstore.errors import BlockStoreError, InvalidRequest, ProtocolViolation, UnknownFormat
from blockstore.runtime.interfaces import ANSWER, CLOSING, HELLO, REQUEST, Buffer, Message, Prefix

FRAME_VERSION: Final = 1
BUS_VERSION: Final = 1
BUS_MESSAGE_BYTES_MAX: Final = FRAME_HEADER_BYTES_MAX
PREFIX_BYTES: Final = 32

_MAGIC: Final = int.from_bytes(b"bsl", "little")
_MAGIC_AND_VERSION: Final = _MAGIC | FRAME_VERSION << 24
_CHECKED: Final = struct.Struct(
    "<IIIIIII"
)  # the prefix without its own checksum; the kind's zeros are its high bytes
_PREFIX: Final = struct.Struct("<IIIIIIII")
_U32: Final = struct.Struct("<I")
_BUS: Final = struct.Struct("<BI")
_CHECKED_BYTES: Final = _CHECKED.size
_KINDS: Final = frozenset((REQUEST, ANSWER, HELLO, CLOSING))
_U32_MAX: Final = 0xFFFF_FFFF

assert _PREFIX.size == PREFIX_BYTES
assert FRAME_HEADER_BYTES_MAX <= _U32_MAX
assert FRAME_PAYLOAD_BYTES_MAX <= _U32_MAX

_iscsi = crc32.iscsi

T = TypeVar("T")


class FrameWire:
    """Implements `runtime.interfaces.Wire` over `messages.WireMessage`."""

    __slots__ = ("_decoder", "_encoder", "prefix_bytes")

    def __init__(self) -> None:
        self.prefix_bytes: int = PREFIX_BYTES
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(messages.WireMessage)

    def parse_prefix(self, buffer: Buffer, offset: int = 0) -> Prefix:
        """At least `prefix_bytes` must be there."""
        magic, kind, call_id, header_bytes, payload_bytes, budget_ms, header_crc, crc = _PREFIX.unpack_from(
            buffer, offset
        )
        if magic != _MAGIC_AND_VERSION:
            raise _refuse_magic(magic)
        if crc != _iscsi(memoryview(buffer)[offset : offset + _CHECKED_BYTES]):
            raise ProtocolViolation("a frame's prefix failed its checksum")
        if kind not in _KINDS:
            raise ProtocolViolation(f"a frame of unknown kind {kind}")
        if header_bytes > FRAME_HEADER_BYTES_MAX:
            raise ProtocolViolation(
                f"a frame claims a header of {header_bytes} bytes; {FRAME_HEADER_BYTES_MAX} are allowed"
            )
        if payload_bytes > FRAME_PAYLOAD_BYTES_MAX:
            raise ProtocolViolation(
                f"a frame claims a payload of {payload_bytes} bytes; {FRAME_PAYLOAD_BYTES_MAX} are allowed"
            )
        return Prefix(kind, call_id, header_bytes, payload_bytes, budget_ms, header_crc)

    def encode(self, kind: int, call_id: int, message: Message, payload_bytes: int, budget_ms: int) -> bytes:
        try:
            header = self._encoder.encode(message)
        except (UnicodeEncodeError, OverflowError) as error:  # half a surrogate pair; more than 64 bits
            raise InvalidRequest(f"A message cannot hold what was given: {error}.") from error
        header_bytes = len(header)
        if header_bytes > FRAME_HEADER_BYTES_MAX or payload_bytes > FRAME_PAYLOAD_BYTES_MAX:
            raise InvalidRequest(
                f"a message of {header_bytes} bytes and {payload_bytes} of payload is too large,"
                f" {FRAME_HEADER_BYTES_MAX} and {FRAME_PAYLOAD_BYTES_MAX} are allowed"
            )
        checked = _CHECKED.pack(
            _MAGIC_AND_VERSION, kind, call_id, header_bytes, payload_bytes, budget_ms, _iscsi(header)
        )
        return b"".join((checked, _U32.pack(_iscsi(checked)), header))

    def decode(self, prefix: Prefix, header: Buffer) -> Message:
        if _iscsi(header) != prefix.header_crc:
            raise ProtocolViolation("a frame's header failed its checksum")
        message = _decode(self._decoder, header)
        kind = prefix.kind
        if kind == HELLO:
            if type(message) is not messages.Hello:
                raise ProtocolViolation(f"a hello frame carries {type(message).__name__}")
        elif kind == CLOSING and type(message) is not messages.Failed:
            raise ProtocolViolation(f"a closing frame carries {type(message).__name__}")
        return message

    def hello_answer(self) -> Message:
        return messages.Ok()

    def failed(self, error: BlockStoreError) -> Message:
        return messages.Failed(*errors.to_wire(error))

    def error_of(self, message: Message) -> BlockStoreError | None:
        if type(message) is not messages.Failed:
            return None
        return errors.from_wire(message.name, message.fields)


class BusWire:
    """Bus messages to bytes and back."""

    __slots__ = ("_decoder", "_encoder")

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[messages.BusMessage] = msgspec.msgpack.Decoder(
            messages.BusMessage
        )

    def encode_bus(self, message: messages.BusMessage) -> bytes:
        body = self._encoder.encode(message)
        if len(body) > BUS_MESSAGE_BYTES_MAX:
            raise InvalidRequest(f"a bus message of {len(body)} bytes; {BUS_MESSAGE_BYTES_MAX} are allowed")
        return _BUS.pack(BUS_VERSION, _iscsi(body)) + body

    def decode_bus(self, data: Buffer) -> messages.BusMessage:
        if len(data) < _BUS.size:
            raise ProtocolViolation(f"a bus message of {len(data)} bytes")
        version, crc = _BUS.unpack_from(data)
        if version != BUS_VERSION:
            raise UnknownFormat("a bus message", version, BUS_VERSION)
        body = memoryview(data)[_BUS.size :]
        if len(body) > BUS_MESSAGE_BYTES_MAX:
            raise ProtocolViolation(
                f"a bus message of {len(body)} bytes; {BUS_MESSAGE_BYTES_MAX} are allowed"
            )
        if _iscsi(body) != crc:
            raise ProtocolViolation("a bus message failed its checksum")
        return _decode(self._decoder, body)


def _refuse_magic(found: int) -> BlockStoreError:
    if found & 0xFF_FFFF == _MAGIC:
        return UnknownFormat("a lane's frame", found >> 24, FRAME_VERSION)
    return ProtocolViolation(f"a frame begins with {_U32.pack(found)!r}, which is not this protocol")


def _decode(decoder: msgspec.msgpack.Decoder[T], body: Buffer) -> T:
    try:
        return decoder.decode(body)
    except (
        msgspec.MsgspecError,
        RecursionError,
        ValueError,
    ) as error:  # ValueError: strings that are not UTF-8
        raise ProtocolViolation(f"a message that is none of ours: {error}") from error
