"""A whole node in this process, with one disk or several, its store, and a look inside."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from blockstore.api.cluster import ClusterSession
from blockstore.api.owner_session import Op
from blockstore.api.store import Opened, Store
from blockstore.codec.messages import Put, VolumeCall, Written
from blockstore.codec.run_file import decode_root
from blockstore.daemon import setup
from blockstore.daemon.node_directory import NodeDirectory
from blockstore.daemon.node_shell import Node, open_node
from blockstore.daemon.real_doors_shell import EmbeddedDoors
from blockstore.errors import NotOwner
from blockstore.ids import RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import Answer

VOLUME = VolumeId(1)
SECONDS_MAX = 20.0


@dataclass
class Running:
    node: Node
    doors: EmbeddedDoors
    store: Store

    async def call(self, op: Put, request: RequestId, value: bytes) -> Written:
        """As a client's session sends it: again, if nobody serves yet."""
        program, address = self.doors.program, self.doors.address
        deadline = program.now() + SECONDS_MAX
        record = self.node.control.views.volume(VOLUME)
        assert record is not None
        message = VolumeCall(VOLUME, record.epoch, request, request.number, op)
        while True:
            try:
                answer = await program.call(address, message, (value,), deadline)
            except NotOwner:
                await program.sleep(0.01)
                continue
            assert isinstance(answer.message, Written)
            return answer.message

    async def ask(self, op: Op) -> Answer:
        """Once, as a client's session sends it."""
        program, address = self.doors.program, self.doors.address
        record = self.node.control.views.volume(VOLUME)
        assert record is not None
        message = VolumeCall(VOLUME, record.epoch, RequestId(SessionId(78), 1), 1, op)
        return await program.call(address, message, (), program.now() + SECONDS_MAX)

    def n_fragments(self) -> int:
        return sum(disk.facts().n_fragments for disk in self.node.disks.values())

    def checkpointed(self) -> int:
        """The sequence that the last checkpoint covers; 0 before the first."""
        record = self.node.control.views.volume(VOLUME)
        return 0 if record is None or record.root is None else decode_root(record.root).sequence


@asynccontextmanager
async def running(directory: Path, n_disks: int = 1) -> AsyncGenerator[Running]:
    first = NodeDirectory(directory)
    if not first.exists():
        others = [directory.with_name(f"{directory.name}-{number}") for number in range(1, n_disks)]
        await trio.to_thread.run_sync(setup.init_embedded, [directory, *others])
    facts = first.read()
    doors = EmbeddedDoors(first, facts)

    @asynccontextmanager
    async def opened() -> AsyncGenerator[Opened]:
        session = ClusterSession(doors.program, (doors.address,), random.Random())
        yield Opened(session, trio.to_thread.run_sync, None)

    async with open_node(facts, doors) as node, Store(opened()) as store:
        yield Running(node, doors, store)


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(SECONDS_MAX):
        while not holds():  # noqa: ASYNC110 - many things bring it about
            await trio.sleep(0.01)
