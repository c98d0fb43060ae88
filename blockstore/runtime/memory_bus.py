"""The bus inside one process: for the embedded store, and the endpoints of the simulated one (`sim/bus.py`).

A message arrives in a later tick than it was sent in, never from within `send`, as over the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

import trio

from blockstore.errors import AlreadyExists
from blockstore.ids import NodeId
from blockstore.runtime.bus_pack import MESSAGE_BYTES_MAX
from blockstore.runtime.interfaces import BusPeer, OnBusMessage

UNDELIVERED_MAX = 100_000
"""Messages under way in one process: seconds of a simulated cluster. Beyond it they are dropped, as by any
bus."""


class Carrier(Protocol):
    """What takes a message from one endpoint to another, or loses it."""

    def carry(self, sender: NodeId, to: NodeId, message: bytes) -> bool:
        """False if it is certain not to arrive."""
        ...

    def leave(self, bus: MemoryBus) -> None: ...


class MemoryBus:
    """One node's endpoint. `async with` it, or `close` it: afterwards nothing reaches the node."""

    def __init__(self, me: NodeId, on_message: OnBusMessage, carrier: Carrier) -> None:
        self.me, self.on_message = me, on_message
        self.dropped = 0
        self.refused = 0
        self._carrier = carrier
        self._peers: tuple[NodeId, ...] = ()

    def set_peers(self, peers: Mapping[NodeId, BusPeer]) -> None:
        """Addresses and keys mean nothing here; who is a peer does, as it does on the wire."""
        self._peers = tuple(node for node in peers if node != self.me)

    def send(self, to: NodeId, message: bytes) -> None:
        if (
            to not in self._peers
            or len(message) > MESSAGE_BYTES_MAX
            or not self._carrier.carry(self.me, to, message)
        ):
            self.dropped += 1

    def publish(self, message: bytes) -> None:
        for peer in self._peers:
            self.send(peer, message)

    def stream(self, event: bytes) -> None:
        """Nobody subscribes to a bus in memory."""

    def deliver(self, sender: NodeId, message: bytes) -> None:
        if sender in self._peers:
            self.on_message(sender, message)
        else:
            self.refused += 1

    def close(self) -> None:
        self._carrier.leave(self)

    async def __aenter__(self) -> MemoryBus:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Endpoints:
    """Which node is where: at most one endpoint for each."""

    def __init__(self) -> None:
        self._buses: dict[NodeId, MemoryBus] = {}

    def join(self, bus: MemoryBus) -> MemoryBus:
        if bus.me in self._buses:
            raise AlreadyExists(f"node {bus.me} on this bus")
        self._buses[bus.me] = bus
        return bus

    def leave(self, bus: MemoryBus) -> None:
        if self._buses.get(bus.me) is bus:
            del self._buses[bus.me]

    def __contains__(self, node: NodeId) -> bool:
        return node in self._buses

    def deliver(self, sender: NodeId, to: NodeId, message: bytes) -> None:
        bus = self._buses.get(to)
        if bus is not None:
            bus.deliver(sender, message)


class MemoryCarrier:
    """Carries everything, in order, at once. `await run()` in a task that lives as long as its endpoints."""

    def __init__(self) -> None:
        self._endpoints = Endpoints()
        self._under_way: deque[tuple[NodeId, NodeId, bytes]] = deque()
        self._runner: trio.lowlevel.Task | None = None  # parked, waiting for something to deliver

    def bus(self, me: NodeId, on_message: OnBusMessage) -> MemoryBus:
        return self._endpoints.join(MemoryBus(me, on_message, self))

    def leave(self, bus: MemoryBus) -> None:
        self._endpoints.leave(bus)

    def carry(self, sender: NodeId, to: NodeId, message: bytes) -> bool:
        if to not in self._endpoints or len(self._under_way) >= UNDELIVERED_MAX:
            return False
        self._under_way.append((sender, to, message))
        if self._runner is not None:
            trio.lowlevel.reschedule(self._runner)
            self._runner = None
        return True

    async def run(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._runner = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if not self._under_way:
                self._runner = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            for _ in range(len(self._under_way)):  # what these cause to be sent waits for the next turn
                self._endpoints.deliver(*self._under_way.popleft())
            await trio.lowlevel.checkpoint()
