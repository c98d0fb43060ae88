"""What a client remembers of where a device's bytes are, so that a read need not ask the owner first.

Pure, but for the lock. Of each span: what shows in it, as far as it is known. Places never become wrong, for
chunks are only appended to and their ids are used once: a version that was moved is not found any more, and
is asked for anew. What a version *is* changes only by its one writer, who says so here before its write
returns. What is asked of the owner meanwhile may be older than that: so an answer is taken in through a
`Load`, begun before the question, which has been told what was written since.

Bounded: so many bases and blocks, the longest unused spans go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from blockstore.codec.messages import Extent, Placement
from blockstore.ids import ChunkId
from blockstore.kinds.block import BLOCK_BYTES, Part

ENTRIES_MAX: Final = 128 * 1024
"""Bases and blocks remembered: some 40 MB. 128 GiB of spans written whole, or 512 MiB of single blocks."""

MISSES_MAX: Final = 8
"""So many reads of one span found too little known of it: then all its keys are listed."""

PLACEMENTS_MAX: Final = 50_000
"""Chunks whose members are remembered; when there are more, all is forgotten."""


class Known(Enum):
    """What may be known instead of a place."""

    ABSENT = "it has no key"
    PLACE_UNKNOWN = "it has a value, somewhere"


State = tuple[Extent, ...] | Known
"""Of a base or a block: where its bytes are; nowhere means that the block reads as zeros."""

ZEROED: Final[State] = ()

Placements = Mapping[ChunkId, Placement]


class Run(NamedTuple):
    """`length` bytes that lie together: in the value that the extents make up, from `start` on; without
    extents they are in `data`, or zeros."""

    length: int
    start: int
    extents: tuple[Extent, ...]
    placements: Placements
    data: bytes | None = None


class _Span:
    __slots__ = ("base", "blocks", "is_complete", "n_misses")

    def __init__(self) -> None:
        self.base: State = Known.PLACE_UNKNOWN
        self.blocks: dict[int, State] = {}
        self.is_complete = False  # a block that is not named has no key
        self.n_misses = 0

    def become(self, base: State) -> None:
        """The span was written or zeroed whole."""
        self.base, self.blocks, self.is_complete = base, {}, True


class Load:
    """A question about some spans, and what was written to them since it was asked."""

    __slots__ = ("is_void", "spans", "written")

    def __init__(self, spans: Iterable[int]) -> None:
        self.spans = frozenset(spans)
        self.written: list[tuple[int, State | None, Mapping[int, State]]] = []
        self.is_void = False


class BlockMap:
    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._lock = threading.Lock()
        self._spans: OrderedDict[int, _Span] = OrderedDict()  # the one used last at the end
        self._n_entries = 0
        self._loads: set[Load] = set()
        self._placements: dict[ChunkId, Placement] = {}
        self._chunks: dict[ChunkId, ChunkId] = {}

    @property
    def n_entries(self) -> int:
        return self._n_entries

    # --- what is known

    def find(self, part: Part) -> list[Run] | None:
        """What the part shows, in order. None if something of it is not known: then all of it must be asked
        for, so that it is of one instant."""
        with self._lock:
            span = self._spans.get(part.span)
            if span is None:
                return None
            self._spans.move_to_end(part.span)
            if not (span.is_complete or span.blocks.keys() >= set(part.blocks)):
                return None
            return runs_of(part, span.base, span.blocks, self._placements)

    def block_keys(self, span: int) -> list[int] | None:
        """Which blocks have a key; None if that is not known."""
        with self._lock:
            found = self._spans.get(span)
            if found is None or not found.is_complete:
                return None
            return [number for number, state in found.blocks.items() if state is not Known.ABSENT]

    def note_miss(self, span: int) -> bool:
        """Too little is known of the span for a read. Whether it is time to list all of it."""
        with self._lock:
            found = self._spans.get(span)
            if found is None or found.is_complete:
                return False
            found.n_misses += 1
            return found.n_misses >= MISSES_MAX

    # --- what is learned

    def begin(self, spans: Iterable[int]) -> Load:
        load = Load(spans)
        with self._lock:
            self._loads.add(load)
        return load

    def end(self, load: Load) -> None:
        with self._lock:
            self._loads.discard(load)

    def learn(
        self,
        load: Load,
        span: int,
        base: State,
        blocks: Mapping[int, State],
        placements: Placements,
        *,
        is_complete: bool,
    ) -> None:
        """What the owner said of a span, at an instant since the load began: of all its blocks, or of
        these."""
        with self._lock:
            if load.is_void:
                return
            if len(self._placements) + len(placements) > PLACEMENTS_MAX:
                self._forget_all()
            self._placements.update(placements)
            found = self._spans.get(span)
            if found is None:
                found = self._spans[span] = _Span()
            else:
                self._n_entries -= 1 + len(found.blocks)
            found.base = self._shared(base)
            if is_complete:
                found.blocks = {}
                found.is_complete = True
            _apply(found, None, {number: self._shared(state) for number, state in blocks.items()})
            for written, new_base, new_blocks in load.written:
                if written == span:
                    _apply(found, new_base, new_blocks)
            self._n_entries += 1 + len(found.blocks)
            self._evict()

    def note_written(self, span: int, base: State | None, blocks: Mapping[int, State]) -> None:
        """The writer has changed these blocks; or with `base` the span as a whole, and then these."""
        with self._lock:
            for load in self._loads:
                if span in load.spans:
                    load.written.append((span, base, blocks))
            found = self._spans.get(span)
            if found is None:
                if base is None:
                    return
                found = self._spans[span] = _Span()
            else:
                self._n_entries -= 1 + len(found.blocks)
            _apply(found, base, blocks)
            self._n_entries += 1 + len(found.blocks)
            self._evict()

    def forget(self, span: int) -> None:
        """Its places are not right any more."""
        with self._lock:
            self._drop(span)

    def clear(self) -> None:
        """Nothing of it is certain any more, nor what is being asked just now."""
        with self._lock:
            for load in self._loads:
                load.is_void = True
            self._forget_all()

    def _shared(self, state: State) -> State:
        """With chunk ids of which there is one copy each."""
        if isinstance(state, Known):
            return state
        chunks = self._chunks
        return tuple(
            [msgspec.structs.replace(one, chunk=chunks.setdefault(one.chunk, one.chunk)) for one in state]
        )

    def _forget_all(self) -> None:
        self._spans.clear()
        self._n_entries = 0
        self._placements = {}  # not cleared: reads under way have it
        self._chunks.clear()

    def _evict(self) -> None:
        while self._n_entries > self._entries_max:
            self._drop(next(iter(self._spans)))

    def _drop(self, span: int) -> None:
        found = self._spans.pop(span, None)
        if found is not None:
            self._n_entries -= 1 + len(found.blocks)


def _apply(span: _Span, base: State | None, blocks: Mapping[int, State]) -> None:
    if base is not None:
        span.become(base)
    for number, state in blocks.items():
        if state is Known.ABSENT and span.is_complete:
            span.blocks.pop(number, None)
        else:
            span.blocks[number] = state


def runs_of(
    part: Part, base: State, blocks: Mapping[int, State] | Mapping[int, State | bytes], placements: Placements
) -> list[Run] | None:
    """What the part shows, in order. `blocks`: those that have a key; they may have their bytes instead of a
    place. None if a place is not known."""
    runs: list[Run] = []
    if not blocks and isinstance(base, tuple):
        return [Run(part.end - part.start, part.start, base, placements)]
    for number in part.blocks:
        begin = number * BLOCK_BYTES
        first, last = max(part.start, begin), min(part.end, begin + BLOCK_BYTES)
        state, origin = blocks.get(number, Known.ABSENT), begin
        if state is Known.ABSENT:
            state, origin = ZEROED if base is Known.ABSENT else base, 0
        if state is Known.PLACE_UNKNOWN:
            return None
        if isinstance(state, bytes):
            runs.append(Run(last - first, first - origin, (), placements, state))
            continue
        assert isinstance(state, tuple)
        before = runs[-1] if runs else None
        if (
            before is not None
            and before.extents is state
            and before.data is None
            and (not state or before.start + before.length == first - origin)
        ):
            runs[-1] = Run(before.length + last - first, before.start, state, placements)
        else:
            runs.append(Run(last - first, first - origin, state, placements))
    return runs
