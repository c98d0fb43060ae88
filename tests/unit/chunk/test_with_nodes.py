"""Reading and writing through real fragment servers on simulated disks."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from blockstore.chunk.chunk_shell import ChunkReader, DataWriter, NodeTable
from blockstore.codec.fragment_file import DATA_START
from blockstore.codec.grant import grant_token
from blockstore.codec.messages import Extent, Fence, Fenced, Granted, NodeView, Placement, View
from blockstore.errors import ConnectionLost, DiskFailed
from blockstore.ids import ChunkId, DiskId, KiB, MiB, NodeId, VolumeId
from blockstore.node.disk_shell import DiskShell, format_disk
from blockstore.node.server_shell import FragmentServer
from blockstore.runtime.interfaces import Address, IncomingCall, Network, Peer
from blockstore.runtime.memory_net import MemoryNetwork
from blockstore.runtime.sim.disk import SimDisk
from blockstore.runtime.trio_caller import TrioCaller

VOLUME = VolumeId(7)
CLIENT = Peer("client", "writer", "write")
KEY = b"known to nodes alone"
NODE = Peer("node", "1", "node")


class TrioClock:
    def now(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return 1_700_000_000 + trio.current_time()

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)


class Machines:
    """One disk on each node, numbered alike; `owner` stands in for the volume's."""

    def __init__(self, network: MemoryNetwork, n_nodes: int, k: int, m: int) -> None:
        self.clock = TrioClock()
        self.network = network
        self.k, self.m = k, m
        self.disks: dict[int, SimDisk] = {}
        self.cut_off: set[int] = set()
        self.placements: dict[ChunkId, Placement] = {}
        self.finished: dict[ChunkId, int] = {}
        self.epoch = 1
        for number in range(1, n_nodes + 1):
            disk = SimDisk(random.Random(number), self.clock)
            format_disk(disk, DiskId(number), "test")
            self.disks[number] = disk
            shell = DiskShell(disk, DiskId(number), "test", lambda code, text: None)
            shell.recover()
            shell.start()
            shell.make_spares()
            self._serve(number, FragmentServer({DiskId(number): shell}, self.clock, lambda: KEY))
        self.nodes = NodeTable()
        views = tuple(
            NodeView(NodeId(n), "node", n, "", "", (), True, (DiskId(n),)) for n in range(1, n_nodes + 1)
        )
        self.nodes.update(View("test", 1, NodeId(1), views, None))
        caller = TrioCaller(self.network.seen_as(CLIENT, "client"), self.clock)
        self.writer = DataWriter(caller, self.nodes, self.grant, random.Random(1))
        self.reader = ChunkReader(caller, self.nodes, random.Random(2))

    def _serve(self, number: int, server: FragmentServer) -> None:
        def handler(call: IncomingCall) -> None:
            if number in self.cut_off:
                call.fail(ConnectionLost(f"node {number} is gone"))
            else:
                assert server.handle(call)

        self.network.attach(Address("node", number), handler, CLIENT)

    async def grant(
        self, finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
    ) -> Granted:
        await trio.sleep(0.001)
        self.finished |= dict(finished)
        good = [DiskId(n) for n in self.disks if n not in self.cut_off and DiskId(n) not in avoid]
        n = self.k + self.m
        chunk = ChunkId(VOLUME, self.epoch, len(self.placements) + 1)
        self.placements[chunk] = Placement(self.k, self.m, tuple((good + [DiskId(0)] * n)[:n]))
        token = grant_token(KEY, chunk, CLIENT.fingerprint)
        return Granted(chunk, self.epoch, self.placements[chunk], 4 * MiB, token)

    async def read(self, extents: tuple[Extent, ...], length: int) -> bytes:
        return await self.reader.read(extents, self.placements, 0, length, trio.current_time() + 20)

    def as_node(self) -> Network:
        return self.network.seen_as(NODE, "node-1")


@asynccontextmanager
async def machines(n_nodes: int, k: int, m: int) -> AsyncGenerator[Machines]:
    async with MemoryNetwork(TrioClock()) as network, trio.open_nursery() as nursery:
        cluster = Machines(network, n_nodes, k, m)
        for disk in cluster.disks.values():
            nursery.start_soon(disk.serve)
        yield cluster
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("k", "m"), [(1, 2), (4, 2)])
async def test_many_values_at_once_survive_the_loss_of_disks(
    k: int, m: int, autojump_clock: trio.testing.MockClock
) -> None:
    rng = random.Random(3)
    values = [rng.randbytes(rng.choice([1, 5_000, 200 * KiB, MiB + 3, 3 * MiB])) for _ in range(16)]
    written: dict[int, tuple[Extent, ...]] = {}
    async with machines(9, k, m) as cluster:

        async def write(index: int) -> None:
            written[index] = await cluster.writer.write(values[index], trio.current_time() + 60)

        for slot in range(8):
            name = f"fragments/{slot:08d}"
            cluster.disks[2].inject("write", DiskFailed(2, "Input/output error"), name, after=1)
        async with trio.open_nursery() as nursery:
            for index in range(len(values)):
                nursery.start_soon(write, index)
        without = [placement for placement in cluster.placements.values() if DiskId(2) not in placement.disks]
        assert without, "when the disk failed, its chunk ended and another was asked for without it"
        for lost in ({1, 3}, {4, 5}):
            cluster.cut_off = lost
            for index, value in enumerate(values):
                assert await cluster.read(written[index], len(value)) == value


@pytest.mark.parametrize(("k", "m"), [(1, 2), (4, 2)])
async def test_rot_on_a_disk_is_read_around(k: int, m: int, autojump_clock: trio.testing.MockClock) -> None:
    value = random.Random(4).randbytes(300 * KiB)
    async with machines(6, k, m) as cluster:
        extents = await cluster.writer.write(value, trio.current_time() + 60)
        for number in (1, 2):
            for name in cluster.disks[number].names("fragments"):
                cluster.disks[number].flip(f"fragments/{name}", DATA_START + 17)
        for _ in range(5):
            assert await cluster.read(extents, len(value)) == value


@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 1), (4, 2)])
async def test_what_no_member_has_whole_is_read_in_parts(
    k: int, m: int, autojump_clock: trio.testing.MockClock
) -> None:
    value = random.Random(4).randbytes(900 * KiB)
    async with machines(6, k, m) as cluster:
        extents = await cluster.writer.write(value, trio.current_time() + 60)
        for number, disk in cluster.disks.items():
            for name in disk.names("fragments"):
                disk.flip(f"fragments/{name}", DATA_START + (number - 1) * 32 * KiB + 17)
        assert await cluster.read(extents, len(value)) == value
        ranges = [(0, len(value)), (5, 9), (100_000, 600_000)]
        wants = [(extents, cluster.placements, start, end) for start, end in ranges]
        found = await cluster.reader.read_many(wants, trio.current_time() + 20)
        assert found == [value[start:end] for start, end in ranges]


async def test_a_fenced_writer_goes_on_in_the_new_epoch(autojump_clock: trio.testing.MockClock) -> None:
    async with machines(3, 1, 2) as cluster:
        (first,) = await cluster.writer.write(b"before" * 100, trio.current_time() + 60)
        deadline = trio.current_time() + 10
        for number in (1, 2):
            lane = cluster.as_node().lane(Address("node", number))
            answer = await lane.call(Fence(VOLUME, 2, (first.chunk,)), (), deadline)
            assert isinstance(answer.message, Fenced)
            assert [state.length for state in answer.message.states] == [600]
        cluster.epoch = 2
        (second,) = await cluster.writer.write(b"after" * 100, trio.current_time() + 60)
        assert (first.chunk.epoch, second.chunk.epoch) == (1, 2)
        assert await cluster.read((first, second), 1_100) == b"before" * 100 + b"after" * 100
