"""Writing a block device: one writer, whose every change is refused once another has taken over.

A key of the device holds the writer's token. Taking over writes it, and every change is a batch on
condition that its sequence is still the one that this writer knows: then no batch of a former writer can be
carried out any more, and no two writes of one writer stand in each other's way. The same settles what is in
doubt: the writer writes the key once more, and what it sent before is carried out already, or never will
be. The bytes of whole spans go past the owner, into chunks; the batch names where they are. See
docs/design/block.md, with what may fail where."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from blockstore.api.block_reading import (
    fetch_size,
    fetch_span,
    fetch_versions,
    read_range,
    words,
)
from blockstore.api.session import REWRITES_MAX, VolumeSession
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import ABSENT, ANY, Batch, Extent, KeyWrite, Written
from blockstore.errors import (
    BlockStoreError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    StaleEpoch,
    TakenOver,
    Unavailable,
    from_wire,
    to_wire,
)
from blockstore.ids import KiB
from blockstore.kinds import block
from blockstore.kinds.block import Part, Shown, WriterMark
from blockstore.kinds.block_map import ZEROED, BlockMap, Known, State
from blockstore.kinds.turns import Share, Turn, Turns, Wake

BLOCKS_PER_BATCH = 128
"""512 KiB of values in one batch; with their keys it stays below what the owner takes."""

SHARED_BYTES_MAX = 64 * KiB
"""Writes of whole blocks up to this share batches. Larger ones gain little."""

CHANGES_PER_BATCH = 900
"""Without values; it stays below what the owner takes."""

SPANS_PER_WAVE = 16
"""Whole spans that are written at once."""

SETTLE_ATTEMPTS_MAX = 8
"""Each that fails finds that an earlier attempt was carried out meanwhile."""

HOLD_SECONDS = 5.0
"""A writer whose writes are held waits no longer than this: whoever holds them is gone, or too slow."""

HOLD_LOOK_SECONDS = 0.01
"""Between two looks whether they still are: the hold is for some milliseconds."""

MAP_SECONDS = 1.0
"""So long after it was known to be the writer, a writer believes what it remembers of the device."""


class Writer:
    """What a device open for writing knows: its token, its size, where its bytes are. All who write to it
    share this."""

    def __init__(
        self, token: bytes, base: int, sequence: int, size: int, new_wake: Callable[[], Wake]
    ) -> None:
        self.token = token
        self.sequence = sequence  # of the writer's key, the highest known
        self.size = size
        self.turns = Turns(new_wake)
        self.map = BlockMap()
        self.confirmed = float("-inf")  # when it was certainly the writer
        self.held: tuple[bytes, float] | None = None  # who holds its writes, and when that was first seen
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

    def lose(self, name: str) -> TakenOver:
        """Another writer took over; what to raise."""
        self.turns.lose()
        self.map.clear()
        return TakenOver(f"Block device {name!r}")

    async def find_map(self, session: VolumeSession, timeout: float) -> BlockMap | None:
        """What is remembered; None while it is not certain what was carried out, and when this is not the
        writer any more: then the owner says what there is."""
        if not self.turns.is_certain or self._pid != os.getpid():
            return None
        if session.cluster.caller.now() - self.confirmed >= MAP_SECONDS:
            try:
                await self.confirm(session, timeout)
            except TakenOver:
                return None
        return self.map

    async def confirm(self, session: VolumeSession, timeout: float) -> tuple[int, bytes]:
        """The present sequence of the writer's key, and who holds the writes. TakenOver."""
        asked_at = session.cluster.caller.now()
        sequence, mark = await fetch_mark(session, timeout)
        if mark.token != self.token:
            raise self.lose(session.name)
        self.learn(sequence, asked_at)
        return sequence, mark.hold

    async def confirm_free(self, session: VolumeSession, timeout: float) -> int:
        """The sequence on which writes are carried out. Waits while they are held; a hold that lasts too long
        is not heeded: what is put then ends it. TakenOver."""
        caller = session.cluster.caller
        while True:
            sequence, hold = await self.confirm(session, timeout)
            if not hold:
                self.held = None
                return sequence
            now = caller.now()
            if self.held is None or self.held[0] != hold:
                self.held = hold, now
            if now - self.held[1] < HOLD_SECONDS:
                await caller.sleep(HOLD_LOOK_SECONDS)
                continue
            with suppress(PreconditionFailed):  # it has ended, or another of our writes has ended it
                self.learn(await put_mark(session, WriterMark(self.token), sequence, timeout), now)

    def learn(self, sequence: int, asked_at: float) -> None:
        """At that time, or later, this was the writer. Sequences of its key only grow."""
        self.sequence = max(self.sequence, sequence)
        self.confirmed = max(self.confirmed, asked_at)


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
        async with self._turn(self._turns.enter(*_widened(start, end))):
            whole: list[int] = []  # they lie side by side
            for part in block.parts(start, end):
                if part.is_whole:
                    whole.append(part.span)
                else:
                    piece = data[part.offset - start : part.offset - start + part.end - part.start]
                    await self._write_part(part, piece)
            for first in range(0, len(whole), SPANS_PER_WAVE):
                some = whole[first : first + SPANS_PER_WAVE]
                begin = some[0] * block.SPAN_BYTES - start
                await self._write_spans(some, data[begin : begin + len(some) * block.SPAN_BYTES])

    async def zero(self, start: int, end: int) -> None:
        """Make it read as zeros, and give back what it took."""
        async with self._turn(self._turns.enter(*_widened(start, end))):
            await self._zero(start, end)

    async def resize(self, size: int) -> None:
        """What is cut off is zeroed first, so that it does not come back when the device grows again."""
        async with self._turn(self._turns.enter(0, block.DEVICE_BYTES_MAX)):
            if size < self._writer.size:
                await self._zero(size, self._writer.size)
            header = block.encode_header(size)
            await self._commit([_put(block.HEADER_KEY, b"", header)], [header])
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
                await self._commit(changes, values)
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

    async def _write_part(self, part: Part, data: memoryview) -> None:
        former = {number: await self._read_block(part, number) for number in part.cut_blocks}
        values = list(block.block_values(part, data, former))
        for first in range(0, len(values), BLOCKS_PER_BATCH):
            some = values[first : first + BLOCKS_PER_BATCH]
            changes = [
                _put(block.block_key(part.span, number), self._writer.new_meta(), value)
                for number, value in some
            ]
            await self._commit(changes, [value for _, value in some])

    async def _read_block(self, part: Part, number: int) -> bytes:
        """The block that the part touches, as it is."""
        start = block.block_of(part, number).offset
        end = start + block.BLOCK_BYTES
        return await read_range(self._session, self._writer, 0, start, end, self._timeout)

    async def _zero(self, start: int, end: int) -> None:
        """Whole blocks lose their keys or get one without a value; of others the bytes are overwritten. The
        work is in proportion to what is there."""
        at = block.span_key(start // block.SPAN_BYTES)
        end_key = block.span_key(-(-end // block.SPAN_BYTES))
        while at:
            versions, at = await fetch_versions(self._session, 0, at, end_key, self._timeout)
            spans: dict[int, list[block.Version]] = {}
            for version in versions:
                spans.setdefault(block.span_of(version.key), []).append(version)
            shown = {span: Shown(some) for span, some in spans.items()}
            if at and shown:  # the last one may go on behind the page
                last = max(shown)
                shown[last] = await fetch_span(self._session, 0, last, self._timeout)
                at = max(at, block.span_key(last + 1))
            await self._zero_spans(shown, start, end)

    async def _zero_spans(self, spans: Mapping[int, Shown], start: int, end: int) -> None:
        changes: list[KeyWrite] = []
        for span, shown in spans.items():
            offset = span * block.SPAN_BYTES
            first, last = max(start - offset, 0), min(end - offset, block.SPAN_BYTES)
            part = Part(span, first, last, offset + first)
            for number in part.cut_blocks:
                if shown.source(number) is not None:
                    edge = _clipped(part, number)
                    await self._write_part(edge, memoryview(block.ZEROS)[: edge.end - edge.start])
            put, delete = shown.zeroing(part.filled_blocks)
            changes += [_put(key, self._writer.new_meta(), b"") for key in put]
            changes += [_delete(key) for key in delete]
        for index in range(0, len(changes), CHANGES_PER_BATCH):
            await self._commit(changes[index : index + CHANGES_PER_BATCH])

    # --- whole spans

    async def _write_spans(self, spans: Sequence[int], data: memoryview) -> None:
        """Write what neighbouring spans are from now on. The turn covers them, so their keys stay what they
        are until the batch that names the bytes deletes those of their blocks."""
        session, writer = self._session, self._writer
        below = [await self._block_keys(span) for span in spans]
        for _ in range(REWRITES_MAX):
            extents = list(await session.write_extents(data, block.SPAN_BYTES, self._timeout))
            try:
                changes: list[KeyWrite] = []
                for index, (span, keys) in enumerate(zip(spans, below, strict=True)):
                    if len(changes) + 1 + len(keys) > CHANGES_PER_BATCH:
                        await self._commit(changes)
                        changes = []
                    value = data[index * block.SPAN_BYTES : (index + 1) * block.SPAN_BYTES]
                    own = _take_bytes(extents, block.SPAN_BYTES)
                    crc = own[0].crc if len(own) == 1 else crc32c(value)
                    key = block.span_key(span)
                    changes.append(KeyWrite(key, writer.new_meta(), block.SPAN_BYTES, crc, ANY, own))
                    changes += [_delete(key) for key in keys]
                await self._commit(changes)
                return
            except StaleEpoch:  # the owner that granted the chunks is gone, and their ends were not found
                below = [await self._block_keys(span) for span in spans]
        raise Unavailable(f"The owner changed {REWRITES_MAX} times while {words(session.name)} was written.")

    async def _block_keys(self, span: int) -> list[bytes]:
        """Of the blocks of a span that have one."""
        numbers = self._writer.map.block_keys(span) if self._turns.is_certain else None
        if numbers is None:
            numbers = list((await fetch_span(self._session, 0, span, self._timeout)).blocks)
        return [block.block_key(span, number) for number in numbers]

    # --- turns

    @asynccontextmanager
    async def _turn(self, turn: Turn) -> AsyncGenerator[Turn]:
        """Wait for the turn, and leave it at the end."""
        turns, writer = self._turns, self._writer
        in_doubt = True
        try:
            while True:
                writer.check(self._session.name)
                if turn.is_running:
                    break
                if turn.settles:
                    await self._settle()
                    turns.settled(turn)
                elif not turns.is_ready(turn):
                    assert turn.wake is not None
                    await turn.wake.wait()
                    turns.rearm(turn)
            yield turn
            in_doubt = False
        finally:
            turns.leave(turn, in_doubt=in_doubt)

    async def _commit(self, changes: Sequence[KeyWrite], values: Sequence[bytes | memoryview] = ()) -> None:
        """Carry out the changes, unless another writer took over."""
        session, writer = self._session, self._writer
        payload = [value for value in values if len(value)]
        while True:
            sequence, asked_at = writer.sequence, session.cluster.caller.now()
            batch = Batch(tuple(changes), ((block.WRITER_KEY, sequence),))
            try:
                await session.ask(batch, Written, self._timeout, payload)
            except PreconditionFailed:
                # Either this writer has settled something since, or its writes are held.
                if (
                    writer.sequence == sequence
                    and await writer.confirm_free(session, self._timeout) == sequence
                ):
                    raise
                continue
            writer.learn(sequence, asked_at)
            self._remember(changes)
            return

    def _remember(self, changes: Sequence[KeyWrite]) -> None:
        """What was carried out, before whoever asked for it hears so."""
        spans: dict[int, tuple[State | None, dict[int, State]]] = {}
        for change in changes:
            if change.key == block.HEADER_KEY:
                continue
            span, number = block.split_key(change.key)
            if number < 0:
                spans[span] = (Known.ABSENT if change.meta is None else Known.PLACE_UNKNOWN, {})
                continue
            blocks = spans.setdefault(span, (None, {}))[1]
            if change.meta is None:
                blocks[number] = Known.ABSENT
            else:
                blocks[number] = Known.PLACE_UNKNOWN if change.size else ZEROED
        for span, (base, blocks) in spans.items():
            self._writer.map.note_written(span, base, blocks)

    async def _settle(self) -> None:
        """Write the writer's key anew: what was sent before has been carried out by then, or is refused for
        ever."""
        session, writer = self._session, self._writer
        for _ in range(SETTLE_ATTEMPTS_MAX):
            expected = await writer.confirm_free(session, self._timeout)
            try:
                sequence = await put_mark(session, WriterMark(writer.token), expected, self._timeout)
            except PreconditionFailed:
                continue  # an earlier attempt at the same came true before ours, or writes are held
            writer.learn(sequence, float("-inf"))
            writer.map.clear()  # nobody reads it before the doubt is settled
            return
        raise Unavailable(
            f"Whether a former write to {words(session.name)} was carried out could not be found out yet."
        )


# --- taking over


async def take_over(session: VolumeSession, new_wake: Callable[[], Wake], timeout: float) -> Writer:
    """Become the writer of a device; when this returns, no former writer's change can be carried out."""
    rng = session.cluster.rng
    token = rng.getrandbits(64).to_bytes(8, "big")
    await fetch_size(session, 0, timeout)  # making it was finished
    sequence = await put_mark(session, WriterMark(token), ANY, timeout)
    size = await fetch_size(session, 0, timeout)
    return Writer(token, rng.getrandbits(64), sequence, size, new_wake)


async def fetch_mark(session: VolumeSession, timeout: float) -> tuple[int, WriterMark]:
    """The sequence of the writer's key, and what it says; ABSENT and no token if it was never put."""
    try:
        entry = await session.fetch_entry(block.WRITER_KEY, 0, timeout)
    except NotFound as error:
        if not str(error.fields[0]).startswith("object "):
            raise
        return ABSENT, WriterMark(bytes(block.TOKEN_BYTES))
    return entry.sequence, block.decode_mark(entry.meta)


async def put_mark(session: VolumeSession, mark: WriterMark, expected: int, timeout: float) -> int:
    """Its sequence then. PreconditionFailed."""
    batch = Batch((KeyWrite(block.WRITER_KEY, mark.meta, 0, 0, expected),))
    return (await session.ask(batch, Written, timeout)).sequence


async def make_header(session: VolumeSession, size: int, timeout: float) -> bool:
    """The last step of making a device. False if it has one already."""
    header = block.encode_header(size)
    try:
        await session.put_small(block.HEADER_KEY, b"", header, ABSENT, timeout)
    except PreconditionFailed:
        return False
    return True


def _put(key: bytes, meta: bytes, value: bytes | memoryview) -> KeyWrite:
    return KeyWrite(key, meta, len(value), crc32c(value) if len(value) else 0, ANY)


def _delete(key: bytes) -> KeyWrite:
    return KeyWrite(key, None, 0, 0, ANY)


def _take_bytes(extents: list[Extent], n_bytes: int) -> tuple[Extent, ...]:
    """Those that make up the first so many bytes; the rest is left."""
    n_taken = length = 0
    while length < n_bytes:
        length += extents[n_taken].length
        n_taken += 1
    assert length == n_bytes, "no extent crosses the end of a span"
    taken = tuple(extents[:n_taken])
    del extents[:n_taken]
    return taken


def _widened(start: int, end: int) -> tuple[int, int]:
    """To whole blocks: what shares one is written one after the other."""
    return start // block.BLOCK_BYTES * block.BLOCK_BYTES, -(-end // block.BLOCK_BYTES) * block.BLOCK_BYTES


def _clipped(part: Part, number: int) -> Part:
    """What the part has of one block."""
    whole = block.block_of(part, number)
    start, end = max(part.start, whole.start), min(part.end, whole.end)
    return Part(part.span, start, end, part.offset - part.start + start)
