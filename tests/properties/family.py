"""Volumes that were cloned from each other, their chunks and what control knows of them, without a cluster;
and beside them the plain model: a dictionary for each volume, and one for each of its snapshots.

A chunk that is dropped is gone at once, so reading what an anchor should have kept fails. What a volume's
owner does with clones here is what `clone_shell.py` and `flatten_shell.py` do, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockstore.codec.checksum import crc32c
from blockstore.codec.control_record import Base
from blockstore.codec.journal_record import (
    AnchorFixedRecord,
    AnchorRecord,
    AnchorReleasedRecord,
    ChunkDroppedRecord,
    ChunkOpenedRecord,
    ChunkSealedRecord,
    DeleteRecord,
    EpochRecord,
    FlattenedRecord,
    JournalRecord,
    MovedRecord,
    PutRecord,
    RestoreRecord,
    SnapshotDeleteRecord,
    SnapshotRecord,
)
from blockstore.codec.messages import ANY, Extent, Failed, Placement, Written
from blockstore.codec.run_file import (
    ANCHOR_OPEN,
    Result,
    Root,
    RunInfo,
    StoredVersion,
    decode_head,
    decode_root,
    encode_head,
    encode_root,
)
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.volume.checkpoint import (
    Checkpoints,
    Merged,
    head_of_clone,
    root_of_clone,
    serves_clone,
    written_run,
)
from blockstore.volume.checkpoint import Written as Stored
from blockstore.volume.chunk_table import JOURNAL, PACKED, RUN
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import BlockCache, SortedRun
from blockstore.volume.state import VolumeState, keys_of
from blockstore.volume.versioned_map import VersionedMap
from tests.map_runs import RunStore

EPOCH = 9  # that `RunStore` gives its chunks
PLACEMENT = Placement(1, 0, (DiskId(1),))
CAPACITY = 1 << 20
BLOCK_CACHE_BYTES = 50_000  # more than one question needs
Content = dict[bytes, bytes]


@dataclass
class World:
    """What is on the disks, and what is in control."""

    chunks: dict[ChunkId, bytearray] = field(default_factory=dict[ChunkId, bytearray])
    contents: dict[tuple[Extent, ...], bytes] = field(default_factory=dict[tuple[Extent, ...], bytes])
    clones: dict[VolumeId, tuple[Base, ...]] = field(default_factory=dict[VolumeId, tuple[Base, ...]])
    volumes: dict[VolumeId, Volume] = field(default_factory=dict[VolumeId, "Volume"])
    n_volumes: int = 0

    def new_volume(self, root: Root | None = None, model: Content | None = None) -> Volume:
        self.n_volumes += 1
        volume = Volume(self, VolumeId(self.n_volumes), root, model or {})
        self.volumes[volume.id] = volume
        return volume

    def bases(self) -> frozenset[VolumeId]:
        return frozenset(base.volume for bases in self.clones.values() for base in bases)

    def anchors_of(self, volume: VolumeId) -> frozenset[int]:
        return frozenset(
            base.anchor for bases in self.clones.values() for base in bases if base.volume == volume
        )

    def delete(self, volume: VolumeId) -> None:
        del self.volumes[volume]
        self.clones.pop(volume, None)

    def reclaim(self) -> None:
        """As nodes do with deleted volumes."""
        needed = self.bases()
        for chunk in list(self.chunks):
            if chunk.volume not in self.volumes and chunk.volume not in needed:
                del self.chunks[chunk]


class _Runs(RunStore):
    def __init__(self, world: World, volume: VolumeId) -> None:
        super().__init__(volume, contents=world.contents)
        self._world = world

    def data_of(self, run: SortedRun, first: int, last: int) -> memoryview:
        for extent in run.info.extents:
            assert extent.chunk in self._world.chunks, f"a run's chunk {extent.chunk} is gone"
        return super().data_of(run, first, last)


class Volume:
    def __init__(self, world: World, volume: VolumeId, root: Root | None, model: Content) -> None:
        self.world, self.id = world, volume
        self.runs = _Runs(world, volume)
        self.root = root
        self.head: Content = model
        self.snapshots: dict[str, Content] = {}
        self.log: list[tuple[JournalRecord, int, ChunkId, int]] = []
        self.making: dict[int, tuple[Content, tuple[Base, ...] | None]] = {}
        self.n_chunks = self.n_requests = 0
        self.load()
        self.open_journal()

    def load(self) -> None:
        """What an owner does that takes over: the checkpoint, and the journal from there."""
        self.state = VolumeState(self.id, VersionedMap(0, BlockCache(BLOCK_CACHE_BYTES)))
        self.making.clear()
        infos: tuple[RunInfo, ...] = ()
        start = 0
        if self.root is not None:
            for extent in self.root.extents:
                assert extent.chunk in self.world.chunks, f"the head's chunk {extent.chunk} is gone"
            data = memoryview(self.world.contents[self.root.extents])
            head = decode_head(self.root.volume or self.id, data)
            self.state.load_head(
                head, [self.runs.open(info, self.state.map.cache) for info in reversed(head.runs)]
            )
            infos, start = head.runs, head.journal_offset
        self.checkpoints = Checkpoints(self.root, infos)
        for record, sequence, chunk, offset in self.log[start:]:
            self.runs.asked(lambda: self.state.map.pin(keys_of(record)))  # noqa: B023
            self.state.apply(record, sequence, chunk, offset)
            self.state.map.unpin(keys_of(record))
        self.state.chunks.take_dropped()

    # --- records

    def request(self) -> RequestId:
        self.n_requests += 1
        return RequestId(SessionId(1), self.n_requests)

    def apply(self, record: JournalRecord, value: bytes = b"") -> Result:
        content = self.world.chunks[self.journal]
        entry = (record, self.state.sequence + 1, self.journal, len(content))
        content += value
        self.runs.asked(lambda: self.state.map.pin(keys_of(record)))
        self.log.append(entry)
        result = self.state.apply(*entry)
        self.state.map.unpin(keys_of(record))
        return result

    def open_chunk(self, purpose: str) -> ChunkId:
        self.n_chunks += 1
        chunk = ChunkId(self.id, EPOCH, 1_000_000 + self.n_chunks)
        self.world.chunks[chunk] = bytearray()
        if purpose == JOURNAL:
            self.journal = chunk
        self.apply(ChunkOpenedRecord(self.request(), 0, chunk, PLACEMENT, CAPACITY, purpose))
        return chunk

    def open_journal(self) -> None:
        """The journal goes on in another chunk."""
        former = getattr(self, "journal", None)
        self.open_chunk(JOURNAL)
        self.apply(EpochRecord(EPOCH, 0.0))
        if former is not None:
            self.apply(ChunkSealedRecord(former, len(self.world.chunks[former])))

    def put(self, key: bytes, value: bytes) -> None:
        record = PutRecord(self.request(), 0, key, b"m", len(value), crc32c(value), ANY, True)
        assert isinstance(self.apply(record, value), Written)
        self.head = {**self.head, key: value}

    def delete(self, key: bytes) -> None:
        failed = isinstance(self.apply(DeleteRecord(self.request(), 0, key, ANY)), Failed)
        assert failed == (key not in self.head)
        self.head = {other: value for other, value in self.head.items() if other != key}

    def snapshot(self, name: str) -> None:
        if not isinstance(self.apply(SnapshotRecord(self.request(), 0, name, 0.0)), Failed):
            self.snapshots[name] = self.head

    def delete_snapshot(self, name: str) -> None:
        self.apply(SnapshotDeleteRecord(self.request(), 0, name))
        self.snapshots.pop(name, None)

    def restore(self, key: bytes, name: str, target: bytes) -> None:
        at = self.state.snapshots[name].sequence
        assert isinstance(self.apply(RestoreRecord(self.request(), 0, (key,), at, (target,))), Written)
        was = self.snapshots[name].get(key)
        self.head = {other: value for other, value in self.head.items() if other != target}
        if was is not None:
            self.head[target] = was

    # --- the background

    def purge(self) -> None:
        start = b""
        while True:
            start = self.runs.asked(lambda: self.state.purge_some(start, 2))  # noqa: B023
            if not start:
                return

    def needed(self) -> frozenset[ChunkId]:
        start = 0
        if self.root is not None and self.root.volume == 0:
            start = self.root.journal_offset
        journal = {chunk for _, _, chunk, _ in self.log[start:]}
        return self.checkpoints.needed_chunks() | journal | {self.journal}

    def drop(self) -> None:
        for chunk, entry in self.state.chunks.dead_chunks(self.needed(), lambda _: True):
            assert chunk.volume == self.id
            if entry.purpose == RUN and self.checkpoints.merged is not None:
                continue  # a run that the next checkpoint names
            self.apply(ChunkDroppedRecord(chunk))
            del self.world.chunks[chunk]

    def pack(self) -> None:
        candidates = self.state.chunks.to_empty(self.needed(), lambda _: True, journals_too=True)
        assert all(chunk.volume == self.id for chunk, _ in candidates)
        self.move(frozenset(chunk for chunk, _ in candidates), 100)

    def move(self, chunks: frozenset[ChunkId], n_values: int) -> int:
        """Values in these chunks, up to so many, to another; how many there were."""
        found, _ = self.runs.asked(lambda: self.state.map.placed_in(chunks, b"", 100))
        if found[:n_values]:
            target = self.open_chunk(PACKED)
            content = self.world.chunks[target]
            moves: list[tuple[bytes, int, tuple[Extent, ...]]] = []
            for key, version in found[:n_values]:
                value = self.value_of(version)
                moves.append(
                    (
                        key,
                        version.sequence,
                        (Extent(target, len(content), len(value), len(value), version.crc),),
                    )
                )
                content += value
            self.apply(MovedRecord(tuple(moves)))
            self.apply(ChunkSealedRecord(target, len(content)))
        return len(found)

    def store(self, data: bytes) -> Stored:
        """Into a chunk of its own, as runs and heads go."""
        chunk = ChunkId(self.id, EPOCH, len(self.world.contents) + 1)
        self.world.chunks[chunk] = bytearray(data)
        self.apply(ChunkOpenedRecord(self.request(), 0, chunk, PLACEMENT, CAPACITY, RUN))
        self.apply(ChunkSealedRecord(chunk, len(data)))
        stored = self.runs.write(data)
        assert {extent.chunk for extent in stored.extents} == {chunk}
        return stored

    def checkpoint(self) -> None:
        checkpoints, state = self.checkpoints, self.state
        draft = checkpoints.begin(state, self.journal, len(self.log), 1)
        data = b"".join(draft.blocks(2))
        if data:
            draft.on_written(self.store(data), state)
        runs = checkpoints.runs_with(draft)
        root = checkpoints.root_of(draft, self.store(checkpoints.encode_head(draft, runs)))
        checkpoints.on_committing(root, runs)
        self.root = decode_root(encode_root(root))
        checkpoints.on_committed(state, draft, root, runs)

    def merge(self, n: int) -> None:
        inputs = self.state.map.runs[:n]
        if not inputs or self.checkpoints.merged is not None:
            return
        entries = self.runs.merged(inputs, with_oldest=n >= len(self.state.map.runs))
        run = None
        if entries:
            builder = RunBuilder(self.id, inputs[0].info.sequence, len(entries), 1)
            for one in inputs:
                builder.note_chunks(
                    chunk for chunk in one.chunks if self.state.chunks.find_placement(chunk) is not None
                )
            blocks = builder.add(entries)
            rest, index = builder.finish()
            run = written_run(self.id, self.store(blocks + rest), builder, index, self.state)
        self.checkpoints.merged = Merged(inputs, run)

    # --- clones

    def begin_clone(self, name: str) -> None:
        result = self.apply(AnchorRecord(self.request(), 0, name, "clone"))
        assert isinstance(result, Written)
        self.making[result.sequence] = self.snapshots[name], self.world.clones.get(self.id)

    def end_clone(self, number: int) -> Volume | None:
        """None: what this volume is made of changed meanwhile, and the client is told to try again."""
        model, lineage = self.making.pop(number)
        anchor = self.state.anchors[number]
        if not serves_clone(self.state, self.checkpoints.root, anchor):
            self.checkpoint()
        assert serves_clone(self.state, self.checkpoints.root, anchor)
        base = head_of_clone(self.state, self.checkpoints.runs, anchor)
        root = root_of_clone(self.id, base.sequence, self.store(encode_head(self.id, base)))
        if self.world.clones.get(self.id) != lineage:
            return None
        self.world.clones[VolumeId(self.world.n_volumes + 1)] = (Base(self.id, number), *(lineage or ()))
        return self.world.new_volume(decode_root(encode_root(root)), model)

    def look_after_anchors(self) -> None:
        needed = self.world.anchors_of(self.id)
        for anchor in list(self.state.anchors.values()):
            if anchor.anchor in needed and anchor.until == ANCHOR_OPEN:
                self.apply(AnchorFixedRecord(self.request(), 0, anchor.anchor))
            elif anchor.anchor not in needed and anchor.anchor not in self.making:
                self.apply(AnchorReleasedRecord(anchor.anchor))

    def flatten_some(self, n_values: int) -> bool:
        """Whether nothing foreign is left in the map."""
        foreign = frozenset(self.state.chunks.foreign)
        if foreign and self.move(foreign, n_values) > n_values:
            return False
        if foreign:
            self.apply(FlattenedRecord())
        return not self.state.chunks.foreign

    def end_flatten(self) -> None:
        if any(run.info.as_of for run in self.state.map.runs):
            self.merge(len(self.state.map.runs))
        self.checkpoint()
        if not any(run.info.as_of for run in self.state.map.runs):
            self.world.clones.pop(self.id, None)

    # --- what must hold

    def read(self, at: int) -> Content:
        keys = self.state.map
        entries, more = self.runs.asked(lambda: keys.page(b"", b"", b"", 100, at))
        assert not more
        found: Content = {}
        for entry in entries:
            version = self.runs.asked(lambda: keys.find(entry.key, at))  # noqa: B023
            assert version is not None
            assert version.sequence == entry.sequence
            found[entry.key] = self.value_of(version)
        return found

    def value_of(self, version: StoredVersion) -> bytes:
        (extent,) = version.extents
        assert extent.chunk in self.state.chunks.placements_of(version.extents)
        assert extent.chunk in self.world.chunks, f"chunk {extent.chunk} is gone"
        value = bytes(self.world.chunks[extent.chunk][extent.offset : extent.offset + extent.length])
        assert crc32c(value) == version.crc
        return value

    def check(self) -> None:
        assert self.read(0) == self.head
        assert self.state.map.n_live == len(self.head)
        assert set(self.state.snapshots) == set(self.snapshots)
        for name, was in self.snapshots.items():
            sequence = self.state.snapshots[name].sequence
            assert self.read(sequence) == was
            changes, _ = self.runs.asked(lambda: self.state.map.changes(sequence, 0, b"", b"", 100))  # noqa: B023
            differ = [key for key in sorted(was.keys() | self.head) if was.get(key) != self.head.get(key)]
            assert [key for key, _, _ in changes] == differ
