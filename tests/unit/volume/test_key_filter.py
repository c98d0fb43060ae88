"""What a filter denies was not added; and it denies nearly all that was not."""

from __future__ import annotations

import random

import pytest

from blockstore.volume.key_filter import BITS_PER_KEY, KeyFilter, hash_of

N_KEYS = 20_000

_rng = random.Random(1)
KINDS = {
    "decimal names": [b"%09d" % number for number in range(2 * N_KEYS)],
    "block numbers": [number.to_bytes(8, "big") for number in range(2 * N_KEYS)],
    "random": [_rng.randbytes(16) for _ in range(2 * N_KEYS)],
    "paths": [b"data/train/%d/image-%d.jpg" % (number % 100, number) for number in range(2 * N_KEYS)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_was_added_is_denied_and_little_else_is_not(kind: str) -> None:
    keys = KINDS[kind]
    added = KeyFilter.for_keys(N_KEYS)
    for key in keys[::2]:
        added.add(key)
    read = KeyFilter.from_bytes(added.to_bytes())
    assert len(added.to_bytes()) == N_KEYS * BITS_PER_KEY // 8
    for one in (added, read):
        assert all(one.may_have(hash_of(key)) for key in keys[::2])
        assert sum(one.may_have(hash_of(key)) for key in keys[1::2]) < 0.03 * N_KEYS


@pytest.mark.parametrize("n_keys", [0, 1, 5])
def test_a_filter_for_few_keys_holds_them(n_keys: int) -> None:
    few = KeyFilter.for_keys(n_keys)
    assert not few.may_have(hash_of(b"other"))
    for number in range(n_keys):
        few.add(b"%d" % number)
        assert few.may_have(hash_of(b"%d" % number))


def test_more_keys_than_it_was_made_for_are_not_denied() -> None:
    full = KeyFilter.for_keys(1)
    keys = [b"%d" % number for number in range(100)]
    for key in keys:
        full.add(key)
    assert all(full.may_have(hash_of(key)) for key in keys)
