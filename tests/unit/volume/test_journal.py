"""The journal's phases, one by one. What it guarantees over any history is in tests/properties."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from blockstore.codec.control_record import JournalChunk
from blockstore.codec.fragment_file import RECORDS_MAX
from blockstore.codec.journal_record import (
    ChunkOpenedRecord,
    ChunkSealedRecord,
    DeleteRecord,
    JournalRecord,
    PutRecord,
    RestoreRecord,
)
from blockstore.codec.messages import ANY, Extent, Placement
from blockstore.config import APPEND_BYTES_MAX, JOURNAL_BATCH_BYTES_MAX, JOURNAL_BATCHES_IN_FLIGHT
from blockstore.errors import StaleEpoch, Unavailable
from blockstore.ids import ChunkId, DiskId, KiB, RequestId, SessionId, VolumeId
from blockstore.volume.journal import BATCH_RECORDS_MAX, Append, Committed, Journal, Phase

DISKS = (DiskId(1), DiskId(2))
PLACEMENT = Placement(1, 1, DISKS)
LATE = Unavailable("late")


def chunk(number: int) -> ChunkId:
    return ChunkId(VolumeId(1), 1, number)


def put(number: int, value: bytes = b"v", meta: bytes = b"") -> PutRecord:
    request = RequestId(SessionId(9), number)
    return PutRecord(request, 0, b"key", meta, len(value), 0, ANY, inline=True)


def delete(number: int) -> DeleteRecord:
    return DeleteRecord(RequestId(SessionId(9), number), 0, b"key", ANY)


def restore(number: int, n_keys: int) -> RestoreRecord:
    keys = tuple(b"%d" % index for index in range(n_keys))
    return RestoreRecord(RequestId(SessionId(9), number), 0, keys, 1)


def end(append: Append) -> int:
    return append.offset + len(append.header) + len(append.body)


@dataclass
class Bench:
    journal: Journal

    def send(self) -> list[Append]:
        sent: list[Append] = []
        while (append := self.journal.next_append(0.0)) is not None:
            sent.append(append)
        return sent

    def acknowledge(self, append: Append) -> list[Committed]:
        found: list[Committed] = []
        for shard in range(len(DISKS)):
            found += self.journal.on_ack(append.writer, shard, end(append))
        return found


@pytest.fixture
def bench() -> Bench:
    """Writing in chunk 1, whose opening is durable."""
    made = Bench(Journal(SessionId(1), 1, {}))
    made.journal.start_chunk(chunk(1), PLACEMENT, 100 * KiB)
    (opening,) = made.send()
    made.acknowledge(opening)
    return made


def records(committed: list[Committed]) -> list[JournalRecord]:
    return [record for one in committed for record in one.batch.records]


def test_what_is_added_before_there_is_a_chunk_waits() -> None:
    journal = Journal(SessionId(1), 1, {})
    journal.add(put(1), b"v", "token")
    assert journal.next_append(0.0) is None
    assert journal.phase is Phase.WAITING
    assert not journal.is_idle


def test_a_chunks_first_batch_opens_it_and_says_what_ended_before() -> None:
    journal = Bench(Journal(SessionId(1), 5, {chunk(7): 70}))
    journal.journal.start_chunk(chunk(8), PLACEMENT, 100 * KiB)
    (opening,) = journal.send()
    (committed,) = journal.acknowledge(opening)
    opened, sealed = committed.batch.records
    assert isinstance(opened, ChunkOpenedRecord)
    assert opened.chunk == chunk(8)
    assert sealed == ChunkSealedRecord(chunk(7), 70)
    assert committed.batch.base_sequence == 5


def test_what_waits_goes_as_one_batch_and_tokens_come_back_in_order(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.journal.add(put(number), b"v", number)
    (append,) = bench.send()
    (committed,) = bench.acknowledge(append)
    assert committed.tokens == (1, 2, 3)
    assert committed.batch.base_sequence == 2
    assert bench.journal.is_idle


def test_a_record_of_many_keys_counts_as_so_many(bench: Bench) -> None:
    """A batch is applied at once, and a replay of so many records must not take longer than is said."""
    before = bench.journal.written_records
    for number in range(6):
        bench.journal.add(restore(number, BATCH_RECORDS_MAX // 2), None, number)
    batches = [committed for append in bench.send() for committed in bench.acknowledge(append)]
    assert [len(committed.tokens) for committed in batches] == [2, 2, 2]
    assert bench.journal.written_records - before == 3 * BATCH_RECORDS_MAX


def test_a_batch_is_committed_when_the_last_member_has_it(bench: Bench) -> None:
    bench.journal.add(put(1), b"v", "token")
    (append,) = bench.send()
    assert not bench.journal.on_ack(append.writer, 0, end(append))
    assert len(bench.journal.on_ack(append.writer, 1, end(append))) == 1


def test_so_many_batches_are_in_flight_and_no_more(bench: Bench) -> None:
    sent: list[Append] = []
    for number in range(2 * JOURNAL_BATCHES_IN_FLIGHT):
        bench.journal.add(put(number), b"v", number)
        sent += bench.send()
    assert len(sent) == JOURNAL_BATCHES_IN_FLIGHT
    bench.acknowledge(sent[0])
    assert len(bench.send()) == 1, "all that waited shares one"


@pytest.mark.parametrize(("meta", "value"), [(b"m" * 16 * KiB, b""), (b"", b"v" * 100 * KiB), (b"", b"")])
def test_a_batch_never_outgrows_an_append_whatever_its_records_carry(meta: bytes, value: bytes) -> None:
    bench = Bench(Journal(SessionId(1), 1, {}))
    bench.journal.start_chunk(chunk(1), PLACEMENT, 1 << 30)
    for number in range(1_000):
        bench.journal.add(put(number, value, meta), value, number)
    n_taken = 0
    while appends := bench.send():
        for append in appends:
            assert len(append.header) + len(append.body) <= JOURNAL_BATCH_BYTES_MAX < APPEND_BYTES_MAX
            n_taken += len([token for one in bench.acknowledge(append) for token in one.tokens])
    assert n_taken == 1_001


def test_a_record_costs_memory_also_without_a_value() -> None:
    journal = Journal(SessionId(1), 1, {})
    for number in range(100):
        journal.add(delete(number), None, number)
    assert journal.waiting_bytes >= 100 * 200
    journal.start_chunk(chunk(1), PLACEMENT, 100 * KiB)
    while journal.next_append(0.0) is not None:
        pass
    assert journal.waiting_bytes == 0


def test_a_batch_that_does_not_fit_lets_the_chunk_drain_first(bench: Bench) -> None:
    bench.journal.add(put(1, b"v" * 60 * KiB), b"v" * 60 * KiB, "first")
    (first,) = bench.send()
    bench.journal.add(put(2, b"v" * 60 * KiB), b"v" * 60 * KiB, "second")
    assert bench.send() == []
    assert bench.journal.phase is Phase.DRAINING
    (committed,) = bench.acknowledge(first)
    assert committed.tokens == ("first",)
    assert bench.journal.sealed_length == end(first)
    bench.journal.start_chunk(chunk(2), PLACEMENT, 100 * KiB)
    opening, second = bench.send()
    assert records(bench.acknowledge(opening))[1] == ChunkSealedRecord(chunk(1), end(first))
    (committed,) = bench.acknowledge(second)
    assert committed.tokens == ("second",)
    assert committed.batch.base_sequence == 5  # open, first, open, seal, second


def test_a_failed_member_ends_the_chunk_at_what_is_acknowledged_and_the_rest_goes_on(bench: Bench) -> None:
    bench.journal.add(put(1), b"v", "first")
    (first,) = bench.send()
    bench.journal.add(put(2), b"v", "second")
    (second,) = bench.send()
    bench.acknowledge(first)
    bench.journal.on_ack(second.writer, 0, end(second))
    assert bench.journal.on_failure(second.writer, 1, LATE)
    assert bench.journal.phase is Phase.WAITING
    assert bench.journal.sealed_length == end(first)
    assert not bench.journal.on_ack(second.writer, 1, end(second)), "too late: it was left behind"
    bench.journal.start_chunk(chunk(2), PLACEMENT, 100 * KiB)
    opening, again = bench.send()
    bench.acknowledge(opening)
    (committed,) = bench.acknowledge(again)
    assert committed.tokens == ("second",)


def test_a_chunk_of_which_nothing_was_acknowledged_never_was() -> None:
    bench = Bench(Journal(SessionId(1), 1, {chunk(9): 90}))
    bench.journal.start_chunk(chunk(1), PLACEMENT, 100 * KiB)
    bench.journal.add(put(1), b"v", "token")
    opening, _ = bench.send()
    assert bench.journal.on_failure(opening.writer, 0, LATE)
    assert bench.journal.sealed_length == 0
    bench.journal.start_chunk(chunk(2), PLACEMENT, 100 * KiB)
    opening, again = bench.send()
    opened, sealed = records(bench.acknowledge(opening))
    assert isinstance(opened, ChunkOpenedRecord)
    assert opened.chunk == chunk(2)
    assert sealed == ChunkSealedRecord(chunk(9), 90)
    (committed,) = bench.acknowledge(again)
    assert committed.batch.base_sequence == 3


def test_members_may_fail_chunk_after_chunk() -> None:
    bench = Bench(Journal(SessionId(1), 1, {}))
    bench.journal.add(put(1), b"v", "token")
    for number in range(1, 6):
        bench.journal.start_chunk(chunk(number), PLACEMENT, 100 * KiB)
        opening, _ = bench.send()
        assert bench.journal.on_failure(opening.writer, number % 2, LATE)
        assert not bench.journal.on_failure(opening.writer, (number + 1) % 2, LATE)
    bench.journal.start_chunk(chunk(6), PLACEMENT, 100 * KiB)
    found = [token for append in bench.send() for one in bench.acknowledge(append) for token in one.tokens]
    assert found == [None, "token"]


def test_a_member_that_knows_a_later_owner_ends_the_journal_for_good(bench: Bench) -> None:
    bench.journal.add(put(1), b"v", "token")
    (append,) = bench.send()
    assert bench.journal.on_failure(append.writer, 0, StaleEpoch(1, 1, 2))
    assert bench.journal.is_fenced


def test_control_names_the_ended_chunk_with_its_length_and_no_attempt_that_came_to_nothing(
    bench: Bench,
) -> None:
    append_end = bench.journal.sealed_length
    named = (JournalChunk(chunk(1), DISKS, -1), JournalChunk(chunk(2), DISKS, -1))
    assert bench.journal.named_with(named, chunk(3), DISKS) == (
        JournalChunk(chunk(1), DISKS, append_end),
        JournalChunk(chunk(3), DISKS, -1),
    )


def test_small_appends_fill_a_fragments_log_before_its_data() -> None:
    """A member would refuse the next one, and be taken for broken."""
    bench = Bench(Journal(SessionId(1), 1, {}))
    bench.journal.start_chunk(chunk(1), PLACEMENT, 1 << 30)
    n_appends = 0
    while bench.journal.phase is not Phase.WAITING:
        bench.journal.add(delete(n_appends), None, None)
        for append in bench.send():
            n_appends += 1
            bench.acknowledge(append)
    assert RECORDS_MAX * 0.98 < n_appends <= RECORDS_MAX


def test_chunks_that_waiting_records_refer_to_are_known(bench: Bench) -> None:
    extents = (Extent(chunk(5), 0, 10, 10, 0),)
    record = PutRecord(RequestId(SessionId(9), 1), 0, b"key", b"", 10, 0, ANY, inline=False, extents=extents)
    bench.journal.add(record, None, None)
    assert bench.journal.referred_chunks() == {chunk(5)}
    (append,) = bench.send()
    assert bench.journal.referred_chunks() == {chunk(5)}
    bench.acknowledge(append)
    assert not bench.journal.referred_chunks()


def test_a_full_store_takes_back_the_puts_that_wait_and_goes_on_with_the_rest(bench: Bench) -> None:
    bench.journal.add(put(1), b"v", "on its way")
    bench.journal.add(delete(2), None, "delete on its way")
    (sent,) = bench.send()
    assert bench.journal.on_failure(sent.writer, 0, LATE)
    bench.journal.add(put(3), b"v", "waits")
    bench.journal.add(delete(4), None, "delete waits")
    bench.journal.start_chunk(chunk(2), PLACEMENT, 100 * KiB)
    assert bench.journal.refuse_puts() == ["waits", "on its way"]
    committed: list[Committed] = []
    while (append := bench.journal.next_append(0.0)) is not None:
        committed += bench.acknowledge(append)
    tokens = [token for one in committed for token in one.tokens if token is not None]
    assert tokens == ["delete on its way", "delete waits"]
    assert not any(isinstance(record, PutRecord) for record in records(committed))
    assert bench.journal.is_idle
    assert bench.journal.waiting_bytes == 0
