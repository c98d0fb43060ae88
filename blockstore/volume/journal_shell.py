"""Carries the journal's appends to its members, and names its chunks in control. The decisions are in
`journal.py`.

A chunk's end costs one control commit and no more: its successor is created by the first append to it. When
a member fails, the gap that a writer sees is the time to notice (at once for a broken connection,
MEMBER_LATE_SECONDS for silence) plus that commit.

A full store (`is_full`: too few disks take a new chunk) still deletes. Puts are refused, those that wait
too, and the journal goes on in small chunks, which the nodes make from what they keep in reserve."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.control_record import VolumeRecord
from blockstore.codec.messages import Appended, AppendFragment
from blockstore.config import CHUNK_BYTES_MAX, MEMBER_LATE_SECONDS, VITAL_CHUNK_BYTES
from blockstore.errors import (
    BlockStoreError,
    Busy,
    FragmentFull,
    FragmentSealed,
    NoSpace,
    StaleEpoch,
    Unavailable,
)
from blockstore.ids import DiskId
from blockstore.placement.policy import Policy
from blockstore.runtime.interfaces import Answer
from blockstore.volume.chunk_choice import has_room
from blockstore.volume.chunk_places import ChunkPlaces
from blockstore.volume.journal import Append, Committed, Journal, Phase
from blockstore.volume.record_shell import Deposed, RecordShell
from blockstore.volume.takeover_shell import seal_members
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

LATE_SWEEP_SECONDS = 0.05
IDLE_SWEEP_SECONDS = 0.25
"""While nothing is under way: nobody can be late, and a node may own hundreds of volumes."""
OVERSLEPT_SECONDS = 0.4
assert LATE_SWEEP_SECONDS < IDLE_SWEEP_SECONDS < OVERSLEPT_SECONDS < MEMBER_LATE_SECONDS
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.05, 0.5
"""Between attempts to open a chunk in which something becomes durable: there are too few live members,
control has no leader, or every chunk ends at its first append, as when all disks are full. Each costs control
a commit and the members a fragment, so the pause doubles until a batch is committed."""
NOT_THE_DISKS_FAULT = (StaleEpoch, FragmentSealed, FragmentFull, Busy)
APPEND_SECONDS = 10 * MEMBER_LATE_SECONDS
"""An append's own deadline; lateness is judged by the sweep long before."""


class JournalShell:
    """`on_commit` is called with each batch that has become durable, in order; `on_refused` with the tokens
    of puts that waited and are not carried out, for there is no space."""

    def __init__(
        self,
        world: World,
        record: VolumeRecord,
        control_record: RecordShell,
        policy: Policy,
        places: ChunkPlaces,
        core: Journal,
        on_commit: Callable[[Committed], None],
        on_refused: Callable[[list[object]], None],
    ) -> None:
        self.core = core
        self.is_full = False
        self._world = world
        self._record = record
        self._control_record = control_record
        self._policy = policy
        self._places = places
        self._on_commit = on_commit
        self._on_refused = on_refused
        self._refused_space = float("-inf")  # when a member last had no space
        self._is_short_again = False  # nor had the one before it: no haste, each attempt costs a commit
        self._pump_task: trio.lowlevel.Task | None = None
        self._pump_due = False
        self._switch_due = trio.Event()
        self._pause = 0.0  # before the next attempt to open a chunk

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump)
            nursery.start_soon(self._switch)
            nursery.start_soon(self._watch_members)
            self._switch_due.set()

    # --- appends

    def wake(self) -> None:
        """Something was added to the core."""
        self._pump_due = True
        if self._pump_task is not None:
            task, self._pump_task = self._pump_task, None
            trio.lowlevel.reschedule(task)

    async def _pump(self) -> None:
        while True:
            if self._pump_due:
                await trio.lowlevel.checkpoint()  # what arrives in this tick shares the batch
                self._pump_due = False
                self._send_appends()
            else:
                self._pump_task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort_pump)

    def _abort_pump(self, _: object) -> trio.lowlevel.Abort:
        self._pump_task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _send_appends(self) -> None:
        now = self._world.clock.now()
        while (append := self.core.next_append(now)) is not None:
            self._send(append, now)
        if self.core.phase is Phase.WAITING:
            self._switch_due.set()

    def _send(self, append: Append, now: float) -> None:
        writer = append.writer
        for shard_index, disk in writer.members:
            spec = writer.spec(shard_index, append.offset)
            message = AppendFragment(disk, append.chunk, append.chunk.epoch, append.offset, append.crc, spec)
            address = self._world.nodes.address_of_disk(disk)
            if address is None:
                self._members_failed(
                    writer, [(shard_index, disk)], Unavailable(f"disk {disk} is on no known node")
                )
                return  # the chunk has ended by that; the batch goes into the next
            self._world.network.lane(address).post(
                message,
                (append.header, append.body),
                now + APPEND_SECONDS,
                self._on_answer(writer, shard_index, disk),
            )

    def _on_answer(
        self, writer: ChunkWriter, shard_index: int, disk: DiskId
    ) -> Callable[[Answer | BlockStoreError], None]:
        def on_answer(outcome: Answer | BlockStoreError) -> None:
            if isinstance(outcome, BlockStoreError):
                self._members_failed(writer, [(shard_index, disk)], outcome)
                return
            outcome.payload.release()
            assert isinstance(outcome.message, Appended)
            for committed in self.core.on_ack(writer, shard_index, outcome.message.length):
                self._pause = 0.0
                self._on_commit(committed)
            self.wake()

        return on_answer

    def _members_failed(
        self, writer: ChunkWriter, failed: list[tuple[int, DiskId]], why: BlockStoreError
    ) -> None:
        """End the chunk. Its successor avoids the failed disks, unless it is not their fault, or all of them
        at once are late: that is load, or our own link."""
        if not failed or not self.core.on_failure(writer, failed[0][0], why):
            return
        disks = [disk for _, disk in failed]
        log.info("journal_member_failed volume=%d disks=%s why=%s", self._record.volume, disks, why)
        if isinstance(why, NoSpace):
            now = self._world.clock.now()
            self._is_short_again = now - self._refused_space < 2 * RETRY_SECONDS_MAX
            self._refused_space = now
        if not isinstance(why, NOT_THE_DISKS_FAULT) and (len(disks) < len(writer.members) or len(disks) == 1):
            for disk in disks:
                self._places.avoid(disk, self._world.clock.now())
        seal_members(
            self._world, writer.chunk, writer.placement.disks, self._record.epoch, writer.acknowledged
        )
        self._switch_due.set()

    async def _watch_members(self) -> None:
        clock = self._world.clock
        while True:
            before = clock.now()
            await trio.sleep(IDLE_SWEEP_SECONDS if self.core.is_idle else LATE_SWEEP_SECONDS)
            now = clock.now()
            self._look_for_space()
            writer = self.core.writer
            if writer is None or now - before > OVERSLEPT_SECONDS:
                continue  # this process stood still: acknowledgements may be waiting to be read
            late = self.core.late_members(now)
            self._members_failed(writer, late, Unavailable("its acknowledgement is late"))

    # --- chunks

    async def _switch(self) -> None:
        """Whenever the journal waits for a chunk: name one in control, then go on in it."""
        said = ""
        while True:
            await self._switch_due.wait()
            self._switch_due = trio.Event()
            if self.core.phase is not Phase.WAITING:
                continue
            await trio.sleep(self._pause)
            self._pause = min(max(2 * self._pause, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
            if self.core.is_fenced:
                raise Deposed
            if self._is_short_again:
                self._is_short_again = False
                await trio.sleep(RETRY_SECONDS_MAX)
            try:
                await self._open_chunk()
            except BlockStoreError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("journal_chunk_not_opened volume=%d why=%s", self._record.volume, error)
                self._switch_due.set()
                continue
            said = ""
            self.wake()

    async def _open_chunk(self) -> None:
        world = self._world
        table = world.control.views.policy(self._policy.text)
        self._look_for_space()
        is_full = self.is_full
        placement = self._places.choose(
            self._policy,
            () if table is None else table.groups,
            world.live_disks(),
            world.own_disks(),
            world.clock.now(),
            world.suspect_disks() if is_full else world.suspect_disks() | world.full_disks(),
        )
        chunk = self._places.next_chunk()
        await self._control_record.change(
            journal=lambda journal: self.core.named_with(journal, chunk, placement.disks)
        )
        self.core.start_chunk(chunk, placement, VITAL_CHUNK_BYTES if is_full else CHUNK_BYTES_MAX)
        if is_full:
            self._on_refused(self.core.refuse_puts())

    def _look_for_space(self) -> None:
        was_full, self.is_full = self.is_full, is_full(self._world, self._policy)
        if self.is_full != was_full:
            log.info("volume_space volume=%d full=%s", self._record.volume, self.is_full)


def is_full(world: World, policy: Policy) -> bool:
    """Whether no chunk can be opened under the policy for want of space, and not of members."""
    full = world.full_disks()
    if not full:
        return False
    table = world.control.views.policy(policy.text)
    groups = () if table is None else table.groups
    live = world.live_disks()
    return has_room(policy, groups, live) and not has_room(policy, groups, live - full)
