"""Decoders of what comes over lanes and the bus."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import cast

from blockstore import errors
from blockstore.codec import raft_messages
from blockstore.codec.checksum import crc32c
from blockstore.codec.frame import PREFIX_BYTES, BusWire, FrameWire
from blockstore.codec.grant import grant_token, is_granted
from blockstore.codec.messages import BusMessage, Failed, WireMessage
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, NodeId, VolumeId
from blockstore.runtime import bus_pack
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import ANSWER, REQUEST, Message, Payload, Prefix
from blockstore.runtime.lane_inbox import Inbox
from tests.fuzz.decoder import Decoder, chance, u32
from tests.fuzz.values import encoded, values_of

_wire, _bus = FrameWire(), BusWire()


def _frame() -> Decoder:
    def decode(data: bytes) -> object:
        if len(data) < PREFIX_BYTES:
            return None  # more is waited for
        prefix = _wire.parse_prefix(data)
        header = data[PREFIX_BYTES : PREFIX_BYTES + prefix.header_bytes]
        if len(header) < prefix.header_bytes:
            return None
        error = _wire.error_of(message := _wire.decode(prefix, header))
        return message if error is None else str(error)

    def reseal(data: bytearray) -> None:
        if len(data) >= PREFIX_BYTES:
            header = bytes(data[PREFIX_BYTES:])
            data[12:16] = u32(len(header))
            data[24:28] = u32(crc32c(header))
            data[28:32] = u32(crc32c(bytes(data[:28])))

    return Decoder(decode, _frames(), reseal)


def _frames() -> list[bytes]:
    messages = values_of(WireMessage, chance("frame"), 2)
    messages += [
        Failed(kind.__name__, fields)
        for kind in errors._all_kinds(BlockStoreError).values()
        for fields in ((), ("a",), (1, 2, 3), ("what", 1, 2, 3))
    ]
    return [
        _wire.encode(REQUEST if n % 2 else ANSWER, n, message, 0, n) for n, message in enumerate(messages)
    ]


class _Stream:
    """Stands where a socket does: what arrives, a piece with each call."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def recv_into(self, into: memoryview) -> int:
        piece = self._left[: min(into.nbytes, _PIECE_BYTES)]
        into[: piece.nbytes] = piece
        self._left = self._left[piece.nbytes :]
        return piece.nbytes

    def recvmsg_into(self, views: tuple[memoryview, ...]) -> tuple[int]:
        return (sum(map(self.recv_into, views)),)


_PIECE_BYTES = 20_000


def _lane() -> Decoder:
    """Whole frames behind one another, one of them with a payload that is received directly."""
    pool = BufferPool()

    def decode(data: bytes) -> object:
        frames = list[object]()

        def on_frame(prefix: Prefix, message: Message, payload: Payload) -> None:
            frames.append(message)
            payload.release()

        inbox = Inbox(_wire, pool, on_frame)
        stream = cast(socket.socket, _Stream(data))
        try:
            while inbox.receive(stream):
                inbox.parse()
        finally:
            inbox.drop()
        return frames or None

    def reseal(data: bytearray) -> None:
        """Of the first frame; those behind it stay as they are."""
        if len(data) >= PREFIX_BYTES:
            end = PREFIX_BYTES + int.from_bytes(data[12:16], "little")
            data[24:28] = u32(crc32c(bytes(data[PREFIX_BYTES:end])))
            data[28:32] = u32(crc32c(bytes(data[:28])))

    frames = _frames()
    long = _wire.encode(ANSWER, 7, Failed("Busy", ()), 20_000, 0) + bytes(20_000)
    pairs = [first + second for first, second in zip(frames[::9], frames[4::9], strict=False)]
    return Decoder(decode, [*pairs, long + frames[0]], reseal)


def _bus_message() -> Decoder:
    def reseal(data: bytearray) -> None:
        data[:5] = b"\x01" + u32(crc32c(bytes(data[5:])))

    return Decoder(
        _bus.decode_bus,
        [_bus.encode_bus(message) for message in values_of(BusMessage, chance("bus"), 6)],
        reseal,
    )


def _bus_pack() -> Decoder:
    corpus = [
        pack
        for messages in ([b"one"], [b"", b"two", bytes(300)], [b"x"] * 9)
        for pack, _ in bus_pack.packs(NodeId(3), messages)
    ]
    return Decoder(bus_pack.unpack, corpus)


def _raft_message() -> Decoder:
    rng = chance("raft")
    members = raft_messages.encode_members(raft_messages.Members((NodeId(1), NodeId(2)), (NodeId(3),)))
    entries = tuple(
        raft_messages.Entry(5 + n, 2, raft_messages.MEMBERS if n == 1 else raft_messages.COMMAND, members)
        for n in range(3)
    )
    corpus = encoded(
        [message for message in values_of(raft_messages.RaftMessage, rng, 3) if message.term >= 0]
    )
    corpus = [content for content in corpus if _is_taken(raft_messages.decode_message, content)]
    corpus += encoded([raft_messages.Append(3, 1, 4, 2, 4, entries)] * 6)
    return Decoder(raft_messages.decode_message, corpus)


def _is_taken(decode: Callable[[bytes], object], content: bytes) -> bool:
    """Made from annotations alone, a value may still be an impossible one."""
    try:
        decode(content)
    except BlockStoreError:
        return False
    return True


def _members() -> Decoder:
    members = [
        raft_messages.Members((NodeId(1),)),
        raft_messages.Members((NodeId(1), NodeId(2), NodeId(3)), (NodeId(4), NodeId(70_000))),
    ]
    return Decoder(raft_messages.decode_members, [raft_messages.encode_members(one) for one in members])


def _grant() -> Decoder:
    def decode(data: bytes) -> object:
        volume, epoch, number = (
            int.from_bytes(data[at : at + 9], "little", signed=True) for at in (0, 9, 18)
        )
        chunk = ChunkId(VolumeId(volume), epoch, number)
        return is_granted(_GRANT_KEY, chunk, data[27:59].hex(), data[59:]) or None

    chunk = ChunkId(VolumeId(1), 2, 3)
    numbers = b"".join(number.to_bytes(9, "little") for number in chunk)
    holder = bytes(range(32))
    return Decoder(decode, [numbers + holder + grant_token(_GRANT_KEY, chunk, holder.hex())])


_GRANT_KEY = bytes(32)


WIRE = {
    "frame": _frame(),
    "lane": _lane(),
    "bus": _bus_message(),
    "bus-pack": _bus_pack(),
    "raft-message": _raft_message(),
    "raft-members": _members(),
    "grant": _grant(),
}
