"""What a journal record does to a volume: the one place, live and in replay alike.

`VolumeState.apply` is deterministic: the state after a record depends on the state before it and the
record, its sequence and its place, on nothing else. The keys that it asks for (`keys_of`) are pinned in the
map before. So replaying the journal gives the acknowledged state
again, in order, each request once (DESIGN invariant 7). A condition is judged here, when its turn comes,
not when it was received: what was received together is ordered by the journal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from blockstore.codec.journal_record import (
    AnchorFixedRecord,
    AnchorRecord,
    AnchorReleasedRecord,
    BatchRecord,
    ChunkDroppedRecord,
    ChunkSealedRecord,
    DeleteRecord,
    EpochRecord,
    FlattenedRecord,
    JournalRecord,
    MovedRecord,
    PutRecord,
    RequestRecord,
    RestoreRecord,
    SnapshotDeleteRecord,
    SnapshotHoldRecord,
    SnapshotRecord,
)
from blockstore.codec.messages import (
    ABSENT,
    ANY,
    Extent,
    Failed,
    Granted,
    Ok,
    Written,
)
from blockstore.codec.messages import SnapshotRecord as SnapshotAnswer
from blockstore.codec.run_file import (
    ANCHOR_OPEN,
    Anchor,
    CheckpointHead,
    Result,
    RunInfo,
    StoredVersion,
)
from blockstore.errors import (
    AlreadyExists,
    BlockStoreError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    SnapshotHeld,
    StaleEpoch,
    to_wire,
)
from blockstore.ids import ChunkId, VolumeId
from blockstore.volume.chunk_table import EVERY_CHUNK, ChunkEntry, ChunkTable
from blockstore.volume.sessions import Sessions
from blockstore.volume.sorted_run import SortedRun
from blockstore.volume.versioned_map import Freed, VersionedMap, are_alike

VIEWS_MAX = 64
"""Listings of many pages that go on at once and stay consistent."""

SNAPSHOTS_MAX = 3_000
"""They are listed in one answer, which must fit a frame's header."""

ANCHORS_MAX = 1_000
"""Clones that need a volume's chunks at one time: each head lists them."""

_OK = Ok()


class VolumeState:
    def __init__(self, volume: VolumeId, keys: VersionedMap | None = None) -> None:
        self.volume = volume
        self.sequence = 0  # of the last applied record
        self.epoch = 0
        self.map = VersionedMap() if keys is None else keys
        self.snapshots: dict[str, SnapshotAnswer] = {}
        self.sessions = Sessions()
        self.chunks = ChunkTable()
        self.newest_seen = 0
        self.anchors: dict[int, Anchor] = {}
        self.n_foreign_restored = 0
        """Extents in chunks of other volumes that restoring has brought to further keys."""
        self._retained: frozenset[int] = frozenset()  # sequences of the snapshots
        self._being_cloned: frozenset[int] = frozenset()  # of those whose clones are being made
        self._views: dict[int, float] = {}  # sequences that a listing goes through, and until when
        self.history_to_purge = False  # a snapshot was deleted: versions that it alone saw are still there

    # --- reading

    def seen_sequences(self) -> list[int]:
        """Those besides the head at which somebody may read."""
        return sorted(self._retained.union(self._views, self._being_cloned))

    def retains(self, at: int) -> bool:
        """Whether the state as of sequence `at` can be read: the head, a snapshot or a view."""
        return at == 0 or at in self._retained or at in self._views

    # --- views: what keeps a listing of many pages consistent. They live in the owner's memory alone: what
    # they retain is nothing that replay must find again.

    def open_view(self, until: float) -> int:
        """The state as of now stays readable until then; return its sequence. The oldest of too many ends."""
        if self.sequence not in self._views and len(self._views) == VIEWS_MAX:
            self._end_view(min(self._views, key=self._views.__getitem__))
        self._views[self.sequence] = until
        self._note_snapshots()
        return self.sequence

    def prolong_view(self, at: int, until: float) -> None:
        """Nothing happens when there is none."""
        if at in self._views:
            self._views[at] = until

    def end_views(self, now: float) -> None:
        """Those that nobody has used for long."""
        for at in [at for at, until in self._views.items() if until <= now]:
            self._end_view(at)

    def _end_view(self, at: int) -> None:
        del self._views[at]
        self._note_snapshots()
        self.history_to_purge = True

    # --- changing

    def apply(self, record: JournalRecord, sequence: int, chunk: ChunkId, value_offset: int) -> Result:
        """Apply the record with this sequence, found in `chunk`; its inline value stands at `value_offset`
        there."""
        assert sequence == self.sequence + 1, f"record {sequence} after {self.sequence}"
        self.sequence = sequence
        if isinstance(record, RequestRecord):
            known = self.sessions.find(record.request)
            if known is not None:
                return known
            try:
                result = self._apply_request(record, sequence, chunk, value_offset)
            except BlockStoreError as error:
                result = Failed(*to_wire(error))
            self.sessions.remember(record.request, record.settled, sequence, result)
            return result
        if isinstance(record, ChunkSealedRecord):
            self.chunks.seal(record.chunk, record.length)
        elif isinstance(record, ChunkDroppedRecord):
            self.chunks.drop(record.chunk)
        elif isinstance(record, MovedRecord):
            self._move(record)
        elif isinstance(record, AnchorReleasedRecord):
            self.anchors.pop(record.anchor, None)
            self._note_anchors()
        elif isinstance(record, FlattenedRecord):
            if not self._being_cloned:
                self.chunks.foreign.clear()
        else:
            _check_epoch(record, self.epoch)
            self.epoch = record.epoch
        return _OK

    def _apply_request(
        self,
        record: RequestRecord,
        sequence: int,
        chunk: ChunkId,
        value_offset: int,
    ) -> Result:
        if isinstance(record, PutRecord):
            return self._put(record, sequence, chunk, value_offset)
        if isinstance(record, DeleteRecord):
            return self._delete(record, sequence)
        if isinstance(record, SnapshotRecord):
            if record.name in self.snapshots:
                raise AlreadyExists(f"snapshot {record.name!r}")
            if len(self.snapshots) >= SNAPSHOTS_MAX:
                raise InvalidRequest(f"A volume keeps at most {SNAPSHOTS_MAX:,} snapshots; delete some.")
            answer = SnapshotAnswer(record.name, sequence, record.created, keys=self.map.n_live)
            self.snapshots[record.name] = answer
            self._note_snapshots()
            return answer
        if isinstance(record, SnapshotDeleteRecord):
            if self._snapshot(record.name).held:
                raise SnapshotHeld(f"Snapshot {record.name!r}")
            del self.snapshots[record.name]
            self._note_snapshots()
            self.history_to_purge = True
            return _OK
        if isinstance(record, BatchRecord):
            return self._batch(record, sequence, chunk, value_offset)
        if isinstance(record, SnapshotHoldRecord):
            held = msgspec.structs.replace(self._snapshot(record.name), held=record.held)
            self.snapshots[record.name] = held
            return held
        if isinstance(record, RestoreRecord):
            return self._restore(record, sequence)
        if isinstance(record, AnchorRecord):
            return self._set_anchor(record, sequence)
        if isinstance(record, AnchorFixedRecord):
            anchor = self.anchors.get(record.anchor)
            if anchor is not None and anchor.until == ANCHOR_OPEN:
                self.anchors[record.anchor] = msgspec.structs.replace(anchor, until=sequence)
                self._note_anchors()
            return _OK
        session = record.request.session
        entry = ChunkEntry(record.placement, record.capacity, record.purpose, session, opened=sequence)
        self.chunks.open_chunk(record.chunk, entry)
        return Granted(record.chunk, record.chunk.epoch, record.placement, record.capacity)

    def _put(self, record: PutRecord, sequence: int, chunk: ChunkId, value_offset: int) -> Written:
        extents = record.extents
        if not record.inline:
            self.chunks.check_granted(extents, record.request.session)
            self.chunks.note_named(extents)
        self._check_expected(record.key, record.expected)
        if record.inline:
            extents = (
                (Extent(chunk, value_offset, record.size, record.size, record.crc),) if record.size else ()
            )
        else:
            self._check_referable(extents)
        self.chunks.add_live(extents)
        version = StoredVersion(sequence, record.meta, record.size, record.crc, extents)
        self._give_back(self.map.put(record.key, version, self.newest_seen))
        return Written(sequence)

    def _batch(self, record: BatchRecord, sequence: int, chunk: ChunkId, value_offset: int) -> Written:
        for change in record.changes:
            self.chunks.check_granted(change.extents, record.request.session)
        for change in record.changes:
            self.chunks.note_named(change.extents)
        for key, expected in record.conditions:
            self._check_expected(key, expected)
        for change in record.changes:
            self._check_expected(change.key, change.expected)
            if change.meta is None and self.map.find(change.key) is None:
                raise _no_object(change.key)
            self._check_referable(change.extents)
        for change in record.changes:
            extents = change.extents
            if change.size and not extents:
                extents = (Extent(chunk, value_offset, change.size, change.size, change.crc),)
                value_offset += change.size
            self.chunks.add_live(extents)
            version = StoredVersion(sequence, change.meta, change.size, change.crc, extents)
            self._give_back(self.map.put(change.key, version, self.newest_seen))
        return Written(sequence)

    def _delete(self, record: DeleteRecord, sequence: int) -> Written:
        self._check_expected(record.key, record.expected)
        if self.map.find(record.key) is None:
            raise _no_object(record.key)
        self._give_back(self.map.put(record.key, StoredVersion(sequence, None), self.newest_seen))
        return Written(sequence)

    def _move(self, record: MovedRecord) -> None:
        for key, sequence, extents in record.moves:
            former = self.map.move(key, sequence, extents)
            if former is not None:
                self.chunks.add_live(extents)
                self.chunks.free(former.extents)

    def _restore(self, record: RestoreRecord, sequence: int) -> Written:
        """What a snapshot sees is referred to, so its chunks are there."""
        at = record.at
        if at not in self._retained:
            raise NotFound(f"snapshot at sequence {at} (it was deleted)")
        for key, target in zip(record.keys, record.targets or record.keys, strict=True):
            then = self.map.find(key, at)
            if are_alike(self.map.find(target), then):
                continue
            if then is None:
                version = StoredVersion(sequence, None)
            else:
                self.chunks.add_live(then.extents)
                self.n_foreign_restored += sum(extent.chunk.volume != self.volume for extent in then.extents)
                version = StoredVersion(sequence, then.meta, then.size, then.crc, then.extents)
            self._give_back(self.map.put(target, version, self.newest_seen))
        return Written(sequence)

    def _check_referable(self, extents: Sequence[Extent]) -> None:
        if not self.chunks.may_refer(extents, self.epoch):
            raise StaleEpoch(self.volume, min(extent.chunk.epoch for extent in extents), self.epoch)

    def _check_expected(self, key: bytes, expected: int) -> None:
        if expected == ANY:
            return
        version = self.map.find(key)
        if (0 if version is None else version.sequence) == expected:
            return
        name = key.decode(errors="backslashreplace")
        if expected == ABSENT:
            raise PreconditionFailed(f"Object {name!r} exists already.")
        if version is None:
            raise PreconditionFailed(f"Object {name!r} does not exist any more.")
        raise PreconditionFailed(f"Object {name!r} was changed by somebody else.")

    def _snapshot(self, name: str) -> SnapshotAnswer:
        found = self.snapshots.get(name)
        if found is None:
            raise NotFound(f"snapshot {name!r}")
        return found

    # --- clones

    def _set_anchor(self, record: AnchorRecord, sequence: int) -> Written:
        snapshot = self._snapshot(record.snapshot)
        if len(self.anchors) >= ANCHORS_MAX:
            raise InvalidRequest(
                f"A volume has at most {ANCHORS_MAX:,} clones that need it; delete or flatten some."
            )
        keys = self.map.n_live if snapshot.keys < 0 else snapshot.keys  # about: nobody counted them
        self.anchors[sequence] = Anchor(sequence, snapshot.sequence, snapshot.name, record.clone, keys)
        self._note_anchors()
        return Written(sequence)

    def _note_anchors(self) -> None:
        self.chunks.kept_to = max(
            (EVERY_CHUNK if one.until == ANCHOR_OPEN else one.until for one in self.anchors.values()),
            default=-1,
        )
        self._note_snapshots()
        self.history_to_purge = True

    def _note_snapshots(self) -> None:
        self._being_cloned = frozenset(one.at for one in self.anchors.values() if one.until == ANCHOR_OPEN)
        self._retained = frozenset(snapshot.sequence for snapshot in self.snapshots.values())
        self.newest_seen = max(self._retained.union(self._views, self._being_cloned), default=0)

    def purge_some(self, start: bytes, n_keys: int) -> bytes:
        """Drop what no snapshot sees, of so many keys from `start` on; return where the rest starts, b"" when
        there is none. Not journalled: replay and `purge_some` again give the same reads. BlocksMissing."""
        keys, rest = self.map.with_history(start, n_keys)
        self.purge(keys)
        return rest

    def purge(self, keys: Sequence[bytes]) -> None:
        self._give_back(self.map.purge(keys, self.seen_sequences()))

    def _give_back(self, freed: Freed) -> None:
        for version in freed:
            self.chunks.free(version.extents)

    # --- checkpoints

    def head(self, journal_chunk: ChunkId, journal_offset: int, runs: tuple[RunInfo, ...]) -> CheckpointHead:
        """Everything but the map, as of now."""
        return CheckpointHead(
            self.sequence,
            journal_chunk,
            journal_offset,
            runs,
            tuple(self.snapshots.values()),
            self.sessions.to_stored(),
            self.chunks.to_stored(),
            self.map.n_live,
            tuple(self.anchors.values()),
            self.chunks.foreign_to_stored(),
        )

    def load_head(self, head: CheckpointHead, runs: Sequence[SortedRun]) -> None:
        """`runs`: those that the head names, from the newest to the oldest."""
        self.map.load(runs, head.n_live)
        self.sequence = head.sequence
        self.snapshots = {snapshot.name: snapshot for snapshot in head.snapshots}
        self.anchors = {anchor.anchor: anchor for anchor in head.anchors}
        self._note_anchors()
        self.sessions.load(head.sessions)
        self.chunks.load(head.chunks)
        self.chunks.load_foreign(head.foreign)
        self.epoch = max((stored.chunk.epoch for stored in head.chunks), default=0)
        self.history_to_purge = True


def keys_of(record: JournalRecord) -> Collection[bytes]:
    """Whose states are asked for when the record is applied: they must be in memory then."""
    if isinstance(record, PutRecord | DeleteRecord):
        return (record.key,)
    if isinstance(record, BatchRecord):
        return [change.key for change in record.changes] + [key for key, _ in record.conditions]
    if isinstance(record, MovedRecord):
        return [key for key, _, _ in record.moves]
    if isinstance(record, RestoreRecord):
        return (*record.keys, *record.targets)
    return ()


def _no_object(key: bytes) -> NotFound:
    return NotFound(f"object {key.decode(errors='backslashreplace')!r}")


def _check_epoch(record: EpochRecord, epoch: int) -> None:
    assert record.epoch >= epoch, f"epoch {record.epoch} after {epoch}"
