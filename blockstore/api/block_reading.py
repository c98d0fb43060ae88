"""Reading a block device: its bytes, and where two of its moments differ.

One request asks for all keys that may show in a range; what the answer refers to is fetched from the nodes.
Values move and are replaced meanwhile: then the keys are looked up again, until the operation's time is over.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockstore.api.cluster import Backoff, may_retry
from blockstore.api.history import Moment, fetch_changes, fetch_snapshots
from blockstore.api.many_values import Looked, Remote
from blockstore.api.session import VolumeSession
from blockstore.api.snapshot import choose_snapshot
from blockstore.codec.messages import KeyPage, ListKeys, SnapshotRecord
from blockstore.errors import (
    BlockStoreError,
    Corrupt,
    InvalidRequest,
    NotFound,
    ProtocolViolation,
    Unavailable,
)
from blockstore.ids import MiB
from blockstore.kinds import block
from blockstore.kinds.block import BLOCK_BYTES, SPAN_BYTES, Part, RangeChange, Shown, Version

READ_PIECE_BYTES = 16 * MiB
"""A longer read goes in pieces of this, each with the timeout anew: memory holds the result and one piece."""

KEYS_AT_ONCE = 3 * (block.BLOCKS_PER_SPAN + 2)
"""In one request: three spans, at most 3 MiB of blocks in the answer, which a frame takes."""

LISTED_BLOCKS_MIN = 64
"""From so many blocks of a span on, its keys are listed first."""

SPANS_PER_DIFF = 64
"""Compared before a page of a diff is given out."""


_Piece = tuple[int, int, int, Looked]
"""Where in the result it goes, and which bytes, from and to, of what was found."""


def words(name: str) -> str:
    """How errors call a device."""
    return f"block device {name!r}"


async def fetch_size(session: VolumeSession, at: int, timeout: float) -> int:
    """Of the device, as its header says. InvalidRequest when it has none: making it was never finished."""
    try:
        _, value = await session.fetch(block.HEADER_KEY, at, 0, -1, timeout)
    except NotFound as error:
        if str(error.fields[0]).startswith("object "):
            raise InvalidRequest(
                f"Making {words(session.name)} was not finished: create it once more, or delete it."
            ) from None
        raise
    return block.decode_header(value)


async def choose(session: VolumeSession, wanted: Moment, timeout: float) -> SnapshotRecord:
    """The snapshot of that name, or the newest at that instant. NotFound."""
    records = await fetch_snapshots(session, timeout)
    return choose_snapshot(session.name, records, wanted, "block device")


# --- bytes


async def read_range(session: VolumeSession, at: int, start: int, end: int, timeout: float) -> bytes:
    """The bytes [start, end) as of a sequence (0: now)."""
    if start == end:
        return b""
    if end - start <= READ_PIECE_BYTES:
        return bytes(await _read_piece(session, at, start, end, timeout))
    data = bytearray()
    for offset in range(start, end, READ_PIECE_BYTES):
        data += await _read_piece(session, at, offset, min(end, offset + READ_PIECE_BYTES), timeout)
    return bytes(data)


async def _read_piece(
    session: VolumeSession, at: int, start: int, end: int, timeout: float
) -> bytes | bytearray:
    asked = list(block.parts(start, end))
    caller = session.cluster.caller
    deadline = caller.now() + timeout
    backoff = Backoff(session.cluster.rng)
    while True:
        try:
            return await _try_read(session, at, asked, end - start, max(0.0, deadline - caller.now()))
        except BlockStoreError as error:
            pause = backoff.next()
            if not may_retry(error):
                raise
            if caller.now() + pause >= deadline:
                raise Unavailable(f"{words(session.name)} could not be read in time: {error}") from error
            await caller.sleep(pause)


async def _try_read(
    session: VolumeSession, at: int, asked: Sequence[Part], length: int, timeout: float
) -> bytes | bytearray:
    if max(len(part.blocks) for part in asked) < LISTED_BLOCKS_MIN:
        there = None
    else:
        there = await _fetch_keys(session, at, asked, timeout)
    keys: list[bytes] = []
    ranges: list[tuple[int, int]] = []
    for part in asked:
        for side in (0, 1):
            keys.append(block.side_key(part.span, side))
            ranges.append((part.start, part.end))
        for number in part.blocks:
            keys.append(block.block_key(part.span, number))
            ranges.append((0, -1))
    wanted = [index for index, key in enumerate(keys) if there is None or key in there]
    found: list[Looked | None] = [None] * len(keys)
    answers = await session.look_up_many(
        [keys[index] for index in wanted], [ranges[index] for index in wanted], at, timeout, KEYS_AT_ONCE
    )
    for index, one in zip(wanted, answers, strict=True):
        if one is None and there is not None:
            raise Unavailable("it was changed while it was being read")
        found[index] = one
    pieces: list[_Piece] = []
    index = position = 0
    for part in asked:
        n_keys = 2 + len(part.blocks)
        pieces += _pieces(part, position, found[index : index + n_keys])
        index += n_keys
        position += part.end - part.start
    return await _laid_down(session, pieces, length, timeout)


async def _fetch_keys(session: VolumeSession, at: int, asked: Sequence[Part], timeout: float) -> set[bytes]:
    """The keys that the spans have: of a long range most have none, and asking for each would cost more."""
    start, end = block.span_prefix(asked[0].span), block.span_prefix(asked[-1].span + 1)
    keys: set[bytes] = set()
    while start:
        versions, start = await fetch_versions(session, at, start, end, timeout)
        keys.update(version.key for version in versions)
    return keys


async def _laid_down(
    session: VolumeSession, pieces: Sequence[_Piece], length: int, timeout: float
) -> bytes | bytearray:
    """`length` bytes, of which the pieces say what is not zero; a later one hides an earlier."""
    wanted: dict[int, Remote] = {id(one): one.remote for *_, one in pieces if one.remote is not None}
    fetched: dict[int, bytes] = {}
    if wanted:
        data = await session.read_remote(list(wanted.values()), timeout)
        fetched = dict(zip(wanted, data, strict=True))
    if len(pieces) == 1:
        target, first, last, only = pieces[0]
        value = fetched[id(only)] if only.data is None else only.data
        if target == 0 and last - first == length:
            return value if len(value) == length else value[first:last]
    result = bytearray(length)
    for target, first, last, one in pieces:
        value = fetched[id(one)] if one.data is None else one.data
        result[target : target + last - first] = memoryview(value)[first:last]
    return result


def _pieces(part: Part, position: int, found: Sequence[Looked | None]) -> list[_Piece]:
    """What shows in the part, in the order to lay it down: a block over the whole span."""
    sides = [(side, one.sequence, one.size) for side, one in enumerate(found[:2]) if one is not None]
    current = block.current_side(sides)
    base = found[current] if current >= 0 else None
    pieces: list[_Piece] = []
    n_hiding = 0
    for number, one in zip(part.blocks, found[2:], strict=True):
        if one is None or (base is not None and one.sequence < base.sequence):
            continue
        n_hiding += 1
        start = number * BLOCK_BYTES
        first, last = max(part.start, start), min(part.end, start + BLOCK_BYTES)
        if one.size not in (0, BLOCK_BYTES):
            raise Corrupt("A block device's block", f"it has {one.size} bytes")
        shown = one if one.size else _ZEROS
        pieces.append((position + first - part.start, first - start, last - start, shown))
    if base is not None and n_hiding < len(part.blocks):
        if base.size != SPAN_BYTES:
            raise Corrupt("A block device's span", f"it has {base.size} bytes")
        pieces.insert(0, (position, 0, part.end - part.start, base))
    return pieces


class _Zeros(Looked):
    """A block that was zeroed."""

    def __init__(self) -> None:
        self.sequence, self.size, self.remote = 0, BLOCK_BYTES, None
        self.data = block.ZEROS


_ZEROS = _Zeros()


# --- keys


async def fetch_versions(
    session: VolumeSession, at: int, start: bytes, end: bytes, timeout: float
) -> tuple[list[Version], bytes]:
    """A page of the versions in [start, end) of the device's map, and where the rest starts; empty: this was
    all."""
    op = ListKeys(block.SPAN_PREFIX, b"", b"", 1_000, at, start)
    page = await session.ask(op, KeyPage, timeout)
    versions = [
        Version(entry.key, entry.sequence, entry.size, entry.meta)
        for entry in page.entries
        if entry.key < end
    ]
    ended = not page.more or page.next >= end or len(versions) < len(page.entries)
    if not ended and page.next <= start:
        raise ProtocolViolation("the owner answered with a page that ends where it began")
    return versions, b"" if ended else page.next


async def fetch_span(session: VolumeSession, at: int, span: int, timeout: float) -> Shown:
    """What a span shows."""
    start, end = block.span_prefix(span), block.span_prefix(span + 1)
    versions: list[Version] = []
    while start:
        page, start = await fetch_versions(session, at, start, end, timeout)
        versions += page
    return Shown(versions)


# --- diff


class RangeCursor:
    """Where a diff stands. Knows no session, so that any may fetch its next page."""

    def __init__(self, since: Moment, until: Moment | None) -> None:
        self._moments = since, until
        self._between: tuple[int, int] | None = None
        self._size = 0
        self._start: bytes = block.SPAN_PREFIX
        self._more = True

    async def fetch(self, session: VolumeSession, timeout: float) -> list[RangeChange]:
        """The next runs, in the device's order; empty at the end."""
        if self._between is None:
            since, until = self._moments
            old = (await choose(session, since, timeout)).sequence
            new = 0 if until is None else (await choose(session, until, timeout)).sequence
            self._size = await fetch_size(session, new, timeout)
            self._between = old, new
        while self._more:
            runs = await self._compare(session, *self._between, timeout)
            if runs:
                return runs
        return []

    async def _compare(
        self, session: VolumeSession, since: int, until: int, timeout: float
    ) -> list[RangeChange]:
        page = await fetch_changes(session, since, until, self._start, block.SPANS_END, timeout)
        spans = sorted({block.span_of(change.key) for change in page.changes})
        self._more, self._start = bool(page.next), page.next
        if len(spans) > SPANS_PER_DIFF:
            del spans[SPANS_PER_DIFF:]
            self._more, self._start = True, block.span_prefix(spans[-1] + 1)
        elif self._more and spans:  # the last one is compared whole, whatever of it was named
            self._start = max(self._start, block.span_prefix(spans[-1] + 1))
        changes: list[RangeChange] = []
        for span in spans:
            old = await fetch_span(session, since, span, timeout)
            new = await fetch_span(session, until, span, timeout)
            changes += block.span_changes(span, old, new)
        return block.joined(changes, self._size)
