"""Snapshots: a bucket as it was, under a name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from blockstore.api.reading import Reading
from blockstore.api.session import VolumeSession
from blockstore.codec.messages import SnapshotRecord
from blockstore.errors import NotFound


class Snapshot(Reading):
    """A named instant of a bucket, with the bucket's reading methods as of then. It never changes."""

    def __init__(self, session: VolumeSession, record: SnapshotRecord) -> None:
        super().__init__(session, record.sequence)
        self.bucket = session.name
        self.record = record
        self.name = record.name
        self.sequence = record.sequence
        self.created = record.created  # wall clock, seconds since 1970

    def __repr__(self) -> str:
        return f"<Snapshot {self.bucket}@{self.name} at sequence {self.sequence}>"


def choose_snapshot(bucket: str, records: Sequence[SnapshotRecord], wanted: str | datetime) -> SnapshotRecord:
    """The one of that name, or the newest taken at or before an instant (without a zone: local time)."""
    if isinstance(wanted, str):
        for record in records:
            if record.name == wanted:
                return record
        raise NotFound(f"snapshot {wanted!r} of bucket {bucket!r}")
    instant = wanted.timestamp()
    earlier = [record for record in records if record.created <= instant]
    if not earlier:
        raise NotFound(f"snapshot of bucket {bucket!r} taken at or before {wanted.isoformat(sep=' ')}")
    return max(earlier, key=lambda record: record.sequence)
