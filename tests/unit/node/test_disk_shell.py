"""What a disk of a node answers, and what it then holds."""

from __future__ import annotations

from random import Random

import pytest

from blockstore import config
from blockstore.codec.checksum import crc32c
from blockstore.codec.fragment_file import RECORD_BYTES
from blockstore.codec.messages import FragmentSpec
from blockstore.errors import (
    AlreadyExists,
    Busy,
    Corrupt,
    DiskFailed,
    FragmentFull,
    FragmentSealed,
    InvalidRequest,
    NotAStore,
    NotFound,
    OffsetMismatch,
    StaleEpoch,
    UnknownFormat,
)
from blockstore.ids import DiskId, MiB
from blockstore.node import fence_shell, fragment_reads, slots_shell
from blockstore.node.disk_shell import DiskShell, format_disk
from blockstore.runtime.interfaces import File
from tests.unit.node.disks import CLUSTER, DISK, VOLUME, Bench, bytes_for, chunk, file_of

A, B = chunk(1), chunk(2)
SOME = bytes_for(1, 50_000)


# --- appending


def test_appended_bytes_are_read_back_in_any_range(bench: Bench) -> None:
    assert bench.appended(A, 0, SOME) == 50_000
    assert bench.appended(A, 50_000, SOME) == 100_000
    for start, length in ((0, 100_000), (0, 1), (16_383, 2), (49_990, 20), (99_999, 1), (20_000, 60_000)):
        assert bench.read(A, start, length) == (SOME + SOME)[start : start + length]


def test_an_append_must_continue_the_fragment_counting_what_is_under_way(bench: Bench) -> None:
    bench.appended(A, 0, b"")
    bench.append("first", A, 0, SOME)
    bench.append("gap", A, 50_001, b"x")
    bench.append("inside", A, 10, b"x")
    bench.append("next", A, 50_000, b"x")
    assert isinstance(bench.outcomes["gap"], OffsetMismatch)
    assert bench.outcomes["gap"].fields == (50_000,)
    assert isinstance(bench.outcomes["inside"], OffsetMismatch)
    assert "first" not in bench.outcomes
    bench.disk.settle()
    assert (bench.outcomes["first"], bench.outcomes["next"]) == (50_000, 50_001)


def test_a_retry_is_success_once_the_first_is_durable(bench: Bench) -> None:
    bench.append("first", A, 0, SOME)
    bench.append("retry", A, 0, SOME)
    assert not bench.outcomes
    bench.disk.settle()
    assert (bench.outcomes["first"], bench.outcomes["retry"]) == (50_000, 50_000)
    assert bench.appended(A, 50_000, b"more") == 50_004
    assert bench.appended(A, 0, SOME) == 50_004
    bench.restart()
    assert bench.appended(A, 0, SOME) == 50_004
    assert isinstance(bench.appended(A, 0, SOME[:-1] + b"!"), OffsetMismatch)
    assert isinstance(bench.appended(A, 0, SOME[:100]), OffsetMismatch)


def test_a_payload_that_fails_its_crc_is_not_written(bench: Bench) -> None:
    assert isinstance(bench.appended(A, 0, SOME, crc=crc32c(SOME) ^ 1), Corrupt)
    assert bench.state(A) is None
    assert bench.appended(A, 0, SOME) == 50_000
    assert isinstance(bench.appended(A, 50_000, b"x", crc=1), Corrupt)
    assert bench.appended(A, 50_000, b"x") == 50_001


def test_only_an_append_with_a_spec_creates(bench: Bench) -> None:
    bench.append("nothing there", A, 0, b"x", spec=None)
    assert isinstance(bench.outcomes["nothing there"], NotFound)
    assert isinstance(bench.appended(A, 0, b"x", epoch=2), InvalidRequest)
    for spec in (FragmentSpec(0, 1, 2, 0), FragmentSpec(0, 1, 2, 65 * MiB), FragmentSpec(-1, 1, 2, MiB)):
        bench.append(spec, A, 0, b"x", spec=spec)
        assert isinstance(bench.outcomes[spec], InvalidRequest)


def test_an_empty_append_creates_and_may_be_repeated(bench: Bench) -> None:
    assert bench.appended(A, 0, b"") == 0
    assert bench.appended(A, 0, b"") == 0
    bench.restart()
    assert bench.state(A) is not None
    assert bench.appended(A, 0, b"x") == 1


def test_a_full_fragment_says_so_and_can_be_sealed(bench: Bench) -> None:
    spec = FragmentSpec(0, 1, 2, 60_000)
    bench.append("empty", A, 0, b"", spec=spec)
    bench.disk.settle()
    bench.append("fits", A, 0, SOME)
    bench.append("full", A, 50_000, SOME)
    assert isinstance(bench.outcomes["full"], FragmentFull)
    assert bench.appended(A, 50_000, SOME[:10_000]) == 60_000
    assert isinstance(bench.appended(A, 60_000, b"x"), FragmentFull)
    assert bench.sealed(A, 60_000) is None


def test_the_log_may_be_full_before_the_data(bench: Bench) -> None:
    records = config.FRAGMENT_LOG_BYTES // RECORD_BYTES
    for at in range(records):
        bench.append(at, A, at, b"x")
        bench.disk.settle()
    assert isinstance(bench.appended(A, records, b"x"), FragmentFull)
    bench.restart()
    assert bench.read(A, 0, records) == b"x" * records
    assert bench.sealed(A, records) is None
    bench.restart()
    assert bench.read(A, 0, records) == b"x" * records


def test_the_queue_is_bounded(bench: Bench) -> None:
    big = bytes(MiB)
    whole = FragmentSpec(0, 1, 2, 64 * MiB)
    bench.append(-1, A, 0, b"", spec=whole)
    bench.append(-2, B, 0, b"", spec=whole)
    for at in range(64):
        bench.append(at, A, at * MiB, big)
    bench.append("one more", B, 0, big)
    bench.append("too much", B, MiB, big)
    assert isinstance(bench.outcomes["too much"], Busy)
    bench.disk.settle()
    assert bench.outcomes["one more"] == MiB
    assert bench.appended(B, MiB, big) == 2 * MiB


# --- fences


def test_a_lower_epoch_is_refused_also_after_a_restart(bench: Bench) -> None:
    assert bench.appended(A, 0, SOME) == 50_000
    assert bench.fenced(5, A, B) == (bench.state(A),)
    for _ in range(3):
        for refused in (
            bench.appended(A, 50_000, b"x", epoch=4),
            bench.appended(B, 0, b"x"),
            bench.sealed(A, 50_000, 4),
            bench.deleted(A, 4),
            bench.fenced(4),
        ):
            assert isinstance(refused, StaleEpoch)
            assert refused.fields[2] == 5
        bench.restart()
    assert bench.fenced(5, A) == (bench.state(A),)
    assert bench.appended(chunk(1, volume=8), 0, b"another volume") == 14


def test_a_fence_waits_for_what_is_under_way_and_tells_its_length(bench: Bench) -> None:
    order = list[str]()
    bench.appended(A, 0, SOME)
    bench.append("under way", A, 50_000, SOME, take=lambda outcome: order.append(f"appended {outcome}"))

    def fenced(states: object) -> None:
        assert states == (bench.state(A),)
        order.append("fenced")

    bench.shell.fence(VOLUME, 2, (A,), fenced)
    bench.append("late", A, 100_000, SOME)
    assert isinstance(bench.outcomes["late"], StaleEpoch)
    bench.disk.settle()
    assert order == ["appended 100000", "fenced"]
    state = bench.state(A)
    assert state is not None
    assert state.length == 100_000


def test_a_fence_that_was_remembered_before_waits_for_what_is_under_way_as_well(bench: Bench) -> None:
    of_this_epoch = chunk(1, epoch=2)
    bench.fenced(2)
    bench.appended(of_this_epoch, 0, SOME)
    bench.append("under way", of_this_epoch, 50_000, SOME)
    bench.fenced(2, of_this_epoch)
    (state,) = bench.last_states
    assert state.length == bench.outcomes["under way"] == 100_000


def test_a_fence_waits_for_a_seal_under_way(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.append("append", A, 50_000, SOME)
    bench.shell.seal(A, 1, 50_000, bench.taker("seal"))
    bench.fenced(2, A)
    (state,) = bench.last_states
    assert (state.length, state.sealed) == (50_000, True)
    assert bench.outcomes["seal"] is None


def test_a_fence_waits_for_a_seal_that_has_nothing_before_it(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.fenced(2)
    bench.shell.seal(A, 2, 10_000, bench.taker("seal"))
    bench.fenced(2, A)
    (state,) = bench.last_states
    assert (state.length, state.sealed) == (10_000, True)


def test_the_epoch_of_a_chunk_that_is_here_was_seen(bench: Bench) -> None:
    assert bench.appended(chunk(1, epoch=5), 0, SOME) == 50_000
    for _ in range(2):
        assert isinstance(bench.appended(chunk(2, epoch=4), 0, SOME), StaleEpoch)
        bench.restart()


def test_an_append_under_a_higher_epoch_is_told_when_the_epoch_is_remembered(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.disk.inject("sync", DiskFailed("sim", "EIO"), "fences-1")
    bench.append("higher", A, 50_000, b"x", epoch=9)
    bench.disk.settle()
    assert isinstance(bench.outcomes["higher"], DiskFailed)


def test_a_disk_that_cannot_remember_a_fence_takes_no_writes(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.disk.inject("write", DiskFailed("sim", "EIO"), "fences-1")
    assert isinstance(bench.fenced(2, A), DiskFailed)
    assert bench.shell.suspect
    for refused in (
        bench.appended(A, 50_000, b"x", epoch=2),
        bench.appended(chunk(5, 2), 0, b"x"),
        bench.sealed(A, 50_000, 2),
        bench.deleted(A, 2),
        bench.fenced(3),
    ):
        assert isinstance(refused, DiskFailed)
    assert bench.read(A, 0, 100) == SOME[:100]


def test_a_fence_that_cannot_be_remembered_still_waits_for_what_is_under_way(bench: Bench) -> None:
    """One answer decides where a chunk ends: no append may be acknowledged beyond it later."""
    bench.appended(A, 0, SOME)
    bench.disk.inject("write", DiskFailed("sim", "EIO"), "fences-1")
    other = chunk(volume=9).volume
    bench.shell.fence(other, 2, (), bench.taker("other"))
    bench.append("under way", A, 50_000, SOME)
    while "other" not in bench.outcomes:
        assert bench.disk.step()
    assert "under way" not in bench.outcomes
    told = list[object]()
    bench.shell.fence(VOLUME, 2, (A,), lambda outcome: told.append(bench.outcomes["under way"]))
    bench.disk.settle()
    assert told == [100_000], "the append's outcome was known when the fence was answered"
    assert isinstance(bench.fenced(1, A), StaleEpoch), "refused, as long as the process lives"


def test_a_file_of_fences_that_cannot_be_rewritten_ends_all_writing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence_shell, "RECORDS_MAX", 5)
    bench.appended(A, 0, SOME)
    bench.disk.settle()
    bench.disk.inject("write", DiskFailed("sim", "EIO"), "fences-0")
    outcomes = [bench.fenced(epoch, A) for epoch in range(2, 9)]
    assert isinstance(outcomes[0], tuple)
    assert isinstance(outcomes[-1], DiskFailed)
    assert bench.shell.suspect
    assert isinstance(bench.appended(A, 50_000, b"x", epoch=9), DiskFailed)
    assert bench.read(A, 0, 100) == SOME[:100]
    told = [epoch for epoch, outcome in enumerate(outcomes, 2) if isinstance(outcome, tuple)]
    bench.restart()
    assert isinstance(bench.fenced(max(told) - 1, A), StaleEpoch), "what was told is remembered"


# --- sealing


def test_a_seal_fixes_the_length_for_ever(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.appended(A, 50_000, SOME)
    assert isinstance(bench.sealed(A, 100_001), OffsetMismatch)
    assert isinstance(bench.sealed(A, -1), OffsetMismatch)
    assert isinstance(bench.sealed(B, 0), NotFound)
    assert bench.sealed(A, 50_000) is None
    for _ in range(2):
        assert bench.sealed(A, 50_000) is None
        other = bench.sealed(A, 100_000)
        assert isinstance(other, FragmentSealed)
        assert other.fields == (50_000,)
        assert bench.appended(A, 0, SOME) == 50_000, "a retry of what is stored"
        assert isinstance(bench.appended(A, 50_000, b"x"), FragmentSealed)
        assert bench.read(A, 0, 50_000) == SOME
        assert isinstance(bench.read(A, 49_999, 2), OffsetMismatch)
        bench.restart()


def test_a_seal_asked_for_again_is_durable_when_answered() -> None:
    for seed in range(20):
        bench = Bench(seed)
        bench.disk.settle()
        bench.appended(A, 0, SOME)
        bench.shell.seal(A, 1, 50_000, lambda error: None)
        for _ in range(2):
            bench.disk.step()  # written, not synced
        bench.kill()
        assert bench.sealed(A, 50_000) is None
        bench.crash(Random(seed))
        state = bench.state(A)
        assert state is not None
        assert state.sealed


def test_a_seal_whose_sync_failed_is_written_anew_before_it_is_told() -> None:
    """After the restart the cache shows the seal, is clean, and syncs without an error."""
    for seed in range(20):
        bench = Bench(seed)
        bench.disk.settle()
        bench.appended(A, 0, SOME)
        bench.disk.inject("sync", DiskFailed("sim", "EIO"), file_of(bench, A))
        assert isinstance(bench.sealed(A, 50_000), DiskFailed)
        bench.restart()
        assert bench.sealed(A, 50_000) is None
        bench.crash(Random(seed))
        state = bench.state(A)
        assert state is not None
        assert (state.length, state.sealed) == (50_000, True)


def test_a_seal_may_fall_inside_a_piece(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    assert bench.sealed(A, 20_000) is None
    bench.restart()
    assert bench.read(A, 0, 20_000) == SOME[:20_000]
    assert bench.sealed(A, 20_000) is None


def test_a_seal_waits_for_appends_and_takes_no_more(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.append("before", A, 50_000, b"x")
    for tag in ("seal", "again"):
        bench.shell.seal(A, 1, 50_000, bench.taker(tag))
    bench.append("after", A, 50_001, b"y")
    bench.shell.seal(A, 1, 50_001, bench.taker("other"))
    assert isinstance(bench.outcomes["after"], FragmentSealed)
    assert isinstance(bench.outcomes["other"], FragmentSealed)
    bench.disk.settle()
    assert (bench.outcomes["before"], bench.outcomes["seal"], bench.outcomes["again"]) == (50_001, None, None)


# --- deleting


@pytest.mark.parametrize("sealed", [False, True])
def test_a_deleted_chunk_never_comes_back(bench: Bench, sealed: bool) -> None:
    bench.appended(A, 0, SOME)
    if sealed:
        bench.sealed(A, 50_000)
    assert bench.deleted(A) is None
    for _ in range(2):
        assert bench.deleted(A) is None
        assert bench.state(A) is None
        assert isinstance(bench.read(A, 0, 1), NotFound)
        refused = bench.appended(A, 0, SOME)
        assert isinstance(refused, FragmentSealed)
        assert refused.fields == (0,)
        assert bench.shell.facts().used_bytes == 0
        bench.restart()
    bench.fenced(2)
    assert isinstance(bench.appended(A, 0, SOME), StaleEpoch)
    assert isinstance(bench.appended(A, 0, SOME, epoch=2), FragmentSealed)


def test_deleting_what_never_was_keeps_it_from_coming(bench: Bench) -> None:
    assert bench.deleted(B) is None
    bench.restart()
    assert isinstance(bench.appended(B, 0, SOME), FragmentSealed)


def test_a_delete_waits_for_appends_under_way(bench: Bench) -> None:
    bench.appended(A, 0, b"")
    bench.append("append", A, 0, SOME)
    bench.shell.delete(A, 1, bench.taker("delete"))
    bench.append("late", A, 50_000, b"x")
    bench.disk.settle()
    assert bench.outcomes["append"] == 50_000
    assert bench.outcomes["delete"] is None
    assert isinstance(bench.outcomes["late"], FragmentSealed)
    bench.restart()
    assert bench.state(A) is None


def test_a_delete_asked_for_twice_is_told_when_it_is_durable(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.appended(B, 0, SOME)
    bench.shell.delete(A, 2, bench.taker("first"))
    bench.shell.delete(A, 2, bench.taker("again"))
    while "again" not in bench.outcomes:
        bench.disk.step()
    assert bench.outcomes == {"first": None, "again": None}
    bench.disk.crash(Random(0))
    bench.open()
    assert bench.state(A) is None


def test_a_delete_that_failed_has_not_happened_when_it_is_asked_for_again(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.disk.inject("write", DiskFailed("sim", "EIO"), file_of(bench, A))
    assert isinstance(bench.deleted(A), DiskFailed)
    assert isinstance(bench.deleted(A), DiskFailed)
    assert bench.state(A) is not None


def test_a_read_that_a_delete_overtook_finds_nothing(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    found = list[object]()
    bench.shell.reads.submit_read(A, 0, 100, found.append)
    assert bench.deleted(A) is None
    assert isinstance(found[0], NotFound)
    assert not bench.events


def test_slots_are_used_again_and_too_many_are_removed(bench: Bench) -> None:
    chunks = [chunk(number) for number in range(1, 21)]
    for each in chunks:
        bench.appended(each, 0, SOME)
    n_files = len(bench.disk.names("fragments"))
    for each in chunks:
        assert bench.deleted(each) is None
    assert len(bench.disk.names("fragments")) < n_files - 12
    for number in range(30, 33):
        assert bench.appended(chunk(number), 0, SOME[number:]) == 50_000 - number
    bench.restart()
    for number in range(30, 33):
        assert bench.read(chunk(number), 0, 50_000 - number) == SOME[number:]


# --- what there is


def test_the_inventory_is_paged_in_order(bench: Bench) -> None:
    for number in (5, 1, 4, 2, 3):
        bench.appended(chunk(number), 0, bytes(number))
    first, complete = bench.shell.list_fragments(None, 3)
    assert [(state.chunk.number, state.length) for state in first] == [(1, 1), (2, 2), (3, 3)]
    assert not complete
    rest, complete = bench.shell.list_fragments(first[-1].chunk, 3)
    assert [state.chunk.number for state in rest] == [4, 5]
    assert complete
    facts = bench.shell.facts()
    assert (facts.n_fragments, facts.used_bytes, facts.suspect) == (5, 5 * 2 * MiB, False)
    assert facts.capacity_bytes == facts.used_bytes + facts.free_bytes


def test_open_files_and_indexes_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_shell, "FILES_OPEN_MAX", 3)
    monkeypatch.setattr(fragment_reads, "INDEXES_MAX", 2)
    chunks = [chunk(number) for number in range(1, 9)]
    for _ in range(2):
        for each in chunks:
            offset = 0 if bench.state(each) is None else 1000
            assert bench.appended(each, offset, SOME[:1000]) == offset + 1000
    for each in chunks:
        assert bench.sealed(each, 2000) is None
    for each in chunks * 2:
        assert bench.read(each, 500, 1000) == SOME[500:1000] + SOME[:500]


def test_a_file_that_cannot_be_opened_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, say: each request is answered with the error, and succeeds when that is over."""

    def refuse(slot: int) -> File:
        raise DiskFailed("sim", "Too many open files")

    bench.appended(A, 0, SOME)
    with monkeypatch.context() as patched:
        patched.setattr(bench.shell._slots, "file", refuse)
        for outcome in (
            bench.appended(A, 50_000, SOME),
            bench.appended(B, 0, SOME),
            bench.sealed(A, 50_000),
            bench.read(A, 0, 10),
        ):
            assert isinstance(outcome, DiskFailed)
    assert bench.appended(A, 50_000, SOME) == 100_000
    assert bench.appended(B, 0, SOME) == 50_000
    assert bench.sealed(A, 50_000) is None
    assert bench.read(A, 0, 10) == SOME[:10]


def test_when_no_descriptor_is_left_files_are_closed_and_the_disk_is_not_blamed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [chunk(number) for number in range(1, 12)]
    n_files = 4
    open_file = bench.disk.open

    def open_if_one_is_left(name: str, size: int | None = None) -> File:
        if len(bench.shell._slots._files) >= n_files:
            raise Busy("the table of open files")
        return open_file(name, size)

    monkeypatch.setattr(bench.disk, "open", open_if_one_is_left)
    for _ in range(2):
        for each in chunks:
            offset = 0 if bench.state(each) is None else 1000
            assert bench.appended(each, offset, SOME[:1000]) == offset + 1000
    for each in chunks:
        assert bench.sealed(each, 2000) is None
        assert bench.read(each, 500, 1000) == SOME[500:1000] + SOME[:500]
    n_files = 0
    assert isinstance(bench.deleted(A), Busy)
    assert isinstance(bench.read(B, 0, 10), Busy)
    assert not bench.shell.suspect
    n_files = 4
    assert bench.deleted(A) is None
    assert bench.read(B, 0, 10) == SOME[:10]
    bench.restart()
    assert bench.state(A) is None


def test_a_strange_disk_is_refused(bench: Bench) -> None:
    with pytest.raises(AlreadyExists):
        format_disk(bench.disk, DISK, CLUSTER)

    def opened(disk: DiskId, cluster: str) -> None:
        DiskShell(bench.disk, disk, cluster, lambda code, text: None).recover()

    with pytest.raises(NotAStore, match="belongs to cluster test"):
        opened(DISK, "other")
    with pytest.raises(NotAStore, match="it is disk 3"):
        opened(DiskId(4), CLUSTER)
    bench.disk.remove("superblock")
    with pytest.raises(NotAStore, match="never formatted"):
        opened(DISK, CLUSTER)


def test_an_unknown_version_is_refused_and_nothing_changed(bench: Bench) -> None:
    block = bytearray(bench.disk.peek("superblock", 0, 512))
    block[8] = 9
    block[508:] = crc32c(block[:508]).to_bytes(4, "little")
    bench.disk.replace_file("superblock", bytes(block))
    with pytest.raises(UnknownFormat, match="version 9"):
        bench.open()
