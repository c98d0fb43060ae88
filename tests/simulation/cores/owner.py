"""A volume's owner on a node: the product's cores, from the claim to the fall, and a driver in place of
their shells.

Every decision is a core's: `Fencing` and `Replay` (owner_takeover.py), `Checkpoints` and `packing.plan`
(owner_background.py), and here `Journal`, `Owner`, `ChunkPlaces`, `VolumeState`, `to_record`, and
`ReadShell`, which knows no event loop. What is left is to carry messages."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from blockstore.chunk.chunk_shell import ChunkReader
from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.control_record import VolumeRecord
from blockstore.codec.grant import grant_token
from blockstore.codec.journal_record import ChunkOpenedRecord, JournalRecord, PutRecord
from blockstore.codec.messages import (
    AppendFragment,
    Failed,
    Grant,
    Granted,
    ListKeys,
    Lookup,
    LookupMany,
    SnapshotList,
    SnapshotRecords,
    VolumeCall,
)
from blockstore.codec.run_file import Result
from blockstore.config import OPERATION_SECONDS
from blockstore.errors import BlockStoreError, Busy, NoSpace, NotOwner, Unavailable, from_wire
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId
from blockstore.placement.policy import Policy
from blockstore.runtime.interfaces import Answer
from blockstore.volume.block_shell import OnThere, fetch_blocks
from blockstore.volume.chunk_places import ChunkPlaces
from blockstore.volume.chunk_table import DATA, PACKED, RUN
from blockstore.volume.journal import Append, Committed, Journal, Phase
from blockstore.volume.journal_shell import NOT_THE_DISKS_FAULT, is_full
from blockstore.volume.listing import list_keys
from blockstore.volume.owner import Owner
from blockstore.volume.read_shell import ReadShell
from blockstore.volume.record_shell import Deposed
from blockstore.volume.requests import WRITES, to_record
from blockstore.volume.sorted_run import BlocksMissing, Held
from blockstore.volume.state import VolumeState
from blockstore.volume.value_cache import ValueCache
from blockstore.volume.world import World as OwnerWorld
from tests.simulation.cores.network import Incoming
from tests.simulation.cores.owner_background import Background
from tests.simulation.cores.owner_record import OwnedRecord, seal_members
from tests.simulation.cores.owner_takeover import Taken, Takeover
from tests.simulation.cores.settings import Settings
from tests.simulation.cores.tasks import Promise, Task

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node

T = TypeVar("T")

LATE_SWEEP_SECONDS = 0.05
WAITING_MAX = 2_000


class OwnerRun:
    """One run of an owner, under the epoch that it claimed."""

    journal: Journal  # this and what is set with it: once it has taken over
    state: VolumeState

    def __init__(self, node: Node, record: VolumeRecord) -> None:
        self.node, self.record = node, record
        self.settings: Settings = node.world.settings
        self.network = node.network
        self.is_serving = False
        self.is_full = False
        self.core: Owner | None = None
        self.on_ended: Promise[None] | None = None
        self.owned: OwnedRecord = OwnedRecord(node, record)
        self._session = SessionId(node.rng.getrandbits(62))
        self.rng: random.Random = random.Random(node.rng.getrandbits(64))
        self.policy = Policy.parse(record.policy)
        self.cache = ValueCache(self.settings.cache_bytes)
        self.reader = ChunkReader(node.caller, node.table, random.Random(node.rng.getrandbits(64)))
        self._waiting: list[tuple[Incoming, VolumeCall]] = []
        self._tasks: list[Task] = []
        self._pump_due = False
        self._is_switching = False
        self._is_over = False

    # --- its end

    def _begin(self, work: Callable[[], Any]) -> None:
        """A background task. Deposed or fallen, the whole owner ends."""

        async def guarded() -> None:
            try:
                await work()
            except Deposed:
                self.end("deposed")
            except BlockStoreError as error:
                self.end(f"fell: {type(error).__name__}: {error}")

        self._tasks = [task for task in self._tasks if not task.is_ended]
        self._tasks.append(self.node.begin(guarded()))

    def end(self, why: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        self.is_serving = False
        node = self.node
        node.say("volume {} epoch {}: its owner ends ({})", self.record.volume, self.record.epoch, why)
        current = node.control.views.volume(self.record.volume)
        owner, epoch = (0, 0) if current is None else (current.owner, current.epoch)
        error = NotOwner(self.record.volume, owner, epoch)
        waiting, self._waiting = self._waiting, []
        for call, _ in waiting:
            call.fail(error)
        for on_result in () if self.core is None else self.core.give_up():
            on_result(error)
        node.schedule.soon(self._end_tasks)

    def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            self.node.end(task)
        self.node.on_owner_ended(self)

    @property
    def is_over(self) -> bool:
        return self._is_over

    # --- taking over

    def start(self) -> None:
        self._begin(self._take_over)

    async def _take_over(self) -> None:
        self._work(await Takeover(self.node, self.owned, self.reader).take())

    # --- working

    def _work(self, taken: Taken) -> None:
        node, settings, state = self.node, self.settings, taken.state
        self.state = state
        self.journal = Journal(
            self._session, state.sequence + 1, taken.to_seal,
            batch_bytes_max=settings.batch_bytes_max, batches_in_flight=settings.batches_in_flight,
        )  # fmt: skip
        self._places = ChunkPlaces(self.record.volume, self.record.epoch, self.rng)
        self.core = Owner(
            state, self.journal, self._places, self.record.epoch, node.wall(), self.cache.keep,
            chunk_bytes=settings.chunk_bytes, idle_seconds=settings.idle_seconds,
        )  # fmt: skip
        self._reads = ReadShell(cast(OwnerWorld, node), state, self.cache)
        background = Background(self, self.core, taken)
        self._begin(background.tidy)
        self._begin(background.write_checkpoints)
        self._begin(background.merge)
        self._begin(background.pack)
        self._watch_members(node.now())
        self.wake()
        self._start_serving()

    def wake(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self.node.schedule.soon(self.node.run, self.node.life, self._pump, ())

    def _pump(self) -> None:
        self._pump_due = False
        if self._is_over:
            return
        now = self.node.now()
        while (append := self.journal.next_append(now)) is not None:
            self._send(append, now)
        if self.journal.phase is Phase.WAITING and not self._is_switching:
            self._is_switching = True
            self._begin(self._switch)

    def _send(self, append: Append, now: float) -> None:
        writer, node = append.writer, self.node
        for shard_index, disk in writer.members:
            spec = writer.spec(shard_index, append.offset)
            message = AppendFragment(disk, append.chunk, append.chunk.epoch, append.offset, append.crc, spec)
            address = node.table.address_of_disk(disk)
            if address is None:
                self._members_failed(writer, [(shard_index, disk)], Unavailable("on no known node"))
                return
            self.network.post(
                node, address, message, (append.header, append.body),
                now + 10 * self.settings.late_seconds, self._on_answer(writer, shard_index, disk),
            )  # fmt: skip

    def _on_answer(
        self, writer: ChunkWriter, shard_index: int, disk: DiskId
    ) -> Callable[[Answer | BlockStoreError], None]:
        def on_answer(outcome: Answer | BlockStoreError) -> None:
            if self._is_over:
                return
            if isinstance(outcome, BlockStoreError):
                self._members_failed(writer, [(shard_index, disk)], outcome)
                return
            for committed in self.journal.on_ack(writer, shard_index, outcome.message.length):
                self._apply(committed)
            self.wake()

        return on_answer

    def _apply(self, committed: Committed) -> None:
        assert self.core is not None
        self.core.apply(committed)

    def _members_failed(
        self, writer: ChunkWriter, failed: list[tuple[int, DiskId]], why: BlockStoreError
    ) -> None:
        if not failed or not self.journal.on_failure(writer, failed[0][0], why):
            return
        node = self.node
        if not isinstance(why, NOT_THE_DISKS_FAULT) and (
            len(failed) < len(writer.members) or len(failed) == 1
        ):
            for _, disk in failed:
                self._places.avoid(disk, node.now())
        node.say(
            "volume {}: journal chunk {} ends at {}, for disk {} failed ({})",
            self.record.volume, writer.chunk, writer.acknowledged, failed[0][1], type(why).__name__,
        )  # fmt: skip
        seal_members(node, self.record.epoch, writer.chunk, writer.placement.disks, writer.acknowledged)
        node.world.on_moment("switch", node)
        self.wake()

    def _watch_members(self, before: float) -> None:
        if self._is_over:
            return
        writer, now = self.journal.writer, self.node.now()
        self._look_for_space()
        is_working = writer is not None and self.journal.phase is not Phase.WAITING
        if writer is not None and is_working and now - before < 2 * LATE_SWEEP_SECONDS:
            self._members_failed(writer, writer.late(now, self.settings.late_seconds), Unavailable("late"))
        self.node.after(LATE_SWEEP_SECONDS, self._watch_members, now)

    async def _switch(self) -> None:
        node = self.node
        while self.journal.phase is Phase.WAITING:
            if self.journal.is_fenced:
                raise Deposed
            try:
                await self._open_chunk()
            except BlockStoreError:
                await node.sleep(LATE_SWEEP_SECONDS)
        self._is_switching = False
        self.wake()

    async def _open_chunk(self) -> None:
        node, control = self.node, self.node.control
        policy = self.policy.journal_policy()
        table = control.views.policy(policy.text)
        groups = () if table is None else table.groups
        self._look_for_space()
        is_vital = self.is_full
        avoid = node.suspect_disks() if is_vital else node.suspect_disks() | node.full_disks()
        placement = self._places.choose(
            policy, groups, node.live_disks(), node.own_disks(), node.now(), avoid
        )
        chunk = self._places.next_chunk()
        node.world.witness.on_chunk_named(chunk)
        await self.owned.change(
            journal=lambda journal: self.journal.named_with(journal, chunk, placement.disks)
        )
        self.journal.start_chunk(chunk, placement, self.settings.chunk_bytes)
        if is_vital and self.core is not None:
            self.core.refuse(self.journal.refuse_puts(), self._no_space())

    def _look_for_space(self) -> None:
        was_full = self.is_full
        self.is_full = is_full(cast(OwnerWorld, self.node), self.policy.journal_policy())
        if was_full != self.is_full:
            self.node.say(
                "volume {}: there is {} space", self.record.volume, "no" if self.is_full else "again"
            )

    def _no_space(self) -> NoSpace:
        return NoSpace(f"the disks that {self.record.policy} may use")

    def _start_serving(self) -> None:
        self.is_serving = True
        self.node.world.witness.on_serving(self)
        self.node.world.on_moment("serving", self.node)
        waiting, self._waiting = self._waiting, []
        for call, message in waiting:
            self.handle(call, message)

    # --- requests

    def handle(self, call: Incoming, message: VolumeCall) -> None:
        if self._is_over:
            call.fail(NotOwner(self.record.volume, 0, 0))
        elif not self.is_serving:
            if len(self._waiting) < WAITING_MAX:
                self._waiting.append((call, message))
            else:
                call.fail(Busy("too many calls wait"))
        else:
            try:
                self._dispatch(call, message)
            except BlockStoreError as error:
                call.fail(error)

    def _dispatch(self, call: Incoming, message: VolumeCall) -> None:
        op, core, node = message.op, self.core, self.node
        assert core is not None
        if isinstance(op, (*WRITES, Grant)):
            if core.find_answer(message.request, node.now(), lambda result: self._answer(call, result)):
                return
            if isinstance(op, Grant):
                self._look_for_space()
                if self.is_full:
                    raise self._no_space()
                record: JournalRecord = self._opening(
                    self.policy, DATA, message.request, message.settled, op.finished, op.avoid
                )
                value = None
            else:
                record, value = to_record(message, call.payload.view, node.wall())
                if self.is_full and isinstance(record, PutRecord):
                    raise self._no_space()
            core.expect(message.request, lambda result: self._answer(call, result))
            self._submit(message.request, record, value, {})
            return
        self._read(call, op, {})

    def _submit(
        self, request: RequestId, record: JournalRecord, value: memoryview | None, held: Held
    ) -> None:
        core = self.core
        assert core is not None
        try:
            with self.state.map.cache.holding(held):
                core.submit(request, record, value)
        except BlocksMissing as missing:

            def again(why: BlockStoreError | None) -> None:
                if why is None:
                    self._submit(request, record, value, held)
                else:
                    core.refuse((request,), why)

            self._when_there(missing, held, again)
        else:
            self.wake()

    def _when_there(self, missing: BlocksMissing, held: Held, on_there: OnThere) -> None:
        async def fetch() -> None:
            why: BlockStoreError | None = None
            try:
                held.update(await self._fetch(missing))
            except BlockStoreError as error:
                why = error
            on_there(why)

        self._begin(fetch)

    async def _fetch(self, missing: BlocksMissing) -> Held:
        self.node.world.witness.n_blocks_fetched += len(missing.ranges)
        return await fetch_blocks(self.reader, missing.ranges, self.node.now() + OPERATION_SECONDS)

    async def with_blocks(self, work: Callable[[], T]) -> T:
        held: Held = {}
        while True:
            try:
                with self.state.map.cache.holding(held):
                    return work()
            except BlocksMissing as missing:
                held |= await self._fetch(missing)

    def _read(self, call: Incoming, op: object, held: Held) -> None:
        node = self.node
        if self._is_over:
            raise NotOwner(self.record.volume, 0, 0)
        if not node.control.lease_valid(node.now()):
            raise Unavailable("control has not confirmed this owner lately")
        node.world.witness.on_read(self)
        try:
            with self.state.map.cache.holding(held):
                self._answer_read(call, op)
        except BlocksMissing as missing:

            def again(why: BlockStoreError | None) -> None:
                try:
                    if why is not None:
                        raise why
                    self._read(call, op, held)
                except BlockStoreError as error:
                    call.fail(error)

            self._when_there(missing, held, again)

    def _answer_read(self, call: Incoming, op: object) -> None:
        if isinstance(op, Lookup):
            self._reads.lookup(call, op)
        elif isinstance(op, LookupMany):
            self._reads.lookup_many(call, op)
        elif isinstance(op, ListKeys):
            call.answer(list_keys(op, self.state, self.node.now()))
        else:
            assert isinstance(op, SnapshotList)
            call.answer(SnapshotRecords(tuple(self.state.snapshots.values())))

    def _answer(self, call: Incoming, result: Result | BlockStoreError) -> None:
        if isinstance(result, Granted):
            key = self.node.control.views.cluster().grant_key
            token = grant_token(key, result.chunk, call.peer.fingerprint)
            call.answer(msgspec.structs.replace(result, token=token))
        elif isinstance(result, Failed):
            call.fail(from_wire(result.name, result.fields))
        elif isinstance(result, BlockStoreError):
            call.fail(result)
        else:
            call.answer(result)

    def _opening(
        self,
        policy: Policy,
        purpose: str,
        request: RequestId,
        settled: int,
        finished: tuple[tuple[ChunkId, int], ...],
        avoid: tuple[DiskId, ...],
    ) -> ChunkOpenedRecord:
        core, control, node = self.core, self.node.control, self.node
        assert core is not None
        core.finish_granted(request.session, finished)
        self.wake()
        table = control.views.policy(policy.text)
        groups = () if table is None else table.groups
        avoided = node.suspect_disks().union(avoid, () if purpose == RUN else node.full_disks())
        record = core.opening(
            policy, purpose, request, settled, groups, node.live_disks(), avoided, node.now()
        )
        node.world.witness.on_chunk_named(record.chunk)
        return record

    async def grant_run(
        self, finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
    ) -> Granted:
        return await self._grant_own(self.policy.journal_policy(), RUN, finished, avoid)

    async def grant_packed(
        self, finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
    ) -> Granted:
        return await self._grant_own(self.policy, PACKED, finished, avoid)

    async def _grant_own(
        self,
        policy: Policy,
        purpose: str,
        finished: tuple[tuple[ChunkId, int], ...],
        avoid: tuple[DiskId, ...],
    ) -> Granted:
        request = self.journal.own_request()
        record = self._opening(policy, purpose, request, request.number, finished, avoid)
        result = await self.applied(request, record)
        assert isinstance(result, Granted)
        return result

    async def applied(self, request: RequestId, record: JournalRecord) -> Result:
        """What a record of the owner's own came to, once it is durable and applied."""
        assert self.core is not None
        promise: Promise[Result | BlockStoreError] = Promise()
        self.core.expect(request, promise.keep)
        self._submit(request, record, None, {})
        result = await promise
        if isinstance(result, BlockStoreError):
            raise result
        return result
