"""What has changed in the map since the last run was begun: whole states of keys, in order."""

from __future__ import annotations

from collections.abc import Iterator

from blockstore.codec.run_file import RunEntry
from blockstore.volume.key_order import KeyOrder
from blockstore.volume.sorted_run import KeyState

GONE: KeyState = (None, ())
"""The state of a key that is not there, and never was for anybody who can still ask."""


class Memtable:
    def __init__(self) -> None:
        self.states: dict[bytes, KeyState] = {}
        self._order = KeyOrder()

    def __len__(self) -> int:
        return len(self.states)

    def set(self, key: bytes, state: KeyState) -> None:
        if key not in self.states:
            self._order.add(key)
        self.states[key] = state

    def drop(self, key: bytes) -> None:
        if self.states.pop(key, None) is not None:
            self._order.remove(key)

    def entries_from(self, start: bytes) -> Iterator[RunEntry]:
        """In order. Nothing may change meanwhile."""
        states = self.states
        for key in self._order.starting_at(start):
            newest, older = states[key]
            yield key, newest, older
