"""A volume's map, its snapshots and its journal against a plain model: a list of dictionaries.

The map is on disk, as far as a map of six keys can be: nearly nothing is kept in memory that a run says, a
block holds one entry or two, and checkpoints and merges begin and end while records are applied."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blockstore.codec.checksum import crc32c
from blockstore.codec.journal_record import (
    HEADER_BYTES,
    BatchRecord,
    ChunkOpenedRecord,
    DeleteRecord,
    EpochRecord,
    JournalRecord,
    MovedRecord,
    PutRecord,
    RestoreRecord,
    SnapshotDeleteRecord,
    SnapshotHoldRecord,
    SnapshotRecord,
    decode_header,
    decode_records,
    value_offsets,
)
from blockstore.codec.messages import ABSENT, ANY, Extent, Failed, KeyHistory, KeyWrite, Placement
from blockstore.codec.run_file import (
    CheckpointHead,
    StoredVersion,
    decode_head,
    decode_version,
)
from blockstore.errors import NotFound, Unavailable
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.volume.checkpoint import Checkpoints, Draft, Merged, written_run
from blockstore.volume.chunk_table import PACKED
from blockstore.volume.history import key_history
from blockstore.volume.journal import Append, Committed, Journal, Phase
from blockstore.volume.run_builder import RunBuilder
from blockstore.volume.sorted_run import BlockCache, SortedRun
from blockstore.volume.state import VolumeState, keys_of
from blockstore.volume.versioned_map import VersionedMap
from tests.map_runs import RunStore

VOLUME = VolumeId(7)
DISKS = (DiskId(1), DiskId(2), DiskId(3))
CAPACITY = 2_000  # a few batches: chunks end often
BATCH_BYTES_MAX = 400  # a chunk holds the largest batch, with one record that alone is larger
BLOCK_CACHE_BYTES = 5_000
KEYS = st.sampled_from([b"a", b"a/b", b"a/c", b"b", b"\xff\xff", b"z"])


def empty_state(known_keys_max: int) -> VolumeState:
    return VolumeState(VOLUME, VersionedMap(known_keys_max, BlockCache(BLOCK_CACHE_BYTES)))


class VolumeMachine(RuleBasedStateMachine):
    """Records go through the journal to three disks that fail; what is committed must be what the model
    holds."""

    def __init__(self) -> None:
        super().__init__()
        self.state = empty_state(0)
        self.runs = RunStore(VOLUME)
        self.checkpoints = Checkpoints(None, ())
        self.draft: Draft | None = None  # a checkpoint that is being written
        self.block_bytes = 1
        self.merging: tuple[tuple[SortedRun, ...], bool] | None = None
        self.pinned: dict[RequestId, list[bytes]] = {}
        self.n_chunks = 0
        self.n_requests = 0
        self.contents: dict[ChunkId, dict[DiskId, bytearray]] = {}  # the model: what each disk holds
        self.chain: list[ChunkId] = []
        self.lengths: dict[ChunkId, int] = {}
        self.unanswered: list[tuple[Append, int]] = []
        self.submitted: dict[RequestId, tuple[str, bytes, bytes]] = {}
        self.head: dict[bytes, bytes] = {}  # the model: the map
        self.snapshots: dict[str, dict[bytes, bytes]] = {}
        self.sequences: dict[str, int] = {}  # of the snapshots
        self.batches: dict[RequestId, tuple[dict[bytes, bytes], list[bytes], list[bytes]]] = {}
        self.held: set[str] = set()
        self.restores: dict[RequestId, RestoreRecord] = {}
        self.checkpoint: CheckpointHead | None = None
        self.applied_to: tuple[ChunkId, int] | None = None
        self.journal = Journal(SessionId(1), 1, {}, batch_bytes_max=BATCH_BYTES_MAX)
        self.journal.add(EpochRecord(1, 0.0), None, None)
        self.open_chunk()

    def open_chunk(self) -> None:
        self.n_chunks += 1
        chunk = ChunkId(VOLUME, 1, self.n_chunks)
        if self.chain:
            self.lengths[self.chain[-1]] = self.journal.sealed_length
            if self.journal.sealed_length == 0:
                self.chain.pop()
        self.chain.append(chunk)
        self.contents[chunk] = {disk: bytearray() for disk in DISKS}
        self.journal.start_chunk(chunk, Placement(1, 2, DISKS), CAPACITY)

    @initialize(known_keys_max=st.sampled_from([0, 2, 100]), block_bytes=st.sampled_from([1, 60]))
    def choose_sizes(self, known_keys_max: int, block_bytes: int) -> None:
        self.state = empty_state(known_keys_max)
        self.block_bytes = block_bytes

    def add(self, record: JournalRecord, value: bytes | None, token: RequestId) -> None:
        """As an owner does: what the record asks for is in memory before it enters the journal."""
        self.pinned[token] = list(keys_of(record))
        self.runs.asked(lambda: self.state.map.pin(self.pinned[token]))
        self.journal.add(record, value, token)

    def request(self, what: tuple[str, bytes, bytes]) -> RequestId:
        self.n_requests += 1
        request = RequestId(SessionId(9), self.n_requests)
        self.submitted[request] = what
        return request

    @rule(key=KEYS, value=st.binary(min_size=1, max_size=60))
    def put(self, key: bytes, value: bytes) -> None:
        request = self.request(("put", key, value))
        record = PutRecord(request, 0, key, b"m", len(value), crc32c(value), ANY, True)
        self.add(record, value, request)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        request = self.request(("delete", key, b""))
        self.add(DeleteRecord(request, 0, key, ANY), None, request)

    @rule(name=st.sampled_from(["s", "t"]))
    def snapshot(self, name: str) -> None:
        request = self.request(("snapshot", name.encode(), b""))
        self.add(SnapshotRecord(request, 0, name, 1.0), None, request)

    @rule(name=st.sampled_from(["s", "t"]))
    def delete_snapshot(self, name: str) -> None:
        request = self.request(("unsnapshot", name.encode(), b""))
        self.add(SnapshotDeleteRecord(request, 0, name), None, request)

    @rule(data=st.data())
    def pack(self, data: st.DataObject) -> None:
        """Some versions move to a chunk of their own; by then they may be gone."""
        chunks = frozenset(self.contents)
        found, _ = self.runs.asked(lambda: self.state.map.placed_in(chunks, b"", 100))
        chosen = (
            data.draw(st.lists(st.sampled_from(found), unique_by=lambda one: one[1].sequence))
            if found
            else []
        )
        self.n_chunks += 1
        chunk = ChunkId(VOLUME, 1, self.n_chunks)
        content = bytearray()
        moves: list[tuple[bytes, int, tuple[Extent, ...]]] = []
        for key, version in chosen:
            value = self.value_of(version)
            moves.append(
                (key, version.sequence, (Extent(chunk, len(content), len(value), len(value), version.crc),))
            )
            content += value
        self.contents[chunk] = dict.fromkeys(DISKS, content)
        self.n_requests += 1
        request = RequestId(SessionId(8), self.n_requests)
        opened = ChunkOpenedRecord(request, 0, chunk, Placement(1, 2, DISKS), CAPACITY, PACKED)
        self.journal.add(opened, None, None)
        self.add(MovedRecord(tuple(moves)), None, request)

    @rule(
        puts=st.dictionaries(KEYS, st.binary(min_size=1, max_size=20), max_size=3),
        deletes=st.lists(KEYS, max_size=2),
        absent=st.lists(KEYS, max_size=1),
    )
    def batch(self, puts: dict[bytes, bytes], deletes: list[bytes], absent: list[bytes]) -> None:
        """Deletes need what they delete, and some keys must not be there, so all or nothing is seen."""
        changes = [KeyWrite(key, b"m", len(value), crc32c(value), ANY) for key, value in puts.items()]
        gone = [key for key in dict.fromkeys(deletes) if key not in puts]
        changes += [KeyWrite(key, None, 0, 0, ANY) for key in gone]
        request = self.request(("batch", b"", b""))
        self.batches[request] = puts, gone, absent
        conditions = tuple((key, ABSENT) for key in absent)
        self.add(BatchRecord(request, 0, tuple(changes), conditions), b"".join(puts.values()), request)

    @rule(name=st.sampled_from(["s", "t"]), held=st.booleans())
    def hold(self, name: str, held: bool) -> None:
        request = self.request(("hold" if held else "release", name.encode(), b""))
        self.add(SnapshotHoldRecord(request, 0, name, held), None, request)

    @precondition(lambda self: self.snapshots)
    @rule(keys=st.lists(KEYS, min_size=1, unique=True), data=st.data())
    def restore(self, keys: list[bytes], data: st.DataObject) -> None:
        """The snapshot may be gone when its turn comes."""
        at = self.sequences[data.draw(st.sampled_from(sorted(self.snapshots)))]
        targets = keys[1:] + keys[:1] if data.draw(st.booleans()) else []
        request = self.request(("restore", b"", b""))
        self.restores[request] = RestoreRecord(request, 0, tuple(keys), at, tuple(targets))
        self.add(self.restores[request], None, request)

    @rule()
    def send(self) -> None:
        while (append := self.journal.next_append(0.0)) is not None:
            self.unanswered += [(append, shard) for shard, _ in append.writer.members]
        if self.journal.phase is Phase.WAITING:
            self.open_chunk()

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def member_has_it(self, data: st.DataObject) -> None:
        """The next append in order at some member becomes durable there."""
        shards = sorted({(append.chunk, shard) for append, shard in self.unanswered})
        self.becomes_durable(*data.draw(st.sampled_from(shards)))

    def becomes_durable(self, chunk: ChunkId, shard: int) -> None:
        index = next(i for i, (a, s) in enumerate(self.unanswered) if (a.chunk, s) == (chunk, shard))
        append, _ = self.unanswered.pop(index)
        disk = self.contents[chunk][DISKS[shard]]
        assert len(disk) == append.offset
        disk += append.header + append.body
        for committed in self.journal.on_ack(append.writer, shard, len(disk)):
            self.apply(committed)
        if self.journal.phase is Phase.WAITING:
            self.open_chunk()

    @rule()
    def all_becomes_durable(self) -> None:
        """The usual course; member by member few histories would get far."""
        while True:
            self.send()
            if not self.unanswered:
                return
            while self.unanswered:
                append, shard = self.unanswered[0]
                self.becomes_durable(append.chunk, shard)

    @precondition(lambda self: self.unanswered)
    @rule(data=st.data())
    def member_fails(self, data: st.DataObject) -> None:
        append, shard = data.draw(st.sampled_from(self.unanswered))
        self.unanswered = [(a, s) for a, s in self.unanswered if (a.chunk, s) != (append.chunk, shard)]
        if self.journal.on_failure(append.writer, shard, Unavailable("gone")):
            self.open_chunk()

    def apply(self, committed: Committed) -> None:
        batch = committed.batch
        for i, (record, token) in enumerate(zip(batch.records, committed.tokens, strict=True)):
            at = committed.offset + batch.value_offsets[i]
            result = self.state.apply(record, batch.base_sequence + i, committed.chunk, at)
            if isinstance(token, RequestId):
                self.state.map.unpin(self.pinned.pop(token))
            if isinstance(token, RequestId) and token in self.submitted:
                what, failed = self.submitted.pop(token), isinstance(result, Failed)
                if token in self.batches:
                    puts, deletes, absent = self.batches.pop(token)
                    assert failed == (
                        any(key not in self.head for key in deletes)
                        or any(key in self.head for key in absent)
                    )
                    if not failed:
                        self.head = {k: v for k, v in self.head.items() if k not in deletes} | puts
                elif token in self.restores:
                    self.model_restores(self.restores.pop(token), failed=failed)
                else:
                    self.model_applies(what, failed=failed)
        self.applied_to = (committed.chunk, committed.offset + batch.length)

    def model_applies(self, what: tuple[str, bytes, bytes], *, failed: bool) -> None:
        kind, key, value = what
        if kind == "put":
            self.head = {**self.head, key: value}
        elif kind == "delete":
            assert failed == (key not in self.head)
            self.head = {k: v for k, v in self.head.items() if k != key}
        elif kind == "snapshot":
            assert failed == (key.decode() in self.snapshots)
            if not failed:
                self.snapshots[key.decode()] = self.head
                self.sequences[key.decode()] = self.state.sequence
        elif kind in ("hold", "release"):
            assert failed == (key.decode() not in self.snapshots)
            if not failed:
                (self.held.add if kind == "hold" else self.held.discard)(key.decode())
        else:
            assert failed == (key.decode() not in self.snapshots or key.decode() in self.held)
            if not failed:
                del self.snapshots[key.decode()]

    def model_restores(self, record: RestoreRecord, *, failed: bool) -> None:
        wanted = [was for name, was in self.snapshots.items() if self.sequences[name] == record.at]
        assert failed == (not wanted)
        for was in wanted:
            head = dict(self.head)
            for key, target in zip(record.keys, record.targets or record.keys, strict=True):
                head.pop(target, None)
                if key in was:
                    head[target] = was[key]
            self.head = head

    @rule()
    def purge(self) -> None:
        start = b""
        while True:
            start = self.runs.asked(lambda: self.state.purge_some(start, 2))  # noqa: B023
            if not start:
                return

    # --- checkpoints and merges, while records are applied

    @precondition(lambda self: self.applied_to is not None and self.draft is None)
    @rule()
    def begin_checkpoint(self) -> None:
        assert self.applied_to is not None
        self.draft = self.checkpoints.begin(self.state, *self.applied_to, self.block_bytes)

    @precondition(lambda self: self.draft is not None)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def end_checkpoint(self, fails: bool) -> None:
        draft, self.draft = self.draft, None
        assert draft is not None
        data = b"".join(draft.blocks(2))
        if fails:
            self.checkpoints.on_failed(self.state)
            return
        draft.on_written(self.runs.write(data), self.state)
        runs = self.checkpoints.runs_with(draft)
        head = self.checkpoints.encode_head(draft, runs)
        self.checkpoint = decode_head(VOLUME, memoryview(head))
        root = self.checkpoints.root_of(draft, self.runs.write(head))
        self.checkpoints.on_committing(root, runs)
        self.checkpoints.on_committed(self.state, draft, root, runs)
        assert tuple(run.info for run in reversed(self.state.map.runs)) == runs

    @precondition(lambda self: self.draft is None)
    @rule(key=KEYS, value=st.binary(min_size=1, max_size=20), deleted=KEYS, left_out=st.integers(0, 3))
    def write_run(self, key: bytes, value: bytes, deleted: bytes, left_out: int) -> None:
        """The usual course; a half at a time few histories would have many runs, or merged ones."""
        if len(self.checkpoints.runs) > 2 and self.merging is None and self.checkpoints.merged is None:
            self.begin_merge(left_out)
            self.end_merge()
        self.put(key, value)
        self.delete(deleted)
        self.all_becomes_durable()
        if self.draft is None and self.applied_to is not None:
            self.begin_checkpoint()
            self.end_checkpoint(fails=False)

    @precondition(lambda self: len(self.checkpoints.runs) > 1)
    @precondition(lambda self: self.merging is None and self.checkpoints.merged is None)
    @rule(left_out=st.integers(0, 3))
    def begin_merge(self, left_out: int) -> None:
        """Of the newest runs, sometimes without the oldest."""
        n_runs = len(self.checkpoints.runs)
        n = max(2, n_runs - left_out)
        self.merging = self.state.map.runs[:n], n == n_runs

    @precondition(lambda self: self.merging is not None)
    @rule()
    def end_merge(self) -> None:
        """Runs may have been written meanwhile."""
        assert self.merging is not None
        (inputs, with_oldest), self.merging = self.merging, None
        entries = self.runs.merged(inputs, with_oldest=with_oldest)
        run = None
        if entries:
            builder = RunBuilder(VOLUME, inputs[0].info.sequence, len(entries), self.block_bytes)
            for one in inputs:
                builder.note_chunks(one.chunks)
            blocks = builder.add(entries)
            rest, index = builder.finish()
            run = written_run(VOLUME, self.runs.write(blocks + rest), builder, index, self.state)
        self.checkpoints.merged = Merged(inputs, run)

    # --- what must hold

    def read(self, state: VolumeState, at: int) -> dict[bytes, bytes]:
        entries, more = self.runs.asked(lambda: state.map.page(b"", b"", b"", 100, at))
        assert not more
        found: dict[bytes, bytes] = {}
        for entry in entries:
            version = self.runs.asked(lambda: state.map.find(entry.key, at))  # noqa: B023
            assert version is not None
            found[entry.key] = self.value_of(version)
        return found

    def value_of(self, version: StoredVersion) -> bytes:
        (extent,) = version.extents
        end = extent.offset + extent.length
        holder = next(disk for disk in self.contents[extent.chunk].values() if len(disk) >= end)
        value = bytes(holder[extent.offset : end])
        assert crc32c(value) == version.crc
        return value

    def check(self, state: VolumeState) -> None:
        assert self.read(state, 0) == self.head
        assert set(state.snapshots) == set(self.snapshots)
        assert {name for name, snapshot in state.snapshots.items() if snapshot.held} == self.held
        for name, content in self.snapshots.items():
            assert self.read(state, state.snapshots[name].sequence) == content
        assert state.map.n_live == len(self.head)

    @invariant()
    def the_map_is_the_model(self) -> None:
        self.check(self.state)

    @invariant()
    def a_diff_names_what_differs(self) -> None:
        moments = [(0, self.head)]
        moments += [(self.state.snapshots[name].sequence, was) for name, was in self.snapshots.items()]
        for since, old in moments:
            for until, new in moments:
                expected = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
                assert self.changed(since, until) == expected

    def changed(self, since: int, until: int) -> list[bytes]:
        """By pages of two."""
        found: list[bytes] = []
        start = b""
        while True:
            changes, start = self.runs.asked(
                lambda: self.state.map.changes(since, until, start, b"", 2)  # noqa: B023
            )
            for key, old, new in changes:
                assert old == self.find(key, since)
                assert new == self.find(key, until)
            found += [key for key, *_ in changes]
            if not start:
                return found

    def find(self, key: bytes, at: int) -> StoredVersion | None:
        return self.runs.asked(lambda: self.state.map.find(key, at))

    @invariant()
    def a_log_names_every_version_that_is_seen(self) -> None:
        moments = [0, *self.state.seen_sequences()]
        for key in (b"a", b"z"):
            seen = [found.sequence for at in moments if (found := self.find(key, at))]
            try:
                versions = self.runs.asked(lambda: key_history(KeyHistory(key), self.state)).versions  # noqa: B023
            except NotFound:
                versions = ()
            present = [one for one in versions if not one.deleted]
            assert sorted(one.sequence for one in present) == sorted(set(seen))
            assert sum(one.n_snapshots + one.is_head for one in present) == len(seen)

    @invariant()
    def live_bytes_are_what_versions_refer_to(self) -> None:
        keys = self.state.map
        states = {
            key: (newest, older)
            for run in reversed(keys.runs)
            for key, newest, older in self.runs.entries_of(run)
        }
        for table in (keys._frozen, keys._recent):
            states |= {} if table is None else table.states
        referred = sum(
            extent.length
            for newest, older in states.values()
            for packed in (*older, *(() if newest is None else (newest,)))
            for extent in decode_version(packed).extents
        )
        assert self.state.chunks.totals()["live_bytes"] == referred

    @rule()
    def replay_gives_the_same(self) -> None:
        """From the last checkpoint, over what every member has acknowledged."""
        state = empty_state(0)
        start: tuple[ChunkId, int] | None = None
        if (head := self.checkpoint) is not None:
            state.load_head(head, [self.runs.open(run, state.map.cache) for run in reversed(head.runs)])
            start = (head.journal_chunk, head.journal_offset)
        lengths = dict(self.lengths)
        assert self.journal.writer is not None
        lengths[self.chain[-1]] = self.journal.writer.acknowledged
        reached = start is None
        for chunk in self.chain:
            position = 0
            if start is not None and chunk == start[0]:
                reached, position = True, start[1]
            if not reached:
                continue
            longest = max(self.contents[chunk].values(), key=len)
            while position < lengths[chunk]:
                view = memoryview(bytes(longest))[position:]
                header = decode_header(view, chunk, position)
                records = decode_records(header, view[HEADER_BYTES : HEADER_BYTES + header.n_block], "")
                for i, (record, at) in enumerate(zip(records, value_offsets(header, records), strict=True)):
                    self.runs.asked(lambda: state.map.pin(keys_of(record)))  # noqa: B023
                    state.apply(record, header.base_sequence + i, chunk, position + at)
                    state.map.unpin(keys_of(record))
                position += header.length
        assert state.sequence == self.state.sequence
        self.check(state)


TestVolumeMachine = VolumeMachine.TestCase
TestVolumeMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def test_pages_fold_prefixes_and_go_on_where_the_last_one_ended() -> None:
    state = VolumeState(VOLUME)
    rng = random.Random(1)
    names = sorted(
        {b"/".join(rng.choice([b"a", b"b", b"c\xff"]) for _ in range(rng.randint(1, 4))) for _ in range(60)}
    )
    for i, name in enumerate(names):
        request = RequestId(SessionId(1), i + 1)
        state.apply(PutRecord(request, 0, name, b"", 0, 0, ANY, True), i + 1, ChunkId(VOLUME, 1, 1), 0)
    for prefix in (b"", b"a", b"a/", b"c\xff/"):
        for delimiter in (b"", b"/"):
            expected: list[bytes] = []
            for name in names:
                if name.startswith(prefix):
                    cut = name.find(delimiter, len(prefix)) if delimiter else -1
                    shown = name if cut < 0 else name[: cut + 1]
                    if shown not in expected:
                        expected.append(shown)
            for limit in (1, 3, 1000):
                found: list[bytes] = []
                more, after = True, b""
                while more:
                    entries, rest = state.map.page(prefix, after, delimiter, limit, 0)
                    more = bool(rest)
                    found += [entry.key for entry in entries]
                    after = found[-1] if found else b""
                assert found == expected
                again: list[bytes] = []
                start = b""
                while True:
                    entries, start = state.map.page(prefix, b"", delimiter, limit, 0, start)
                    again += [entry.key for entry in entries]
                    if not start:
                        break
                assert again == expected


def test_a_listing_keeps_all_of_its_conditions_at_once() -> None:
    """Prefix, folding, snapshot, size of the page, and the place to go on, in every combination."""
    state = VolumeState(VOLUME)
    rng = random.Random(2)
    names = [b"/".join(rng.choice([b"a", b"ab", b"b", b"\xff"]) for _ in range(n % 4 + 1)) for n in range(80)]
    now: dict[bytes, int] = {}
    moments: dict[int, dict[bytes, int]] = {}
    for sequence in range(1, 290):
        request, name = RequestId(SessionId(1), sequence), rng.choice(names)
        record: PutRecord | DeleteRecord | SnapshotRecord
        if sequence % 60 == 0:
            record = SnapshotRecord(request, 0, f"s{sequence}", 0.0)
            moments[sequence] = dict(now)
        elif name in now and rng.random() < 0.5:
            record = DeleteRecord(request, 0, name, ANY)
            del now[name]
        else:
            record = PutRecord(request, 0, name, b"", 0, 0, ANY, True)
            now[name] = sequence
        state.apply(record, sequence, ChunkId(VOLUME, 1, 1), 0)
    moments[0] = now
    assert len({tuple(moment) for moment in moments.values()}) == len(moments) == 5
    for at, moment in moments.items():
        for prefix in (b"", b"a", b"a/", b"ab/b", b"\xff"):
            for delimiter in (b"", b"/", b"b/"):
                expected: dict[bytes, int] = {}
                for name in sorted(moment):
                    if name.startswith(prefix):
                        cut = name.find(delimiter, len(prefix)) if delimiter else -1
                        shown = name if cut < 0 else name[: cut + len(delimiter)]
                        expected.setdefault(shown, moment[name] if cut < 0 else 0)
                every = list(expected)
                for limit in (1, 2, 7, 1000):
                    for place in range(len(every) + 1):
                        after = every[place - 1] if place else b""
                        page, rest = state.map.page(prefix, after, delimiter, limit, at)
                        wanted = every[place : place + limit]
                        assert [(entry.key, entry.sequence) for entry in page] == [
                            (key, expected[key]) for key in wanted
                        ]
                        assert bool(rest) == (place + limit < len(every))
