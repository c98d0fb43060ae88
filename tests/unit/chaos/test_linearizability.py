"""The checker finds what cannot have been, and nothing else: examples, and against trying every order."""

from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.strategies as st

from chaos.linearizability import ABSENT, Operation, find_contradiction


def write(value: str, begin: float, end: float = math.inf) -> Operation:
    return Operation("write", value, begin, end)


def read(value: str | None, begin: float, end: float) -> Operation:
    return Operation("read", value, begin, end)


def test_one_after_the_other() -> None:
    assert not find_contradiction(
        [read(None, 0, 1), write("a", 2, 3), read("a", 4, 5), write("b", 6, 7), read("b", 8, 9)]
    )


def test_reads_during_a_write_may_see_either() -> None:
    assert not find_contradiction([write("a", 0, 1), write("b", 2, 9), read("a", 3, 4), read("b", 5, 6)])


def test_a_value_that_was_seen_does_not_go_away_during_a_write() -> None:
    assert find_contradiction([write("a", 0, 1), write("b", 2, 9), read("b", 3, 4), read("a", 5, 6)])


def test_a_stale_read() -> None:
    assert find_contradiction([write("a", 0, 1), write("b", 2, 3), read("a", 4, 5)])


def test_an_acknowledged_write_is_not_missing() -> None:
    assert find_contradiction([write("a", 0, 1), read(None, 2, 3)])


def test_a_write_without_an_answer_may_happen_late_or_never() -> None:
    lost = write("b", 2)
    assert not find_contradiction([write("a", 0, 1), lost, read("a", 100, 101)])
    assert not find_contradiction([write("a", 0, 1), lost, read("a", 100, 101), read("b", 102, 103)])
    assert find_contradiction([write("a", 0, 1), lost, read("b", 100, 101), read("a", 102, 103)])


def test_nothing_is_read_that_was_not_written_by_then() -> None:
    assert find_contradiction([read("a", 0, 1)])
    assert find_contradiction([read("a", 0, 1), write("a", 2, 3)])


def test_a_write_applied_twice() -> None:
    applied_again = [write("a", 0, 1), write("b", 2, 3), read("b", 4, 5), read("a", 6, 7)]
    assert "'a'" in find_contradiction(applied_again)


def test_writers_who_overlap_agree_for_every_reader() -> None:
    both = [write("a", 0, 9), write("b", 0, 9)]
    assert not find_contradiction([*both, read("a", 10, 11), read("a", 12, 13)])
    assert find_contradiction([*both, read("a", 10, 11), read("b", 12, 13)])


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """A few operations at small integer instants, so that they touch and overlap in every way."""
    n_writes = draw(st.integers(1, 3))
    found: list[Operation] = []
    for number in range(n_writes):
        begin = draw(st.integers(0, 8))
        end = draw(st.one_of(st.just(math.inf), st.integers(begin + 1, 10)))
        found.append(write(f"v{number}", begin, end))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, 8))
        value = draw(st.sampled_from([None, *(f"v{number}" for number in range(n_writes))]))
        found.append(read(value, begin, draw(st.integers(begin + 1, 10))))
    # No two of them share an instant: which is first would be a matter of taste.
    return [
        Operation(one.kind, one.value, one.begin + index / 50, one.end + index / 50 + 0.01)
        for index, one in enumerate(found)
    ]


def has_order(operations: list[Operation]) -> bool:
    """By trying every order of the operations, and every choice of the unanswered writes that happened."""
    certain = [one for one in operations if one.end < math.inf]
    lost = [one for one in operations if one.end == math.inf]
    for n_lost in range(len(lost) + 1):
        for happened in itertools.combinations(lost, n_lost):
            if any(is_order(order) for order in itertools.permutations([*certain, *happened])):
                return True
    return False


def is_order(order: tuple[Operation, ...]) -> bool:
    value = ABSENT
    for index, one in enumerate(order):
        if any(later.end < one.begin for later in order[index + 1 :]):
            return False
        if one.kind == "write":
            value = one.value
        elif one.value != value:
            return False
    return True


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(histories())
def test_it_finds_exactly_the_histories_that_no_order_explains(history: list[Operation]) -> None:
    assert bool(find_contradiction(history)) == (not has_order(history))
