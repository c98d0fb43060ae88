"""The power fails between any two steps of a disk's life; what was told before is true after.

A scenario is run again and again, each time cut one step later, with several ways of losing what was not
synced. Every chunk's bytes are one random stream known from its id, so any byte that is read is either
right or the test fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from random import Random

import pytest

from blockstore.errors import BlockStoreError, FragmentSealed, StaleEpoch
from blockstore.ids import ChunkId, KiB
from blockstore.runtime.sim.disk import PowerLost
from tests.unit.node.disks import VOLUME, Bench, chunk

LOSSES = 3
_streams = dict[ChunkId, bytes]()


def stream(where: ChunkId) -> bytes:
    if where not in _streams:
        _streams[where] = Random(str(where)).randbytes(256 * KiB)
    return _streams[where]


class Story:
    """What was asked, and what was told."""

    def __init__(self, seed: int) -> None:
        self.bench = Bench(seed)
        self.rng = Random(seed)
        self.asked_length = dict[ChunkId, int]()
        self.told_length = dict[ChunkId, int]()
        self.seals_asked = dict[ChunkId, int]()
        self.seals_told = dict[ChunkId, int]()
        self.deletes_asked = set[ChunkId]()
        self.deletes_told = set[ChunkId]()
        self.fence_told = 0

    def append(self, where: ChunkId, length: int) -> None:
        offset = self.asked_length.get(where, 0)
        self.asked_length[where] = offset + length

        def told(outcome: object) -> None:
            assert outcome == offset + length, outcome
            self.told_length[where] = max(self.told_length.get(where, 0), offset + length)

        self.bench.outcomes.clear()
        self.bench.append(object(), where, offset, stream(where)[offset : offset + length], take=told)

    def seal(self, where: ChunkId, epoch: int) -> None:
        length = self.told_length.get(where, 0)
        self.seals_asked[where] = length

        def told(error: BlockStoreError | None) -> None:
            assert error is None, error
            self.seals_told[where] = length

        self.bench.shell.seal(where, epoch, length, told)

    def delete(self, where: ChunkId, epoch: int) -> None:
        self.deletes_asked.add(where)

        def told(error: BlockStoreError | None) -> None:
            assert error is None, error
            self.deletes_told.add(where)

        self.bench.shell.delete(where, epoch, told)

    def fence(self, epoch: int, *chunks: ChunkId) -> None:
        def told(states: object) -> None:
            assert isinstance(states, tuple), states
            self.fence_told = max(self.fence_told, epoch)

        self.bench.shell.fence(VOLUME, epoch, chunks, told)

    # --- after the crash

    def killed_before_the_power_fails(self) -> None:
        """First only the process ends: what the next one tells is told as well."""
        self.bench.kill()
        states, complete = self.bench.shell.list_fragments(None, 100)
        assert complete
        for state in states:
            if not state.sealed:
                self.told_length[state.chunk] = max(state.length, self.told_length.get(state.chunk, 0))

    def check(self) -> None:
        bench = self.bench
        bad = [event for event in bench.events if event[0] != "fragment-doubtful"]
        assert not bad, bad
        for where, asked in self.asked_length.items():
            state = bench.state(where)
            told = self.told_length.get(where, 0)
            if where in self.deletes_told:
                assert state is None
                continue
            if state is None:
                assert told == 0 or where in self.deletes_asked
                continue
            if where in self.seals_told:
                assert state.sealed
            if state.sealed:
                assert state.length == self.seals_asked[where]
            else:
                assert told <= state.length <= asked
            if state.length:
                assert bench.read(where, 0, state.length) == stream(where)[: state.length]
        for epoch in range(1, self.fence_told):
            assert isinstance(bench.appended(chunk(99, epoch), 0, b"late"), StaleEpoch)
        for where in self.deletes_told:
            late = bench.appended(where, 0, stream(where)[:10])
            assert isinstance(late, FragmentSealed | StaleEpoch), late

    def go_on(self) -> None:
        """Whatever is open can be appended to, and keeps that."""
        bench = self.bench
        states, complete = bench.shell.list_fragments(None, 100)
        assert complete
        longer = dict[ChunkId, int]()
        for state in states:
            if not state.sealed:
                end = state.length + 20 * KiB
                more = stream(state.chunk)[state.length : end]
                epoch = bench.shell.highest_epoch(VOLUME)
                assert bench.appended(state.chunk, state.length, more, epoch=epoch) == end
                longer[state.chunk] = end
        bench.disk.crash(Random(1))
        bench.open()
        for where, end in longer.items():
            found = bench.state(where)
            assert found is not None
            assert found.length == end
            assert bench.read(where, 0, end) == stream(where)[:end]


A, B, C, D = chunk(1), chunk(2), chunk(3), chunk(4, epoch=3)


def appends_in_flight(story: Story) -> Iterator[None]:
    """Batches on one fragment: small ones, one across the grid, one of many pieces."""
    for length in (100, 4096, 20 * KiB):
        story.append(A, length)
    yield
    for length in (7, 500, 70 * KiB, 1, 4096):
        story.append(A, length)
    story.append(B, 3000)
    yield
    for _ in range(4):
        story.append(A, 1000)


def a_takeover(story: Story) -> Iterator[None]:
    """Fence while appends are under way, seal, go on under the new epoch."""
    story.append(A, 5000)
    story.append(B, 20 * KiB)
    yield
    story.append(A, 5000)
    story.fence(3, A, B)
    yield
    story.seal(A, 3)
    story.append(D, 9000)
    yield
    story.seal(B, 3)
    story.append(D, 9000)


def a_slot_used_again(story: Story) -> Iterator[None]:
    """Deleted, and its slot taken by another chunk, with the old one's records still in the log."""
    for _ in range(3):
        story.append(A, 6000)
    yield
    story.seal(A, 1)
    yield
    story.delete(A, 1)
    story.append(B, 100)
    yield
    for number in range(10, 13):  # more chunks than spare slots: one of them gets the freed one
        for _ in range(2):
            story.append(chunk(number), 6000)
    story.delete(B, 1)


SCENARIOS = (appends_in_flight, a_takeover, a_slot_used_again)


def run(story: Story, scenario: Callable[[Story], Iterator[None]]) -> None:
    for _ in scenario(story):
        story.bench.disk.settle()
    story.bench.disk.settle()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_was_told_is_true_after_a_crash_anywhere(scenario: Callable[[Story], Iterator[None]]) -> None:
    whole = Story(0)
    whole.bench.disk.settle()
    before = whole.bench.disk.n_steps
    run(whole, scenario)
    n_steps = whole.bench.disk.n_steps - before
    for cut in range(n_steps + 1):
        for loss in range(LOSSES):
            story = Story(loss)
            story.bench.disk.settle()
            story.bench.disk.cut_after(cut)
            if cut < n_steps:
                with pytest.raises(PowerLost):
                    run(story, scenario)
            else:
                run(story, scenario)
            try:
                if loss == 0:
                    story.killed_before_the_power_fails()
                story.bench.crash(Random(cut * LOSSES + loss))
                story.check()
                story.go_on()
            except BaseException:
                print(f"{scenario.__name__}: cut {cut}, loss {loss}")
                raise


def test_a_crash_in_recovery_is_one_more_crash() -> None:
    """Recovery itself writes (it blanks what it cut, and rewrites the fences): cut that too, at each step."""
    for seed in range(6):
        for cut in range(12):
            story = Story(seed)
            story.bench.disk.settle()
            story.bench.disk.cut_after(14 + seed)
            with pytest.raises(PowerLost):
                run(story, appends_in_flight)
            story.bench.disk.crash(Random(seed))
            story.bench.disk.cut_after(cut)
            try:
                story.bench.open()
                story.bench.disk.settle()
            except PowerLost:
                pass
            story.bench.crash(Random(cut))
            story.check()
            story.go_on()


def test_what_is_seen_after_a_killed_process_is_durable_before_it_is_told() -> None:
    """A seal and a delete were written, and not yet synced, when the process was killed: either they are not
    there, or they stay when the power fails next."""
    for n_steps, loss in product(range(6), range(8)):
        bench = Bench(loss)
        bench.disk.settle()
        bench.appended(A, 0, stream(A)[:100])
        bench.appended(B, 0, stream(B)[:100])
        bench.shell.seal(A, 1, 100, bench.taker("seal"))
        bench.shell.delete(B, 1, bench.taker("delete"))
        for _ in range(n_steps):
            bench.disk.step()
        bench.kill()
        before = bench.shell.list_fragments(None, 10)
        bench.crash(Random(loss))
        assert bench.shell.list_fragments(None, 10) == before


def test_a_slot_too_many_that_a_crash_left_is_given_back() -> None:
    bench = Bench()
    bench.disk.settle()
    chunks = [chunk(number) for number in range(1, 9)]
    for where in chunks:
        bench.appended(where, 0, b"x")
    n_free = len(bench.disk.names("fragments")) - len(chunks)
    for where in chunks:
        bench.shell.delete(where, 1, bench.taker(where))
    while len(bench.outcomes) < len(chunks):
        bench.disk.step()
    n_left = len(bench.disk.names("fragments"))
    bench.crash(Random(0))
    bench.disk.settle()
    n_slots = len(bench.disk.names("fragments"))
    assert n_slots < n_left
    assert n_slots < n_free + len(chunks)
    bench.restart()
    assert len(bench.disk.names("fragments")) == n_slots
