"""Packs: what goes in comes out, and nothing else is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockstore.config import BUS_PACK_BYTES_MAX
from blockstore.errors import ProtocolViolation
from blockstore.ids import NodeId
from blockstore.runtime.bus_pack import MESSAGE_BYTES_MAX, packs, unpack


@given(st.integers(0, 2**64 - 1), st.lists(st.binary(max_size=300), min_size=1))
def test_what_is_packed_is_unpacked(sender: int, messages: list[bytes]) -> None:
    [(pack, count)] = packs(NodeId(sender), messages)
    assert count == len(messages)
    assert unpack(pack) == (sender, messages)


def test_messages_are_spread_over_packs_in_order() -> None:
    messages = [bytes([n]) * (MESSAGE_BYTES_MAX // 3) for n in range(8)] + [b"x" * MESSAGE_BYTES_MAX, b"y"]
    made = list(packs(NodeId(1), messages))
    assert all(len(pack) <= BUS_PACK_BYTES_MAX for pack, _ in made)
    assert [message for pack, _ in made for message in unpack(pack)[1]] == messages
    assert [count for _, count in made] == [2, 2, 2, 2, 1, 1]


def test_nothing_makes_no_pack() -> None:
    assert list(packs(NodeId(1), [])) == []


@given(st.binary(max_size=64))
def test_any_bytes_are_a_pack_or_refused(content: bytes) -> None:
    try:
        sender, messages = unpack(content)
    except ProtocolViolation:
        return
    made = list(packs(sender, messages))
    assert [pack for pack, _ in made] == ([content] if messages else [])
    assert messages or len(content) == 9


def test_another_version_is_named() -> None:
    with pytest.raises(ProtocolViolation, match="version 2"):
        unpack(b"\x02" + bytes(12))
