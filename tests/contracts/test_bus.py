"""What every bus promises, real or not: who is heard, who is not, and that nothing comes from within
`send`."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
import trio

from blockstore.errors import AddressInUse, AlreadyExists
from blockstore.ids import NodeId
from blockstore.runtime.bus_pack import MESSAGE_BYTES_MAX
from blockstore.runtime.interfaces import BusPeer
from blockstore.runtime.memory_bus import MemoryBus, MemoryCarrier
from blockstore.runtime.real_bus import BusKeys, RealBus
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.sim.bus import SimCarrier

A, B, C = NodeId(1), NodeId(2), NodeId(3)
PATIENCE_SECONDS = 10.0
RESEND_SECONDS = 0.02


class Inbox:
    """What one node has heard, and a way to wait for more."""

    def __init__(self) -> None:
        self.messages: list[tuple[NodeId, bytes]] = []
        self._came = trio.Event()

    def __call__(self, sender: NodeId, message: bytes) -> None:
        self.messages.append((sender, message))
        self._came.set()
        self._came = trio.Event()

    async def came(self) -> None:
        await self._came.wait()

    async def until(self, holds: Callable[[], bool], again: Callable[[], None] = lambda: None) -> None:
        """Wait until `holds`, calling `again` now and then: a bus may lose anything."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not holds():
                again()
                with trio.move_on_after(RESEND_SECONDS):
                    await self.came()


AnyBus = RealBus | MemoryBus


def heard(inbox: Inbox, sender: NodeId, message: bytes) -> bool:
    return (sender, message) in inbox.messages


class Cluster:
    """Three nodes on one kind of bus, each with the others as peers. Each lives in a task of its own, so that
    one can end before those that began after it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        make: Callable[[NodeId, Inbox], AbstractAsyncContextManager[AnyBus]],
    ) -> None:
        self._nursery, self._make = nursery, make
        self._running: dict[NodeId, tuple[trio.Event, trio.Event]] = {}  # asked to end, and has ended
        self.buses: dict[NodeId, RealBus | MemoryBus] = {}
        self.inboxes: dict[NodeId, Inbox] = {}
        self.peers: dict[NodeId, BusPeer] = {}

    async def start(self, node: NodeId) -> None:
        inbox, end, ended = Inbox(), trio.Event(), trio.Event()

        async def live(task_status: trio.TaskStatus[AnyBus]) -> None:
            async with self._make(node, inbox) as bus:
                task_status.started(bus)
                await end.wait()
            ended.set()

        self.buses[node] = await self._nursery.start(live)
        self.inboxes[node], self._running[node] = inbox, (end, ended)

    async def stop(self, node: NodeId) -> None:
        end, ended = self._running.pop(node)
        end.set()
        await ended.wait()

    async def introduce(self, peers: dict[NodeId, BusPeer]) -> None:
        """Everyone to everyone; returns when each has heard each."""
        self.peers = peers
        for bus in self.buses.values():
            bus.set_peers(peers)
        for sender in peers:
            for receiver in peers:
                if sender != receiver:
                    await self.reach(sender, receiver)

    async def reach(self, sender: NodeId, receiver: NodeId, message: bytes = b"hello") -> None:
        inbox = self.inboxes[receiver]
        await inbox.until(
            partial(heard, inbox, sender, message),
            lambda: self.buses[sender].send(receiver, message),
        )


@asynccontextmanager
async def memory_cluster(simulated: bool) -> AsyncGenerator[Cluster]:
    carrier = SimCarrier(random.Random(7), RealClock()) if simulated else MemoryCarrier()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carrier.run)
        cluster = Cluster(nursery, carrier.bus)
        for node in (A, B, C):
            await cluster.start(node)
        await cluster.introduce({node: BusPeer("", 0) for node in (A, B, C)})
        yield cluster
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def real_cluster(curve: bool) -> AsyncGenerator[Cluster]:
    keys = {node: BusKeys.generate() if curve else None for node in (A, B, C)}
    ports: dict[NodeId, int] = {}

    def peer_of_key(key: bytes) -> NodeId | None:
        return next((node for node, pair in keys.items() if pair is not None and pair.public == key), None)

    def make(node: NodeId, inbox: Inbox) -> RealBus:
        return RealBus(node, inbox, keys[node], peer_of_key, RealClock(), port=ports.get(node, 0))

    async with trio.open_nursery() as nursery:
        cluster = Cluster(nursery, make)
        for node in (A, B, C):
            await cluster.start(node)
            bus = cluster.buses[node]
            assert isinstance(bus, RealBus)
            ports[node] = bus.port
        await cluster.introduce(
            {
                node: BusPeer("127.0.0.1", ports[node], pair.public if pair is not None else b"")
                for node, pair in keys.items()
            }
        )
        yield cluster
        nursery.cancel_scope.cancel()


KINDS: dict[str, Callable[[], AbstractAsyncContextManager[Cluster]]] = {
    "memory": lambda: memory_cluster(simulated=False),
    "simulated": lambda: memory_cluster(simulated=True),
    "plain": lambda: real_cluster(curve=False),
    "curve": lambda: real_cluster(curve=True),
}


@pytest.fixture(params=list(KINDS))
async def cluster(request: pytest.FixtureRequest) -> AsyncGenerator[Cluster]:
    async with KINDS[request.param]() as cluster:
        yield cluster


async def test_a_message_comes_with_its_sender(cluster: Cluster) -> None:
    await cluster.reach(A, B, b"\x00\xffvote")
    await cluster.reach(C, B, b"")
    assert {sender for sender, _ in cluster.inboxes[B].messages} == {A, C}


async def test_publish_reaches_every_other_node(cluster: Cluster) -> None:
    for node in (B, C):
        inbox = cluster.inboxes[node]
        await inbox.until(
            partial(heard, inbox, A, b"news"),
            lambda: cluster.buses[A].publish(b"news"),
        )
    assert (A, b"news") not in cluster.inboxes[A].messages


async def test_nothing_is_delivered_from_within_send(cluster: Cluster) -> None:
    before = {node: len(inbox.messages) for node, inbox in cluster.inboxes.items()}
    cluster.buses[A].send(B, b"x")
    cluster.buses[A].publish(b"y")
    assert {node: len(inbox.messages) for node, inbox in cluster.inboxes.items()} == before


async def test_a_message_to_nobody_is_dropped_and_counted(cluster: Cluster) -> None:
    bus = cluster.buses[A]
    dropped = bus.dropped
    bus.send(NodeId(9), b"x")
    bus.send(A, b"to myself")
    assert bus.dropped == dropped + 2


async def test_the_longest_message_arrives_and_a_longer_one_is_dropped(cluster: Cluster) -> None:
    await cluster.reach(A, B, bytes(MESSAGE_BYTES_MAX))
    bus = cluster.buses[A]
    dropped = bus.dropped
    bus.send(B, bytes(MESSAGE_BYTES_MAX + 1))
    assert bus.dropped == dropped + 1
    await cluster.reach(A, B, b"and on it goes")


async def test_a_node_taken_off_the_list_is_sent_nothing(cluster: Cluster) -> None:
    cluster.buses[A].set_peers({node: peer for node, peer in cluster.peers.items() if node != B})
    dropped = cluster.buses[A].dropped
    cluster.buses[A].send(B, b"x")
    assert cluster.buses[A].dropped == dropped + 1
    await cluster.reach(A, C, b"still here")
    cluster.buses[A].set_peers(cluster.peers)
    await cluster.reach(A, B, b"back again")


async def test_a_node_that_restarts_is_reached_again(cluster: Cluster) -> None:
    await cluster.stop(B)
    cluster.buses[A].send(B, b"into the void")
    await cluster.start(B)
    cluster.buses[B].set_peers(cluster.peers)
    await cluster.reach(A, B, b"welcome back")
    await cluster.reach(B, A, b"thank you")


async def test_a_node_has_one_place(cluster: Cluster) -> None:
    with pytest.raises((AddressInUse, AlreadyExists)):
        await cluster.start(A)
