"""What keys and values mean in a block device: blocks, spans, and which of them shows at which byte.

Pure. A device is cut into *spans* of 1 MiB, and each span into 256 *blocks* of 4 KiB. What was never
written has no key at all, and reads as zeros.

    key            value
    h              header: MessagePack [1, size, block bytes, span bytes]
    w              nothing; its metadata is the token of the writer, and of who holds its writes, if anybody
    b SPAN         a whole span, 1 MiB: its base
    b SPAN BLOCK   a block, 4 KiB; or nothing: the block was zeroed

BLOCK is one byte, SPAN four, big endian, so keys are in the order of the device. The metadata of a span or a
block are 8 bytes that no other write of the device has: the engine compares versions by checksum and
metadata, and 32 bits of checksum alone would let a change pass unseen once in a while.

What shows: a block that has a key, otherwise what the base has there, otherwise zeros. For whoever puts a
base deletes the keys of its blocks in the same batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from blockstore.codec.malformed import MALFORMED
from blockstore.errors import Corrupt, InvalidRequest, UnknownFormat
from blockstore.ids import KiB, MiB, TiB
from blockstore.kinds.bucket import check_volume_name

KIND: Final = "block"
"""Of the volume, in control's record."""

BLOCK_BYTES: Final = 4 * KiB
SPAN_BYTES: Final = 1 * MiB
BLOCKS_PER_SPAN: Final = SPAN_BYTES // BLOCK_BYTES
DEVICE_BYTES_MAX: Final = 64 * TiB

HEADER_VERSION: Final = 1
HEADER_KEY: Final = b"h"
WRITER_KEY: Final = b"w"
TOKEN_BYTES: Final = 8
SPAN_PREFIX: Final = b"b"
SPANS_END: Final = b"c"

ZEROS: Final = bytes(BLOCK_BYTES)

assert BLOCKS_PER_SPAN <= 256, "a block's number in its span is one byte"
assert DEVICE_BYTES_MAX // SPAN_BYTES <= 2**32, "a span's number is four bytes"


def check_device_name(name: str) -> None:
    check_volume_name("block device", name)


# --- sizes


def check_size(size: object) -> int:
    if not isinstance(size, int) or isinstance(size, bool):
        raise InvalidRequest(f"The size of a block device is a whole number of bytes, not {size!r}.")
    if not 0 < size <= DEVICE_BYTES_MAX:
        raise InvalidRequest(
            f"A block device has 1 byte to 64 TiB ({DEVICE_BYTES_MAX:,} bytes), not {size:,}."
        )
    return size


def check_range(offset: object, length: object, size: int) -> tuple[int, int]:
    """`(start, end)`; InvalidRequest unless the device has all of it."""
    for number in (offset, length):
        if not isinstance(number, int) or isinstance(number, bool):
            raise InvalidRequest(f"A range is two whole numbers of bytes, not {offset!r} and {length!r}.")
    assert isinstance(offset, int)
    assert isinstance(length, int)
    if offset < 0 or length < 0 or offset + length > size:
        raise InvalidRequest(
            f"The device has {size:,} bytes; there are no {length:,} bytes at offset {offset:,}."
        )
    return offset, offset + length


# --- keys and the header


class _Header(msgspec.Struct, frozen=True, array_like=True, gc=False):
    version: int
    size: int
    block_bytes: int
    span_bytes: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Header).decode


def encode_header(size: int) -> bytes:
    return _encode(_Header(HEADER_VERSION, size, BLOCK_BYTES, SPAN_BYTES))


def decode_header(value: bytes) -> int:
    """The size of the device."""
    try:
        header = _decode(value)
    except MALFORMED as error:
        raise Corrupt("A block device's header", str(error)) from None
    if header.version != HEADER_VERSION:
        raise UnknownFormat("A block device", header.version, HEADER_VERSION)
    if (header.block_bytes, header.span_bytes) != (BLOCK_BYTES, SPAN_BYTES):
        raise Corrupt(
            "A block device's header", f"blocks of {header.block_bytes}, spans of {header.span_bytes}"
        )
    return header.size


def span_key(span: int) -> bytes:
    """Of the base; the keys of the span's blocks begin with it."""
    return SPAN_PREFIX + span.to_bytes(4, "big")


def block_key(span: int, block: int) -> bytes:
    return SPAN_PREFIX + span.to_bytes(4, "big") + bytes((block,))


def span_of(key: bytes) -> int:
    return split_key(key)[0]


def split_key(key: bytes) -> tuple[int, int]:
    """The span, and the block; -1 for the base."""
    if not 5 <= len(key) <= 6 or key[:1] != SPAN_PREFIX:
        raise Corrupt("A block device's key", f"{key!r} is none")
    return int.from_bytes(key[1:5], "big"), key[5] if len(key) == 6 else -1


class WriterMark(NamedTuple):
    """What the writer's key says: whose writes are carried out, and who keeps them from being, if anybody."""

    token: bytes
    hold: bytes = b""

    @property
    def meta(self) -> bytes:
        return self.token + self.hold


def decode_mark(meta: bytes) -> WriterMark:
    if len(meta) not in (TOKEN_BYTES, 2 * TOKEN_BYTES):
        raise Corrupt("A block device's writer", f"it has {len(meta)} bytes")
    return WriterMark(meta[:TOKEN_BYTES], meta[TOKEN_BYTES:])


# --- ranges


class Part(NamedTuple):
    """The bytes [start, end) of a span, which stand at `offset` of the device."""

    span: int
    start: int
    end: int
    offset: int

    @property
    def is_whole(self) -> bool:
        return self.end - self.start == SPAN_BYTES

    @property
    def blocks(self) -> range:
        """Those that it touches."""
        return range(self.start // BLOCK_BYTES, -(-self.end // BLOCK_BYTES))

    @property
    def cut_blocks(self) -> list[int]:
        """Those that it touches and does not fill."""
        first, last = self.start // BLOCK_BYTES, (self.end - 1) // BLOCK_BYTES
        cut = [first] if self.start % BLOCK_BYTES else []
        if self.end % BLOCK_BYTES and (not cut or last != first):
            cut.append(last)
        return cut

    @property
    def filled_blocks(self) -> range:
        return range(
            -(-self.start // BLOCK_BYTES), max(self.end // BLOCK_BYTES, -(-self.start // BLOCK_BYTES))
        )


def part_of(start: int, end: int) -> Part:
    """A range within one span."""
    span, first = divmod(start, SPAN_BYTES)
    return Part(span, first, first + end - start, start)


def parts(start: int, end: int) -> Iterator[Part]:
    """The range, span by span."""
    while start < end:
        span, first = divmod(start, SPAN_BYTES)
        last = min(SPAN_BYTES, first + end - start)
        yield Part(span, first, last, start)
        start += last - first


def block_of(part: Part, block: int) -> Part:
    """All of a block that the part touches, as a part."""
    start = block * BLOCK_BYTES
    return Part(part.span, start, start + BLOCK_BYTES, part.offset - part.start + start)


def block_values(
    part: Part, data: memoryview, former: Mapping[int, bytes]
) -> Iterator[tuple[int, memoryview | bytes]]:
    """What each touched block becomes: the part's bytes, and around them those of `former`, which has the cut
    blocks."""
    for block in part.blocks:
        start = block * BLOCK_BYTES
        first, last = max(part.start, start), min(part.end, start + BLOCK_BYTES)
        piece = data[first - part.start : last - part.start]
        if last - first < BLOCK_BYTES:
            value = bytearray(former[block])
            value[first - start : last - start] = piece
            yield block, bytes(value)
        else:
            yield block, piece


# --- what shows


class Version(NamedTuple):
    """One version of one key, as far as it decides what shows."""

    key: bytes
    sequence: int
    size: int
    meta: bytes


class Shown:
    """One span, as all its keys together show it. `versions`: of the span's keys, in any order."""

    def __init__(self, versions: Iterable[Version]) -> None:
        self.base: Version | None = None
        self.blocks: dict[int, Version] = {}
        for version in versions:
            _, number = split_key(version.key)
            check_value_size(version.key, version.size)
            if number < 0:
                self.base = version
            else:
                self.blocks[number] = version

    def source(self, block: int) -> Version | None:
        """Whose bytes show there; None for zeros."""
        own = self.blocks.get(block)
        if own is None:
            return self.base
        return own if own.size else None

    def keys(self) -> list[bytes]:
        return [*([self.base.key] if self.base else ()), *(one.key for one in self.blocks.values())]

    def zeroing(self, blocks: range) -> tuple[list[bytes], list[bytes]]:
        """Keys to put without a value, and keys to delete, so that these blocks read as zeros."""
        if len(blocks) == BLOCKS_PER_SPAN:
            return [], self.keys()
        if self.base is None:
            return [], [one.key for block, one in self.blocks.items() if block in blocks]
        span = span_of(self.base.key)
        return [block_key(span, block) for block in blocks if self.source(block) is not None], []


def check_value_size(key: bytes, size: int) -> None:
    """Raise Corrupt unless a value of the key may have so many bytes."""
    if size != SPAN_BYTES if len(key) == 5 else size not in (0, BLOCK_BYTES):
        raise Corrupt("A block device's value", f"{key!r} has {size} bytes")


# --- diff


class RangeChange(msgspec.Struct, frozen=True, gc=False):
    """A run of bytes that were written since, or that read as zeros now."""

    offset: int
    length: int
    kind: Literal["written", "zeroed"]


def span_changes(span: int, old: Shown, new: Shown) -> Iterator[RangeChange]:
    """Runs of blocks that are not alike."""
    run_kind: Literal["written", "zeroed"] | None = None
    begin = 0
    for block in range(BLOCKS_PER_SPAN + 1):
        kind = None if block == BLOCKS_PER_SPAN else _change_kind(old.source(block), new.source(block))
        if kind == run_kind:
            continue
        if run_kind is not None:
            yield RangeChange(
                span * SPAN_BYTES + begin * BLOCK_BYTES, (block - begin) * BLOCK_BYTES, run_kind
            )
        run_kind, begin = kind, block


def joined(changes: Sequence[RangeChange], size: int) -> list[RangeChange]:
    """Neighbours of one kind as one, cut at the device's end."""
    runs: list[RangeChange] = []
    for change in changes:
        length = min(change.length, size - change.offset)
        if length <= 0:
            break
        last = runs[-1] if runs else None
        if last is not None and last.kind == change.kind and last.offset + last.length == change.offset:
            runs[-1] = RangeChange(last.offset, last.length + length, last.kind)
        else:
            runs.append(RangeChange(change.offset, length, change.kind))
    return runs


def _change_kind(old: Version | None, new: Version | None) -> Literal["written", "zeroed"] | None:
    if new is None:
        return None if old is None else "zeroed"
    if old is not None and (old.key, old.meta) == (new.key, new.meta):
        return None
    return "written"
