"""What a volume's owner does with requests and chunks, without any node."""

from __future__ import annotations

import random

from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.journal_record import ChunkOpenedRecord, ChunkSealedRecord, DeleteRecord, PutRecord
from blockstore.codec.messages import ANY, Extent, Failed, Placement, Written
from blockstore.codec.run_file import Result
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.volume.chunk_places import ChunkPlaces
from blockstore.volume.journal import Journal
from blockstore.volume.owner import DATA, Dropped, OnResult, Owner
from blockstore.volume.state import VolumeState

VOLUME = VolumeId(7)
PLACEMENT = Placement(1, 1, (DiskId(1), DiskId(2)))
CLIENT = SessionId(9)


class Bench:
    """An owner whose journal has two members that acknowledge when they are told to."""

    def __init__(self) -> None:
        self.state = VolumeState(VOLUME)
        self.journal = Journal(SessionId(1), 1, {})
        places = ChunkPlaces(VOLUME, 1, random.Random(1))
        self.owner = Owner(self.state, self.journal, places, 1, 0.0, lambda chunk, offset, value: None)
        self.journal.start_chunk(ChunkId(VOLUME, 1, 1), PLACEMENT, 100_000)
        self.results: list[Result | BlockStoreError] = []
        self.dropped: list[ChunkId] = []
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

    def open_data_chunk(self, number: int, length: int) -> ChunkId:
        """A chunk that the client was granted, wrote and finished."""
        chunk, request = ChunkId(VOLUME, 1, number), self.request()
        record = ChunkOpenedRecord(request, 0, chunk, PLACEMENT, 1_000, DATA)
        self.owner.submit(request, record, None, self.results.append)
        self.journal.add(ChunkSealedRecord(chunk, length), None, None)
        self.commit()
        return chunk

    def put(self, key: bytes, chunk: ChunkId, offset: int = 0) -> RequestId:
        request = self.request()
        extents = (Extent(chunk, offset, 10, 10, 0),)
        record = PutRecord(request, 0, key, b"m", 10, 0, ANY, False, extents)
        self.owner.submit(request, record, None, self.results.append)
        return request

    def delete(self, key: bytes) -> None:
        request = self.request()
        self.owner.submit(request, DeleteRecord(request, 0, key, ANY), None, self.results.append)

    def drop_dead(self) -> None:
        def on_dropped(dropped: Dropped) -> OnResult:
            return lambda _: self.dropped.append(dropped.chunk)

        self.owner.drop_dead(frozenset({ChunkId(VOLUME, 1, 1)}), on_dropped)


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
