"""How the messages of one tick travel as one: the bus's own framing, below any message's meaning.

    version     u8      1
    sender      u64     node id
    then for each message
      length    u32
      bytes

Little endian. It is here and not in `codec/` because runtime may import nothing of codec, and because nothing
outside the two ends of one bus ever sees it: damage on the way is TCP's and CURVE's to find, what a message
says and which version of it is for `codec/messages.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from blockstore.config import BUS_PACK_BYTES_MAX
from blockstore.errors import ProtocolViolation
from blockstore.ids import NodeId

VERSION = 1
_HEAD = struct.Struct("<BQ")
_LENGTH = struct.Struct("<I")

MESSAGE_BYTES_MAX = BUS_PACK_BYTES_MAX - _HEAD.size - _LENGTH.size
"""The longest message that fits in a pack."""


def packs(sender: NodeId, messages: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Packs of at most BUS_PACK_BYTES_MAX that hold `messages` in order, each with the number in it."""
    head = _HEAD.pack(VERSION, sender)
    parts, size, count = [head], len(head), 0
    for message in messages:
        assert len(message) <= MESSAGE_BYTES_MAX
        if size + _LENGTH.size + len(message) > BUS_PACK_BYTES_MAX:
            yield b"".join(parts), count
            parts, size, count = [head], len(head), 0
        parts += (_LENGTH.pack(len(message)), message)
        size += _LENGTH.size + len(message)
        count += 1
    if count:
        yield b"".join(parts), count


def unpack(pack: bytes) -> tuple[NodeId, list[bytes]]:
    """Sender and messages. ProtocolViolation, before anything is delivered, unless every byte is accounted
    for."""
    if len(pack) < _HEAD.size:
        raise ProtocolViolation("A bus message is too short.")
    version, sender = _HEAD.unpack_from(pack)
    if version != VERSION:
        raise ProtocolViolation(f"A bus message has version {version}; this release knows {VERSION}.")
    messages: list[bytes] = []
    at = _HEAD.size
    while at < len(pack):
        start = at + _LENGTH.size
        if start > len(pack):
            raise ProtocolViolation("A bus message ends within a length.")
        (length,) = _LENGTH.unpack_from(pack, at)
        at = start + length
        if at > len(pack):
            raise ProtocolViolation("A bus message is shorter than it says.")
        messages.append(pack[start:at])
    return NodeId(sender), messages
