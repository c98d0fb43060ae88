"""Keys in order, against a sorted list."""

from __future__ import annotations

import random
from bisect import bisect_left, insort

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.volume.key_order import PART_KEYS, KeyOrder

KEYS = st.binary(max_size=2)


def all_of(order: KeyOrder) -> list[bytes]:
    return list(order.starting_at(b""))


@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=200), KEYS)
def test_it_holds_what_a_sorted_list_holds(steps: list[tuple[bool, bytes]], start: bytes) -> None:
    order, model = KeyOrder(), list[bytes]()
    for adds, key in steps:
        there = key in model
        if adds and not there:
            order.add(key)
            insort(model, key)
        elif not adds and there:
            order.remove(key)
            model.remove(key)
    assert all_of(order) == model
    assert list(order.starting_at(start)) == model[bisect_left(model, start) :]


@pytest.mark.parametrize("seed", range(5))
def test_it_splits_and_empties_its_parts(seed: int) -> None:
    numbers = random.Random(seed).sample(range(20 * PART_KEYS), 6 * PART_KEYS)
    keys = [b"%06d" % number for number in numbers]
    order = KeyOrder()
    for key in keys:
        order.add(key)
    assert all_of(order) == sorted(keys)
    parts = order.copy()
    assert all(0 < len(part) <= 2 * PART_KEYS for part in parts)
    assert [key for part in parts for key in part] == sorted(keys)
    for key in keys[::2]:
        order.remove(key)
    assert all_of(order) == sorted(keys[1::2])
    for key in keys[1::2]:
        order.remove(key)
    assert all_of(order) == []


def test_keys_that_come_in_order_are_taken_as_they_are_and_others_too() -> None:
    order = KeyOrder()
    order.extend([])
    order.extend([b"%06d" % number for number in range(0, 3_000, 2)])
    order.extend([b"%06d" % number for number in range(3_000, 4_000)])
    order.extend([b"%06d" % number for number in range(1, 3_000, 2)])  # a later run's, among the others
    assert all_of(order) == [b"%06d" % number for number in range(4_000)]


def test_a_copy_stays_as_it_was() -> None:
    order = KeyOrder()
    order.extend([b"a", b"b"])
    parts = order.copy()
    order.remove(b"a")
    order.add(b"c")
    assert parts == [[b"a", b"b"]]
