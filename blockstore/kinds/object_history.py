"""What became of objects: changes between two moments of a bucket, and the versions of one name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from blockstore.codec.messages import Entry, KeyChange, KeyVersion
from blockstore.kinds.bucket import ObjectInfo, info_of, name_of

ChangeKind = Literal["added", "changed", "removed"]


class Change(msgspec.Struct, frozen=True, gc=False):
    """One object that is not what it was. `old` is None for what was added, `new` for what was removed."""

    kind: ChangeKind
    name: str
    old: ObjectInfo | None
    new: ObjectInfo | None


class ObjectVersion(msgspec.Struct, frozen=True, gc=False):
    """What a name was for some time: a version of the object, or nothing (`info` None: it was deleted).

    `is_current`: it is so now. `first_snapshot` and `last_snapshot` are the oldest and the newest of the
    `n_snapshots` that show it, "" without any; `first_taken` is when the oldest was taken, 0 without."""

    name: str
    info: ObjectInfo | None
    is_current: bool
    n_snapshots: int
    first_snapshot: str
    last_snapshot: str
    first_taken: float


class Restored(msgspec.Struct, frozen=True, gc=False):
    """What a restore did, or would do: how many objects came back, became what they were, and were deleted.

    `snapshot` is the one that they are as of now; `safety` the one that was taken before, "" if there was
    nothing to do."""

    snapshot: str
    added: int
    changed: int
    removed: int
    safety: str


def change_of(change: KeyChange) -> Change:
    old, new = _info(change.key, change.old), _info(change.key, change.new)
    return change_between(name_of(change.key), old, new)


def change_between(name: str, old: ObjectInfo | None, new: ObjectInfo | None) -> Change:
    kind: ChangeKind = "added" if old is None else "removed" if new is None else "changed"
    return Change(kind, name, old, new)


def versions_of(key: bytes, versions: Iterable[KeyVersion]) -> list[ObjectVersion]:
    name = name_of(key)
    return [
        ObjectVersion(
            name,
            None if one.deleted else info_of(key, one.sequence, one.meta, one.size, one.crc),
            one.is_head,
            one.n_snapshots,
            one.first.name if one.first else "",
            one.last.name if one.last else "",
            one.first.created if one.first else 0.0,
        )
        for one in versions
    ]


def _info(key: bytes, entry: Entry | None) -> ObjectInfo | None:
    return None if entry is None else info_of(key, entry.sequence, entry.meta, entry.size, entry.crc)
