"""Taking over a volume: the product's `Fencing` and `Replay`, and a driver in place of `takeover_shell.py`,
in the same order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from blockstore.chunk.chunk_shell import ChunkReader
from blockstore.codec.journal_record import JournalRecord
from blockstore.codec.messages import Fence
from blockstore.codec.run_file import Result, Root, RunInfo, decode_head, decode_root
from blockstore.config import ATTEMPT_SECONDS, OPERATION_SECONDS
from blockstore.errors import StaleEpoch
from blockstore.ids import ChunkId, VolumeId
from blockstore.runtime.interfaces import Answer
from blockstore.volume.block_shell import fetch_blocks
from blockstore.volume.record_shell import Deposed
from blockstore.volume.sorted_run import BlockCache
from blockstore.volume.state import VolumeState
from blockstore.volume.takeover import (
    Fencing,
    Replay,
    Sought,
    ended_journal,
    journal_ends,
    open_data,
    open_tail,
)
from blockstore.volume.takeover_shell import load_run
from blockstore.volume.versioned_map import VersionedMap
from tests.simulation.cores.owner_record import OwnedRecord, seal_members

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node
    from tests.simulation.cores.witness import Witness

RETRY_SECONDS = 0.05
GATHER_SECONDS = 0.2


class WitnessedState(VolumeState):
    """What is applied, live and in replay, is told to the witness."""

    def __init__(self, volume: VolumeId, witness: Witness, known_keys: int, cache_bytes: int) -> None:
        super().__init__(volume, VersionedMap(known_keys, BlockCache(cache_bytes)))
        self._witness = witness

    def apply(self, record: JournalRecord, sequence: int, chunk: ChunkId, value_offset: int) -> Result:
        result = super().apply(record, sequence, chunk, value_offset)
        self._witness.on_applied(self, record, sequence, result)
        return result


class Taken(NamedTuple):
    state: VolumeState
    root: Root | None
    runs: tuple[RunInfo, ...]
    to_seal: dict[ChunkId, int]
    """Ends that the new journal says in its first batch."""


class Takeover:
    def __init__(self, node: Node, owned: OwnedRecord, reader: ChunkReader) -> None:
        self._node, self._owned, self._reader = node, owned, reader
        self._record = owned.record

    async def take(self) -> Taken:
        node, record = self._node, self._record
        root = None if record.root is None else decode_root(record.root)
        tail = open_tail(record.journal, root)
        ends = await self._fence(tail, needed=True)
        journal = ended_journal(record.journal, ends)
        if tail:
            await self._owned.change(journal=lambda _: journal)
            node.world.on_moment("recorded", node)
        self._seal_all(tail, ends)
        settings = node.world.settings
        state = WitnessedState(
            record.volume, node.world.witness, settings.known_keys, settings.block_cache_bytes
        )
        runs = () if root is None else await self._load(state, root)
        await self._replay(Replay(state, journal, root))
        to_seal = journal_ends(state, journal)
        for one in journal:
            if one.chunk in to_seal and one.chunk not in tail:
                seal_members(node, record.epoch, one.chunk, one.disks, one.length)
        data_chunks = open_data(state, journal)
        ends = await self._fence(data_chunks, needed=False)
        self._seal_all(data_chunks, ends)
        to_seal |= ends
        node.say("volume {} epoch {}: taken over at sequence {}", record.volume, record.epoch, state.sequence)
        return Taken(state, root, runs, to_seal)

    async def _fence(self, sought: Mapping[ChunkId, Sought], *, needed: bool) -> dict[ChunkId, int]:
        node = self._node
        fencing = Fencing(sought, node.control.views.node_of_disk)
        while sought:
            await self._fence_round(fencing)
            if not needed or fencing.is_settled:
                break
            self._owned.current()
            await node.sleep(RETRY_SECONDS)
        return fencing.ends()

    async def _fence_round(self, fencing: Fencing) -> None:
        node, record = self._node, self._record
        flight = node.caller.flight()
        deadline = node.now() + ATTEMPT_SECONDS
        n_asked = 0
        for target, chunks in fencing.to_ask().items():
            address = node.table.address_of_node(target)
            if address is not None:
                flight.start(target, address, Fence(record.volume, record.epoch, chunks), (), deadline)
                n_asked += 1
        until = deadline
        while n_asked:
            outcome = await flight.next(until)
            if outcome is None:
                break
            n_asked -= 1
            target, answer = outcome
            if isinstance(answer, Answer):
                fencing.on_fenced(target, answer.message.states)
                node.world.on_moment("fenced", node.world.nodes[target])
            elif isinstance(answer, StaleEpoch):
                raise Deposed
            if fencing.all_told:
                until = min(until, node.now() + GATHER_SECONDS)
        flight.abandon()

    async def _load(self, state: VolumeState, root: Root) -> tuple[RunInfo, ...]:
        read, node = self._reader.read, self._node
        deadline = node.now() + OPERATION_SECONDS
        head = decode_head(
            state.volume, memoryview(await read(root.extents, root.placements, 0, root.size, deadline))
        )
        runs = [await load_run(self._reader, state, run, deadline) for run in reversed(head.runs)]
        state.load_head(head, runs)
        return head.runs

    async def _replay(self, replay: Replay) -> None:
        while (wanted := replay.wanted()) is not None:
            deadline = self._node.now() + OPERATION_SECONDS
            data = await self._reader.read(
                (wanted.extent,), wanted.placements, wanted.start, wanted.end, deadline
            )
            for missing in replay.take(memoryview(data)):
                if missing is not None:
                    deadline = self._node.now() + OPERATION_SECONDS
                    replay.held |= await fetch_blocks(self._reader, missing.ranges, deadline)

    def _seal_all(self, sought: Mapping[ChunkId, Sought], ends: Mapping[ChunkId, int]) -> None:
        for chunk, one in sought.items():
            if chunk in ends:
                seal_members(self._node, self._record.epoch, chunk, one.disks, ends[chunk])
