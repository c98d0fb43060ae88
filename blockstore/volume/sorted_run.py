"""An immutable run of the map, of which only the index is in memory: its blocks are asked for when needed.

Pure: nothing here waits. A block that is not in the cache is read, if that takes no waiting
(`BlockCache.near`); else whoever needs it gets `BlocksMissing`, fetches what it names (`block_shell.py`),
and asks again. A block is read with its checksum and its place, so a cached one is what was written.

A clone reads runs of other volumes, as of the sequence at which it was made: of each state, what was visible
then.

One key costs a look into the filter; if that says "perhaps", one block of some 4 KiB, and its decoding (10
us). Memory: some 100 bytes for each block, 1.5 for each key."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from blockstore.codec.messages import Extent
from blockstore.codec.run_file import (
    RunEntry,
    RunIndex,
    RunInfo,
    block_body,
    decode_entries,
    decode_version,
    stored_from,
    unpack_u64,
)
from blockstore.errors import Corrupt
from blockstore.ids import ChunkId, MiB, VolumeId
from blockstore.volume.key_filter import KeyFilter

KeyState = tuple[bytes | None, tuple[bytes, ...]]
"""Newest version and older ones, as stored."""

RUN_BLOCK_BYTES = 4096
"""A block ends with the entry that reaches this: a random look-up reads and decodes one."""

READ_AHEAD_BLOCKS = 16
"""Asked for together by whoever reads keys in order."""

BLOCK_CACHE_BYTES = 64 * MiB
"""Of blocks; of each volume that is owned."""

PASSED_OVER = 1_000
"""Blocks passed over before whoever reads is told how far it got: some 0.2 ms."""

_key = itemgetter(0)


class BlockRange(NamedTuple):
    """Blocks [first, last) of a run."""

    run: SortedRun
    first: int
    last: int


class BlocksMissing(Exception):
    """What is asked needs these first. It never leaves the volume's own code."""

    def __init__(self, ranges: Sequence[BlockRange]) -> None:
        super().__init__(f"{len(ranges)} ranges of blocks")
        self.ranges = ranges


ReadNear = Callable[["SortedRun", int], "memoryview | None"]
"""The bytes of a block, as they stand in the run, if they can be had at once."""


def _nothing_near(_run: SortedRun, _block: int) -> None:
    return None


Held = dict[tuple[int, int], bytes]
"""Bodies of blocks, by run and block."""


class BlockCache:
    """Bodies of blocks, the least recently used forgotten first.

    Who asks again after a fetch is `holding` all that was fetched for it so far: else two who need more than
    there is room for would drop each other's blocks for ever."""

    def __init__(self, bytes_max: int = BLOCK_CACHE_BYTES) -> None:
        self.size = 0
        self._bytes_max = bytes_max
        self._bodies: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._held: Held = {}
        self._n_runs = 0
        self.near: ReadNear = _nothing_near
        """What to try before a block is missing."""

    def new_run(self) -> int:
        """A number that no other run of this cache has."""
        self._n_runs += 1
        return self._n_runs

    def find(self, run: int, block: int) -> bytes | None:
        body = self._bodies.get((run, block))
        if body is None:
            return self._held.get((run, block))
        self._bodies.move_to_end((run, block))
        return body

    @contextmanager
    def holding(self, held: Held) -> Generator[None]:
        """These are found too."""
        self._held = held
        try:
            yield
        finally:
            self._held = {}

    def keep(self, run: int, block: int, body: bytes) -> None:
        former = self._bodies.pop((run, block), b"")
        self._bodies[run, block] = body
        self.size += len(body) - len(former)
        while self.size > self._bytes_max and len(self._bodies) > 1:
            _, dropped = self._bodies.popitem(last=False)
            self.size -= len(dropped)

    def forget(self, run: int) -> None:
        for place in [place for place in self._bodies if place[0] == run]:
            self.size -= len(self._bodies.pop(place))


class SortedRun:
    def __init__(self, volume: VolumeId, info: RunInfo, index: RunIndex, cache: BlockCache) -> None:
        self.info = info
        self.chunks: frozenset[ChunkId] = frozenset(index.chunks)
        self.serial = cache.new_run()
        self.n_blocks = len(index.first_keys)
        self._volume = info.volume or volume
        self._as_of = info.as_of
        self._hidden_from = stored_from(info.as_of + 1)
        self._cache = cache
        self._first_keys = index.first_keys
        self._ends = unpack_u64(index.ends)
        self._newest = unpack_u64(index.newest)
        self._with_history = index.with_history
        self._filter = KeyFilter.from_bytes(index.filter)
        self._extent_ends = list(accumulate(extent.length for extent in info.extents))

    # --- one key

    def find(self, key: bytes, hashed: int) -> KeyState | None:
        """What the run says of a key, None if nothing. `hashed` is of `hash_of(key)`."""
        if not self._filter.may_have(hashed):
            return None
        block = bisect_right(self._first_keys, key) - 1
        if block < 0:
            return None
        body = self._cache.find(self.serial, block)
        if body is None:
            body = self._read_near(block)
        entries = decode_entries(body)
        at = bisect_left(entries, key, key=_key)
        if at < len(entries) and entries[at][0] == key:
            entry = self._as_seen(entries[at]) if self._as_of else entries[at]
            return entry[1], entry[2]
        return None

    def _read_near(self, block: int) -> bytes:
        data = self._cache.near(self, block)
        if data is not None:
            with suppress(Corrupt):  # damaged here: it is fetched from elsewhere
                body = block_body(self._volume, self.info.sequence, block, data)
                self._cache.keep(self.serial, block, body)
                return body
        raise BlocksMissing((BlockRange(self, block, block + 1),))

    # --- keys in order

    def missing_at(self, start: bytes, passes: Passes | None = None) -> BlockRange | None:
        """What `entries_from` would miss, if it does not have to pass over many blocks before."""
        block = max(0, bisect_right(self._first_keys, start) - 1)
        past = min(self.n_blocks, block + PASSED_OVER)
        while block < past and passes is not None and passes(self, block):
            block += 1
        if block == past or self._cache.find(self.serial, block) is not None:
            return None
        return self._ahead(block)

    def entries_from(self, start: bytes, passes: Passes | None = None) -> Iterator[RunEntry | bytes]:
        """Entries in the order of their keys, from `start` on, without blocks that `passes` says to pass
        over. Where many are, the first key that is not looked at yet comes in between, alone: whoever reads
        may want to stop there."""
        block = max(0, bisect_right(self._first_keys, start) - 1)
        n_passed = 0
        cache, serial = self._cache, self.serial
        is_first = True
        while block < self.n_blocks:
            if passes is not None and passes(self, block):
                n_passed += 1
                if n_passed % PASSED_OVER == 0 and block + 1 < self.n_blocks:
                    yield self._first_keys[block + 1]
            else:
                body = cache.find(serial, block)
                if body is None:
                    raise BlocksMissing((self._ahead(block),))
                entries = self.entries_in(body)
                yield from entries[bisect_left(entries, start, key=_key) :] if is_first else entries
            is_first = False
            block += 1

    def is_unchanged_since(self, block: int, sequence: int) -> bool:
        """Whether every newest version in the block is older than `sequence`, and no key is gone."""
        return self._newest[block] < sequence

    def has_history(self, block: int) -> bool:
        return bool(self._with_history[block]) and not self._as_of

    def entries_in(self, body: bytes) -> list[RunEntry]:
        """Of a block. Raise Corrupt."""
        entries = decode_entries(body)
        return [self._as_seen(entry) for entry in entries] if self._as_of else entries

    def _as_seen(self, entry: RunEntry) -> RunEntry:
        """The version that was visible then, alone. A key that was not there is gone, whatever older runs
        say of it."""
        key, newest, older = entry
        if newest is None or (not older and newest < self._hidden_from):
            return entry
        for packed in (newest, *older):
            if packed < self._hidden_from:
                return key, packed if decode_version(packed).meta is not None else None, ()
        return key, None, ()

    def _ahead(self, block: int) -> BlockRange:
        return BlockRange(self, block, min(block + READ_AHEAD_BLOCKS, self.n_blocks))

    # --- blocks

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Where blocks [first, last) stand in the run."""
        return (self._ends[first - 1] if first else 0), self._ends[last - 1]

    def extents_of(self, first: int, last: int) -> tuple[Sequence[Extent], int, int]:
        """The extents that hold blocks [first, last), and where these stand in what they make up."""
        start, end = self.span(first, last)
        i = bisect_right(self._extent_ends, start)
        past = bisect_left(self._extent_ends, end) + 1
        before = self._extent_ends[i - 1] if i else 0
        return self.info.extents[i:past], start - before, end - before

    def bodies(self, first: int, last: int, data: memoryview) -> Iterator[bytes]:
        """Of blocks [first, last), whose bytes are `data`. Raise Corrupt."""
        begin = self.span(first, last)[0]
        for block in range(first, last):
            start, end = self.span(block, block + 1)
            yield block_body(self._volume, self.info.sequence, block, data[start - begin : end - begin])

    def keep(self, first: int, last: int, data: memoryview) -> Held:
        """Blocks that were missing. Raise Corrupt."""
        kept = {
            (self.serial, block): body for block, body in enumerate(self.bodies(first, last, data), first)
        }
        for (serial, block), body in kept.items():
            self._cache.keep(serial, block, body)
        return kept

    def n_ahead(self, first: int, n_bytes: int) -> int:
        """Up to which block, from `first` on, so many bytes reach; one at least."""
        start = self.span(first, first + 1)[0]
        return max(first + 1, bisect_right(self._ends, start + n_bytes))

    def forget(self) -> None:
        """It is not needed any more."""
        self._cache.forget(self.serial)


Passes = Callable[[SortedRun, int], bool]
