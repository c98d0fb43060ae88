"""Which version of which key is visible at which sequence?

In memory, every key of the volume. A version is kept as its stored bytes (`codec/run_file.py`): a million
of them cost a third of what objects would, the garbage collector does not walk them, and a checkpoint
copies them as they are.

Invariants: `_newest[key]` has the highest sequence of the key; `_older[key]` holds, newest first, exactly
those former versions that some snapshot still sees (until `purge` has come by after a snapshot was deleted:
then also more, never less). A tombstone is kept only while an older version is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sortedcontainers import SortedList

from blockstore.codec.messages import Entry
from blockstore.codec.run_file import RunEntry, StoredVersion, decode_version, encode_version
from blockstore.config import FRAME_HEADER_BYTES_MAX

PAGE_BYTES_MAX = FRAME_HEADER_BYTES_MAX // 2
"""Of keys and metadata in one page: 1,000 keys with 8 KiB of metadata each are eight frames' worth."""

_ENTRY_BYTES = 32
"""What an entry takes in a message besides its key and metadata: size, sequence, checksum."""

Freed = list[StoredVersion]
"""Versions that nothing sees any more: their bytes are given back to their chunks."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The map, or the changed part of it, at one instant."""

    keys: list[bytes]
    newest: dict[bytes, bytes]
    older: dict[bytes, tuple[bytes, ...]]
    changed: set[bytes]

    def entries(self) -> Iterator[RunEntry]:
        """In key order; made one by one, so that the writer of a run can let others run between blocks."""
        for key in self.keys:
            yield key, self.newest.get(key), self.older.get(key, ())


class VersionedMap:
    def __init__(self) -> None:
        self._newest: dict[bytes, bytes] = {}
        self._order: SortedList[bytes] = SortedList()  # of the keys of `_newest`
        self._older: dict[bytes, tuple[bytes, ...]] = {}
        self._changed: set[bytes] = set()
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
        self, prefix: bytes, after: bytes, delimiter: bytes, limit: int, at: int
    ) -> tuple[list[Entry], bool]:
        """Up to `limit` entries (or common prefixes, with sequence 0) in key order, fewer when their metadata
        would not fit one answer; whether more follow."""
        entries: list[Entry] = []
        n_bytes = 0
        start: bytes | None = prefix
        inclusive = True
        if after and after >= prefix:
            if delimiter and after.find(delimiter, len(prefix)) >= 0:
                start = _successor(after)  # the last page ended with this common prefix
            else:
                start, inclusive = after, False
        while start is not None:
            restart: bytes | None = None
            for key in self._order.irange(minimum=start, inclusive=(inclusive, True)):
                if not key.startswith(prefix):
                    return entries, False
                version = self.find(key, at)
                if version is None or version.meta is None:
                    continue
                n_bytes += len(key) + len(version.meta) + _ENTRY_BYTES
                if len(entries) == limit or (entries and n_bytes > PAGE_BYTES_MAX):
                    return entries, True
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                if cut >= 0:
                    folded = key[: cut + len(delimiter)]
                    entries.append(Entry(folded, 0, b"", 0, 0, ()))
                    restart = _successor(folded)
                    if restart is None:
                        return entries, False
                    break
                entries.append(Entry(key, version.sequence, version.meta, version.size, version.crc, ()))
            start, inclusive = restart, True
        return entries, False

    def __len__(self) -> int:
        return len(self._newest)

    # --- changing

    def put(self, key: bytes, version: StoredVersion, newest_snapshot: int) -> Freed:
        """Make `version` the newest. `version.meta` None deletes."""
        self._changed.add(key)
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
                if any(version.sequence <= snapshot < until for snapshot in snapshots):
                    kept.append(packed)
                elif version.meta is not None:
                    freed.append(version)
                until = version.sequence
            if len(kept) == len(history):
                continue
            self._changed.add(key)
            if kept:
                self._older[key] = tuple(kept)
            else:
                del self._older[key]
                if newest_is_tombstone:
                    self._remove(key)
        return freed

    def keys_with_history(self) -> list[bytes]:
        return list(self._older)

    # --- checkpoints

    @property
    def n_changed(self) -> int:
        return len(self._changed)

    def freeze(self, *, whole: bool) -> Frozen:
        """What a run must say: every key, or those changed since the last `freeze`.

        Copies two dictionaries of references (a million keys: some 50 ms); the versions are shared."""
        changed, self._changed = self._changed, set()
        if whole:
            return Frozen(list(self._order), self._newest.copy(), self._older.copy(), changed)
        newest = self._newest
        return Frozen(
            sorted(changed),
            {key: newest[key] for key in changed if key in newest},
            {key: self._older[key] for key in changed if key in self._older},
            changed,
        )

    def unfreeze(self, frozen: Frozen) -> None:
        """The run could not be written: its keys count as changed again."""
        self._changed |= frozen.changed

    def load(self, entries: Sequence[RunEntry]) -> None:
        """Take what a run says; a later run overrides an earlier one."""
        for key, newest, history in entries:
            if newest is None:
                self._remove(key)
            else:
                self._set(key, newest)
            if history:
                self._older[key] = history
            else:
                self._older.pop(key, None)

    def _set(self, key: bytes, packed: bytes) -> None:
        if key not in self._newest:
            self._order.add(key)
        self._newest[key] = packed

    def _remove(self, key: bytes) -> None:
        if self._newest.pop(key, None) is not None:
            self._order.remove(key)

    def recount(self) -> None:
        """After the last `load`: the number of live keys is not stored but counted."""
        self.n_live = len(self._newest) - sum(
            decode_version(self._newest[key]).meta is None for key in self._older
        )


def _successor(prefix: bytes) -> bytes | None:
    """The smallest key above all that begin with `prefix`; None if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
