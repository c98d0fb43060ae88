"""Who waits for blocks is called once, when they are there or cannot be; what gathers is brought together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio

from blockstore.chunk.read_shell import ChunkReader
from blockstore.codec.run_file import RunEntry, StoredVersion, encode_version
from blockstore.errors import BlockStoreError, Corrupt, Unavailable
from blockstore.ids import VolumeId
from blockstore.runtime.real_clock import RealClock
from blockstore.volume.block_shell import BlockShell
from blockstore.volume.sorted_run import BlockCache, BlockRange, BlocksMissing, SortedRun
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
        self.asked, self.answers = trio.Event(), trio.Event()
        self.rots = False
        self._whole = bytes(store.data_of(run, 0, run.n_blocks))

    async def read_many(
        self, wants: Sequence[tuple[object, object, int, int]], deadline: float
    ) -> list[bytes]:
        self.rounds.append(len(wants))
        self.asked.set()
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        found: list[bytes] = []
        for extents, _, start, end in wants:
            at = extents[0].offset + start  # type: ignore[index] # as extents_of says
            data = self._whole[at : at + end - start]
            found.append(bytes(len(data)) if self.rots else data)
        return found


class Bench:
    def __init__(self) -> None:
        store = RunStore(VOLUME)
        self.run = store.run_of(ENTRIES, BlockCache())
        self.nodes = Nodes(store, self.run)
        self.shell = BlockShell(cast(ChunkReader, self.nodes), RealClock())
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
        self.shell.when_there(BlocksMissing(ranges), on_there)


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
        assert bench.shell.n_fetched == 3
        assert [bench.run.missing_at(b"%d" % number) is None for number in range(6)] == [True] * 3 + [
            False
        ] * 3


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
        assert bench.run.missing_at(b"0") is not None
        bench.nodes.error, bench.nodes.rots = None, False
        bench.want("again", 0)
        await bench.all_told.wait()
        assert bench.told[2:] == [("again", None)]
        assert bench.run.missing_at(b"0") is None


async def test_an_owner_that_falls_gets_back_all_who_wait_each_once() -> None:
    async with running() as bench:
        bench.want("under way", 0)
        await bench.nodes.asked.wait()
        bench.want("waiting", 1)
    for on_there in bench.shell.give_up():
        on_there(Unavailable("it fell"))
    assert [name for name, _ in bench.told] == ["under way", "waiting"]
    assert bench.shell.give_up() == []
