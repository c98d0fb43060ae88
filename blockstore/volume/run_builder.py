"""Makes a run: its blocks, one behind the other, and then its index."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from blockstore.codec.run_file import (
    GONE_SEQUENCE,
    RunEntry,
    RunIndex,
    decode_version,
    encode_block,
    encode_index,
    pack_u64,
)
from blockstore.ids import ChunkId, VolumeId
from blockstore.volume.key_filter import KeyFilter
from blockstore.volume.sorted_run import RUN_BLOCK_BYTES

_ENTRY_BYTES = 8
"""What MessagePack adds to an entry's parts."""


class RunBuilder:
    """Entries are added in the order of their keys; each call returns the blocks that are complete."""

    def __init__(
        self, volume: VolumeId, sequence: int, n_keys_max: int, block_bytes: int = RUN_BLOCK_BYTES
    ) -> None:
        self.sequence = sequence
        self.n_keys = 0
        self.size = 0
        self._volume = volume
        self._block_bytes = block_bytes
        self._filter = KeyFilter.for_keys(n_keys_max)
        self._chunks: set[ChunkId] = set()
        self._first_keys: list[bytes] = []
        self._ends, self._newest = array("Q"), array("Q")
        self._with_history = bytearray()
        self._open: list[RunEntry] = []
        self._open_bytes = 0

    def add(self, entries: Sequence[RunEntry]) -> bytes:
        add_key = self._filter.add
        blocks: list[bytes] = []
        for entry in entries:
            key, newest, older = entry
            add_key(key)
            self._open.append(entry)
            self._open_bytes += len(key) + len(newest or b"") + _ENTRY_BYTES
            if older:
                self._open_bytes += sum(map(len, older))
            if self._open_bytes >= self._block_bytes:
                blocks.append(self._end_block())
        self.n_keys += len(entries)
        return b"".join(blocks)

    def note_chunks(self, chunks: Iterable[ChunkId]) -> None:
        """That versions of the run refer to."""
        self._chunks.update(chunks)

    def note_chunks_of(self, entries: Iterable[RunEntry]) -> None:
        add = self._chunks.add
        for _, newest, older in entries:
            for packed in older if newest is None else (newest, *older):
                for extent in decode_version(packed).extents:
                    add(extent.chunk)

    def finish(self) -> tuple[bytes, RunIndex]:
        """The rest of the run, from the last block on; and its index, which stands at the end of that."""
        last = self._end_block() if self._open else b""
        index = RunIndex(
            self._first_keys,
            pack_u64(self._ends),
            pack_u64(self._newest),
            bytes(self._with_history),
            self._filter.to_bytes(),
            sorted(self._chunks),
        )
        return last + encode_index(self._volume, self.sequence, index), index

    def _end_block(self) -> bytes:
        entries, self._open, self._open_bytes = self._open, [], 0
        block = encode_block(self._volume, self.sequence, len(self._first_keys), entries)
        self.size += len(block)
        self._first_keys.append(entries[0][0])
        self._ends.append(self.size)
        newest = [packed for _, packed, _ in entries if packed is not None]
        # Stored versions sort by their sequences.
        is_any_gone = len(newest) < len(entries)
        self._newest.append(GONE_SEQUENCE if is_any_gone else decode_version(max(newest)).sequence)
        self._with_history.append(any(older for _, _, older in entries))
        return block
