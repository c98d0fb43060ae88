"""A disk that rots or fails: nothing unverified is returned, and an error is final for what it hit."""

from __future__ import annotations

from random import Random

import pytest

from blockstore import config
from blockstore.codec.checksum import crc32c
from blockstore.codec.fragment_file import DATA_START, LOG_START, RECORD_BYTES
from blockstore.codec.messages import FragmentSpec
from blockstore.errors import (
    Corrupt,
    DiskFailed,
    NoSpace,
    NotFound,
)
from blockstore.ids import KiB, MiB
from tests.unit.node.disks import SPEC, Bench, bytes_for, chunk, file_of

A, B = chunk(1), chunk(2)
SOME = bytes_for(1, 50_000)


# --- damage


def test_a_flipped_bit_is_never_returned(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    name = file_of(bench, A)
    bench.disk.flip(name, DATA_START + 20_000)
    assert isinstance(bench.read(A, 19_000, 2_000), Corrupt)
    assert bench.read(A, 0, 16_384) == SOME[:16_384], "other blocks are sound"
    assert bench.read(A, 32_768, 10_000) == SOME[32_768:42_768]
    assert [code for code, _ in bench.events] == ["fragment-damaged"]
    assert isinstance(bench.appended(A, 50_000, b"x"), Corrupt), "quarantined"
    assert bench.sealed(A, 50_000) is None
    assert bench.shell.facts().n_damaged == 1
    assert bench.deleted(A) is None
    assert bench.shell.facts().n_damaged == 0


def test_a_misdirected_or_swapped_block_is_not_returned(bench: Bench) -> None:
    block = SOME[:4096]
    bench.appended(A, 0, block)
    bench.appended(A, 4096, block)
    bench.appended(B, 0, block)
    name = file_of(bench, A)
    log = bench.disk.peek(name, LOG_START, 64)
    bench.disk.overwrite(name, LOG_START, log[32:])  # the second record in the first one's place
    bench.restart()
    assert isinstance(bench.read(A, 0, 4096), Corrupt)
    # The same bytes are at both places; only the sums differ, and records of another chunk fail too.
    other = bench.disk.peek(file_of(bench, B), LOG_START, 32)
    assert other[:4] == log[:4]
    assert other[8:12] != log[8:12]


def test_rot_in_acknowledged_records_cuts_nothing(bench: Bench) -> None:
    for at in range(0, 40_000, 10_000):
        bench.appended(A, at, SOME[at : at + 10_000])
    bench.disk.flip(file_of(bench, A), LOG_START + RECORD_BYTES + 5)
    bench.restart()
    state = bench.state(A)
    assert state is not None
    assert state.length == 40_000
    assert isinstance(bench.read(A, 12_000, 10), Corrupt)
    assert bench.read(A, 0, 10_000) == SOME[:10_000]
    assert bench.read(A, 20_000, 20_000) == SOME[20_000:40_000]
    assert "fragment-damaged" in dict(bench.events)
    assert bench.sealed(A, 40_000) is None
    bench.restart()
    assert isinstance(bench.read(A, 12_000, 10), Corrupt)
    assert bench.read(A, 20_000, 20_000) == SOME[20_000:40_000]


def test_a_bad_last_append_is_cut_and_the_doubt_remembered(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.appended(A, 50_000, SOME)
    bench.disk.flip(file_of(bench, A), DATA_START + 60_000)
    for _ in range(3):
        bench.restart()
        state = bench.state(A)
        assert state is not None
        assert (state.length, state.doubtful) == (50_000, True)
    assert bench.appended(A, 50_000, SOME) == 100_000
    bench.restart()
    assert bench.read(A, 0, 100_000) == SOME + SOME


def test_a_stale_record_never_follows_a_new_one(bench: Bench) -> None:
    """After a cut, the record behind the cut one is whole; an append of the cut one's size must not revive
    it."""
    bench.appended(A, 0, SOME[:1000])
    for tag in range(2):
        bench.append(tag, A, 1000 + tag * 1000, bytes([tag]) * 1000)
    bench.disk.settle()
    bench.disk.flip(file_of(bench, A), DATA_START + 1500)
    bench.restart()
    assert bench.appended(A, 1000, SOME[:1000]) == 2000
    bench.restart()
    state = bench.state(A)
    assert state is not None
    assert state.length == 2000


def test_one_bad_header_copy_is_survived_two_leave_an_incomplete_inventory(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.appended(B, 0, SOME)
    name = file_of(bench, A)
    bench.disk.flip(name, 70)
    bench.restart()
    assert bench.read(A, 0, 50_000) == SOME
    assert bench.shell.facts().n_damaged == 0
    bench.disk.flip(name, 4096 + 70)
    bench.restart()
    assert "slot-unreadable" in dict(bench.events)
    states, complete = bench.shell.list_fragments(None, 100)
    assert [state.chunk for state in states] == [B]
    assert not complete
    assert bench.shell.facts().n_damaged == 1
    bench.fenced(1, A)
    (state,) = bench.last_states
    assert (state.length, state.sealed, state.doubtful) == (0, False, True), "not: never had a byte"


def test_damaged_fences_stop_appends_to_what_they_may_have_fenced(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.fenced(1)
    bench.fenced(4, volume=chunk(1, volume=9).volume)
    bench.disk.settle()
    for name in ("fences-0", "fences-1"):
        bench.disk.flip(name, 4096 + 20)
    bench.restart()
    assert "fences-damaged" in dict(bench.events)
    assert isinstance(bench.appended(A, 50_000, b"x"), Corrupt)
    assert bench.read(A, 0, 50_000) == SOME
    assert bench.appended(B, 0, SOME) == 50_000


@pytest.mark.parametrize("how", ["rotten", "unreadable"])
@pytest.mark.parametrize("name", ["fences-0", "fences-1"])
def test_a_fence_file_whose_header_is_lost_may_have_been_the_newer(bench: Bench, name: str, how: str) -> None:
    bench.appended(A, 0, SOME)
    bench.fenced(1)
    bench.disk.settle()
    if how == "rotten":
        bench.disk.flip(name, 20)
    else:
        bench.disk.make_unreadable(name, 20)
    bench.restart()
    assert "fences-damaged" in dict(bench.events)
    assert isinstance(bench.appended(A, 50_000, b"x"), Corrupt)
    bench.events.clear()
    bench.restart()
    assert "fences-damaged" not in dict(bench.events), "it was written anew"


# --- errors of the disk


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_an_io_error_is_final_for_the_fragment(bench: Bench, operation: str) -> None:
    bench.appended(A, 0, SOME)
    bench.appended(B, 0, SOME)
    bench.disk.inject(operation, DiskFailed("sim", "EIO"), file_of(bench, A))  # type: ignore[arg-type]
    bench.append("one", A, 50_000, SOME)
    bench.append("two", A, 100_000, SOME)
    bench.disk.settle()
    assert isinstance(bench.outcomes["one"], DiskFailed)
    assert isinstance(bench.outcomes["two"], DiskFailed)
    assert isinstance(bench.appended(A, 50_000, SOME), DiskFailed)
    assert isinstance(bench.sealed(A, 50_000), DiskFailed)
    assert isinstance(bench.deleted(A), DiskFailed)
    assert bench.shell.suspect
    assert bench.read(A, 0, 50_000) == SOME, "what was durable before is still verified and served"
    assert bench.appended(B, 50_000, SOME) == 100_000, "other fragments go on"
    assert "disk-failed" in dict(bench.events)


def test_a_failed_sync_is_not_believed_by_a_later_one(bench: Bench) -> None:
    for seed in range(20):
        bench = Bench(seed)
        bench.disk.settle()
        bench.appended(A, 0, SOME)
        bench.disk.inject("sync", DiskFailed("sim", "EIO"), file_of(bench, A))
        assert isinstance(bench.appended(A, 50_000, SOME), DiskFailed)
        bench.crash(Random(seed))
        state = bench.state(A)
        assert state is not None
        assert state.length in (50_000, 100_000)
        assert bench.read(A, 0, state.length) == (SOME + SOME)[: state.length]


def test_what_a_failed_sync_left_in_the_cache_is_not_believed_after_a_restart() -> None:
    lengths = set[int]()
    for seed in range(20):
        bench = Bench(seed)
        bench.disk.settle()
        bench.appended(A, 0, SOME)
        bench.disk.inject("sync", DiskFailed("sim", "EIO"), file_of(bench, A))
        assert isinstance(bench.appended(A, 50_000, SOME), DiskFailed)
        bench.restart()  # the process alone: the cache still shows all of it
        state = bench.state(A)
        assert state is not None
        bench.crash(Random(seed))
        after = bench.state(A)
        assert after is not None
        assert after.length == state.length
        lengths.add(state.length)
    assert lengths == {50_000, 100_000}


def test_a_read_error_is_reported_and_the_disk_suspect(bench: Bench) -> None:
    bench.appended(A, 0, SOME)
    bench.disk.inject("read", DiskFailed("sim", "EIO"), file_of(bench, A))
    assert isinstance(bench.read(A, 0, 100), DiskFailed)
    assert bench.shell.suspect


def test_a_full_disk_refuses_new_chunks_and_still_deletes() -> None:
    room = 2 * 65 * MiB + 2 * 1 * MiB + 512 + 2 * 8 * KiB + config.DISK_RESERVE_BYTES_MIN
    bench = Bench(capacity_bytes=room)
    bench.disk.settle()
    whole = FragmentSpec(0, 1, 2, 64 * MiB)
    for number in (1, 2):
        bench.append(number, chunk(number), 0, SOME, spec=whole)
    for tag, offset in (("no room", 0), ("nor for this", 50_000)):
        bench.append(tag, chunk(3), offset, SOME, spec=whole)
    bench.disk.settle()
    assert bench.outcomes[1] == bench.outcomes[2] == 50_000
    assert isinstance(bench.outcomes["no room"], NoSpace)
    assert isinstance(bench.outcomes["nor for this"], NotFound), "the one before it was refused at once"
    assert bench.appended(chunk(1), 50_000, SOME) == 100_000, "its space was taken beforehand"
    assert not bench.shell.suspect
    bench.restart()
    assert bench.deleted(chunk(1)) is None
    bench.append("again", chunk(4), 0, SOME, spec=whole)
    bench.disk.settle()
    assert bench.outcomes["again"] == 50_000


def test_what_deleting_needs_is_kept_from_everybody_else() -> None:
    room = 2 * 65 * MiB + 2 * 1 * MiB + 512 + 2 * 8 * KiB + config.DISK_RESERVE_BYTES_MIN
    bench = Bench(capacity_bytes=room)
    bench.disk.settle()
    assert not bench.shell.facts().is_full
    for number in (1, 2):
        spec = FragmentSpec(0, 1, 2, 64 * MiB)
        bench.append(number, chunk(number), 0, SOME, spec=spec)
        bench.disk.settle()
    assert bench.shell.facts().is_full
    small = FragmentSpec(0, 1, 2, config.VITAL_CHUNK_BYTES)
    bench.append("data", chunk(3), 0, SOME, spec=small)
    bench.disk.settle()
    assert isinstance(bench.outcomes["data"], NoSpace)
    outcomes = list[object]()
    for number in range(4, 40):
        where = chunk(number)
        bench.shell.append(where, 1, 0, memoryview(SOME), crc32c(SOME), small, outcomes.append, vital=True)
        bench.disk.settle()
    n_made = outcomes.count(len(SOME))
    assert n_made * config.VITAL_CHUNK_BYTES > config.DISK_RESERVE_BYTES_MIN // 2
    assert all(isinstance(outcome, NoSpace) for outcome in outcomes[n_made:])
    assert bench.disk.free_bytes() >= config.DISK_RESERVE_BYTES_MIN // 4, "control's log has room"
    assert not bench.shell.suspect
    assert bench.deleted(chunk(1)) is None
    assert not bench.shell.facts().is_full


def test_free_slots_of_another_size_give_way() -> None:
    room = 2 * 65 * MiB + 2 * 1 * MiB + 512 + 2 * 8 * KiB + config.DISK_RESERVE_BYTES_MIN
    bench = Bench(capacity_bytes=room)
    bench.disk.settle()
    assert bench.shell.facts().free_bytes >= 2 * 64 * MiB
    for number in range(1, 31):  # thirty of 3 MiB with their logs: not beside two free ones of 64 MiB
        bench.append(number, chunk(number), 0, SOME, spec=SPEC)
        bench.disk.settle()
        assert bench.outcomes[number] == 50_000, number
