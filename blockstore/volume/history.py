"""What changed between two retained sequences, and what one key was at all of them.

Pure: answers from the map and the list of snapshots, in pages that fit a frame."""

from __future__ import annotations

from bisect import bisect_left

from blockstore.codec.messages import (
    ChangePage,
    Entry,
    KeyChange,
    KeyHistory,
    KeyVersion,
    KeyVersions,
    ListChanges,
    SnapshotRecord,
)
from blockstore.codec.run_file import StoredVersion
from blockstore.errors import NotFound
from blockstore.volume.requests import check_key, check_limit, check_retained
from blockstore.volume.state import VolumeState
from blockstore.volume.versioned_map import PAGE_BYTES_MAX

VERSION_BYTES = 640
"""What a version takes in a message besides its metadata: two snapshots with their names are most of it."""


def list_changes(op: ListChanges, state: VolumeState) -> ChangePage:
    """Raise InvalidRequest or NotFound."""
    check_limit(op.limit)
    check_retained(op.since, state)
    check_retained(op.until, state)
    changes, rest = state.map.changes(op.since, op.until, op.start, op.end, op.limit)
    return ChangePage(tuple(KeyChange(key, _entry(old), _entry(new)) for key, old, new in changes), rest)


def _entry(version: StoredVersion | None) -> Entry | None:
    if version is None or version.meta is None:
        return None
    return Entry(b"", version.sequence, version.meta, version.size, version.crc, ())


def key_history(op: KeyHistory, state: VolumeState) -> KeyVersions:
    """Raise InvalidRequest or NotFound. A version that waits to be purged is seen by nobody, and left out."""
    check_key(op.key)
    snapshots = sorted(state.snapshots.values(), key=lambda snapshot: snapshot.sequence)
    sequences = [snapshot.sequence for snapshot in snapshots]
    found: list[KeyVersion] = []
    n_bytes, until = 0, 0
    for version in state.map.versions(op.key):
        first = bisect_left(sequences, version.sequence)
        past = bisect_left(sequences, until) if until else len(sequences)
        seen_by, is_head = snapshots[first:past], until == 0
        until = version.sequence
        if (op.before and until >= op.before) or not (seen_by or is_head):
            continue
        n_bytes += VERSION_BYTES + len(version.meta or b"")
        if found and n_bytes > PAGE_BYTES_MAX:
            return KeyVersions(tuple(found), found[-1].sequence)
        found.append(_key_version(version, is_head, seen_by))
    if not found and not op.before:
        raise NotFound(f"object {op.key.decode(errors='backslashreplace')!r}")
    return KeyVersions(tuple(found))


def _key_version(version: StoredVersion, is_head: bool, seen_by: list[SnapshotRecord]) -> KeyVersion:
    first, last = (seen_by[0], seen_by[-1]) if seen_by else (None, None)
    meta = version.meta
    return KeyVersion(
        version.sequence,
        meta is None,
        meta or b"",
        version.size,
        version.crc,
        is_head,
        len(seen_by),
        first,
        last,
    )
