"""The same server and client on every kind of lane, for the tests of lanes."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Literal

from blockstore.codec.frame import FrameWire
from blockstore.codec.messages import Hello
from blockstore.errors import PermissionDenied
from blockstore.runtime.interfaces import Address, Handler, Listener, Message, Network, Peer
from blockstore.runtime.lane_server import serve_lanes
from blockstore.runtime.memory_net import MemoryNetwork
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.real_net import RealNetwork
from tests.certificates import Authority, common_name

Kind = Literal["tcp", "unix", "tls", "memory"]
KINDS: tuple[Kind, ...] = ("tcp", "unix", "tls", "memory")
REAL_KINDS: tuple[Kind, ...] = ("tcp", "unix", "tls")

HELLO = Hello("tester", "1.0")


class LaneHarness:
    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind: Kind = kind
        self.clock = RealClock()
        self.wire = FrameWire()
        self.directory = directory
        self.authority = Authority(directory) if kind == "tls" else None
        self._memory: MemoryNetwork | None = None

    def soon(self, seconds: float = 10.0) -> float:
        return self.clock.now() + seconds

    def new_address(self) -> Address:
        if self.kind == "memory":
            return Address("memory", 1)
        return Address("127.0.0.1", 0, str(self.directory / "lane") if self.kind == "unix" else "", "here")

    def authorize(self, certificate: bytes | None, hello: Message | None) -> Peer:
        if certificate is not None:
            name = common_name(certificate)
            if name == "stranger":
                raise PermissionDenied("client stranger is not listed")
            return Peer("client", name, "admin", hashlib.sha256(certificate).hexdigest())
        assert isinstance(hello, Hello)
        if hello.name == "stranger":
            raise PermissionDenied("client stranger is not listed")
        return Peer("client", hello.name, "admin", f"print of {hello.name}")

    @asynccontextmanager
    async def network(self, name: str = "tester", calls_max: int = 1_024) -> AsyncGenerator[Network]:
        if self.kind == "memory":
            async with MemoryNetwork(self.clock, calls_max=calls_max) as memory:
                self._memory = memory
                yield memory
        else:
            async with self.real_network(name) as network:
                yield network

    def real_network(self, name: str = "tester") -> RealNetwork:
        return RealNetwork(
            self.clock,
            self.wire,
            ssl_context=self.authority.client_context(name) if self.authority else None,
            host_id="here" if self.kind == "unix" else "",
            hello=None if self.authority else Hello(name, "1.0"),
        )

    def serve(
        self, handler: Handler, address: Address | None = None, calls_max: int = 1_024
    ) -> AbstractAsyncContextManager[Listener]:
        """Inside `network`. With the address of an earlier listener: there again."""
        if address is None:
            address = self.new_address()
        if self.kind == "memory":
            return self._serve_in_memory(handler, address)
        return serve_lanes(
            address,
            handler,
            self.authorize,
            clock=self.clock,
            wire=self.wire,
            ssl_context=self.authority.server_context() if self.authority else None,
            calls_max=calls_max,
        )

    @asynccontextmanager
    async def _serve_in_memory(self, handler: Handler, address: Address) -> AsyncGenerator[Listener]:
        assert self._memory is not None
        listener = self._memory.attach(address, handler, Peer("client", "tester", "admin", "print of tester"))
        try:
            yield listener
        finally:
            listener.close()
