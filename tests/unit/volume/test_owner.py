"""What a volume's owner does with requests and chunks, without any node."""

from __future__ import annotations

import random

import pytest

from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.journal_record import (
    ChunkOpenedRecord,
    ChunkSealedRecord,
    DeleteRecord,
    JournalRecord,
    PutRecord,
)
from blockstore.codec.messages import ANY, Extent, Failed, Placement, Written
from blockstore.codec.run_file import Result, StoredVersion
from blockstore.config import SESSION_CHUNKS_OPEN_MAX, SESSION_IDLE_SECONDS
from blockstore.errors import BlockStoreError, Busy
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.placement.policy import Policy
from blockstore.volume.chunk_places import ChunkPlaces
from blockstore.volume.chunk_table import DATA, RUN
from blockstore.volume.journal import Journal
from blockstore.volume.owner import Ended, Owner
from blockstore.volume.sorted_run import BlocksMissing
from blockstore.volume.state import VolumeState
from blockstore.volume.versioned_map import VersionedMap
from tests.map_runs import RunStore

VOLUME = VolumeId(7)
PLACEMENT = Placement(1, 1, (DiskId(1), DiskId(2)))
CLIENT = SessionId(9)


class Bench:
    """An owner whose journal has two members that acknowledge when they are told to."""

    def __init__(self) -> None:
        self.state = VolumeState(VOLUME, VersionedMap(0))
        self.journal = Journal(SessionId(1), 1, {})
        places = ChunkPlaces(VOLUME, 1, random.Random(1))
        self.owner = Owner(self.state, self.journal, places, 1, 0.0, lambda chunk, offset, value: None)
        self.journal.start_chunk(ChunkId(VOLUME, 1, 1), PLACEMENT, 100_000)
        self.results: list[Result | BlockStoreError] = []
        self.now = 0.0
        self.n_requests = 0
        self.commit()

    def request(self) -> RequestId:
        self.n_requests += 1
        return RequestId(CLIENT, self.n_requests)

    def commit(self) -> None:
        """Everything that waits becomes durable on both members."""
        while (append := self.journal.next_append(0.0)) is not None:
            self.acknowledge(append.writer, append.offset + len(append.header) + len(append.body))

    def acknowledge(self, writer: ChunkWriter, length: int) -> None:
        for shard in (0, 1):
            for committed in self.journal.on_ack(writer, shard, length):
                self.owner.apply(committed)

    def submit(self, request: RequestId, record: JournalRecord) -> None:
        self.owner.expect(request, self.results.append)
        self.owner.submit(request, record, None)

    def open_data_chunk(self, number: int, length: int) -> ChunkId:
        """A chunk that the client was granted, wrote and finished."""
        chunk, request = ChunkId(VOLUME, 1, number), self.request()
        record = ChunkOpenedRecord(request, 0, chunk, PLACEMENT, 1_000, DATA)
        self.submit(request, record)
        self.journal.add(ChunkSealedRecord(chunk, length), None, None)
        self.commit()
        return chunk

    def put(self, key: bytes, chunk: ChunkId, offset: int = 0) -> RequestId:
        request = self.request()
        extents = (Extent(chunk, offset, 10, 10, 0),)
        record = PutRecord(request, 0, key, b"m", 10, 0, ANY, False, extents)
        self.submit(request, record)
        return request

    def delete(self, key: bytes) -> None:
        request = self.request()
        self.submit(request, DeleteRecord(request, 0, key, ANY))

    def drop_dead(self) -> None:
        self.owner.drop_dead(frozenset({ChunkId(VOLUME, 1, 1)}), self.now)

    @property
    def dropped(self) -> list[ChunkId]:
        """Since the last look."""
        return [chunk for chunk, _ in self.state.chunks.take_dropped()]


def test_a_chunk_that_nothing_refers_to_is_dropped_when_the_record_is_durable() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 10)
    bench.put(b"key", chunk)
    bench.delete(b"key")
    bench.commit()
    bench.drop_dead()
    assert not bench.dropped
    bench.commit()
    assert bench.dropped == [chunk]
    assert bench.state.chunks.find(chunk) is None


def test_a_chunk_is_not_dropped_while_a_put_that_refers_to_it_waits_in_the_journal() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 20)
    bench.put(b"other", chunk, offset=10)
    bench.delete(b"other")
    bench.commit()
    bench.put(b"key", chunk)
    bench.drop_dead()
    bench.commit()
    assert not bench.dropped
    assert isinstance(bench.results[-1], Written)
    found = bench.state.map.find(b"key")
    assert found is not None
    assert bench.state.chunks.placements_of(found.extents) == {chunk: PLACEMENT}


def test_nor_while_its_batch_is_on_its_way_to_the_members() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 10)
    bench.put(b"key", chunk)
    append = bench.journal.next_append(0.0)
    assert append is not None
    bench.drop_dead()
    bench.acknowledge(append.writer, append.offset + len(append.header) + len(append.body))
    bench.commit()
    assert not bench.dropped


def test_a_put_behind_the_drop_is_refused() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 10)
    bench.put(b"key", chunk)
    bench.delete(b"key")
    bench.commit()
    bench.drop_dead()
    bench.put(b"key", chunk)
    bench.commit()
    assert bench.dropped == [chunk]
    refused = bench.results[-1]
    assert isinstance(refused, Failed)
    assert refused.name == "StaleEpoch"


def test_a_request_under_way_is_not_taken_twice_and_both_askers_hear() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 10)
    request = bench.put(b"key", chunk)
    again: list[Result | BlockStoreError] = []
    assert bench.owner.find_answer(request, 0.0, again.append)
    bench.commit()
    assert again == [bench.results[-1]]
    assert bench.owner.find_answer(request, 0.0, again.append)  # and when it is done
    assert again[0] == again[1]
    assert bench.owner.n_pending == 0


def test_a_drop_is_asked_for_once_however_long_the_journal_takes() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 10)
    bench.put(b"key", chunk)
    bench.delete(b"key")
    bench.commit()
    bench.drop_dead()
    bench.drop_dead()
    assert bench.owner.n_pending == 1


def test_a_large_values_first_chunk_is_kept_until_the_value_is_committed() -> None:
    bench = Bench()
    first = bench.open_data_chunk(2, 10)
    bench.now = 60.0
    bench.drop_dead()
    bench.commit()
    assert not bench.dropped
    bench.put(b"key", first)
    bench.commit()
    assert isinstance(bench.results[-1], Written)


def test_what_a_client_wrote_and_never_committed_is_dropped_when_it_is_gone() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 10)
    bench.drop_dead()
    bench.now = SESSION_IDLE_SECONDS + 1.0
    bench.drop_dead()
    bench.commit()
    assert bench.dropped == [chunk]


def test_extents_of_a_put_that_was_refused_are_garbage_as_well() -> None:
    bench = Bench()
    chunk = bench.open_data_chunk(2, 10)
    request = bench.request()
    extents = (Extent(chunk, 0, 10, 10, 0),)
    record = PutRecord(request, 0, b"key", b"m", 10, 0, 12345, False, extents)
    bench.submit(request, record)
    bench.commit()
    assert isinstance(bench.results[-1], Failed)
    bench.drop_dead()
    bench.commit()
    assert bench.dropped == [chunk]


def test_a_chunk_of_a_run_is_not_dropped_while_a_checkpoint_is_being_written() -> None:
    bench = Bench()
    chunk = ChunkId(VOLUME, 1, 2)
    request = bench.journal.own_request()
    record = ChunkOpenedRecord(request, 0, chunk, PLACEMENT, 1_000, RUN)
    bench.submit(request, record)
    bench.journal.add(ChunkSealedRecord(chunk, 1_000), None, None)
    bench.commit()
    needed = frozenset({ChunkId(VOLUME, 1, 1)})
    bench.owner.drop_dead(needed, 0.0, runs_too=False)
    bench.commit()
    assert not bench.dropped
    bench.owner.drop_dead(needed, 0.0)
    bench.commit()
    assert bench.dropped == [chunk]


def grant(bench: Bench, number: int) -> ChunkId:
    """An open chunk of the client."""
    chunk, request = ChunkId(VOLUME, 1, number), bench.request()
    record = ChunkOpenedRecord(request, 0, chunk, PLACEMENT, 1_000, DATA)
    bench.submit(request, record)
    bench.commit()
    return chunk


def test_a_finished_chunk_is_told_to_its_members_when_its_end_is_durable() -> None:
    bench = Bench()
    chunk = grant(bench, 2)
    bench.owner.finish_granted(CLIENT, [(chunk, 70)])
    bench.owner.finish_granted(CLIENT, [(chunk, 70)])
    assert bench.owner.take_ended() == []
    bench.commit()
    assert bench.owner.take_ended() == [Ended(chunk, PLACEMENT.disks, 70)]
    assert bench.owner.take_ended() == []


def test_only_its_own_session_finishes_a_chunk_and_not_below_what_it_committed() -> None:
    bench = Bench()
    chunk = grant(bench, 2)
    bench.put(b"key", chunk, offset=40)
    bench.commit()
    bench.owner.finish_granted(SessionId(8), [(chunk, 70)])
    bench.owner.finish_granted(CLIENT, [(chunk, 40)])
    bench.owner.finish_granted(CLIENT, [(ChunkId(VOLUME, 1, 1), 70), (ChunkId(VOLUME, 9, 9), 70)])
    bench.commit()
    assert bench.owner.take_ended() == []
    assert bench.state.chunks.open_chunks(DATA)


def test_the_end_of_an_idle_chunk_never_lies_below_a_put_that_waited() -> None:
    """The journal stood still for longer than a session lives."""
    bench = Bench()
    chunk = grant(bench, 2)
    bench.owner.end_idle_grants(0.0)
    bench.put(b"key", chunk)
    bench.owner.end_idle_grants(SESSION_IDLE_SECONDS + 1.0)
    bench.commit()
    assert isinstance(bench.results[-1], Written)
    assert bench.owner.take_ended() == [], "a session with a request under way is there"
    bench.owner.end_idle_grants(2 * SESSION_IDLE_SECONDS + 2.0)
    bench.commit()
    assert bench.owner.take_ended() == [Ended(chunk, PLACEMENT.disks, 10)]


def test_a_session_that_is_heard_of_keeps_its_grants() -> None:
    bench = Bench()
    chunk = grant(bench, 2)
    bench.owner.end_idle_grants(0.0)
    unknown = RequestId(CLIENT, 1_000)
    assert not bench.owner.find_answer(unknown, SESSION_IDLE_SECONDS, bench.results.append)
    bench.owner.end_idle_grants(SESSION_IDLE_SECONDS + 1.0)
    bench.commit()
    assert bench.owner.take_ended() == []
    assert [one for one, _ in bench.state.chunks.open_chunks(DATA)] == [chunk]


def test_a_session_has_a_bounded_number_of_open_chunks() -> None:
    bench = Bench()
    bench.owner.places = ChunkPlaces(VOLUME, 2, random.Random(1))

    def opening() -> ChunkOpenedRecord:
        policy = Policy.parse("replicated(2)")
        groups, live = ((DiskId(1), DiskId(2)),), {DiskId(1), DiskId(2)}
        return bench.owner.opening(policy, DATA, bench.request(), 0, groups, live, (), 0.0)

    for _ in range(SESSION_CHUNKS_OPEN_MAX):
        record = opening()
        bench.submit(record.request, record)
        bench.commit()
    with pytest.raises(Busy, match="open chunks"):
        opening()


def test_an_owner_that_falls_answers_everybody_who_waits() -> None:
    bench = Bench()
    request = bench.put(b"key", ChunkId(VOLUME, 1, 1))
    again: list[Result | BlockStoreError] = []
    assert bench.owner.find_answer(request, 0.0, again.append)
    waiting = bench.owner.give_up()
    assert len(waiting) == 2
    assert bench.owner.n_pending == 0


# --- keys whose states are on disk


def stored_key(bench: Bench) -> RunStore:
    """One key, in a run, of which nothing is in memory."""
    chunk = bench.open_data_chunk(2, 100)
    bench.put(b"key", chunk)
    bench.commit()
    runs = RunStore(VOLUME)
    runs.flush(bench.state.map)
    return runs


def test_what_names_a_key_enters_the_journal_when_its_state_is_in_memory() -> None:
    bench = Bench()
    runs = stored_key(bench)
    request = bench.request()
    record = DeleteRecord(request, 0, b"key", ANY)
    bench.owner.expect(request, bench.results.append)
    with pytest.raises(BlocksMissing) as missing:
        bench.owner.submit(request, record, None)
    bench.commit()
    assert len(bench.results) == 2, "it waits"
    runs.fetch(missing.value)
    bench.owner.submit(request, record, None)
    for run in bench.state.map.runs:
        run.forget()
    bench.commit()
    assert isinstance(bench.results[-1], Written)
    runs.flush(bench.state.map)
    with pytest.raises(BlocksMissing):
        bench.state.map.find(b"key")  # nothing is kept for it any more


def test_what_could_not_be_looked_up_is_refused_and_what_is_refused_keeps_nothing() -> None:
    bench = Bench()
    runs = stored_key(bench)
    for is_pinned in (False, True):
        request = bench.request()
        bench.owner.expect(request, bench.results.append)
        if is_pinned:
            record = DeleteRecord(request, 0, b"key", ANY)
            runs.asked(lambda: bench.owner.submit(request, record, None))  # noqa: B023
            bench.state.map.runs[0].forget()
        bench.owner.refuse([request], Busy("too much"))
        assert isinstance(bench.results[-1], Busy)
    runs.flush(bench.state.map)
    for number in range(10):
        bench.state.map.put(b"other-%d" % number, StoredVersion(90 + number, b"m"), 0)
    runs.flush(bench.state.map)
    with pytest.raises(BlocksMissing):
        bench.state.map.find(b"key")


def test_a_purge_that_needs_blocks_goes_on_where_it_was() -> None:
    bench = Bench()
    runs, keys = RunStore(VOLUME), bench.state.map
    for number in range(6):
        keys.put(b"%d" % number, StoredVersion(2 * number + 1, b"m"), 0)
        keys.put(b"%d" % number, StoredVersion(2 * number + 2, b"m"), 2 * number + 1)
    runs.flush(keys)
    bench.state.history_to_purge = True
    n_slices = 0
    while runs.asked(lambda: bench.owner.purge_some(2)):
        n_slices += 1
    assert n_slices >= 3
    runs.flush(keys)
    assert [len(runs.asked(lambda: keys.versions(b"%d" % number))) for number in range(6)] == [1] * 6  # noqa: B023
    assert not bench.owner.purge_some(2)
