"""A volume's owner on a node: the product's cores, from the claim to the fall, and a driver in place of
their shells.

Every decision is a core's: `Fencing` and `Replay` (takeover), `Journal`, `Owner`, `Checkpoints`,
`ChunkPlaces`, `VolumeState`, `to_record`, `ReadShell` (which knows no event loop). What is left here is to
carry messages."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from blockstore.chunk.chunk_shell import ChunkReader, DataWriter
from blockstore.chunk.writer import ChunkWriter
from blockstore.codec.control_record import VolumeRecord, encode_record
from blockstore.codec.grant import grant_token
from blockstore.codec.journal_record import ChunkOpenedRecord, JournalRecord
from blockstore.codec.messages import (
    AppendFragment,
    Compare,
    DeleteFragment,
    Failed,
    Fence,
    Grant,
    Granted,
    KeyPage,
    ListKeys,
    Lookup,
    LookupMany,
    SealFragment,
    SnapshotList,
    SnapshotRecords,
    VolumeCall,
)
from blockstore.codec.run_file import (
    Result,
    Root,
    RunInfo,
    decode_blocks,
    decode_head,
    decode_root,
    encode_root,
)
from blockstore.config import ATTEMPT_SECONDS, OPERATION_SECONDS
from blockstore.control.views import volume_key
from blockstore.errors import (
    BlockStoreError,
    Busy,
    NotFound,
    NotOwner,
    StaleEpoch,
    TransactionConflict,
    Unavailable,
    from_wire,
)
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId, VolumeId
from blockstore.placement.policy import Policy
from blockstore.runtime.interfaces import Answer
from blockstore.volume.checkpoint import Checkpoints, Draft, Written, journal_from
from blockstore.volume.chunk_places import ChunkPlaces
from blockstore.volume.chunk_table import DATA, RUN
from blockstore.volume.garbage import Garbage
from blockstore.volume.journal import Append, Committed, Journal, Phase
from blockstore.volume.journal_shell import NOT_THE_DISKS_FAULT
from blockstore.volume.owner import Owner
from blockstore.volume.read_shell import ReadShell
from blockstore.volume.record_shell import Deposed, JournalList
from blockstore.volume.requests import WRITES, check_read, to_record
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
from blockstore.volume.value_cache import ValueCache
from blockstore.volume.world import World as OwnerWorld
from tests.simulation.cores.network import Incoming
from tests.simulation.cores.tasks import Promise, Task

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node
    from tests.simulation.cores.witness import Witness

RETRY_SECONDS = 0.05
GATHER_SECONDS = 0.2
LATE_SWEEP_SECONDS = 0.05
WAITING_MAX = 2_000


class WitnessedState(VolumeState):
    """What is applied, live and in replay, is told to the witness."""

    def __init__(self, volume: VolumeId, witness: Witness) -> None:
        super().__init__(volume)
        self._witness = witness

    def apply(self, record: JournalRecord, sequence: int, chunk: ChunkId, value_offset: int) -> Result:
        result = super().apply(record, sequence, chunk, value_offset)
        self._witness.on_applied(self, record, sequence, result)
        return result


class OwnerRun:
    """One run of an owner, under the epoch that it claimed."""

    def __init__(self, node: Node, record: VolumeRecord) -> None:
        self.node, self.record = node, record
        self.settings = node.world.settings
        self.network = node.network
        self.is_serving = False
        self.is_taking_over = True
        self.core: Owner | None = None
        self.on_ended: Promise[None] | None = None
        self._session = SessionId(node.rng.getrandbits(62))
        self._rng = random.Random(node.rng.getrandbits(64))
        self._policy = Policy.parse(record.policy)
        self._cache = ValueCache(self.settings.cache_bytes)
        self._reader = ChunkReader(node.caller, node.table, random.Random(node.rng.getrandbits(64)))
        self._waiting: list[tuple[Incoming, VolumeCall]] = []
        self._tasks: list[Task] = []
        self._n_requests = 0
        self._changing: list[Promise[None]] | None = None
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
        node, record = self.node, self.record
        root = None if record.root is None else decode_root(record.root)
        tail = open_tail(record.journal, root)
        ends = await self._fence(tail, needed=True)
        journal = ended_journal(record.journal, ends)
        if tail:
            await self._change(journal=lambda _: journal)
            node.world.on_moment("recorded", node)
        self._seal_all(tail, ends)
        state = WitnessedState(record.volume, node.world.witness)
        runs = () if root is None else await self._load(state, root)
        replay = Replay(state, journal, root)
        while (wanted := replay.wanted()) is not None:
            deadline = node.now() + OPERATION_SECONDS
            data = await self._reader.read(
                (wanted.extent,), wanted.placements, wanted.start, wanted.end, deadline
            )
            for _ in replay.take(memoryview(data)):
                pass
        to_seal = journal_ends(state, journal)
        for one in journal:
            if one.chunk in to_seal and one.chunk not in tail:
                self._seal_members(one.chunk, one.disks, one.length)
        data_chunks = open_data(state, journal)
        ends = await self._fence(data_chunks, needed=False)
        self._seal_all(data_chunks, ends)
        to_seal |= ends
        node.say("volume {} epoch {}: taken over at sequence {}", record.volume, record.epoch, state.sequence)
        self._work(state, root, runs, to_seal)

    async def _fence(self, sought: Mapping[ChunkId, Sought], *, needed: bool) -> dict[ChunkId, int]:
        node = self.node
        fencing = Fencing(sought, node.control.views.node_of_disk)
        while sought:
            await self._fence_round(fencing)
            if not needed or fencing.is_settled:
                break
            self._current()
            await node.sleep(RETRY_SECONDS)
        return fencing.ends()

    async def _fence_round(self, fencing: Fencing) -> None:
        node, record = self.node, self.record
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
        read, node = self._reader.read, self.node
        deadline = node.now() + OPERATION_SECONDS
        head = decode_head(
            state.volume, memoryview(await read(root.extents, root.placements, 0, root.size, deadline))
        )
        for run in head.runs:
            data = await read(run.extents, run.placements, 0, run.size, deadline)
            for entries in decode_blocks(state.volume, memoryview(data)):
                state.map.load(entries)
        state.load_head(head)
        return head.runs

    # --- the volume's record in control

    def _current(self) -> VolumeRecord:
        found = self.node.control.views.volume(self.record.volume)
        if found is None or (found.epoch, found.owner) != (self.record.epoch, self.node.me):
            raise Deposed
        return found

    async def _change(
        self, *, journal: Callable[[JournalList], JournalList] | None = None, root: bytes | None = None
    ) -> None:
        while self._changing is not None:  # one at a time
            promise = Promise[None]()
            self._changing.append(promise)
            await promise
        self._changing = []
        try:
            await self._change_alone(journal, root)
        finally:
            waiting, self._changing = self._changing, None
            for promise in waiting:
                promise.keep(None)

    async def _change_alone(
        self, journal: Callable[[JournalList], JournalList] | None, root: bytes | None
    ) -> None:
        control, node = self.node.control, self.node
        key = volume_key(self.record.volume)
        deadline = node.now() + OPERATION_SECONDS
        while True:
            revision = control.views.modified(key)
            current = self._current()
            wanted = msgspec.structs.replace(
                current,
                root=current.root if root is None else root,
                journal=current.journal if journal is None else journal(current.journal),
            )
            self._n_requests += 1
            try:
                await control.transact(
                    (Compare(key, revision),),
                    ((key, encode_record(wanted)),),
                    request=RequestId(self._session, self._n_requests),
                    deadline=deadline,
                )
            except TransactionConflict:
                await node.sleep(0.02)
            else:
                return

    # --- working

    def _work(
        self, state: VolumeState, root: Root | None, runs: tuple[RunInfo, ...], to_seal: dict[ChunkId, int]
    ) -> None:
        node, settings = self.node, self.settings
        self.is_taking_over = False
        self.state = state
        self.journal = Journal(
            self._session, state.sequence + 1, to_seal,
            batch_bytes_max=settings.batch_bytes_max, batches_in_flight=settings.batches_in_flight,
        )  # fmt: skip
        self._places = ChunkPlaces(self.record.volume, self.record.epoch, self._rng)
        self.core = Owner(
            state, self.journal, self._places, self.record.epoch, node.wall(), self._cache.keep,
            chunk_bytes=settings.chunk_bytes, idle_seconds=settings.idle_seconds,
        )  # fmt: skip
        self._reads = ReadShell(cast(OwnerWorld, node), state, self._cache)
        self._checkpoints = Checkpoints(root, runs)
        self._writer = DataWriter(node.caller, node.table, self._grant_run, self._rng)
        self._covered_bytes = 0
        self._garbage = Garbage()
        self._is_writing = False
        self._begin(self._tidy)
        self._begin(self._write_checkpoints)
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
        self._seal_members(writer.chunk, writer.placement.disks, writer.acknowledged)
        node.world.on_moment("switch", node)
        self.wake()

    def _watch_members(self, before: float) -> None:
        if self._is_over:
            return
        writer, now = self.journal.writer, self.node.now()
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
        policy = self._policy.journal_policy()
        table = control.views.policy(policy.text)
        groups = () if table is None else table.groups
        placement = self._places.choose(policy, groups, control.live_disks(), node.own_disks(), node.now())
        chunk = self._places.next_chunk()
        node.world.witness.on_chunk_named(chunk)
        await self._change(journal=lambda journal: self.journal.named_with(journal, chunk, placement.disks))
        self.journal.start_chunk(chunk, placement, self.settings.chunk_bytes)

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
                record: JournalRecord = self._opening(
                    self._policy, DATA, message.request, message.settled, op.finished, op.avoid
                )
                value = None
            else:
                record, value = to_record(message, call.payload.view, node.wall())
            core.submit(message.request, record, value, lambda result: self._answer(call, result))
            self.wake()
            return
        if not node.control.lease_valid(node.now()):
            raise Unavailable("control has not confirmed this owner lately")
        node.world.witness.on_read(self)
        if isinstance(op, Lookup):
            self._reads.lookup(call, op)
        elif isinstance(op, LookupMany):
            self._reads.lookup_many(call, op)
        elif isinstance(op, ListKeys):
            check_read(op, self.state)
            page = self.state.map.page
            entries, rest = page(op.prefix, op.after, op.delimiter, op.limit, op.at, op.start)
            call.answer(KeyPage(tuple(entries), bool(rest), op.at, rest))
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
        record = core.opening(
            policy, purpose, request, settled, groups, control.live_disks(), avoid, node.now()
        )
        node.world.witness.on_chunk_named(record.chunk)
        return record

    async def _grant_run(
        self, finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
    ) -> Granted:
        assert self.core is not None
        request = self.journal.own_request()
        record = self._opening(self._policy.journal_policy(), RUN, request, request.number, finished, avoid)
        promise = Promise[Result | BlockStoreError]()
        self.core.submit(request, record, None, promise.keep)
        self.wake()
        result = await promise
        if isinstance(result, BlockStoreError):
            raise result
        assert isinstance(result, Granted)
        return result

    # --- chunks' ends

    def _seal_all(self, sought: Mapping[ChunkId, Sought], ends: Mapping[ChunkId, int]) -> None:
        for chunk, one in sought.items():
            if chunk in ends:
                self._seal_members(chunk, one.disks, ends[chunk])

    def _seal_members(self, chunk: ChunkId, disks: tuple[DiskId, ...], length: int) -> None:
        if length:
            for disk in disks:
                self._tell_disk(disk, lambda disk: SealFragment(disk, chunk, self.record.epoch, length))

    def _tell_disk(
        self,
        disk: DiskId,
        message: Callable[[DiskId], Any],
        on_answer: Callable[[Answer | BlockStoreError], None] = lambda _: None,
    ) -> None:
        address = self.node.table.address_of_disk(disk) if disk else None
        if address is not None:
            until = self.node.now() + ATTEMPT_SECONDS
            self.network.post(self.node, address, message(disk), (), until, on_answer)

    # --- background

    async def _tidy(self) -> None:
        core, node = self.core, self.node
        assert core is not None
        while True:
            await node.sleep(self.settings.tidy_seconds)
            while core.purge_some(2):
                await node.sleep(0.001)
            now = node.now()
            core.end_idle_grants(now)
            needed = (
                frozenset(one.chunk for one in self._current().journal) | self._checkpoints.needed_chunks()
            )
            core.drop_dead(needed, now, runs_too=not self._is_writing)
            self.wake()
            for chunk, disks, length in core.take_ended():
                self._seal_members(chunk, disks, length)
            for chunk, placement in self.state.chunks.take_dropped():
                node.world.witness.on_dropped(self.state, chunk)
                self._garbage.add(chunk, placement.disks)
            for disk, chunk in self._garbage.next(sorted(node.control.live_disks())):
                self._delete(disk, chunk)

    def _delete(self, disk: DiskId, chunk: ChunkId) -> None:
        def on_answer(outcome: Answer | BlockStoreError) -> None:
            if isinstance(outcome, Answer | NotFound | StaleEpoch):
                self._garbage.on_deleted(disk, chunk)
            else:
                self._garbage.on_failed(disk, chunk)

        self._tell_disk(disk, lambda disk: DeleteFragment(disk, chunk, self.record.epoch), on_answer)

    async def _write_checkpoints(self) -> None:
        node = self.node
        while True:
            await node.sleep(self.settings.checkpoint_seconds)
            if (
                self.is_serving
                and self.journal.written_bytes - self._covered_bytes >= self.settings.checkpoint_bytes
            ):
                try:
                    await self.checkpoint()
                except BlockStoreError as error:
                    node.say("volume {}: checkpoint failed ({})", self.record.volume, type(error).__name__)

    async def checkpoint(self) -> None:
        self._is_writing = True
        try:
            await self._checkpoint()
        finally:
            self._is_writing = False

    async def _checkpoint(self) -> None:
        assert self.core is not None
        if self.core.applied_to is None:
            return
        chunk, offset = self.core.applied_to
        written_bytes = self.journal.written_bytes
        checkpoints, state = self._checkpoints, self.state
        draft = checkpoints.begin(state, chunk, offset, small=4)
        try:
            runs = checkpoints.runs_with(draft, await self._write_run(draft))
            root = checkpoints.root_of(draft, await self._write(checkpoints.encode_head(draft, runs)))
            self.node.world.on_moment("checkpoint", self.node)
            checkpoints.on_committing(root, runs)
            await self._change(root=encode_root(root), journal=lambda journal: journal_from(journal, chunk))
        except BaseException:
            checkpoints.on_failed(state, draft)
            raise
        checkpoints.on_committed(root, runs)
        self._covered_bytes = written_bytes
        self.node.say(
            "volume {}: checkpoint at sequence {}, {} runs", self.record.volume, root.sequence, len(runs)
        )

    async def _write_run(self, draft: Draft) -> Written:
        parts: list[bytes] = []
        for block in draft.blocks(2):
            parts.append(block)
            if self._rng.random() < 0.3:
                await self.node.sleep(0.001)  # others change the map meanwhile
        data = b"".join(parts)
        return await self._write(data) if data else Written((), {}, 0)

    async def _write(self, data: bytes) -> Written:
        extents = await self._writer.write(data, self.node.now() + OPERATION_SECONDS)
        return Written(extents, self.state.chunks.placements_of(extents), len(data))
