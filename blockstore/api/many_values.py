"""Reading many values at once: what goes into one request, what its answer gives, and what is left to fetch.

Pure; `session.py` asks and fetches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from blockstore.api.cluster import unexpected
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import Entry, FoundMany, LookupMany, Placement
from blockstore.errors import Corrupt, ProtocolViolation
from blockstore.ids import ChunkId, KiB, MiB
from blockstore.runtime.interfaces import Answer

LOOKUP_KEYS_MAX = 256
"""Keys in one LookupMany: at 4 KiB each 1 MiB of answer; larger batches only delay the first value."""

LOOKUP_KEY_BYTES_MAX = 128 * KiB
"""A quarter of the header that a frame may have: the answer names each key again, with extents and
metadata."""

READ_MANY_BYTES_MAX = 64 * MiB
"""Of values that the owner did not give along, asked of the nodes at once, under one timeout."""


class Remote:
    """A range of a version that the owner did not give along, wanted at `index` of the results. `asked` is
    the range before it was cut to this version's size."""

    __slots__ = ("asked", "end", "entry", "index", "key", "placements", "start")

    def __init__(
        self,
        index: int,
        key: bytes,
        entry: Entry,
        placements: Mapping[ChunkId, Placement],
        start: int,
        end: int,
        asked: tuple[int, int],
    ) -> None:
        self.index, self.key, self.entry, self.placements = index, key, entry, placements
        self.start, self.end, self.asked = start, end, asked

    def verified(self, data: bytes) -> bytes:
        if self.start == 0 and self.end == self.entry.size and crc32c(data) != self.entry.crc:
            raise Corrupt(f"The value of {self.key!r}", "its checksum is not the one it was put with")
        return data


def batches(keys: Sequence[bytes], n_keys_max: int | None = None) -> Iterator[tuple[int, int]]:
    """Index ranges of keys that fit one LookupMany each; no more than `n_keys_max`, if given."""
    most = LOOKUP_KEYS_MAX if n_keys_max is None else min(n_keys_max, LOOKUP_KEYS_MAX)
    start = n_bytes = 0
    for index, key in enumerate(keys):
        n_bytes += len(key)
        if index - start == most or n_bytes > LOOKUP_KEY_BYTES_MAX:
            yield start, index
            start, n_bytes = index, len(key)
    if keys:
        yield start, len(keys)


def take_values(op: LookupMany, answer: Answer, results: list[bytes | None], remote: list[Remote]) -> None:
    """Append the answer's values to `results`; what it only refers to is a None there, and in `remote`."""
    found = answer.message
    if not isinstance(found, FoundMany) or len(found.entries) != len(op.keys):
        raise unexpected(found)
    view, ranges = answer.payload.view, op.ranges
    offset = 0
    for index, entry in enumerate(found.entries):
        if entry is None:
            results.append(None)
            continue
        size = entry.size
        asked = ranges[index] if ranges else (0, -1)
        start, end = asked
        if end < 0 or end > size:
            end = size
        if start > end:
            start = end
        n_inline = entry.inline
        if n_inline < 0:
            remote.append(Remote(len(results), op.keys[index], entry, found.placements, start, end, asked))
            results.append(None)
            continue
        data = bytes(view[offset : offset + n_inline])
        offset += n_inline
        if len(data) != end - start:
            raise ProtocolViolation(f"the owner answered with {len(data)} of {end - start} bytes")
        if n_inline == size and crc32c(data) != entry.crc:
            raise Corrupt(f"The value of {op.keys[index]!r}", "it changed on its way from the owner")
        results.append(data)


class Looked:
    """One version that a key has, with the bytes that were asked for: given along, or to be fetched."""

    __slots__ = ("data", "remote", "sequence", "size")

    def __init__(self, entry: Entry, data: bytes | None, remote: Remote | None) -> None:
        self.sequence, self.size = entry.sequence, entry.size
        self.data, self.remote = data, remote


def take_versions(op: LookupMany, answer: Answer) -> list[Looked | None]:
    """What the answer says of each key; None where there is none."""
    values: list[bytes | None] = []
    remote: list[Remote] = []
    take_values(op, answer, values, remote)
    found = answer.message
    assert isinstance(found, FoundMany)  # `take_values` saw to it
    fetched = {one.index: one for one in remote}
    return [
        None if entry is None else Looked(entry, value, fetched.get(index))
        for index, (entry, value) in enumerate(zip(found.entries, values, strict=True))
    ]


def waves(remote: Sequence[Remote]) -> Iterator[Sequence[Remote]]:
    """What to read at once: up to `READ_MANY_BYTES_MAX`, or one value that is larger."""
    start = n_bytes = 0
    for index, want in enumerate(remote):
        length = want.end - want.start
        if index > start and n_bytes + length > READ_MANY_BYTES_MAX:
            yield remote[start:index]
            start, n_bytes = index, 0
        n_bytes += length
    if remote:
        yield remote[start:]
