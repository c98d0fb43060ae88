"""Who waits for blocks is called once, when they are there or cannot be; what gathers is brought together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from blockstore.codec.run_file import RunEntry, StoredVersion, encode_version
from blockstore.errors import BlockStoreError, Corrupt, Unavailable
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.runtime.real_clock import RealClock
from blockstore.volume.block_shell import BlockShell
from blockstore.volume.sorted_run import BlockCache, BlockRange, BlocksMissing, Held, SortedRun
from blockstore.volume.world import OnRead, World
from tests import map_runs
from tests.map_runs import RunStore

VOLUME = VolumeId(1)
ENTRIES: list[RunEntry] = [
    (b"%d" % number, encode_version(StoredVersion(number + 1, b"m")), ()) for number in range(6)
]


class Nodes:
    """In place of a ChunkReader: answers when it is told to."""

    def __init__(self, store: RunStore, run: SortedRun) -> None:
        self.rounds: list[int] = []
        self.error: BlockStoreError | None = None
        self.hurts: object = None  # only whoever asks for these extents; None: everybody
        self.asked, self.answers = trio.Event(), trio.Event()
        self.rots = False
        self._whole = bytes(store.data_of(run, 0, run.n_blocks))

    async def read_many(
        self, wants: Sequence[tuple[object, object, int, int]], deadline: float
    ) -> list[bytes]:
        self.rounds.append(len(wants))
        self.asked.set()
        await self.answers.wait()
        if self.error is not None and (
            self.hurts is None or self.hurts in [extents for extents, *_ in wants]
        ):
            raise self.error
        found: list[bytes] = []
        for extents, _, start, end in wants:
            at = extents[0].offset + start  # type: ignore[index] # as extents_of says
            data = self._whole[at : at + end - start]
            found.append(bytes(len(data)) if self.rots else data)
        return found


class OwnDisk:
    """In place of a LocalReader: this node's disk has the chunk."""

    def __init__(self, whole: bytes) -> None:
        self.n_read = 0
        self.is_damaged = False
        self._whole = whole

    def read(self, disk: DiskId, chunk: ChunkId, offset: int, length: int, on_done: OnRead) -> None:
        assert disk == 1
        self.n_read += 1
        on_done(Corrupt("a fragment", "rot") if self.is_damaged else self._whole[offset : offset + length])

    def read_now(self, disk: DiskId, chunk: ChunkId, offset: int, length: int) -> memoryview | None:
        self.n_read += 1
        return None if self.is_damaged else memoryview(self._whole)[offset : offset + length]


class Bench:
    def __init__(self, own_disks: frozenset[DiskId] = frozenset()) -> None:
        store = RunStore(VOLUME)
        self.run = store.run_of(ENTRIES, BlockCache(0))
        self.nodes = Nodes(store, self.run)
        self.disk = OwnDisk(bytes(store.data_of(self.run, 0, self.run.n_blocks)))
        world = SimpleNamespace(
            reader=self.nodes, clock=RealClock(), local=self.disk, own_disks=lambda: own_disks
        )
        self.shell = BlockShell(cast(World, world))
        self.held: dict[str, Held] = {}
        self.told: list[tuple[str, BlockStoreError | None]] = []
        self.all_told = trio.Event()
        self._n_expected = 0

    def want(self, name: str, *blocks: int) -> None:
        def on_there(why: BlockStoreError | None) -> None:
            self.told.append((name, why))
            if len(self.told) == self._n_expected:
                self.all_told.set()

        self._n_expected += 1
        self.all_told = trio.Event()
        ranges = tuple(BlockRange(self.run, block, block + 1) for block in blocks)
        self.held[name] = {}
        if self.shell.bring(BlocksMissing(ranges), self.held[name], on_there):
            on_there(None)

    def place_of(self, block: int) -> object:
        """The extents of a block, as a reader is asked for them."""
        return self.run.extents_of(block, block + 1)[0]

    def has(self, name: str) -> list[int]:
        """Which blocks it was brought."""
        return sorted(block for _, block in self.held[name])


@asynccontextmanager
async def running() -> AsyncGenerator[Bench]:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.shell.run)
        with trio.fail_after(10):
            yield bench
        nursery.cancel_scope.cancel()


async def test_what_gathers_while_one_round_is_under_way_is_one_round() -> None:
    async with running() as bench:
        bench.want("first", 0)
        await bench.nodes.asked.wait()
        bench.want("second", 1, 2)
        bench.want("third", 2)
        assert bench.told == [], "nobody is called at once"
        bench.nodes.answers.set()
        await bench.all_told.wait()
        assert bench.told == [("first", None), ("second", None), ("third", None)]
        assert bench.nodes.rounds == [1, 2], "a block that two want is asked for once"
        assert [bench.has(name) for name in ("first", "second", "third")] == [[0], [1, 2], [2]]
        assert bench.shell.n_fetched == 4


@pytest.mark.parametrize("rots", [False, True])
async def test_a_round_that_fails_tells_all_who_waited_for_it_and_the_next_goes_on(rots: bool) -> None:
    async with running() as bench:
        bench.nodes.error, bench.nodes.rots = None if rots else Unavailable("nobody answers"), rots
        bench.nodes.answers.set()
        bench.want("first", 0)
        bench.want("second", 1)
        await bench.all_told.wait()
        expected = Corrupt if rots else Unavailable
        assert [(name, type(why)) for name, why in bench.told] == [("first", expected), ("second", expected)]
        assert bench.has("first") == []
        bench.nodes.error, bench.nodes.rots = None, False
        bench.want("again", 0)
        await bench.all_told.wait()
        assert bench.told[2:] == [("again", None)]
        assert bench.has("again") == [0]


async def test_what_a_disk_of_this_node_has_is_there_at_once_unless_it_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(map_runs, "EXTENT_BYTES", 1_000_000)
    bench = Bench(frozenset({DiskId(1)}))
    bench.want("near", 1, 3)
    assert (bench.told, bench.has("near"), bench.disk.n_read) == ([("near", None)], [1, 3], 2)
    bench.disk.is_damaged = True
    bench.nodes.answers.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.shell.run)
        with trio.fail_after(10):
            bench.want("damaged", 2)
            await bench.all_told.wait()
        nursery.cancel_scope.cancel()
    assert (bench.told[1:], bench.has("damaged"), bench.nodes.rounds) == ([("damaged", None)], [2], [1])


def test_a_block_of_this_nodes_disk_is_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_runs, "EXTENT_BYTES", 1_000_000)
    bench = Bench(frozenset({DiskId(1)}))
    data = bench.shell.read_now(bench.run, 1)
    assert data is not None
    assert list(bench.run.bodies(1, 2, data))
    assert Bench().shell.read_now(bench.run, 1) is None, "not on a disk of this node"
    bench.disk.is_damaged = True
    assert bench.shell.read_now(bench.run, 1) is None


async def test_what_one_cannot_have_is_missed_by_nobody_else() -> None:
    async with running() as bench:
        bench.want("first", 0)
        await bench.nodes.asked.wait()
        bench.nodes.error, bench.nodes.hurts = Unavailable("nobody has it"), bench.place_of(3)
        for name, block in (("sound", 1), ("hurt", 3), ("last", 2)):
            bench.want(name, block)
        bench.nodes.answers.set()
        await bench.all_told.wait()
        assert [(name, why is None) for name, why in bench.told] == [
            ("first", True), ("sound", True), ("hurt", False), ("last", True)
        ]  # fmt: skip
        assert [bench.has(name) for name in ("sound", "hurt", "last")] == [[1], [], [2]]
        assert bench.nodes.rounds == [1, 3, 1, 1, 1]


async def test_an_owner_that_falls_gets_back_all_who_wait_each_once() -> None:
    async with running() as bench:
        bench.want("under way", 0)
        await bench.nodes.asked.wait()
        bench.want("waiting", 1)
    for on_there in bench.shell.give_up():
        on_there(Unavailable("it fell"))
    assert [name for name, _ in bench.told] == ["under way", "waiting"]
    assert bench.shell.give_up() == []
