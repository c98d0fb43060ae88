"""Lanes in memory beyond their common contract: what is copied, and who is reached how."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockstore.codec.messages import Ok, Ping
from blockstore.errors import AddressInUse
from blockstore.runtime.interfaces import Address, IncomingCall, Peer
from blockstore.runtime.memory_net import MemoryNetwork, RoutedNetwork
from blockstore.runtime.real_clock import RealClock
from tests.lane_harness import LaneHarness

HERE = Address("memory", 1)
PEER = Peer("local", "me", "admin")


async def test_bytes_are_passed_without_a_copy_and_buffers_are_not() -> None:
    views: list[memoryview] = []

    def handler(call: IncomingCall) -> None:
        views.append(call.payload.view)
        call.answer(Ok())

    clock = RealClock()
    async with MemoryNetwork(clock) as network:
        network.attach(HERE, handler, PEER)
        data, buffer = bytes(100), bytearray(100)
        for payload in ([data], [memoryview(data)[10:20]], [buffer], [memoryview(buffer)], [data, data]):
            await network.lane(HERE).call(Ping(), payload, clock.now() + 5)
        assert [view.obj is data for view in views] == [True, True, False, False, False]
        assert [len(view) for view in views] == [100, 10, 100, 100, 200]


async def test_an_answers_buffer_is_passed_and_comes_back_when_released() -> None:
    buffer, returned = bytearray(b"abc"), list[int]()

    def handler(call: IncomingCall) -> None:
        call.answer(Ok(), [buffer], on_sent=lambda: returned.append(1))

    clock = RealClock()
    async with MemoryNetwork(clock) as network:
        network.attach(HERE, handler, PEER)
        answer = await network.lane(HERE).call(Ping(), [], clock.now() + 5)
        assert answer.payload.view.obj is buffer
        assert not returned
        answer.payload.release()
        assert returned == [1]


async def test_an_address_is_served_once() -> None:
    async with MemoryNetwork(RealClock()) as network:
        listener = network.attach(HERE, lambda call: call.answer(Ok()), PEER)
        with pytest.raises(AddressInUse):
            network.attach(HERE, lambda call: call.answer(Ok()), PEER)
        listener.close()
        network.attach(HERE, lambda call: call.answer(Ok()), PEER)


async def test_callers_are_seen_as_who_they_are() -> None:
    seen: list[Peer] = []

    def handler(call: IncomingCall) -> None:
        seen.append(call.peer)
        call.answer(Ok())

    clock = RealClock()
    async with MemoryNetwork(clock) as network:
        network.attach(HERE, handler, PEER)
        node = Peer("node", "3", "node")
        await network.lane(HERE).call(Ping(), [], clock.now() + 5)
        await network.seen_as(node, "machine 3").lane(HERE).call(Ping(), [], clock.now() + 5)
        assert seen == [PEER, node]


async def test_a_daemon_reaches_itself_in_memory_and_others_over_sockets(tmp_path: Path) -> None:
    lanes = LaneHarness("tcp", tmp_path)
    seen: list[str] = []

    def handler(call: IncomingCall) -> None:
        seen.append(call.peer.kind)
        call.answer(Ok())

    async with (
        MemoryNetwork(lanes.clock) as memory,
        lanes.real_network() as real,
        lanes.serve(handler) as mine,
        lanes.serve(handler) as other,
    ):
        memory.attach(mine.address, handler, PEER)
        network = RoutedNetwork(memory, real)
        await network.lane(mine.address).call(Ping(), [], lanes.soon())
        await network.lane(other.address).call(Ping(), [], lanes.soon())
        assert seen == ["local", "client"]
