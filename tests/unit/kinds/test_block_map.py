"""What is remembered of a device: never older than what was written, and bounded."""

from __future__ import annotations

import random

from blockstore.codec.messages import Extent, Placement
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.kinds.block import BLOCK_BYTES, SPAN_BYTES, Part
from blockstore.kinds.block_map import MISSES_MAX, ZEROED, BlockMap, Known, Run, State

PLACEMENTS = {ChunkId(VolumeId(1), 1, number): Placement(1, 0, (DiskId(1),)) for number in range(50)}


def place(number: int, length: int = BLOCK_BYTES) -> tuple[Extent, ...]:
    return (Extent(ChunkId(VolumeId(1), 1, number % 50), number, length, length, number),)


def part_of(span: int, first: int, last: int) -> Part:
    start, end = first * BLOCK_BYTES, last * BLOCK_BYTES
    return Part(span, start, end, span * SPAN_BYTES + start)


def learn(known: BlockMap, span: int, base: State, blocks: dict[int, State], *, all_of_it: bool) -> None:
    load = known.begin([span])
    known.learn(load, span, base, blocks, PLACEMENTS, is_complete=all_of_it)
    known.end(load)


def test_what_is_known_is_found_as_runs() -> None:
    known = BlockMap()
    base = place(7, SPAN_BYTES)
    assert known.find(part_of(3, 0, 1)) is None
    learn(known, 3, base, {1: place(1), 2: ZEROED, 3: ZEROED}, all_of_it=True)
    runs = known.find(part_of(3, 0, 6))
    assert runs is not None
    assert [(run.length // BLOCK_BYTES, run.start, run.extents) for run in runs] == [
        (1, 0, base),
        (1, 0, place(1)),
        (2, 0, ZEROED),
        (2, 4 * BLOCK_BYTES, base),
    ]
    cut = known.find(Part(3, BLOCK_BYTES + 5, BLOCK_BYTES + 9, 0))
    assert cut is not None
    assert [(run.length, run.start, run.extents) for run in cut] == [(4, 5, place(1))]
    learn(known, 4, base, {}, all_of_it=True)
    assert known.find(part_of(4, 2, 9)) == [Run(7 * BLOCK_BYTES, 2 * BLOCK_BYTES, base, PLACEMENTS)]


def test_of_a_span_known_in_part_the_rest_is_asked_for() -> None:
    known = BlockMap()
    learn(known, 3, Known.ABSENT, {1: place(1), 2: Known.ABSENT}, all_of_it=False)
    assert known.find(part_of(3, 1, 3)) is not None
    assert known.find(part_of(3, 1, 4)) is None
    assert known.block_keys(3) is None
    assert [known.note_miss(3) for _ in range(MISSES_MAX)] == [False] * (MISSES_MAX - 1) + [True]
    learn(known, 3, Known.ABSENT, {1: place(1)}, all_of_it=True)
    assert known.block_keys(3) == [1]
    assert not known.note_miss(3)


def test_what_is_written_while_the_owner_is_asked_counts() -> None:
    known = BlockMap()
    load = known.begin([3, 4])
    known.note_written(3, None, {1: Known.PLACE_UNKNOWN})
    known.note_written(4, Known.PLACE_UNKNOWN, {})
    known.note_written(4, None, {2: ZEROED})
    known.learn(load, 3, place(7, SPAN_BYTES), {1: place(1), 2: place(2)}, PLACEMENTS, is_complete=True)
    known.learn(load, 4, place(8, SPAN_BYTES), {1: place(1)}, PLACEMENTS, is_complete=True)
    known.end(load)
    assert known.find(part_of(3, 1, 2)) is None  # where that is now, the owner must say
    assert known.find(part_of(3, 2, 3)) is not None
    assert known.block_keys(4) == [2]
    assert known.find(part_of(4, 1, 2)) is None


def test_what_was_asked_before_a_doubt_is_not_believed() -> None:
    known = BlockMap()
    load = known.begin([3])
    known.clear()
    known.learn(load, 3, Known.ABSENT, {}, PLACEMENTS, is_complete=True)
    assert known.find(part_of(3, 0, 1)) is None
    assert known.n_entries == 0


def test_the_spans_unused_for_longest_are_forgotten() -> None:
    known = BlockMap(entries_max=100)
    for span in range(10):
        learn(known, span, Known.ABSENT, {number: place(number) for number in range(9)}, all_of_it=True)
    assert known.n_entries == 100
    assert known.find(part_of(0, 0, 1)) is not None
    learn(known, 10, Known.ABSENT, {}, all_of_it=True)
    assert known.find(part_of(1, 0, 1)) is None
    assert known.find(part_of(0, 0, 1)) is not None
    known.note_written(0, Known.PLACE_UNKNOWN, {})
    known.forget(5)
    assert known.n_entries == 91 - 9 - 10


def test_any_history_is_what_a_plain_model_says() -> None:
    """A model that knows all: what is found in the map is what it has, whatever was asked meanwhile."""
    rng = random.Random(5)
    known = BlockMap(entries_max=60)
    n_spans, n_blocks, n_found = 6, 12, 0
    truth: list[tuple[State, dict[int, State]]] = [(Known.ABSENT, {}) for _ in range(n_spans)]
    loads = [(known.begin([0]), 0, truth[0])]
    for number in range(4_000):
        span = rng.randrange(n_spans)
        base, blocks = truth[span]
        chosen = rng.random()
        if chosen < 0.2:
            loads.append((known.begin([span]), span, (base, dict(blocks))))
        elif chosen < 0.5 and loads:
            load, asked, (then, there) = loads.pop(rng.randrange(len(loads)))
            wanted = set(rng.sample(range(n_blocks), 4))
            is_complete = rng.random() < 0.3
            told = {block: there.get(block, Known.ABSENT) for block in wanted}
            known.learn(
                load, asked, then, there if is_complete else told, PLACEMENTS, is_complete=is_complete
            )
            known.end(load)
        elif chosen < 0.6:
            new: State = Known.ABSENT if rng.random() < 0.3 else place(number, SPAN_BYTES)
            truth[span] = (new, {})
            known.note_written(span, Known.ABSENT if new is Known.ABSENT else Known.PLACE_UNKNOWN, {})
        elif chosen < 0.62:
            known.clear()
        else:
            block = rng.randrange(n_blocks)
            state: State = rng.choice((ZEROED, place(number), Known.ABSENT))
            truth[span] = (base, {**blocks, block: state})
            known.note_written(
                span, None, {block: state if state in (ZEROED, Known.ABSENT) else Known.PLACE_UNKNOWN}
            )
        block = rng.randrange(n_blocks)
        runs = known.find(part_of(span, block, block + 1))
        if runs is not None:
            n_found += 1
            base, blocks = truth[span]
            shown = blocks.get(block, Known.ABSENT)
            shown = base if shown is Known.ABSENT else shown
            assert [run.extents for run in runs] == [() if shown is Known.ABSENT else shown]
        keys = known.block_keys(span)
        assert keys is None or set(keys) == {
            number for number, state in truth[span][1].items() if state is not Known.ABSENT
        }
        assert known.n_entries <= 60
    assert n_found > 300
