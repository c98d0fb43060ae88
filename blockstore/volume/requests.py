"""What a client may ask of a volume's owner, checked, and as what it goes into the journal.

Pure. Everything here was sent by somebody: lengths, ranges and names are believed only after these checks.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockstore.codec.checksum import crc32c
from blockstore.codec.journal_record import (
    BatchRecord,
    DeleteRecord,
    JournalRecord,
    PutRecord,
    RestoreRecord,
    SnapshotDeleteRecord,
    SnapshotHoldRecord,
    SnapshotRecord,
)
from blockstore.codec.messages import (
    Batch,
    Delete,
    Extent,
    ListKeys,
    Lookup,
    LookupMany,
    Put,
    Restore,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotHold,
    VolumeCall,
)
from blockstore.config import BATCH_BYTES_MAX, BATCH_KEYS_MAX, INLINE_BYTES_MAX, RESTORE_KEYS_MAX
from blockstore.errors import Corrupt, InvalidRequest, NotFound
from blockstore.ids import TiB
from blockstore.volume.state import VolumeState

KEY_BYTES_MAX = 1_024
META_BYTES_MAX = 16 * 1_024
VALUE_BYTES_MAX = 64 * TiB
EXTENTS_MAX = 100_000
CONDITIONS_MAX = 16
LOOKUP_KEYS_MAX = 1_000
LIST_LIMIT_MAX = 1_000
SNAPSHOT_NAME_MAX = 255

WRITES = (Put, Delete, Batch, SnapshotCreate, SnapshotDelete, SnapshotHold, Restore)


def to_record(call: VolumeCall, payload: memoryview, wall: float) -> tuple[JournalRecord, memoryview | None]:
    """The record that carries out a write, and the value that rides with it. Raise InvalidRequest or
    Corrupt."""
    op, request, settled = call.op, call.request, call.settled
    if isinstance(op, Put):
        return _put_record(op, call, payload)
    if isinstance(op, Delete):
        check_key(op.key)
        return DeleteRecord(request, settled, op.key, op.expected), None
    if isinstance(op, Batch):
        _check_batch(op, call, payload)
        return BatchRecord(request, settled, op.changes, op.conditions), payload
    if isinstance(op, SnapshotCreate):
        _check_snapshot_name(op.name)
        return SnapshotRecord(request, settled, op.name, wall), None
    if isinstance(op, Restore):
        _check_restore(op)
        return RestoreRecord(request, settled, op.keys, op.at, op.targets), None
    if isinstance(op, SnapshotHold):
        return SnapshotHoldRecord(request, settled, op.name, op.held), None
    assert isinstance(op, SnapshotDelete)
    return SnapshotDeleteRecord(request, settled, op.name), None


def _put_record(op: Put, call: VolumeCall, payload: memoryview) -> tuple[JournalRecord, memoryview | None]:
    check_key(op.key)
    if len(op.meta) > META_BYTES_MAX:
        raise InvalidRequest(f"The metadata has {len(op.meta)} bytes; at most {META_BYTES_MAX} are kept.")
    if not 0 <= op.size <= VALUE_BYTES_MAX:
        raise InvalidRequest(f"A value of {op.size} bytes cannot be kept; at most {VALUE_BYTES_MAX}.")
    inline = not op.extents
    if inline:
        if op.size != payload.nbytes:
            raise InvalidRequest(f"The value is said to have {op.size} bytes, but {payload.nbytes} came.")
        if op.size > INLINE_BYTES_MAX:
            raise InvalidRequest(f"A value of {op.size} bytes must be written to a granted chunk first.")
        if crc32c(payload) != op.crc:
            raise Corrupt("The value", "it changed on its way to the owner")
    else:
        if payload.nbytes:
            raise InvalidRequest("A value is either in the request or in chunks, not in both.")
        _check_extents(op.extents, op.size, call)
    record = PutRecord(
        call.request, call.settled, op.key, op.meta, op.size, op.crc, op.expected, inline, op.extents
    )
    return record, payload if inline else None


def _check_extents(extents: Sequence[Extent], size: int, call: VolumeCall) -> None:
    if len(extents) > EXTENTS_MAX or sum(extent.length for extent in extents) != size:
        raise InvalidRequest("The extents do not add up to the value's size.")
    if any(
        extent.chunk.volume != call.volume
        or extent.offset < 0
        or extent.unit <= 0
        or extent.length <= 0
        or extent.shard >= 0
        for extent in extents
    ):
        raise InvalidRequest("An extent of another volume, or one that is none.")


def check_key(key: bytes) -> None:
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise InvalidRequest(f"A key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}.")


def _check_batch(op: Batch, call: VolumeCall, payload: memoryview) -> None:
    if not 0 < len(op.changes) <= BATCH_KEYS_MAX:
        raise InvalidRequest(f"A batch has 1 to {BATCH_KEYS_MAX:,} changes, not {len(op.changes):,}.")
    if len({change.key for change in op.changes}) < len(op.changes):
        raise InvalidRequest("A batch changes a key once.")
    if len(op.conditions) > CONDITIONS_MAX:
        raise InvalidRequest(f"A batch has up to {CONDITIONS_MAX} conditions, not {len(op.conditions):,}.")
    for key, _ in op.conditions:
        check_key(key)
    start = n_bytes = 0
    for change in op.changes:
        check_key(change.key)
        size, meta = change.size, change.meta
        if len(meta or b"") > META_BYTES_MAX:
            raise InvalidRequest(
                f"The metadata has {len(meta or b'')} bytes; at most {META_BYTES_MAX} are kept."
            )
        if change.extents and meta is not None:
            _check_extents(change.extents, size, call)
            size = 0  # that are here
        elif change.extents or not 0 <= size <= (0 if meta is None else INLINE_BYTES_MAX):
            raise InvalidRequest(f"A value of {size} bytes cannot be in a batch.")
        if not change.extents and crc32c(payload[start : start + size]) != change.crc:
            raise Corrupt("A value of a batch", "it changed on its way to the owner")
        start += size
        n_bytes += size + len(change.key) + len(meta or b"")
    if start != payload.nbytes or n_bytes > BATCH_BYTES_MAX:
        raise InvalidRequest(f"A batch of {n_bytes} bytes, with {payload.nbytes} bytes of values, is none.")


def _check_restore(op: Restore) -> None:
    if not 0 < len(op.keys) <= RESTORE_KEYS_MAX:
        raise InvalidRequest(f"1 to {RESTORE_KEYS_MAX:,} keys are restored at once, not {len(op.keys):,}.")
    if op.targets and len(op.targets) != len(op.keys):
        raise InvalidRequest("As many targets as keys, or none.")
    for key in (*op.keys, *op.targets):
        check_key(key)
    targets = op.targets or op.keys
    if len(set(targets)) < len(targets):
        raise InvalidRequest("A key can be restored to one state, not to two.")


def _check_snapshot_name(name: str) -> None:
    printable = name.isprintable() and "@" not in name and "/" not in name
    if not printable or not 0 < len(name.encode()) <= SNAPSHOT_NAME_MAX:
        raise InvalidRequest(
            f"A snapshot's name has 1 to {SNAPSHOT_NAME_MAX} bytes of printable text without '@' and '/'."
        )


def check_read(op: Lookup | LookupMany | ListKeys, state: VolumeState) -> None:
    """Raise InvalidRequest or NotFound when this cannot be answered."""
    check_retained(op.at, state)
    if isinstance(op, LookupMany):
        if len(op.keys) > LOOKUP_KEYS_MAX:
            raise InvalidRequest(f"{len(op.keys)} keys at once; at most {LOOKUP_KEYS_MAX}.")
        if op.ranges and len(op.ranges) != len(op.keys):
            raise InvalidRequest("As many ranges as keys, or none.")
    elif isinstance(op, ListKeys):
        check_limit(op.limit)


def check_retained(at: int, state: VolumeState) -> None:
    if not state.retains(at):
        raise NotFound(f"snapshot at sequence {at} (it was deleted)")


def check_limit(limit: int) -> None:
    if not 0 < limit <= LIST_LIMIT_MAX:
        raise InvalidRequest(f"A page has 1 to {LIST_LIMIT_MAX} keys, not {limit}.")


def clip(start: int, end: int, size: int) -> tuple[int, int]:
    """The part of [start, end) that a value of `size` has; `end` -1 is its end. Raise InvalidRequest."""
    if start < 0 or end < -1 or (end != -1 and end < start):
        raise InvalidRequest(f"The range {start} to {end} is none.")
    return min(start, size), size if end == -1 else min(end, size)
