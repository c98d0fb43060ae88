"""Which version of which key is visible at which sequence?

A log-structured merge tree (P. O'Neil, E. Cheng, D. Gawlick, E. O'Neil, "The Log-Structured Merge-Tree", Acta
Informatica 33, 1996): what changed lately is in the memtable, everything else in immutable runs on the nodes'
disks, of which only indexes and filters are in memory (`sorted_run.py`). Each holds whole states of keys, the
newest version and those older ones that snapshots see, so the newest source that has a key says all of it.

Pure and synchronous. What needs a block that is not in memory raises `BlocksMissing` and has changed nothing:
fetch what it names and call again. A record must not meet that while it is applied, so its keys are `pin`ned
before it goes into the journal: then their states stay in memory until it is applied.

Invariants: the newest version of a key has its highest sequence; the older ones are, newest first, exactly
those that some snapshot still sees (until `purge` has come by after a snapshot was deleted: then also more,
never less); a tombstone is kept only while an older version is. A state in `_known` is what the runs say.

Costs: of a key that is not there the filters know; of one that is, and that neither changed lately nor was
asked for, one block is read. Memory depends on KNOWN_KEYS_MAX, the cache of blocks and the memtable; of
what is stored, only indexes and filters count (4 bytes for each key)."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

import msgspec

from blockstore.codec.messages import Entry, Extent
from blockstore.codec.run_file import RunEntry, StoredVersion, decode_version, encode_version, stored_from
from blockstore.config import FRAME_HEADER_BYTES_MAX
from blockstore.ids import ChunkId
from blockstore.volume.key_filter import hash_of
from blockstore.volume.memtable import GONE, Memtable
from blockstore.volume.sorted_run import (
    BlockCache,
    BlockRange,
    BlocksMissing,
    KeyState,
    Passes,
    SortedRun,
)

PAGE_BYTES_MAX = FRAME_HEADER_BYTES_MAX // 2
"""Of keys and metadata in one page: 1,000 keys with 8 KiB of metadata each are eight frames' worth."""

KEYS_EXAMINED_MAX = 4_000
"""Keys that one page may look at: some 10 ms."""

EXAMINED_BYTES = 512
"""So much of a state counts as one more key: what one page looks at is in memory until it is answered."""

CHANGES_EXAMINED_MAX = 40_000
"""The same for a page of changes, where a key that did not change costs a tenth."""

CHANGED_WEIGHT = 20
"""Keys that did not change cost as much as one that may have: its versions are decoded."""

PASSED_WEIGHT = 400
"""And so much cost PASSED_OVER blocks that were passed over: some 150 us."""

KNOWN_KEYS_MAX = 250_000
"""States kept in memory though the runs have them: some 100 MB. Smaller maps never read a block for a key."""

EXTENTS_LISTED_MAX = 1_000
"""Of one value in a page: more would leave no room for others."""

_EXTENT_BYTES = 100
"""What one takes in a message, with its chunk's place if no other extent has told that."""

_ENTRY_BYTES = 32
"""What an entry takes in a message besides its key and metadata: size, sequence, checksum."""

Freed = list[StoredVersion]
"""Versions that nothing sees any more: their bytes are given back to their chunks."""

Change = tuple[bytes, StoredVersion | None, StoredVersion | None]
"""A key, what it was and what it became; None: not there."""

Seen = tuple[bytes, KeyState | None]
"""A key and its state; or, with None, how far was looked without finding any."""


class VersionedMap:
    def __init__(self, known_keys_max: int = KNOWN_KEYS_MAX, cache: BlockCache | None = None) -> None:
        self.cache = BlockCache() if cache is None else cache
        self.n_live = 0
        self._recent = Memtable()
        self._frozen: Memtable | None = None  # a run is being made of it
        self._runs: list[SortedRun] = []  # from the newest to the oldest
        self._known: dict[bytes, KeyState] = {}
        self._known_max = known_keys_max
        self._pins: Counter[bytes] = Counter()

    # --- one key

    def state_of(self, key: bytes) -> KeyState:
        """Its newest version and the older ones. BlocksMissing."""
        state = self._in_memory(key)
        return self._look_up(key) if state is None else state

    def states_of(self, keys: Iterable[bytes]) -> list[KeyState]:
        """BlocksMissing names what all of them need."""
        states: list[KeyState] = []
        missing: list[BlockRange] = []
        for key in keys:
            try:
                states.append(self.state_of(key))
            except BlocksMissing as error:
                missing += error.ranges
        if missing:
            raise BlocksMissing(tuple(dict.fromkeys(missing)))
        return states

    def pin(self, keys: Collection[bytes]) -> None:
        """Keep their states in memory until `unpin`: a record with these keys may be applied meanwhile.
        BlocksMissing: none is pinned."""
        for key, state in zip(keys, self.states_of(keys), strict=True):
            if self._in_memory(key) is None:
                self._known[key] = state
            self._pins[key] += 1

    def unpin(self, keys: Iterable[bytes]) -> None:
        pins = self._pins
        for key in keys:
            if pins[key] == 1:
                del pins[key]
            else:
                pins[key] -= 1

    def find(self, key: bytes, at: int = 0) -> StoredVersion | None:
        """The version visible at sequence `at` (0: now); None if there is none, or a tombstone.
        BlocksMissing."""
        return _visible(self.state_of(key), at)

    def find_many(self, keys: Iterable[bytes], at: int = 0) -> list[StoredVersion | None]:
        return [_visible(state, at) for state in self.states_of(keys)]

    def versions(self, key: bytes) -> list[StoredVersion]:
        """All that are kept, newest first, tombstones among them. BlocksMissing."""
        newest, older = self.state_of(key)
        return [] if newest is None else [decode_version(packed) for packed in (newest, *older)]

    def _in_memory(self, key: bytes) -> KeyState | None:
        state = self._recent.states.get(key)
        if state is None:
            if self._frozen is not None and (state := self._frozen.states.get(key)) is not None:
                return state
            state = self._known.get(key)
            if state is None and not self._runs:
                return GONE
        return state

    def _look_up(self, key: bytes) -> KeyState:
        hashed = hash_of(key)
        for run in self._runs:
            state = run.find(key, hashed)
            if state is not None:
                self._know(key, state)
                return state
        return GONE

    def _know(self, key: bytes, state: KeyState) -> None:
        self._known[key] = state
        if len(self._known) > self._known_max + self._known_max // 8 + len(self._pins):
            self._forget_some()

    def _forget_some(self) -> None:
        """Those known the longest, many at once: a dict is slow at losing its first key."""
        excess = len(self._known) - self._known_max
        pins = self._pins
        for key in list(islice(self._known, excess)):
            if key not in pins:
                del self._known[key]

    # --- keys in order

    def page(
        self,
        prefix: bytes,
        after: bytes,
        delimiter: bytes,
        limit: int,
        at: int,
        start: bytes = b"",
        *,
        with_places: bool = False,
    ) -> tuple[list[Entry], bytes]:
        """Up to `limit` entries (or common prefixes, with sequence 0) in key order; and the `start` of the
        rest, empty when there is none. A page begins at `start`, or behind `after`, the last entry of another
        page. It has fewer entries, or none, when their metadata would not fit one answer, and when
        KEYS_EXAMINED_MAX keys were looked at: a snapshot may show one of a million keys. Entries have no
        extents, or with `with_places` those of values that have up to EXTENTS_LISTED_MAX. BlocksMissing."""
        entries: list[Entry] = []
        n_bytes = n_examined = 0
        begin = _beginning(prefix, after, delimiter) if not start else max(start, prefix)
        while begin is not None:
            restart: bytes | None = None
            for key, state in self._seen_from(begin, self._runs):
                if not key.startswith(prefix):
                    return entries, b""
                if n_examined >= KEYS_EXAMINED_MAX:
                    return entries, key
                n_examined += 1
                if state is not None and state[0] is not None:
                    n_examined += (len(state[0]) + sum(map(len, state[1]))) // EXAMINED_BYTES
                version = None if state is None else _visible(state, at)
                if version is None or version.meta is None:
                    continue
                places = version.extents if with_places and len(version.extents) <= EXTENTS_LISTED_MAX else ()
                n_bytes += len(key) + len(version.meta) + _ENTRY_BYTES + _EXTENT_BYTES * len(places)
                if len(entries) == limit or (entries and n_bytes > PAGE_BYTES_MAX):
                    return entries, key
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    folded = key[: cut + len(delimiter)]
                    entries.append(Entry(folded, 0, b"", 0, 0, ()))
                    restart = _successor(folded)
                    if restart is None:
                        return entries, b""
                    break
                entries.append(Entry(key, version.sequence, version.meta, version.size, version.crc, places))
            begin = restart
        return entries, b""

    def changes(
        self, since: int, until: int, start: bytes, end: bytes, limit: int
    ) -> tuple[list[Change], bytes]:
        """Up to `limit` keys of [start, end), in order, that are not alike at the two sequences (0: now), and
        the `start` of the rest, empty when there is none. Bounded as `page` is. What was written again with
        the same content, or restored to it, is alike. Blocks of runs in which nothing is young enough are not
        read. BlocksMissing."""
        changes: list[Change] = []
        if since == until:
            return changes, b""
        # A version that both see is at most as young as the older of the two. What an older source says of a
        # key whose newest state was passed over is older still, so it is passed over too.
        youngest = 1 + (min(since, until) or max(since, until))
        bound = stored_from(youngest)
        n_bytes = n_examined = 0
        for key, state in self._seen_from(
            start, self._runs, lambda run, block: run.is_unchanged_since(block, youngest)
        ):
            if end and key >= end:
                break
            if n_examined > CHANGES_EXAMINED_MAX:
                return changes, key
            n_examined += PASSED_WEIGHT if state is None else 1
            if state is None or state[0] is None or state[0] < bound:
                continue
            old, new = _visible(state, since), _visible(state, until)
            n_examined += CHANGED_WEIGHT
            if are_alike(old, new):
                continue
            n_bytes += _listed_bytes(key, old) + _listed_bytes(key, new)
            if len(changes) == limit or (changes and n_bytes > PAGE_BYTES_MAX):
                return changes, key
            changes.append((key, old, new))
        return changes, b""

    def placed_in(
        self, chunks: frozenset[ChunkId], start: bytes, n_keys: int
    ) -> tuple[list[tuple[bytes, StoredVersion]], bytes]:
        """Of up to `n_keys` keys from `start` on, in order, the versions that have bytes in these chunks; and
        where the rest starts, empty when there is none. BlocksMissing."""
        runs = [run for run in self._runs if not run.chunks.isdisjoint(chunks)]
        keys: list[bytes] = []
        rest = b""
        for n_seen, (key, state) in enumerate(self._seen_from(start, runs)):
            if n_seen == n_keys:
                rest = key
                break
            if state is not None and any(_in_chunks(version, chunks) for version in _versions(state)):
                keys.append(key)
        # What an older run says may not be so any more.
        return [
            (key, version)
            for key, state in zip(keys, self.states_of(keys), strict=True)
            for version in _versions(state)
            if _in_chunks(version, chunks)
        ], rest

    def with_history(self, start: bytes, n_keys: int) -> tuple[list[bytes], bytes]:
        """Of up to `n_keys` keys from `start` on those that have, or lately had, older versions; and where
        the rest starts, empty when there is none. BlocksMissing."""
        keys: list[bytes] = []
        n_seen = 0
        for key, state in self._seen_from(start, self._runs, lambda run, block: not run.has_history(block)):
            if n_seen >= n_keys:
                return keys, key
            n_seen += 1 if state is not None else PASSED_WEIGHT
            if state is not None and state[1]:
                keys.append(key)
        return keys, b""

    def _seen_from(
        self, start: bytes, runs: Sequence[SortedRun], passes: Passes | None = None
    ) -> Iterator[Seen]:
        """Keys from `start` on, in order, as the newest source that has them says. BlocksMissing."""
        missing = [found for run in runs if (found := run.missing_at(start, passes)) is not None]
        if missing:
            raise BlocksMissing(missing)
        recent = [self._recent] if self._frozen is None else [self._recent, self._frozen]
        if len(recent) == 1 and not runs:
            for key, newest, older in self._recent.entries_from(start):
                yield key, (newest, older)
            return
        sources: list[Iterator[RunEntry | bytes]] = [table.entries_from(start) for table in recent]
        sources += [run.entries_from(start, passes) for run in runs]
        last: bytes | None = None
        for key, _, state in heapq.merge(*map(_ranked, sources, range(len(sources)))):
            if state is None:
                if key != last:  # what is newer has said all of that key
                    yield key, None
            elif key != last:
                last = key
                yield key, state

    # --- changing

    def put(self, key: bytes, version: StoredVersion, newest_snapshot: int) -> Freed:
        """Make `version` the newest. `version.meta` None deletes."""
        former, older = self.state_of(key)
        freed: Freed = []
        if former is not None:
            was = decode_version(former)
            self.n_live -= was.meta is not None
            if was.sequence <= newest_snapshot:
                older = (former, *older)
            elif was.meta is not None:
                freed.append(was)
        self._set(key, GONE if version.meta is None and not older else (encode_version(version), older))
        self.n_live += version.meta is not None
        return freed

    def move(self, key: bytes, sequence: int, extents: tuple[Extent, ...]) -> StoredVersion | None:
        """The bytes of that version are there now; return it as it was, None if it is gone."""
        newest, older = self.state_of(key)
        for index, packed in enumerate((() if newest is None else (newest,)) + older):
            version = decode_version(packed)
            if version.sequence != sequence:
                continue
            if version.meta is None:
                return None
            moved = encode_version(msgspec.structs.replace(version, extents=extents))
            if index == 0:
                self._set(key, (moved, older))
            else:
                self._set(key, (newest, (*older[: index - 1], moved, *older[index:])))
            return version
        return None

    def purge(self, keys: Sequence[bytes], snapshots: Sequence[int]) -> Freed:
        """Drop what none of `snapshots` (sequences, ascending) sees any more. BlocksMissing."""
        freed: Freed = []
        for key, (packed_newest, history) in zip(keys, self.states_of(keys), strict=True):
            if packed_newest is None or not history:
                continue
            newest = decode_version(packed_newest)
            kept: list[bytes] = []
            until = newest.sequence
            for packed in history:
                version = decode_version(packed)
                first = bisect_left(snapshots, version.sequence)
                if first < len(snapshots) and snapshots[first] < until:
                    kept.append(packed)
                elif version.meta is not None:
                    freed.append(version)
                until = version.sequence
            if len(kept) < len(history):
                self._set(key, GONE if newest.meta is None and not kept else (packed_newest, tuple(kept)))
        return freed

    def _set(self, key: bytes, state: KeyState) -> None:
        if state is GONE and not self._runs and self._frozen is None:
            self._recent.drop(key)  # no source says anything else
        else:
            self._recent.set(key, state)

    # --- runs

    @property
    def n_changed(self) -> int:
        """Keys that the next run would have."""
        return len(self._recent)

    def freeze(self) -> Memtable:
        """What the next run must say. From now on it does not change."""
        assert self._frozen is None, "one run at a time"
        self._frozen, self._recent = self._recent, Memtable()
        return self._frozen

    def unfreeze(self) -> None:
        """The run could not be written: its keys count as changed again."""
        frozen, self._frozen = self._frozen, None
        assert frozen is not None
        newer, self._recent = self._recent, frozen
        for key, state in newer.states.items():
            self._recent.set(key, state)

    def on_run_written(self, run: SortedRun | None) -> None:
        """What was frozen is in this run now; None: there was nothing."""
        frozen, self._frozen = self._frozen, None
        assert frozen is not None
        if run is not None:
            if not self._runs:  # until now, what was nowhere was known not to be there
                for key in self._pins:
                    self._known.setdefault(key, GONE)
            self._runs.insert(0, run)
        self._known.update(frozen.states)
        if len(self._known) > self._known_max:
            self._forget_some()

    def on_merged(self, runs: Sequence[SortedRun], merged: SortedRun | None) -> None:
        """One run says now what these, one behind the other, did; or none, when nothing was left."""
        at = self._runs.index(runs[0])
        assert self._runs[at : at + len(runs)] == list(runs)
        self._runs[at : at + len(runs)] = [] if merged is None else [merged]
        for run in runs:
            run.forget()

    @property
    def runs(self) -> tuple[SortedRun, ...]:
        """From the newest to the oldest."""
        return tuple(self._runs)

    def load(self, runs: Sequence[SortedRun], n_live: int) -> None:
        """Begin with these, from the newest to the oldest."""
        assert not self._runs
        assert not self._recent
        self._runs, self.n_live = list(runs), n_live


def _visible(state: KeyState, at: int) -> StoredVersion | None:
    newest, older = state
    if newest is None:
        return None
    version = decode_version(newest)
    if at and version.sequence > at:
        for packed in older:
            version = decode_version(packed)
            if version.sequence <= at:
                break
        else:
            return None
    return None if version.meta is None else version


def _versions(state: KeyState) -> Iterator[StoredVersion]:
    newest, older = state
    return map(decode_version, older if newest is None else (newest, *older))


def _in_chunks(version: StoredVersion, chunks: frozenset[ChunkId]) -> bool:
    return any(extent.chunk in chunks for extent in version.extents)


def _ranked(source: Iterator[RunEntry | bytes], rank: int) -> Iterator[tuple[bytes, int, KeyState | None]]:
    for entry in source:
        if isinstance(entry, bytes):
            yield entry, rank, None
        else:
            yield entry[0], rank, (entry[1], entry[2])


def are_alike(old: StoredVersion | None, new: StoredVersion | None) -> bool:
    """Whether they have the same content, whatever their sequences, wherever it is stored."""
    if old is None or new is None:
        return old is new
    return (old.crc, old.size, old.meta) == (new.crc, new.size, new.meta)


def _listed_bytes(key: bytes, version: StoredVersion | None) -> int:
    return len(key) + _ENTRY_BYTES + (0 if version is None or version.meta is None else len(version.meta))


def _beginning(prefix: bytes, after: bytes, delimiter: bytes) -> bytes | None:
    """The first key that may stand behind `after`, None if there is none."""
    if not after or after < prefix:
        return prefix
    if delimiter and after.find(delimiter, len(prefix)) >= 0:
        return _successor(after)  # the last page ended with this common prefix
    return after + b"\0"


def _successor(prefix: bytes) -> bytes | None:
    """The smallest key above all that begin with `prefix`; None if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
