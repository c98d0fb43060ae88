"""Taking over a volume: fence, seal, load, replay (DESIGN section 5, "Taking over a volume").

Control has committed `epoch + 1, owner = me` before this begins. Then, in this order, and why a crash
between any two steps is harmless:

1. Fence the write set of the journal's open chunk. One fenced member is enough: no append of an earlier
   epoch can be acknowledged any more, since acknowledging needs all members. Crash: a later owner fences
   again, with a higher epoch.
2. The chunk ends at the smallest length of the members that answered (`chunk/sealing.py`): whatever was
   acknowledged is on all of them. Control records the length by compare-and-set on the volume's record; if
   that fails, somebody else owns the volume by now, and this owner stops. Crash: the length is recorded or
   found again, the same or longer; what is between was never acknowledged to anyone, and may be kept.
3. Load the checkpoint that the root names, replay the journal from there. Reads only.
4. Fence the members of open data chunks and find their ends, so that references to what clients wrote
   before the takeover can still be committed, and nothing beyond. Said in the new journal's first batch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from blockstore.chunk.sealing import seal_length
from blockstore.codec.control_record import JournalChunk, VolumeRecord
from blockstore.codec.journal_record import HEADER_BYTES, decode_header, decode_records, value_offsets
from blockstore.codec.messages import Extent, Fence, Fenced, FragmentState, Placement, SealFragment
from blockstore.codec.run_file import Root, RunInfo, decode_blocks, decode_head, decode_root
from blockstore.config import ATTEMPT_SECONDS, OPERATION_SECONDS
from blockstore.errors import BlockStoreError, Corrupt, StaleEpoch
from blockstore.ids import ChunkId, DiskId, MiB, NodeId
from blockstore.runtime.interfaces import Answer
from blockstore.volume.chunk_table import OPEN
from blockstore.volume.record_shell import Deposed, RecordShell
from blockstore.volume.state import VolumeState
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

GATHER_SECONDS = 0.2
"""How long to wait for further members once one has answered a fence: their lengths can only shorten the
tail."""
RETRY_SECONDS = 0.05
REPLAY_WINDOW_BYTES = 4 * MiB
YIELD_RECORDS = 500
"""Replayed between two checkpoints of the loop: heartbeats must go on."""


@dataclass(frozen=True, slots=True)
class Taken:
    state: VolumeState
    root: Root | None
    runs: tuple[RunInfo, ...]
    to_seal: dict[ChunkId, int]


async def take_over(world: World, record: VolumeRecord, control_record: RecordShell) -> Taken:
    started = world.clock.now()
    tail = [chunk for chunk in record.journal if chunk.length == OPEN]
    root = None if record.root is None else decode_root(record.root)
    ends = await _ends(
        world,
        record,
        control_record,
        {one.chunk: _Open(one.disks, _checkpointed(root, one.chunk)) for one in tail},
        needed=True,
    )
    journal = tuple(
        JournalChunk(chunk.chunk, chunk.disks, ends[chunk.chunk]) if chunk.length == OPEN else chunk
        for chunk in record.journal
    )
    if tail:
        await control_record.change(journal=lambda _: journal)
    for one in tail:
        seal_members(world, one.chunk, one.disks, record.epoch, ends[one.chunk])
    state = VolumeState(record.volume)
    runs = () if root is None else await _load_checkpoint(world, state, root)
    n_replayed = await _replay(world, state, journal, root)
    open_data = {
        chunk: _Open(entry.placement.disks, entry.committed)
        for chunk, entry in state.chunks.open_chunks()
        if chunk not in ends
    }
    ends |= await _ends(world, record, control_record, open_data, needed=False)
    for chunk, sought in open_data.items():
        if chunk in ends:
            seal_members(world, chunk, sought.disks, record.epoch, ends[chunk])
    to_seal = {chunk: length for chunk, length in ends.items() if state.chunks.find(chunk) is not None}
    log.info(
        "volume_taken_over volume=%d epoch=%d sequence=%d replayed=%d seconds=%.3f",
        record.volume, record.epoch, state.sequence, n_replayed, world.clock.now() - started,
    )  # fmt: skip
    return Taken(state, root, runs, to_seal)


def _checkpointed(root: Root | None, chunk: ChunkId) -> int:
    """Up to where the checkpoint covers this journal chunk: so much of it was acknowledged for certain."""
    return root.journal_offset if root is not None and root.journal_chunk == chunk else 0


# --- fencing


@dataclass(frozen=True, slots=True)
class _Open:
    """A chunk whose end is sought: who may have it, and up to where something is known to refer to it."""

    disks: tuple[DiskId, ...]
    floor: int


async def _ends(
    world: World,
    record: VolumeRecord,
    control_record: RecordShell,
    chunks: dict[ChunkId, _Open],
    *,
    needed: bool,
) -> dict[ChunkId, int]:
    """Fence every member and return where each chunk ends. With `needed`, go on until one member of each
    answered; otherwise a chunk none of whose members answers is left out."""
    states: dict[ChunkId, dict[DiskId, FragmentState]] = {chunk: {} for chunk in chunks}
    answered_nodes: set[NodeId] = set()
    while chunks:
        await _fence_round(world, record, chunks, states, answered_nodes)
        ends = _settled(chunks, states)
        if not needed or len(ends) == len(chunks):
            return ends
        control_record.current()
        await trio.sleep(RETRY_SECONDS)
    return {}


def _settled(
    chunks: dict[ChunkId, _Open], states: dict[ChunkId, dict[DiskId, FragmentState]]
) -> dict[ChunkId, int]:
    """Where the chunks end of which at least one member told. One that has less than what is known to have
    been acknowledged has lost something (its disk was emptied, its file is unreadable) and decides
    nothing."""
    ends: dict[ChunkId, int] = {}
    for chunk, by_disk in states.items():
        telling = [state for state in by_disk.values() if state.length >= chunks[chunk].floor]
        if telling:
            ends[chunk] = seal_length(telling)
    return ends


async def _fence_round(
    world: World,
    record: VolumeRecord,
    chunks: dict[ChunkId, _Open],
    states: dict[ChunkId, dict[DiskId, FragmentState]],
    answered_nodes: set[NodeId],
) -> None:
    """Ask every node that holds a member and has not answered yet; fill in `states`."""
    asked: dict[NodeId, list[ChunkId]] = {}
    for chunk, one in chunks.items():
        for disk in one.disks:
            if disk:
                asked.setdefault(world.control.views.node_of_disk(disk), []).append(chunk)
    flight = world.caller.flight()
    deadline = world.clock.now() + ATTEMPT_SECONDS
    n_asked = 0
    for node, of_node in asked.items():
        address = None if node in answered_nodes else world.nodes.address_of_node(node)
        if address is not None:
            flight.start(node, address, Fence(record.volume, record.epoch, tuple(of_node)), (), deadline)
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
            _note_lengths(world, node, answer.message, asked[node], chunks, states)
            answered_nodes.add(node)
            answer.payload.release()
        elif isinstance(answer, StaleEpoch):
            raise Deposed
        else:
            log.info("fence_unanswered volume=%d node=%d why=%s", record.volume, node, answer)
        if all(states.values()):
            until = min(until, world.clock.now() + GATHER_SECONDS)
    flight.abandon()


def _note_lengths(
    world: World,
    node: NodeId,
    fenced: Fenced,
    asked: list[ChunkId],
    chunks: dict[ChunkId, _Open],
    states: dict[ChunkId, dict[DiskId, FragmentState]],
) -> None:
    for state in fenced.states:
        if state.chunk in chunks and state.disk in chunks[state.chunk].disks:
            states[state.chunk][state.disk] = state
    for chunk in asked:  # a member without the fragment has acknowledged nothing of it
        for disk in chunks[chunk].disks:
            if disk and world.control.views.node_of_disk(disk) == node:
                states[chunk].setdefault(disk, FragmentState(disk, chunk, 0, sealed=False))


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
    head = decode_head(state.volume, memoryview(data))
    for run in head.runs:
        data = await world.reader.read(
            run.extents, run.placements, 0, run.size, world.clock.now() + OPERATION_SECONDS
        )
        for entries in decode_blocks(state.volume, memoryview(data)):
            state.map.load(entries)
            await trio.lowlevel.checkpoint()
    state.map.recount()
    state.load_head(head)
    return head.runs


async def _replay(
    world: World, state: VolumeState, journal: tuple[JournalChunk, ...], root: Root | None
) -> int:
    n_records = 0
    position = 0 if root is None else root.journal_offset
    reached = root is None
    for chunk in journal:
        if not reached:
            reached = root is not None and chunk.chunk == root.journal_chunk
            if not reached:
                continue
        else:
            position = 0
        n_records += await _replay_chunk(world, state, chunk, position)
    if not reached and root is not None:
        raise Corrupt(f"Volume {state.volume}", f"its journal does not hold chunk {root.journal_chunk}")
    return n_records


async def _replay_chunk(world: World, state: VolumeState, chunk: JournalChunk, position: int) -> int:
    placements = {chunk.chunk: Placement(1, len(chunk.disks) - 1, chunk.disks)}
    # One byte more than there is: the whole, for which no writer gave a checksum, is then never read.
    extent = Extent(chunk.chunk, 0, chunk.length + 1, chunk.length + 1, 0)
    n_records = 0
    window, window_start = memoryview(b""), position
    while position < chunk.length:
        at = position - window_start
        if at >= window.nbytes or not _has_block(window[at:], chunk.chunk, position):
            length = min(REPLAY_WINDOW_BYTES, chunk.length - position)
            deadline = world.clock.now() + OPERATION_SECONDS
            data = await world.reader.read((extent,), placements, position, position + length, deadline)
            window, window_start, at = memoryview(data), position, 0
        header = decode_header(window[at:], chunk.chunk, position)
        if header.base_sequence != state.sequence + 1:
            raise Corrupt(
                f"The journal of volume {state.volume}",
                f"sequence {header.base_sequence} in {chunk.chunk} follows {state.sequence}",
            )
        block = window[at + HEADER_BYTES : at + HEADER_BYTES + header.n_block]
        records = decode_records(header, block, f"journal chunk {chunk.chunk} at {position}")
        for i, (record, value_offset) in enumerate(zip(records, value_offsets(header, records), strict=True)):
            state.apply(record, header.base_sequence + i, chunk.chunk, position + value_offset)
            n_records += 1
            if n_records % YIELD_RECORDS == 0:
                await trio.lowlevel.checkpoint()
        position += header.length
    return n_records


def _has_block(view: memoryview, chunk: ChunkId, position: int) -> bool:
    """Whether the window reaches over the header and the records of the batch that begins here."""
    if view.nbytes < HEADER_BYTES:
        return False
    return view.nbytes >= HEADER_BYTES + decode_header(view, chunk, position).n_block
