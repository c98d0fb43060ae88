"""Reading a block device.

Where the bytes are is remembered (`kinds/block_map.py`) by its writer, and of a snapshot, so most reads go to
the nodes at once. What is not known is asked of the owner: one request for all keys that may show in a range.
Values move and are replaced meanwhile: then the keys are looked up again, until the operation's time is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from blockstore.api.cluster import Backoff, may_retry
from blockstore.api.history import Moment, fetch_snapshots
from blockstore.api.many_values import Looked
from blockstore.api.session import VolumeSession
from blockstore.api.snapshot import choose_snapshot
from blockstore.chunk.chunk_shell import Want
from blockstore.codec.messages import ListKeys, Placement, SnapshotRecord
from blockstore.errors import (
    BlockStoreError,
    InvalidRequest,
    NotFound,
    ProtocolViolation,
    Unavailable,
)
from blockstore.ids import ChunkId, MiB
from blockstore.kinds import block
from blockstore.kinds.block import Part, Shown, Version
from blockstore.kinds.block_map import ZEROED, BlockMap, Known, Load, Run, State, runs_of
from blockstore.runtime.interfaces import Buffer

READ_PIECE_BYTES = 16 * MiB
"""A longer read goes in pieces of this, each with the timeout anew: memory holds the result and one piece."""

KEYS_AT_ONCE = 3 * (block.BLOCKS_PER_SPAN + 1)
"""In one request: three spans, at most 3 MiB of blocks in the answer, which a frame takes."""

LISTED_BLOCKS_MIN = 64
"""From so many blocks of a span on, its keys are listed first."""

_SPAN_KEY_BYTES = len(block.span_key(0))


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


class MapKeeper(Protocol):
    """Who remembers where the bytes are."""

    async def find_map(self, session: VolumeSession, timeout: float) -> BlockMap | None:
        """What is known, if it may be believed just now."""
        ...


class SnapshotKeeper:
    """A snapshot never changes: what was ever known of it stays right."""

    def __init__(self) -> None:
        self._map = BlockMap()

    async def find_map(self, session: VolumeSession, timeout: float) -> BlockMap | None:
        return self._map


async def read_range(
    session: VolumeSession, keeper: MapKeeper | None, at: int, start: int, end: int, timeout: float
) -> bytes:
    """The bytes [start, end) as of a sequence (0: now)."""
    if start == end:
        return b""
    known = None if keeper is None else await keeper.find_map(session, timeout)
    if known is not None and start // block.SPAN_BYTES == (end - 1) // block.SPAN_BYTES:
        runs = known.find(block.part_of(start, end))
        if runs is not None and len(runs) == 1:
            [run] = runs
            first = run.start
            found = await session.try_extents(run.extents, run.placements, first, first + run.length, timeout)
            if found is not None:
                return found
    reading = _Reading(session, at, known)
    if end - start <= READ_PIECE_BYTES:
        return await reading.read_piece(start, end, timeout)
    return b"".join(
        [
            await reading.read_piece(offset, min(end, offset + READ_PIECE_BYTES), timeout)
            for offset in range(start, end, READ_PIECE_BYTES)
        ]
    )


class _Reading:
    """One read."""

    __slots__ = ("_at", "_map", "_session")

    def __init__(self, session: VolumeSession, at: int, known: BlockMap | None) -> None:
        self._session, self._at, self._map = session, at, known

    async def read_piece(self, start: int, end: int, timeout: float) -> bytes:
        session = self._session
        asked = list(block.parts(start, end))
        caller = session.cluster.caller
        deadline = caller.now() + timeout
        backoff: Backoff | None = None
        while True:
            try:
                return await self._try_read(asked, max(0.0, deadline - caller.now()))
            except BlockStoreError as error:
                if not may_retry(error):
                    raise
                if self._map is not None and backoff is None:
                    pause = 0.0  # what is remembered may have moved; it is forgotten now
                    backoff = Backoff(session.cluster.rng)
                else:
                    backoff = backoff or Backoff(session.cluster.rng)
                    pause = backoff.next()
                if caller.now() + pause >= deadline:
                    raise Unavailable(f"{words(session.name)} could not be read in time: {error}") from error
                if pause:
                    await caller.sleep(pause)

    async def _try_read(self, asked: Sequence[Part], timeout: float) -> bytes:
        known = self._map
        found = [None if known is None else known.find(part) for part in asked]
        if None in found:
            missing = [part for part, runs in zip(asked, found, strict=True) if runs is None]
            looked = iter(await self._look_up(missing, timeout))
            found = [next(looked) if runs is None else runs for runs in found]
        runs = [run for some in found if some is not None for run in some]
        try:
            return await self._fetch(runs, timeout)
        except BlockStoreError:
            if known is not None:
                for part in asked:
                    known.forget(part.span)
            raise

    async def _fetch(self, runs: Sequence[Run], timeout: float) -> bytes:
        wants: list[Want] = [
            (run.extents, run.placements, run.start, run.start + run.length) for run in runs if run.extents
        ]
        fetched = iter(await self._session.read_extents(wants, timeout) if wants else ())
        pieces: list[Buffer] = []
        for run in runs:
            if run.extents:
                pieces.append(next(fetched))
            elif run.data is None:
                pieces.append(bytes(run.length))
            elif run.length == len(run.data):
                pieces.append(run.data)
            else:
                pieces.append(run.data[run.start : run.start + run.length])
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    # --- what is not known

    async def _look_up(self, asked: Sequence[Part], timeout: float) -> list[list[Run]]:
        """Ask the owner what the parts show, and remember it."""
        known = self._map
        lists_all = max(len(part.blocks) for part in asked) >= LISTED_BLOCKS_MIN
        if known is None:
            return await self._ask(asked, None, lists_all, timeout)
        for part in asked:
            lists_all = known.note_miss(part.span) or lists_all
        load = known.begin(part.span for part in asked)
        try:
            return await self._ask(asked, load, lists_all, timeout)
        finally:
            known.end(load)

    async def _ask(
        self, asked: Sequence[Part], load: Load | None, lists_all: bool, timeout: float
    ) -> list[list[Run]]:
        listed = await self._list_spans(asked, timeout) if lists_all else None
        keys: list[bytes] = []
        for part in asked:
            there = None if listed is None else listed[part.span]
            if there is None or there.base is not None:
                keys.append(block.span_key(part.span))
            keys += [
                block.block_key(part.span, number)
                for number in part.blocks
                if there is None or number in there.blocks
            ]
        ranges = [(0, 0) if len(key) == _SPAN_KEY_BYTES else (0, -1) for key in keys]
        looked = await self._session.look_up_many(keys, ranges, self._at, timeout, KEYS_AT_ONCE)
        answers = dict(zip(keys, looked, strict=True))
        placements: dict[ChunkId, Placement] = {}
        for key, one in answers.items():
            if one is not None:
                block.check_value_size(key, one.size)
                if one.remote is not None:
                    placements.update(one.remote.placements)
        return [
            self._take(part, None if listed is None else listed[part.span], answers, placements, load)
            for part in asked
        ]

    def _take(
        self,
        part: Part,
        listed: Shown | None,
        answers: Mapping[bytes, Looked | None],
        placements: Mapping[ChunkId, Placement],
        load: Load | None,
    ) -> list[Run]:
        """What the owner said of a part, as runs of bytes."""
        key = block.span_key(part.span)
        found = answers.get(key)
        if listed is not None:
            sequence = 0 if listed.base is None else listed.base.sequence
            if sequence != (0 if found is None else found.sequence):
                raise Unavailable("it was changed while it was being read")
        base = _state_of(found)
        blocks: dict[int, State] = {}
        shown: dict[int, State | bytes] = {}
        for number in part.blocks:
            one = answers.get(block.block_key(part.span, number))
            if one is None and listed is not None and number in listed.blocks:
                raise Unavailable("it was changed while it was being read")
            blocks[number] = shown[number] = _state_of(one)
            if one is not None and one.data:
                shown[number] = one.data
        if load is not None:
            assert self._map is not None
            if listed is not None:
                blocks = {
                    number: ZEROED if not version.size else blocks.get(number, Known.PLACE_UNKNOWN)
                    for number, version in listed.blocks.items()
                }
            self._map.learn(load, part.span, base, blocks, placements, is_complete=listed is not None)
        runs = runs_of(part, base, shown, placements)
        assert runs is not None, "the owner gives a value, or says where it is"
        return runs

    async def _list_spans(self, asked: Sequence[Part], timeout: float) -> dict[int, Shown]:
        """All keys that the spans have: of a long range most have none, and asking for each would cost
        more."""
        start, end = block.span_key(asked[0].span), block.span_key(asked[-1].span + 1)
        versions: dict[int, list[Version]] = {part.span: [] for part in asked}
        while start:
            page, start = await fetch_versions(self._session, self._at, start, end, timeout)
            for version in page:
                of_span = versions.get(block.span_of(version.key))
                if of_span is not None:
                    of_span.append(version)
        return {span: Shown(some) for span, some in versions.items()}


def _state_of(one: Looked | None) -> State:
    if one is None:
        return Known.ABSENT
    if not one.size:
        return ZEROED
    return Known.PLACE_UNKNOWN if one.remote is None else one.remote.entry.extents


# --- keys


async def fetch_versions(
    session: VolumeSession, at: int, start: bytes, end: bytes, timeout: float
) -> tuple[list[Version], bytes]:
    """A page of the versions in [start, end) of the device's keys, and where the rest starts; empty: this was
    all."""
    op = ListKeys(block.SPAN_PREFIX, b"", b"", 1_000, at, start)
    page = await session.fetch_page(op, timeout)
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
    start, end = block.span_key(span), block.span_key(span + 1)
    versions: list[Version] = []
    while start:
        page, start = await fetch_versions(session, at, start, end, timeout)
        versions += page
    return Shown(versions)
