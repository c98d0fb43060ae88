"""Every sample once in every epoch, whoever reads and from wherever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.errors import InvalidRequest
from blockstore.kinds.samples import Permutation, Share


def seen(share: Share, start: int = 0) -> list[int]:
    return [number for batch in share.batches(start) for number in batch]


@given(st.integers(0, 300), st.integers(-(2**63), 2**63 - 1), st.integers(0, 5))
def test_an_epoch_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(seen(Share(n, seed, epoch, 0, 1, 7))) == list(range(n))


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 9))
def test_processes_share_an_epoch_out_among_them(n: int, world_size: int, batch: int) -> None:
    shares = [Share(n, 1, 2, rank, world_size, batch) for rank in range(world_size)]
    counted = Counter(number for share in shares for number in seen(share))
    assert counted == Counter(range(n))
    for share in shares:
        sizes = [len(numbers) for numbers in share.batches(0)]
        assert len(share) == len(sizes)
        assert all(size == batch for size in sizes[:-1])
    sizes = [share.n_samples for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_the_order_is_that_of_the_epoch_however_it_is_read() -> None:
    whole = seen(Share(1_000, 3, 4, 0, 1, 1))
    assert whole == seen(Share(1_000, 3, 4, 0, 1, 64))
    assert whole[1::4] == seen(Share(1_000, 3, 4, 1, 4, 8))
    assert whole[5 * 64 :] == seen(Share(1_000, 3, 4, 0, 1, 64), start=5)


def test_epochs_and_seeds_differ_and_last_for_ever() -> None:
    orders = {tuple(seen(Share(50, seed, epoch, 0, 1, 9))) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400
    assert seen(Share(10, 1, 0, 0, 1, 10)) == FIRST_OF_TEN


def test_every_sample_comes_as_often_first_as_any_other() -> None:
    n, n_epochs = 16, 16_000
    first = Counter(Permutation(n, 5, epoch)[0] for epoch in range(n_epochs))
    follows = Counter(
        (Permutation(n, 5, epoch)[3], Permutation(n, 5, epoch)[4]) for epoch in range(n_epochs // 4)
    )
    expected = n_epochs / n
    chi_square = sum((first[k] - expected) ** 2 / expected for k in range(n))
    assert chi_square < 40  # with 15 degrees of freedom: less than one in a thousand has more
    assert len(follows) > 0.98 * n * (n - 1)


@pytest.mark.parametrize(("rank", "world_size", "batch"), [(1, 1, 1), (-1, 2, 1), (0, 0, 1), (0, 1, 0)])
def test_a_share_that_is_none_is_refused(rank: int, world_size: int, batch: int) -> None:
    with pytest.raises(InvalidRequest):
        Share(10, 0, 0, rank, world_size, batch)


def test_a_seed_too_large_and_a_start_before_the_first_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="64 bits"):
        seen(Share(10, 2**63, 0, 0, 1, 1))
    with pytest.raises(InvalidRequest, match="count from 0"):
        seen(Share(10, 0, 0, 0, 1, 1), start=-1)


FIRST_OF_TEN = [9, 5, 3, 2, 6, 7, 4, 1, 8, 0]
