"""Which values move to other chunks, and how they share stripes there.

Pure; `packing_shell.py` reads, writes and says so in the journal. Values move for two reasons: those that
rode in the journal take as much space as copies do, and belong into stripes of the volume's policy; and a
chunk of which most is dead gives its space back only when the rest has left it. Either way they go in the
order of their keys, so that neighbours stay neighbours: whoever reads a range of keys, or a directory,
reads few fragments.

Small values share a stripe, each of them whole in one data shard: reading one is one read from one node.

    keys      a  b  c  d  e  f                k = 2
    shard 0   aaaabbbccc..                    unit: as short as these values allow
    shard 1   ddddddeefff.

A move changes where a version's bytes are and nothing else, so it needs no condition: a version that was
replaced meanwhile is gone, and its move says nothing. Crash before the record of a move is durable: the new
bytes are garbage, the old ones are referred to. After: the other way round. The bytes are read with their
checksum, so a move never launders bad ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from blockstore.chunk.striping import piece_bytes_max, unit_of
from blockstore.codec.journal_record import MovedRecord
from blockstore.codec.messages import Extent
from blockstore.codec.run_file import StoredVersion
from blockstore.config import SHARD_ALIGN_BYTES
from blockstore.ids import ChunkId, MiB
from blockstore.volume.chunk_table import JOURNAL, ChunkEntry

ROUND_BYTES_MAX = 256 * MiB
"""Live bytes of the chunks that are emptied in one pass over the keys."""
LEFT_BEHIND_BYTES_MIN = 16 * MiB
"""Of values in chunks that the journal has left behind: less is not worth a pass over the keys."""
GAIN_BYTES_MIN = 16 * MiB
"""That mostly dead chunks together would give back."""
MOVES_PER_RECORD = 500

Move = tuple[bytes, int, tuple[Extent, ...]]
Chosen = Sequence[tuple[ChunkId, ChunkEntry]]


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A value to be moved, and all versions of the key that are it: one that was restored has the bytes of
    the one that it was restored from."""

    key: bytes
    version: StoredVersion
    sequences: tuple[int, ...]

    def moves(self, extents: tuple[Extent, ...]) -> Iterator[Move]:
        return ((self.key, sequence, extents) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Stripe:
    """Items that share a stripe: shard i has `items[bounds[i]:bounds[i + 1]]`, one behind the other."""

    items: Sequence[Item]
    bounds: tuple[int, ...]
    unit: int

    def shards(self) -> Iterator[Sequence[Item]]:
        return (self.items[first:last] for first, last in pairwise(self.bounds))

    def content(self, values: Sequence[bytes]) -> bytes:
        """The bytes to write, from the items' values."""
        shards = (b"".join(values[first:last]) for first, last in pairwise(self.bounds))
        return b"".join(shard.ljust(self.unit, b"\0") for shard in shards)

    def moves(self, written: Extent) -> Iterator[Move]:
        """Where each item is, once the content is where `written` says."""
        is_shared = len(self.bounds) > 2  # a replica has one shard, and needs no saying which
        for index, items in enumerate(self.shards()):
            offset = written.offset
            for item in items:
                size, crc = item.version.size, item.version.crc
                extent = Extent(written.chunk, offset, size, size, crc, index if is_shared else -1)
                yield from item.moves((extent,))
                offset += size


def choose_chunks(candidates: Chosen) -> Chosen:
    """Those to empty in the next pass, of `ChunkTable.to_empty`; none if it is not worth one."""
    left_behind = sum(entry.live_bytes for _, entry in candidates if entry.purpose == JOURNAL)
    gain = sum(entry.stored_bytes - entry.live_bytes for _, entry in candidates)
    if left_behind < LEFT_BEHIND_BYTES_MIN and gain < GAIN_BYTES_MIN:
        return ()
    chosen: list[tuple[ChunkId, ChunkEntry]] = []
    n_bytes = 0
    for chunk, entry in candidates:
        n_bytes += entry.live_bytes
        if chosen and n_bytes > ROUND_BYTES_MAX:
            break
        chosen.append((chunk, entry))
    return chosen


def items_of(found: Iterable[tuple[bytes, StoredVersion]]) -> Iterator[Item]:
    """Values, from versions in the order of their keys."""
    for key, of_key in groupby(found, lambda one: one[0]):
        by_place: dict[tuple[Extent, ...], list[StoredVersion]] = {}
        for _, version in of_key:
            by_place.setdefault(version.extents, []).append(version)
        for versions in by_place.values():
            yield Item(key, versions[0], tuple(version.sequence for version in versions))


def plan(items: Iterable[Item], k: int) -> tuple[list[Stripe], list[Item]]:
    """How items, in the order of their keys, are laid out under a policy with k data shards: stripes that
    several share, and those that get stripes of their own (the large ones, and a last few that would waste
    more together)."""
    unit_max = piece_bytes_max(k) // k
    small: list[Item] = []
    alone: list[Item] = []
    for item in items:
        is_small = item.version.size <= unit_max and len(item.version.extents) == 1
        (small if is_small else alone).append(item)
    stripes: list[Stripe] = []
    while small:
        bounds = _fill(small, k, unit_max)
        taken, small = small[: bounds[-1]], small[bounds[-1] :]
        stripe = _shortest(taken, k, unit_max)
        if small or k * stripe.unit <= sum(k * unit_of(item.version.size, k) for item in taken):
            stripes.append(stripe)
        else:
            alone += taken
    return stripes, alone


def records_of(moves: Sequence[Move]) -> Iterator[MovedRecord]:
    for start in range(0, len(moves), MOVES_PER_RECORD):
        yield MovedRecord(tuple(moves[start : start + MOVES_PER_RECORD]))


def _fill(items: Sequence[Item], k: int, unit: int) -> tuple[int, ...]:
    """Shard by shard, as many items as go into k shards of `unit` bytes: the bounds between shards."""
    bounds = [0]
    used = 0
    for index, item in enumerate(items):
        size = item.version.size
        if used + size > unit:
            if len(bounds) == k:
                return (*bounds, index)
            bounds.append(index)
            used = 0
        used += size
    bounds.append(len(items))
    return tuple(bounds + [len(items)] * (k + 1 - len(bounds)))


def _shortest(items: Sequence[Item], k: int, unit_max: int) -> Stripe:
    """The items, which go into k shards of `unit_max`, in shards as short as they can be. Filling shards in
    order is the best way to cut a sequence, so what goes into some length goes into every longer one."""
    low = max(unit_of(sum(item.version.size for item in items), k), *(_aligned(item, k) for item in items))
    high = unit_max
    step = 1 if k == 1 else SHARD_ALIGN_BYTES
    while low < high:
        middle = (low + high) // (2 * step) * step
        if _fill(items, k, middle)[-1] == len(items):
            high = middle
        else:
            low = middle + step
    return Stripe(items, _fill(items, k, low), low)


def _aligned(item: Item, k: int) -> int:
    step = 1 if k == 1 else SHARD_ALIGN_BYTES
    return -(-item.version.size // step) * step
