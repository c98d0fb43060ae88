"""Carries out a takeover: messages to the members, reads of the checkpoint and the journal. What they decide,
and why each step may be cut short, is in `takeover.py`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from blockstore.chunk.read_shell import ChunkReader
from blockstore.codec.control_record import VolumeRecord
from blockstore.codec.messages import Fence, Fenced, SealFragment
from blockstore.codec.run_file import Root, RunInfo, decode_head, decode_index, decode_root
from blockstore.config import ATTEMPT_SECONDS, OPERATION_SECONDS
from blockstore.errors import BlockStoreError, StaleEpoch
from blockstore.ids import ChunkId, DiskId
from blockstore.runtime.interfaces import Answer
from blockstore.volume.block_shell import fetch_blocks
from blockstore.volume.record_shell import Deposed, RecordShell
from blockstore.volume.sorted_run import SortedRun
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
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

GATHER_SECONDS = 0.2
"""How long to wait for further members once one has answered a fence: their lengths can only shorten the
tail."""
RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Taken:
    state: VolumeState
    root: Root | None
    runs: tuple[RunInfo, ...]
    to_seal: dict[ChunkId, int]
    replayed_bytes: int
    replayed_records: int


async def take_over(world: World, record: VolumeRecord, control_record: RecordShell) -> Taken:
    started = world.clock.now()
    root = None if record.root is None else decode_root(record.root)
    tail = open_tail(record.journal, root)
    ends = await _fence(world, record, control_record, tail, needed=True)
    journal = ended_journal(record.journal, ends)
    if tail:
        await control_record.change(journal=lambda _: journal)
    _seal_all(world, record, tail, ends)
    state = VolumeState(record.volume)
    runs = () if root is None else await _load_checkpoint(world, state, root)
    replay = Replay(state, journal, root)
    await _replay(world, replay)
    to_seal = journal_ends(state, journal)
    for one in journal:
        if one.chunk in to_seal and one.chunk not in tail:  # whoever found its end may not have told
            seal_members(world, one.chunk, one.disks, record.epoch, one.length)
    data = open_data(state, journal)
    ends = await _fence(world, record, control_record, data, needed=False)
    _seal_all(world, record, data, ends)
    to_seal |= ends
    log.info(
        "volume_taken_over volume=%d epoch=%d sequence=%d replayed=%d seconds=%.3f",
        record.volume, record.epoch, state.sequence, replay.n_records, world.clock.now() - started,
    )  # fmt: skip
    return Taken(state, root, runs, to_seal, replay.n_bytes, replay.n_records)


# --- fencing


async def _fence(
    world: World,
    record: VolumeRecord,
    control_record: RecordShell,
    sought: Mapping[ChunkId, Sought],
    *,
    needed: bool,
) -> dict[ChunkId, int]:
    """Fence every member and return where each chunk ends. With `needed`, go on until that is known of all;
    otherwise a chunk none of whose members answers is left out."""
    fencing = Fencing(sought, world.control.views.node_of_disk)
    while sought:
        await _fence_round(world, record, fencing)
        if not needed or fencing.is_settled:
            break
        control_record.current()
        await trio.sleep(RETRY_SECONDS)
    return fencing.ends()


async def _fence_round(world: World, record: VolumeRecord, fencing: Fencing) -> None:
    """Ask every node that has not answered yet, once."""
    flight = world.caller.flight()
    deadline = world.clock.now() + ATTEMPT_SECONDS
    n_asked = 0
    for node, chunks in fencing.to_ask().items():
        address = world.nodes.address_of_node(node)
        if address is not None:
            flight.start(node, address, Fence(record.volume, record.epoch, chunks), (), deadline)
            n_asked += 1
    until = deadline
    while n_asked:
        outcome = await flight.next(until)
        if outcome is None:
            break
        n_asked -= 1
        node, answer = outcome
        if isinstance(answer, Answer):
            assert isinstance(answer.message, Fenced)
            fencing.on_fenced(node, answer.message.states)
            answer.payload.release()
        elif isinstance(answer, StaleEpoch):
            raise Deposed
        else:
            log.info("fence_unanswered volume=%d node=%d why=%s", record.volume, node, answer)
        if fencing.all_told:
            until = min(until, world.clock.now() + GATHER_SECONDS)
    flight.abandon()


def _seal_all(
    world: World, record: VolumeRecord, sought: Mapping[ChunkId, Sought], ends: Mapping[ChunkId, int]
) -> None:
    for chunk, one in sought.items():
        if chunk in ends:
            seal_members(world, chunk, one.disks, record.epoch, ends[chunk])


def seal_members(world: World, chunk: ChunkId, disks: tuple[DiskId, ...], epoch: int, length: int) -> None:
    """Tell the members; who does not hear it now is told when it is examined."""

    def noted(outcome: Answer | BlockStoreError) -> None:
        if isinstance(outcome, Answer):
            outcome.payload.release()
        else:
            log.debug("seal_unanswered chunk=%s why=%s", chunk, outcome)

    if length == 0:
        return
    for disk in disks:
        address = world.nodes.address_of_disk(disk) if disk else None
        if address is not None:
            message = SealFragment(disk, chunk, epoch, length)
            world.network.lane(address).post(message, (), world.clock.now() + ATTEMPT_SECONDS, noted)


# --- loading


async def _load_checkpoint(world: World, state: VolumeState, root: Root) -> tuple[RunInfo, ...]:
    deadline = world.clock.now() + OPERATION_SECONDS
    data = await world.reader.read(root.extents, root.placements, 0, root.size, deadline)
    head = decode_head(root.volume or state.volume, memoryview(data))
    runs = [
        await load_run(world.reader, state, run, world.clock.now() + OPERATION_SECONDS)
        for run in reversed(head.runs)
    ]
    state.load_head(head, runs)
    return head.runs


async def load_run(reader: ChunkReader, state: VolumeState, info: RunInfo, deadline: float) -> SortedRun:
    """The index only: a hundredth of the run."""
    data = await reader.read(info.extents, info.placements, info.index_at, info.size, deadline)
    index = decode_index(info.volume or state.volume, info, memoryview(data))
    return SortedRun(state.volume, info, index, state.map.cache)


async def _replay(world: World, replay: Replay) -> None:
    while (wanted := replay.wanted()) is not None:
        deadline = world.clock.now() + OPERATION_SECONDS
        data = await world.reader.read(
            (wanted.extent,), wanted.placements, wanted.start, wanted.end, deadline
        )
        for missing in replay.take(memoryview(data)):
            if missing is None:
                await trio.lowlevel.checkpoint()
            else:
                deadline = world.clock.now() + OPERATION_SECONDS
                replay.held |= await fetch_blocks(world.reader, missing.ranges, deadline)
