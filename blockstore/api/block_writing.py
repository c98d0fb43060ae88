"""Writing a block device: one writer, whose every change is refused once another has taken over.

The engine offers conditions only on keys that a request changes. So a writer has 64 *permits*, keys with its
token, and every change is a batch that also writes one of them, on condition that it is still as this
writer left it. Taking over writes all permits: then no batch of the former writer can be carried out any
more, and no two writes of one writer stand in each other's way. A whole span goes past the owner, into
chunks, and is made visible by a put whose condition is the side that such a batch reserved; taking over
deletes what is reserved. See docs/design/block.md, with what may fail where."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from blockstore.api.block_reading import (
    fetch_size,
    fetch_span,
    fetch_versions,
    read_range,
    words,
)
from blockstore.api.session import VolumeSession
from blockstore.api.value_source import BytesSource
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import ABSENT, ANY, Batch, KeyPage, KeyWrite, ListKeys, Written
from blockstore.errors import (
    BlockStoreError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    TakenOver,
    Unavailable,
    from_wire,
    to_wire,
)
from blockstore.ids import KiB
from blockstore.kinds import block
from blockstore.kinds.block import Part, Shown
from blockstore.kinds.turns import Doubt, Share, Turn, Turns, Wake

BLOCKS_PER_BATCH = 128
"""512 KiB of values in one batch; with their keys it stays below what the owner takes."""

SHARED_BYTES_MAX = 64 * KiB
"""Writes of whole blocks up to this share batches. Larger ones gain little."""

CHANGES_PER_BATCH = 900
"""Without values; with the permit it stays below what the owner takes."""

SPANS_PER_WAVE = 16
"""Whole spans that are reserved at once."""

SETTLE_ATTEMPTS_MAX = 8
"""Each that fails finds one more late request carried out: of a permit one batch, and a put for each span."""


class Writer:
    """What a device open for writing knows: its token, its permits, its size. All who write to it share
    this."""

    def __init__(
        self, token: bytes, base: int, sequence: int, size: int, new_wake: Callable[[], Wake]
    ) -> None:
        self.token = token
        self.size = size
        self.turns = Turns(sequence, block.N_PERMITS, new_wake)
        self._numbers = itertools.count(base)
        self._pid = os.getpid()

    def new_meta(self) -> bytes:
        """8 bytes that no other version has: they begin anywhere, and are counted up."""
        return (next(self._numbers) % 2**64).to_bytes(8, "big")

    def check(self, name: str) -> None:
        if self._pid != os.getpid():
            raise InvalidRequest(
                f"{words(name)} was opened for writing before this process was forked; open it afterwards."
            )
        if self.turns.is_lost:
            raise TakenOver(f"Block device {name!r}")


class BlockWriting:
    """The writes of one writer, through one session."""

    def __init__(self, session: VolumeSession, writer: Writer, timeout: float) -> None:
        self._session = session
        self._writer = writer
        self._turns = writer.turns
        self._timeout = timeout

    # --- what a device does

    async def write(self, start: int, data: memoryview) -> None:
        end = start + data.nbytes
        if data.nbytes <= SHARED_BYTES_MAX and not (start | end) % block.BLOCK_BYTES:
            await self._write_blocks(start, data)
            return
        async with self._turn(self._turns.enter(*_widened(start, end))) as turn:
            whole: list[tuple[int, memoryview]] = []
            for part in block.parts(start, end):
                piece = data[part.offset - start : part.offset - start + part.end - part.start]
                if part.is_whole:
                    whole.append((part.span, piece))
                else:
                    await self._write_part(turn, part, piece)
            for first in range(0, len(whole), SPANS_PER_WAVE):
                await self._write_spans(turn, whole[first : first + SPANS_PER_WAVE])

    async def zero(self, start: int, end: int) -> None:
        """Make it read as zeros, and give back what it took."""
        async with self._turn(self._turns.enter(*_widened(start, end))) as turn:
            await self._zero(turn, start, end)

    async def resize(self, size: int) -> None:
        """What is cut off is zeroed first, so that it does not come back when the device grows again."""
        async with self._turn(self._turns.enter(0, block.DEVICE_BYTES_MAX)) as turn:
            if size < self._writer.size:
                await self._zero(turn, size, self._writer.size)
            header = block.encode_header(size)
            await self._commit(turn, [_put(block.HEADER_KEY, b"", header)], [header])
            self._writer.size = size

    async def flush(self) -> None:
        """What is acknowledged is durable; but it is not said to be while a former write is in doubt."""
        async with self._turn(self._turns.enter(0, 0)):
            pass

    # --- whole blocks

    async def _write_blocks(self, start: int, data: memoryview) -> None:
        """A few whole blocks, in one batch with those of others who wait for their turn as well. They are
        copied: if this is cancelled meanwhile, the batch is sent all the same, and the caller may use its
        buffer anew."""
        writer, turns = self._writer, self._turns
        data = memoryview(bytes(data))
        points = range(start, start + data.nbytes, block.BLOCK_BYTES)
        changes: list[KeyWrite] = []
        values: list[memoryview] = []
        for point in points:
            span, rest = divmod(point, block.SPAN_BYTES)
            value = data[point - start : point - start + block.BLOCK_BYTES]
            key = block.block_key(span, rest // block.BLOCK_BYTES)
            changes.append(_put(key, writer.new_meta(), value))
            values.append(value)
        while True:
            writer.check(self._session.name)
            share = Share(changes, values, turns.new_wake())
            turn, is_mine = turns.join(points, BLOCKS_PER_BATCH, share)
            if is_mine:
                await self._see_through(turn)
                return
            await share.done.wait()
            if share.error is not None:
                raise share.error
            if not share.given_up:
                return

    async def _see_through(self, turn: Turn) -> None:
        """Carry out a turn for all who share it, of whom the caller is the first."""
        error: BlockStoreError | None = None
        given_up = True
        try:
            async with self._turn(turn):
                changes = [change for share in turn.shares for change in share.changes]
                values = [value for share in turn.shares for value in share.values]
                await self._commit(turn, changes, values)
            given_up = False
        except BlockStoreError as failed:
            error = failed
            raise
        finally:
            for share in turn.shares[1:]:
                share.error = None if error is None else from_wire(*to_wire(error))
                share.given_up = given_up
                share.done.set()

    # --- parts of spans

    async def _write_part(self, turn: Turn, part: Part, data: memoryview) -> None:
        former = {number: await self._read_block(part, number) for number in part.cut_blocks}
        values = list(block.block_values(part, data, former))
        for first in range(0, len(values), BLOCKS_PER_BATCH):
            some = values[first : first + BLOCKS_PER_BATCH]
            changes = [
                _put(block.block_key(part.span, number), self._writer.new_meta(), value)
                for number, value in some
            ]
            await self._commit(turn, changes, [value for _, value in some])

    async def _read_block(self, part: Part, number: int) -> bytes:
        """The block that the part touches, as it is."""
        start = block.block_of(part, number).offset
        return await read_range(self._session, 0, start, start + block.BLOCK_BYTES, self._timeout)

    async def _zero(self, turn: Turn, start: int, end: int) -> None:
        """Whole blocks lose their keys or get one without a value; of others the bytes are overwritten. The
        work is in proportion to what is there."""
        at = block.span_prefix(start // block.SPAN_BYTES)
        end_key = block.span_prefix(-(-end // block.SPAN_BYTES))
        while at:
            versions, at = await fetch_versions(self._session, 0, at, end_key, self._timeout)
            spans: dict[int, list[block.Version]] = {}
            for version in versions:
                spans.setdefault(block.span_of(version.key), []).append(version)
            shown = {span: Shown(some) for span, some in spans.items()}
            if at and shown:  # the last one may go on behind the page
                last = max(shown)
                shown[last] = await fetch_span(self._session, 0, last, self._timeout)
                at = max(at, block.span_prefix(last + 1))
            await self._zero_spans(turn, shown, start, end)

    async def _zero_spans(self, turn: Turn, spans: Mapping[int, Shown], start: int, end: int) -> None:
        changes: list[KeyWrite] = []
        for span, shown in spans.items():
            offset = span * block.SPAN_BYTES
            first, last = max(start - offset, 0), min(end - offset, block.SPAN_BYTES)
            part = Part(span, first, last, offset + first)
            for number in part.cut_blocks:
                if shown.source(number) is not None:
                    edge = _clipped(part, number)
                    await self._write_part(turn, edge, memoryview(block.ZEROS)[: edge.end - edge.start])
            put, delete = shown.zeroing(part.filled_blocks)
            changes += [_put(key, self._writer.new_meta(), b"") for key in put]
            changes += [KeyWrite(key, None, 0, 0, ANY) for key in delete]
        for index in range(0, len(changes), CHANGES_PER_BATCH):
            await self._commit(turn, changes[index : index + CHANGES_PER_BATCH])

    # --- whole spans

    async def _write_spans(self, turn: Turn, whole: Sequence[tuple[int, memoryview]]) -> None:
        """Reserve a side in each, fill them, delete what they hide. The turn covers the spans."""
        session, writer = self._session, self._writer
        shown = [await fetch_span(session, 0, span, self._timeout) for span, _ in whole]
        targets = [(span, one.free_side) for (span, _), one in zip(whole, shown, strict=True)]
        intents = block.encode_intents(targets)
        changes = [_put(block.intent_key(turn.permit), b"", intents)]
        changes += [_put(block.side_key(span, side), writer.new_meta(), b"") for span, side in targets]
        turn.spans = [span for span, _ in targets]
        reserved = await self._commit(turn, changes, [intents])
        for (span, side), (_, data) in zip(targets, whole, strict=True):
            key, meta = block.side_key(span, side), writer.new_meta()
            try:
                await session.put(key, meta, BytesSource(data), reserved, self._timeout)
            except PreconditionFailed:
                await self._check_applied(key, meta)
        hidden = [KeyWrite(one.key, None, 0, 0, ANY) for old in shown for one in _hidden(old)]
        for first in range(0, len(hidden), CHANGES_PER_BATCH):
            await self._commit(turn, hidden[first : first + CHANGES_PER_BATCH])
        turn.spans = ()

    # --- turns and permits

    @asynccontextmanager
    async def _turn(self, turn: Turn) -> AsyncGenerator[Turn]:
        """Wait for the turn, and leave it at the end."""
        turns, writer = self._turns, self._writer
        in_doubt = True
        try:
            while True:
                writer.check(self._session.name)
                if turn.permit >= 0:
                    break
                if turn.doubt is not None:
                    turns.settled(turn, await self._settle(turn.doubt))
                elif not turns.is_ready(turn):
                    assert turn.wake is not None
                    await turn.wake.wait()
                    turns.rearm(turn)
            yield turn
            in_doubt = False
        finally:
            turns.leave(turn, in_doubt=in_doubt)

    async def _commit(
        self, turn: Turn, changes: Sequence[KeyWrite], values: Sequence[bytes | memoryview] = ()
    ) -> int:
        """Carry out the changes, unless another writer took over; the sequence that they have then."""
        key, token, expected = block.permit_key(turn.permit), self._writer.token, self._turns.sequence(turn)
        permit = KeyWrite(key, token, 0, 0, expected)
        try:
            sequence = await _send(self._session, (permit, *changes), values, self._timeout)
        except PreconditionFailed:
            sequence = await self._check_applied(key, token)
        self._turns.advance(turn, sequence)
        return sequence

    async def _check_applied(self, key: bytes, meta: bytes) -> int:
        """Our condition did not hold. If the key is as we meant to make it, an earlier attempt of the same
        request did that, whose answer was lost and is not remembered any more; its sequence."""
        try:
            entry = await self._session.fetch_entry(key, 0, self._timeout)
        except NotFound:
            raise self._lost() from None
        if entry.meta != meta:
            raise self._lost()
        return entry.sequence

    def _lost(self) -> TakenOver:
        self._turns.lose()
        return TakenOver(f"Block device {self._session.name!r}")

    async def _settle(self, doubt: Doubt) -> int:
        """Make sure that no request of a permit can come true any more; the sequence of its key."""
        try:
            return await settle(self._session, doubt.permit, self._writer.token, doubt.spans, self._timeout)
        except TakenOver:
            self._turns.lose()
            raise


# --- taking over


async def take_over(session: VolumeSession, new_wake: Callable[[], Wake], timeout: float) -> Writer:
    """Become the writer of a device; when this returns, no former writer's change can be carried out."""
    rng = session.cluster.rng
    token = rng.getrandbits(64).to_bytes(8, "big")
    await fetch_size(session, 0, timeout)  # making it was finished
    sequence = await _send(session, _permits(token, [ANY] * block.N_PERMITS), (), timeout)
    op = ListKeys(block.INTENT_PREFIX, b"", b"", block.N_PERMITS, 0, b"")
    keys = [entry.key for entry in (await session.ask(op, KeyPage, timeout)).entries]
    if keys:
        values = await session.fetch_many(keys, (), 0, timeout)
        spans = sorted({span for value in values for span in block.decode_intents(value or b"")})
        first = await settle(session, 0, token, spans, timeout)
        deletes = [KeyWrite(key, None, 0, 0, ANY) for key in keys]
        permits = _permits(token, [first] + [sequence] * (block.N_PERMITS - 1))
        try:
            sequence = await _send(session, (*permits, *deletes), (), timeout)
        except PreconditionFailed:
            raise TakenOver(f"Block device {session.name!r}") from None
    size = await fetch_size(session, 0, timeout)
    return Writer(token, rng.getrandbits(64), sequence, size, new_wake)


async def settle(
    session: VolumeSession, permit: int, token: bytes, spans: Sequence[int], timeout: float
) -> int:
    """Write a permit of ours, so that what was sent under it before can come true no more, and delete what
    never shows in these spans, reserved sides among it, to which nobody else writes. The permit's
    sequence."""
    key = block.permit_key(permit)
    for _ in range(SETTLE_ATTEMPTS_MAX):
        entry = await session.fetch_entry(key, 0, timeout)
        if entry.meta != token:
            raise TakenOver(f"Block device {session.name!r}")
        try:
            sequence = await _send(session, (KeyWrite(key, token, 0, 0, entry.sequence),), (), timeout)
            stale = [
                KeyWrite(one.key, None, 0, 0, one.sequence)
                for span in spans
                for one in (await fetch_span(session, 0, span, timeout)).stale()
            ]
            for index in range(0, len(stale), CHANGES_PER_BATCH):
                some = stale[index : index + CHANGES_PER_BATCH]
                sequence = await _send(session, (KeyWrite(key, token, 0, 0, sequence), *some), (), timeout)
        except PreconditionFailed:
            continue  # something late came true before ours
        return sequence
    raise Unavailable(
        f"Whether a former write to {words(session.name)} was carried out could not be found out yet."
    )


async def make_header(session: VolumeSession, size: int, timeout: float) -> bool:
    """The last step of making a device. False if it has one already."""
    header = block.encode_header(size)
    try:
        await session.put_small(block.HEADER_KEY, b"", header, ABSENT, timeout)
    except PreconditionFailed:
        return False
    return True


async def _send(
    session: VolumeSession,
    changes: Sequence[KeyWrite],
    values: Sequence[bytes | memoryview],
    timeout: float,
) -> int:
    payload = [value for value in values if len(value)]
    return (await session.ask(Batch(tuple(changes)), Written, timeout, payload)).sequence


def _permits(token: bytes, expected: Sequence[int]) -> list[KeyWrite]:
    return [KeyWrite(block.permit_key(permit), token, 0, 0, one) for permit, one in enumerate(expected)]


def _put(key: bytes, meta: bytes, value: bytes | memoryview) -> KeyWrite:
    return KeyWrite(key, meta, len(value), crc32c(value) if len(value) else 0, ANY)


def _hidden(old: Shown) -> list[block.Version]:
    """What a new value of the whole span hides, but for the side that it goes to."""
    return [one for one in old.versions() if one is not old.sides.get(old.free_side)]


def _widened(start: int, end: int) -> tuple[int, int]:
    """To whole blocks: what shares one is written one after the other."""
    return start // block.BLOCK_BYTES * block.BLOCK_BYTES, -(-end // block.BLOCK_BYTES) * block.BLOCK_BYTES


def _clipped(part: Part, number: int) -> Part:
    """What the part has of one block."""
    whole = block.block_of(part, number)
    start, end = max(part.start, whole.start), min(part.end, whole.end)
    return Part(part.span, start, end, part.offset - part.start + start)
