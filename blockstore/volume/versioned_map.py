"""Which version of which key is visible at which sequence?

In memory, every key of the volume. A version is kept as its stored bytes (`codec/run_file.py`): a million
of them cost a third of what objects would, the garbage collector does not walk them, and a checkpoint
copies them as they are.

Invariants: `_newest[key]` has the highest sequence of the key; `_older[key]` holds, newest first, exactly
those former versions that some snapshot still sees (until `purge` has come by after a snapshot was deleted:
then also more, never less). A tombstone is kept only while an older version is."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Container, Iterator, Sequence
from itertools import chain

import msgspec

from blockstore.codec.messages import Entry, Extent
from blockstore.codec.run_file import RunEntry, StoredVersion, decode_version, encode_version, stored_from
from blockstore.config import FRAME_HEADER_BYTES_MAX
from blockstore.ids import ChunkId
from blockstore.volume.key_order import KeyOrder

PAGE_BYTES_MAX = FRAME_HEADER_BYTES_MAX // 2
"""Of keys and metadata in one page: 1,000 keys with 8 KiB of metadata each are eight frames' worth."""

KEYS_EXAMINED_MAX = 4_000
"""Keys that one page may look at: some 10 ms."""

CHANGES_EXAMINED_MAX = 40_000
"""The same for a page of changes, where a key that did not change costs a tenth."""

CHANGED_WEIGHT = 20
"""Keys that did not change cost as much as one that may have: its versions are decoded."""

SORTED_AT_ONCE = 20_000
"""Keys sorted between two looks at what else there is to do: some 10 ms."""

_ENTRY_BYTES = 32
"""What an entry takes in a message besides its key and metadata: size, sequence, checksum."""

Freed = list[StoredVersion]
"""Versions that nothing sees any more: their bytes are given back to their chunks."""


Change = tuple[bytes, StoredVersion | None, StoredVersion | None]
"""A key, what it was and what it became; None: not there."""

KeyState = tuple[bytes | None, tuple[bytes, ...]]


class Frozen:
    """The map, or the changed part of it, as it was at one instant; read once."""

    def __init__(self, of: VersionedMap, changed: set[bytes], parts: list[list[bytes]] | None) -> None:
        """`parts`: all keys in order, if the whole map is wanted; otherwise those `changed`."""
        self.changed = changed
        self._of = of
        self._saved: dict[bytes, KeyState] = {}  # of keys that changed since
        self._unsorted = list(changed) if parts is None else []
        self._parts = parts or []
        self._are_in_order = parts is not None
        self.n_keys = len(self._unsorted) + sum(len(part) for part in self._parts)

    def save(self, key: bytes) -> None:
        """The key is about to change."""
        if key not in self._saved:
            self._saved[key] = self._of.state_of(key)

    def sort_some(self) -> bool:
        """Sort some more of the keys. False: all are. A million at once would stop everything for a second,
        and a node that stands still for less than that loses its lease."""
        if not self._unsorted:
            return False
        keys = self._unsorted[-SORTED_AT_ONCE:]
        del self._unsorted[-SORTED_AT_ONCE:]
        keys.sort()
        self._parts.append(keys)
        return True

    def entries(self) -> Iterator[RunEntry]:
        """In key order; made one by one, so that the writer of a run can let others run between blocks."""
        while self.sort_some():
            pass
        saved, state_of = self._saved, self._of.state_of
        for key in chain(*self._parts) if self._are_in_order else heapq.merge(*self._parts):
            newest, older = saved.get(key) or state_of(key)
            yield key, newest, older
        self._of.release(self)


class VersionedMap:
    def __init__(self) -> None:
        self._newest: dict[bytes, bytes] = {}
        self._order = KeyOrder()  # of the keys of `_newest`
        self._older: dict[bytes, tuple[bytes, ...]] = {}
        self._changed: set[bytes] = set()
        self._frozen: Frozen | None = None  # of which not all has been read yet
        self.n_live = 0

    # --- reading

    def find(self, key: bytes, at: int = 0) -> StoredVersion | None:
        """The version visible at sequence `at` (0: now); None if there is none, or a tombstone."""
        packed = self._newest.get(key)
        if packed is None:
            return None
        version = decode_version(packed)
        if at and version.sequence > at:
            for packed in self._older.get(key, ()):
                version = decode_version(packed)
                if version.sequence <= at:
                    break
            else:
                return None
        return None if version.meta is None else version

    def page(
        self, prefix: bytes, after: bytes, delimiter: bytes, limit: int, at: int, start: bytes = b""
    ) -> tuple[list[Entry], bytes]:
        """Up to `limit` entries (or common prefixes, with sequence 0) in key order; and the `start` of the
        rest, empty when there is none. A page begins at `start`, or behind `after`, the last entry of another
        page. It has fewer entries, or none, when their metadata would not fit one answer, and when
        KEYS_EXAMINED_MAX keys were looked at: a snapshot may show one of a million keys."""
        entries: list[Entry] = []
        n_bytes = n_examined = 0
        begin = _beginning(prefix, after, delimiter) if not start else max(start, prefix)
        while begin is not None:
            restart: bytes | None = None
            for key in self._order.starting_at(begin):
                if not key.startswith(prefix):
                    return entries, b""
                n_examined += 1
                if n_examined > KEYS_EXAMINED_MAX:
                    return entries, key
                version = self.find(key, at)
                if version is None or version.meta is None:
                    continue
                n_bytes += len(key) + len(version.meta) + _ENTRY_BYTES
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
                entries.append(Entry(key, version.sequence, version.meta, version.size, version.crc, ()))
            begin = restart
        return entries, b""

    def changes(
        self, since: int, until: int, start: bytes, end: bytes, limit: int
    ) -> tuple[list[Change], bytes]:
        """Up to `limit` keys of [start, end), in order, that are not alike at the two sequences (0: now), and
        the `start` of the rest, empty when there is none. Bounded as `page` is. What was written again with
        the same content, or restored to it, is alike."""
        changes: list[Change] = []
        if since == until:
            return changes, b""
        # A version that both see is at most as young as the older of the two.
        bound = stored_from(1 + (min(since, until) or max(since, until)))
        newest = self._newest
        n_bytes = n_examined = 0
        for part in self._order.parts_from(start):
            keys = part if not end or part[-1] < end else part[: bisect_left(part, end)]
            for key in [key for key in keys if newest[key] >= bound]:
                old, new = self.find(key, since), self.find(key, until)
                n_examined += CHANGED_WEIGHT
                if are_alike(old, new):
                    continue
                n_bytes += _listed_bytes(key, old) + _listed_bytes(key, new)
                if len(changes) == limit or (changes and n_bytes > PAGE_BYTES_MAX):
                    return changes, key
                changes.append((key, old, new))
            if len(keys) < len(part):
                break
            n_examined += len(part)
            if n_examined > CHANGES_EXAMINED_MAX:
                return changes, part[-1] + b"\0"
        return changes, b""

    def versions(self, key: bytes) -> list[StoredVersion]:
        """All that are kept, newest first, tombstones among them."""
        newest = self._newest.get(key)
        if newest is None:
            return []
        return [decode_version(packed) for packed in (newest, *self._older.get(key, ()))]

    def __len__(self) -> int:
        return len(self._newest)

    # --- changing

    def put(self, key: bytes, version: StoredVersion, newest_snapshot: int) -> Freed:
        """Make `version` the newest. `version.meta` None deletes."""
        self._changing(key)
        former = self._newest.get(key)
        packed = encode_version(version)
        freed: Freed = []
        if former is not None:
            was = decode_version(former)
            self.n_live -= was.meta is not None
            if was.sequence <= newest_snapshot:
                self._older[key] = (former, *self._older.get(key, ()))
            elif was.meta is not None:
                freed.append(was)
        if version.meta is None and key not in self._older:
            self._remove(key)
        else:
            self._set(key, packed)
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
            self._changing(key)
            moved = encode_version(msgspec.structs.replace(version, extents=extents))
            if index == 0:
                self._newest[key] = moved
            else:
                self._older[key] = (*older[: index - 1], moved, *older[index:])
            return version
        return None

    def placed_in(
        self, chunks: Container[ChunkId], start: bytes, n_keys: int
    ) -> tuple[list[tuple[bytes, StoredVersion]], bytes]:
        """Of up to `n_keys` keys from `start` on, in order, the versions that have bytes in these chunks; and
        where the rest starts, empty when there is none."""
        found: list[tuple[bytes, StoredVersion]] = []
        for n_seen, key in enumerate(self._order.starting_at(start)):
            if n_seen == n_keys:
                return found, key
            for packed in (self._newest[key], *self._older.get(key, ())):
                version = decode_version(packed)
                if any(extent.chunk in chunks for extent in version.extents):
                    found.append((key, version))
        return found, b""

    def purge(self, keys: Sequence[bytes], snapshots: Sequence[int]) -> Freed:
        """Drop what none of `snapshots` (sequences, ascending) sees any more, for some keys with history."""
        freed: Freed = []
        for key in keys:
            history = self._older.get(key)
            if history is None:
                continue
            newer = decode_version(self._newest[key])
            newest_is_tombstone = newer.meta is None
            kept: list[bytes] = []
            until = newer.sequence
            for packed in history:
                version = decode_version(packed)
                first = bisect_left(snapshots, version.sequence)
                if first < len(snapshots) and snapshots[first] < until:
                    kept.append(packed)
                elif version.meta is not None:
                    freed.append(version)
                until = version.sequence
            if len(kept) == len(history):
                continue
            self._changing(key)
            if kept:
                self._older[key] = tuple(kept)
            else:
                del self._older[key]
                if newest_is_tombstone:
                    self._remove(key)
        return freed

    def _changing(self, key: bytes) -> None:
        self._changed.add(key)
        if self._frozen is not None:
            self._frozen.save(key)

    def keys_with_history(self) -> list[bytes]:
        return list(self._older)

    # --- checkpoints

    @property
    def n_changed(self) -> int:
        return len(self._changed)

    def freeze(self, *, whole: bool) -> Frozen:
        """What a run must say: every key, or those changed since the last `freeze`. Costs a copy of
        references to the keys; versions are kept from now on before they change, and what takes longer is
        left to `Frozen.sort_some`. One at a time: an earlier one is not read any more."""
        changed, self._changed = self._changed, set()
        self._frozen = Frozen(self, changed, self._order.copy() if whole else None)
        return self._frozen

    def state_of(self, key: bytes) -> KeyState:
        """Its newest version and the older ones."""
        return self._newest.get(key), self._older.get(key, ())

    def release(self, frozen: Frozen) -> None:
        """It has been read."""
        if self._frozen is frozen:
            self._frozen = None

    def unfreeze(self, frozen: Frozen) -> None:
        """The run could not be written: its keys count as changed again."""
        self.release(frozen)
        fewer, more = sorted((frozen.changed, self._changed), key=len)
        more |= fewer
        self._changed = more

    def load(self, entries: Sequence[RunEntry]) -> None:
        """Take what a run says, in order of its keys; a later run overrides an earlier one."""
        newest_of, older_of = self._newest, self._older
        added: list[bytes] = []
        for key, newest, history in entries:
            former = newest_of.get(key)
            if former is not None:
                self.n_live -= key not in older_of or decode_version(former).meta is not None
            if newest is None:
                self._remove(key)
            else:
                newest_of[key] = newest
                if former is None:
                    added.append(key)
                # A tombstone is kept only while an older version is.
                self.n_live += not history or decode_version(newest).meta is not None
            if history:
                older_of[key] = history
            else:
                older_of.pop(key, None)
        self._order.extend(added)

    def _set(self, key: bytes, packed: bytes) -> None:
        if key not in self._newest:
            self._order.add(key)
        self._newest[key] = packed

    def _remove(self, key: bytes) -> None:
        if self._newest.pop(key, None) is not None:
            self._order.remove(key)


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
