"""The log in memory: the entries above the last compaction, and which of them are on this node's disk.

Index 0 is before the first entry. The entry at `base_index` is known by its term alone; what is below it is
gone.
"""

from __future__ import annotations

from collections.abc import Iterable

from blockstore.codec.raft_messages import ENTRY_OVERHEAD_BYTES, Entry


class LogView:
    __slots__ = ("_entries", "base_index", "base_term", "persisted")

    def __init__(self, base_index: int, base_term: int, entries: Iterable[Entry] = ()) -> None:
        """`entries` are on the disk already."""
        self.base_index, self.base_term = base_index, base_term
        self._entries: list[Entry] = []
        self.persisted = base_index
        self.append(entries)
        self.persisted = self.last_index

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    def term_at(self, index: int) -> int | None:
        """None where this log has no entry, or no longer knows its term."""
        at = index - self.base_index - 1
        if at == -1:
            return self.base_term
        return self._entries[at].term if 0 <= at < len(self._entries) else None

    def entry(self, index: int) -> Entry:
        assert self.base_index < index <= self.last_index
        return self._entries[index - self.base_index - 1]

    def entries_from(self, start: int, bytes_max: int = 1 << 62) -> tuple[Entry, ...]:
        """From `start` on as many as fit in `bytes_max` of wire, but at least one if there is one."""
        at = start - self.base_index - 1
        assert at >= 0
        taken = 0
        for end in range(at, len(self._entries)):
            taken += len(self._entries[end].payload) + ENTRY_OVERHEAD_BYTES
            if taken > bytes_max and end > at:
                return tuple(self._entries[at:end])
        return tuple(self._entries[at:])

    def append(self, entries: Iterable[Entry]) -> None:
        """Entries that follow the last one."""
        for entry in entries:
            assert entry.index == self.last_index + 1
            assert entry.term >= self.last_term
            self._entries.append(entry)

    def truncate_from(self, index: int) -> None:
        """Forget `index` and everything after it."""
        assert index > self.base_index
        del self._entries[index - self.base_index - 1 :]
        self.persisted = min(self.persisted, index - 1)

    def on_persisted(self, index: int, term: int) -> None:
        """Everything up to `(index, term)` is durable; no effect if that entry was replaced meanwhile."""
        if index > self.persisted and self.term_at(index) == term:
            self.persisted = index

    def compact(self, index: int) -> None:
        """Forget what is below `index`, which must be durable."""
        if index <= self.base_index:
            return
        assert index <= self.persisted
        term = self.term_at(index)
        assert term is not None
        del self._entries[: index - self.base_index]
        self.base_index, self.base_term = index, term

    def restore(self, index: int, term: int) -> bool:
        """Begin at a snapshot that is durable. True: what follows it here was kept, as it has the snapshot's
        last entry; False: this log belonged to another history, or was shorter, and is gone (Raft paper,
        figure 13)."""
        if self.term_at(index) == term:
            self.persisted = max(self.persisted, index)
            self.compact(index)
            return True
        self._entries.clear()
        self.base_index, self.base_term, self.persisted = index, term, index
        return False

    def last_common(self, index: int, term: int) -> tuple[int, int]:
        """The highest (index, term) here with neither above the given: where two logs may still agree.

        Used by both sides of a refusal, it skips all the entries of a term at a time instead of one by one
        (dissertation, section 3.5, last paragraphs)."""
        index = min(index, self.last_index)
        while index > self.base_index and self._entries[index - self.base_index - 1].term > term:
            index -= 1
        return index, self.term_at(index) or 0
