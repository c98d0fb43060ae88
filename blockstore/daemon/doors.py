"""What a node needs of the world around it, so that the same node runs as a daemon, inside a program, and
in a simulation."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from blockstore.ids import NodeId
from blockstore.runtime.interfaces import (
    Address,
    Bus,
    BusPeer,
    Clock,
    Disk,
    Handler,
    Listener,
    Message,
    Network,
    OnBusMessage,
    Peer,
)


class NodeBus(Bus, Protocol):
    """A bus that is told whom it reaches."""

    def set_peers(self, peers: Mapping[NodeId, BusPeer]) -> None: ...


@dataclass(frozen=True, slots=True)
class Admission:
    """Who is let in: asked by the doors, answered by what control lists."""

    authorize: Callable[[bytes | None, Message | None], Peer]
    check_server: Callable[[Address, bytes], None]
    node_of_key: Callable[[bytes], NodeId | None]


class Doors(Protocol):
    """Opened in this order: disks, network, bus, and last, when the node knows what to answer, `listen`."""

    clock: Clock
    rng: random.Random
    address: Address
    host_id: str
    curve_public: bytes
    waits_for_state: bool
    """Whether a node should not be used before its copy of control is whole: one that is all alone."""

    def open_disk(self, directory: str) -> AbstractAsyncContextManager[Disk]: ...

    def open_network(self, admission: Admission) -> AbstractAsyncContextManager[Network]: ...

    def open_bus(
        self, on_message: OnBusMessage, admission: Admission
    ) -> AbstractAsyncContextManager[NodeBus]: ...

    def listen(self, handler: Handler, admission: Admission) -> AbstractAsyncContextManager[Listener]:
        """Serve others, and this node's own lanes to itself."""
        ...
