"""Which runs are merged, and what is merged out of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockstore.codec.run_file import RunEntry, RunInfo
from blockstore.volume.compaction import RUNS_MAX, RUNS_PER_SIZE, SIZE_RATIO, SMALL_KEYS, Merge, n_to_merge

SMALL, MIDDLE, LARGE = SMALL_KEYS, SMALL_KEYS * SIZE_RATIO, SMALL_KEYS * SIZE_RATIO**2


def n_of(*sizes: int) -> int:
    """Of runs with so many keys, from the oldest to the newest."""
    return n_to_merge([RunInfo((), {}, 0, 0, n_keys, 0) for n_keys in sizes])


def test_few_runs_of_a_size_are_left_alone() -> None:
    assert n_of() == 0
    assert n_of(SMALL) == 0
    assert n_of(*[SMALL] * (RUNS_PER_SIZE - 1)) == 0
    assert n_of(LARGE, *[MIDDLE] * (RUNS_PER_SIZE - 1), *[SMALL] * (RUNS_PER_SIZE - 1)) == 0


def test_as_many_of_one_size_as_there_may_be_become_one_and_older_larger_ones_are_left() -> None:
    small = [1, SMALL, 9, SMALL // 2]
    assert n_of(*small) == 4
    assert n_of(LARGE, MIDDLE, *small) == 4
    assert n_of(LARGE, MIDDLE, *small, 5) == 5


def test_what_is_newer_is_merged_with_them() -> None:
    assert n_of(LARGE, MIDDLE, MIDDLE, MIDDLE, MIDDLE, SMALL) == 5
    assert n_of(LARGE, MIDDLE, SMALL, MIDDLE, MIDDLE, MIDDLE, SMALL) == 6
    assert n_of(SMALL, LARGE, SMALL, SMALL, SMALL) == 0, "the larger one stands between"


def test_merging_goes_on_to_the_next_size_when_that_is_full_too() -> None:
    assert n_of(LARGE, *[MIDDLE] * 4, *[SMALL] * 4) == 8


def test_so_many_runs_are_all_merged_whatever_their_sizes() -> None:
    sizes = [SMALL * SIZE_RATIO ** (n // 3) for n in range(RUNS_MAX)][::-1]
    assert n_of(*sizes[1:]) == 0
    assert n_of(*sizes) == RUNS_MAX


def test_a_map_that_grows_rewrites_each_key_a_few_times_and_has_few_runs() -> None:
    sizes: list[int] = []
    rewritten = 0
    for _ in range(1_000):
        sizes.append(SMALL)
        while n := n_of(*sizes):
            rewritten += sum(sizes[-n:])
            sizes[-n:] = [sum(sizes[-n:])]
        assert len(sizes) < RUNS_MAX
    assert rewritten / sum(sizes) < 6


# --- merging


def merged(sources: list[list[RunEntry]], n_at_once: list[int], *, with_oldest: bool) -> list[RunEntry]:
    """Each source says so many entries at once; sources are from the newest to the oldest."""
    merge = Merge(len(sources), with_oldest=with_oldest)
    left = [list(source) for source in sources]
    entries: list[RunEntry] = []
    while not merge.is_done:
        while (source := merge.needs()) is not None:
            batch, left[source] = left[source][: n_at_once[source]], left[source][n_at_once[source] :]
            if batch:
                merge.push(source, batch)
            else:
                merge.end(source)
        entries += merge.take()
    return entries


A: RunEntry = (b"a", b"newer", ())
A_OLD: RunEntry = (b"a", b"older", (b"history",))
B: RunEntry = (b"b", b"b", ())
GONE_A: RunEntry = (b"a", None, ())


def test_the_newest_source_says_all_of_a_key() -> None:
    assert merged([[A], [A_OLD, B]], [1, 1], with_oldest=True) == [A, B]
    assert merged([[A_OLD, B], [A]], [2, 1], with_oldest=True) == [A_OLD, B]


def test_a_key_that_is_gone_is_said_to_be_while_something_older_may_say_otherwise() -> None:
    assert merged([[GONE_A], [A_OLD, B]], [1, 1], with_oldest=False) == [GONE_A, B]
    assert merged([[GONE_A], [A_OLD, B]], [1, 1], with_oldest=True) == [B]
    assert merged([[GONE_A], [A_OLD]], [1, 1], with_oldest=True) == []


def test_sources_of_unequal_length_are_merged_in_order() -> None:
    long: list[RunEntry] = [(b"%03d" % number, b"long", ()) for number in range(100)]
    short: list[RunEntry] = [(b"%03d" % number, b"short", ()) for number in (0, 55, 200)]
    expected = [(key, b"short" if key in (b"000", b"055") else b"long", ()) for key, _, _ in long] + short[
        -1:
    ]
    for at_once in ([1, 7], [3, 1], [100, 100]):
        assert merged([short, long, []], [*at_once, 1], with_oldest=False) == expected


SOURCE = st.dictionaries(st.binary(max_size=2), st.none() | st.binary(max_size=1), max_size=12)


@given(st.lists(SOURCE, min_size=1, max_size=4), st.data())
def test_a_merge_is_what_dictionaries_laid_over_each_other_are(
    sources: list[dict[bytes, bytes | None]], data: st.DataObject
) -> None:
    n_at_once = data.draw(st.lists(st.integers(1, 5), min_size=len(sources), max_size=len(sources)))
    with_oldest = data.draw(st.booleans())
    model: dict[bytes, bytes | None] = {}
    for source in reversed(sources):
        model |= source
    entries: list[list[RunEntry]] = [
        [(key, newest, ()) for key, newest in sorted(source.items())] for source in sources
    ]
    expected = [
        (key, newest, ()) for key, newest in sorted(model.items()) if newest is not None or not with_oldest
    ]
    assert merged(entries, n_at_once, with_oldest=with_oldest) == expected
