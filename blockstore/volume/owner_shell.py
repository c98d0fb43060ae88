"""The owner of one volume, from takeover until it is deposed.

Decisions are in the cores: `owner.py` (what becomes of a request), `journal.py` (what is appended when),
`state.py` (what a record does), `requests.py` (what may be asked). Here calls come in, records go into the
journal, and answers go back in the order that the journal commits.

One put costs: its share of one append to each member of the journal's write set, of one fdatasync on each,
and one answer. One small get costs no message but its own: the value comes from the cache or from this
node's own copy.

When a background task fails the owner falls; its node says so in the next heartbeat, and control names
another."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

import msgspec
import trio

from blockstore.chunk.chunk_shell import DataWriter
from blockstore.codec.control_record import VolumeRecord
from blockstore.codec.grant import grant_token
from blockstore.codec.journal_record import (
    ChunkOpenedRecord,
    JournalRecord,
    MovedRecord,
    brings_values,
)
from blockstore.codec.messages import (
    DeleteFragment,
    Failed,
    Grant,
    Granted,
    KeyHistory,
    ListChanges,
    ListKeys,
    Lookup,
    LookupMany,
    SnapshotClone,
    SnapshotList,
    SnapshotRecords,
    VolumeCall,
    VolumeFacts,
    VolumeInfo,
)
from blockstore.codec.run_file import Result
from blockstore.config import (
    CHECKPOINT_JOURNAL_BYTES,
    CHECKPOINT_JOURNAL_RECORDS,
    CHUNK_BYTES_MAX,
    OWNER_QUEUE_BYTES_MAX,
    VALUE_CACHE_BYTES,
    VITAL_CHUNK_BYTES,
)
from blockstore.errors import (
    BlockStoreError,
    Busy,
    NoSpace,
    NotFound,
    NotOwner,
    StaleEpoch,
    Unavailable,
    from_wire,
)
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId
from blockstore.placement.policy import Policy
from blockstore.runtime.interfaces import Answer, IncomingCall
from blockstore.runtime.roles import check_role
from blockstore.volume.block_shell import BlockShell, with_blocks
from blockstore.volume.checkpoint_shell import Checkpointer
from blockstore.volume.chunk_places import ChunkPlaces
from blockstore.volume.chunk_table import DATA, PACKED, RUN
from blockstore.volume.clone_shell import CloneShell
from blockstore.volume.facts import amplification, state_facts
from blockstore.volume.flatten_shell import FlattenShell
from blockstore.volume.garbage import Garbage
from blockstore.volume.history import key_history, list_changes
from blockstore.volume.journal import Journal
from blockstore.volume.journal_shell import JournalShell, is_full
from blockstore.volume.listing import list_keys
from blockstore.volume.owner import OnResult, Owner
from blockstore.volume.packing import choose_chunks
from blockstore.volume.packing_shell import Packer
from blockstore.volume.read_shell import ReadShell
from blockstore.volume.record_shell import Deposed, RecordShell
from blockstore.volume.requests import WRITES, to_record
from blockstore.volume.sorted_run import BlocksMissing, Held
from blockstore.volume.takeover_shell import seal_members, take_over
from blockstore.volume.value_cache import ValueCache
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")
T = TypeVar("T")

WAITING_CALLS_MAX = 2_000
"""Calls that wait for the takeover to end; a second's worth of many clients."""
CHECKPOINT_LOOK_SECONDS = 0.5
CHECKPOINT_FULL_SECONDS = 2.0
"""Between checkpoints of a full store: only behind one are the journal's chunks garbage."""
CHECKPOINT_RETRY_SECONDS = 10.0
"""After one that failed: it wrote its run for nothing, and would again."""
TIDY_SECONDS = 2.0
CHANGED_KEYS_MAX = 250_000
"""In the memtable: some 100 MB. Then a checkpoint makes a run of them."""
PACK_LOOK_SECONDS = 2.0
PACK_RETRY_SECONDS = 60.0
"""After a pass that moved nothing: what it could not read, the next could not either."""
DELETE_SECONDS = 10.0
"""One attempt at deleting a fragment: nobody waits for it."""
PURGE_KEYS = 2_000
"""Keys whose history is examined between two checkpoints of the loop: some 5 ms."""
WRITERS = ("admin", "node", "write")


class VolumeOwner:
    def __init__(self, world: World, record: VolumeRecord) -> None:
        self.record = record
        self._world = world
        self._session = SessionId(world.rng.getrandbits(63))
        self._control_record = RecordShell(world, record, self._session)
        self._policy = Policy.parse(record.policy)
        self._cache = ValueCache(VALUE_CACHE_BYTES)
        self._waiting: list[tuple[IncomingCall, VolumeCall]] = []
        self._waiting_bytes = 0
        self._serving = False
        self._core: Owner | None = None
        self._garbage = Garbage()
        self._blocks = BlockShell(world)

    def _fork_rng(self) -> random.Random:
        return random.Random(self._world.rng.getrandbits(64))

    async def run(self) -> None:
        """Take over, then serve until deposed or cancelled."""
        world = self._world
        try:
            taken = await take_over(world, self.record, self._control_record)
            self._state = taken.state
            self._state.map.cache.near = self._blocks.read_now
            self._reads = ReadShell(world, taken.state, self._cache)
            journal = Journal(self._session, taken.state.sequence + 1, taken.to_seal)
            places = ChunkPlaces(self.record.volume, self.record.epoch, self._fork_rng())
            core = Owner(
                taken.state, journal, places, self.record.epoch, world.clock.wall(), self._cache.keep
            )
            self._core = core
            self._journal = JournalShell(
                world,
                self.record,
                self._control_record,
                self._policy.journal_policy(),
                places,
                journal,
                core.apply,
                lambda tokens: core.refuse(tokens, self._no_space()),
            )
            self._checkpointer = Checkpointer(
                world,
                self._control_record,
                taken.state,
                lambda: DataWriter(world.caller, world.nodes, self._grant_run, self._fork_rng()),
                taken.root,
                taken.runs,
                lambda: self._journal.core.is_idle,
            )
            self._packer = self._new_packer()
            self._clones = CloneShell(
                world,
                self._control_record,
                core,
                self._checkpointer,
                self.checkpoint,
                self._applied,
                self._journal.wake,
            )
            self._flattening = FlattenShell(
                world, self._control_record, core, self._checkpointer, self._new_packer(), self._applied
            )
            self._checkpointer.covered_bytes = -taken.replayed_bytes
            self._checkpointer.covered_records = -taken.replayed_records
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._journal.run)
                nursery.start_soon(self._blocks.run)
                # Reads need no open journal chunk: they go on when there are too few members left for one.
                self._start_serving()
                nursery.start_soon(self._checkpoints)
                nursery.start_soon(self._merge)
                nursery.start_soon(self._tidy)
                nursery.start_soon(self._pack)
                nursery.start_soon(self._clones.run)
                nursery.start_soon(self._flattening.run)
        except* Deposed:
            log.info("owner_deposed volume=%d epoch=%d", self.record.volume, self.record.epoch)
        finally:
            self._serving = False
            self._refuse_all()

    def _new_packer(self) -> Packer:
        world = self._world
        writer = DataWriter(world.caller, world.nodes, self._grant_packed, self._fork_rng())
        is_quiet = lambda: self._journal.core.is_idle  # noqa: E731
        return Packer(world, self._state, writer, self._policy.k, self._commit, is_quiet)

    def _refuse_all(self) -> None:
        error = self._not_owner()
        waiting, self._waiting = self._waiting, []
        for call, _ in waiting:
            call.fail(error)
        for on_result in () if self._core is None else self._core.give_up():
            on_result(error)
        for on_there in self._blocks.give_up():
            on_there(error)

    def _not_owner(self) -> NotOwner:
        current = self._world.control.views.volume(self.record.volume)
        owner, epoch = (0, 0) if current is None else (current.owner, current.epoch)
        return NotOwner(self.record.volume, owner, epoch)

    def _start_serving(self) -> None:
        self._serving = True
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for call, message in waiting:
            self.handle(call, message)

    # --- requests

    def handle(self, call: IncomingCall, message: VolumeCall) -> None:
        if not self._serving:
            if len(self._waiting) < WAITING_CALLS_MAX and self._waiting_bytes < OWNER_QUEUE_BYTES_MAX:
                self._waiting.append((call, message))
                self._waiting_bytes += len(call.payload)
            else:
                call.fail(Busy("the volume's new owner has too many calls waiting"))
            return
        try:
            self._dispatch(call, message)
        except BlockStoreError as error:
            call.fail(error)

    def _dispatch(self, call: IncomingCall, message: VolumeCall) -> None:
        op = message.op
        if isinstance(op, WRITES):
            check_role(call.peer, type(op).__name__, WRITERS)
            self._write(call, message)
            return
        if isinstance(op, Grant):
            check_role(call.peer, type(op).__name__, WRITERS)
            self._grant(call, message, op)
            return
        if isinstance(op, SnapshotClone):
            check_role(call.peer, type(op).__name__, WRITERS)
            if not self._is_known(call, message):
                self._clones.take(message, op, lambda result: _answer(call, result))
            return
        self._read(call, op, {})

    def _read(self, call: IncomingCall, op: object, held: Held) -> None:
        """Answer; and when blocks of the map are missing, as soon as they are there."""

        def again(why: BlockStoreError | None) -> None:
            try:
                if why is not None:
                    raise why
                if not self._serving:
                    raise self._not_owner()  # it has fallen while a disk was read
                self._read(call, op, held)
            except BlockStoreError as error:
                call.fail(error)

        self._check_lease()
        while True:
            try:
                with self._state.map.cache.holding(held):
                    self._answer_read(call, op)
                return
            except BlocksMissing as missing:
                if not self._blocks.bring(missing, held, again):
                    return

    def _answer_read(self, call: IncomingCall, op: object) -> None:
        if isinstance(op, Lookup):
            self._reads.lookup(call, op)
        elif isinstance(op, LookupMany):
            self._reads.lookup_many(call, op)
        elif isinstance(op, ListKeys):
            call.answer(list_keys(op, self._state, self._world.clock.now()))
        elif isinstance(op, SnapshotList):
            call.answer(SnapshotRecords(tuple(self._state.snapshots.values())))
        elif isinstance(op, ListChanges):
            call.answer(list_changes(op, self._state))
        elif isinstance(op, KeyHistory):
            call.answer(key_history(op, self._state))
        else:
            assert isinstance(op, VolumeInfo)
            call.answer(VolumeFacts(self.facts()))

    def _check_lease(self) -> None:
        """A read of the map is answered only while control has surely not named another owner."""
        if not self._world.control.lease_valid(self._world.clock.now()):
            raise Unavailable(
                f"Volume {self.record.volume}: control has not confirmed its owner lately; try again."
            )

    @property
    def _owner(self) -> Owner:
        assert self._core is not None, "it serves"
        return self._core

    def _write(self, call: IncomingCall, message: VolumeCall) -> None:
        if self._is_known(call, message):
            return
        record, value = to_record(message, call.payload.view, self._world.clock.wall())
        if brings_values(record) and self._journal.is_full:
            raise self._no_space()

        def answer(result: Result | BlockStoreError) -> None:
            call.payload.release()
            _answer(call, result)

        self._submit(message.request, record, value, answer)

    def _no_space(self) -> NoSpace:
        return NoSpace(f"the disks that {self.record.policy} may use")

    def _is_known(self, call: IncomingCall, message: VolumeCall) -> bool:
        """Whether this request was seen before: then it is, or will be, answered like the first time."""
        now = self._world.clock.now()
        return self._owner.find_answer(message.request, now, lambda result: self._answer_grant(call, result))

    def _submit(
        self, request: RequestId, record: JournalRecord, value: memoryview | None, on_result: OnResult
    ) -> None:
        self._owner.expect(request, on_result, 0 if value is None else len(value))
        self._submit_expected(request, record, value, {})

    def _submit_expected(
        self, request: RequestId, record: JournalRecord, value: memoryview | None, held: Held
    ) -> None:
        owner = self._owner

        def again(why: BlockStoreError | None) -> None:
            if why is not None:
                owner.refuse((request,), why)
            elif self._serving:  # else whoever waits was told when it fell
                self._submit_expected(request, record, value, held)

        while True:
            try:
                with self._state.map.cache.holding(held):
                    owner.submit(request, record, value)
                self._journal.wake()
                return
            except BlocksMissing as missing:
                if not self._blocks.bring(missing, held, again):
                    return

    # --- chunks for clients' data and for checkpoints

    def _grant(self, call: IncomingCall, message: VolumeCall, op: Grant) -> None:
        if self._is_known(call, message):
            return
        if self._journal.is_full or is_full(self._world, self._policy):
            raise self._no_space()
        record = self._opening(self._policy, DATA, message.request, message.settled, op.finished, op.avoid)
        self._submit(message.request, record, None, lambda result: self._answer_grant(call, result))

    def _answer_grant(self, call: IncomingCall, result: Result | BlockStoreError) -> None:
        """The token is made for whoever asks now, and so never stored: a repeated request gets it anew."""
        if isinstance(result, Granted):
            key = self._world.control.views.cluster().grant_key
            token = grant_token(key, result.chunk, call.peer.fingerprint)
            result = msgspec.structs.replace(result, token=token)
        _answer(call, result)

    async def _grant_run(
        self, finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
    ) -> Granted:
        return await self._grant_own(self._policy.journal_policy(), RUN, finished, avoid)

    async def _grant_packed(
        self, finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
    ) -> Granted:
        return await self._grant_own(self._policy, PACKED, finished, avoid)

    async def _grant_own(
        self,
        policy: Policy,
        purpose: str,
        finished: tuple[tuple[ChunkId, int], ...],
        avoid: tuple[DiskId, ...],
    ) -> Granted:
        request = self._journal.core.own_request()
        record = self._opening(policy, purpose, request, request.number, finished, avoid)
        result = await self._applied(request, record)
        assert isinstance(result, Granted)
        return result

    async def _commit(self, record: MovedRecord) -> None:
        await self._applied(self._journal.core.own_request(), record)

    async def _applied(self, request: RequestId, record: JournalRecord) -> Result:
        """What a record of the owner's own came to, once it is durable and applied."""
        done = trio.Event()
        outcome: list[Result | BlockStoreError] = []

        def finish(result: Result | BlockStoreError) -> None:
            outcome.append(result)
            done.set()

        self._submit(request, record, None, finish)
        await done.wait()
        result = outcome[0]
        if isinstance(result, BlockStoreError):
            raise result
        return result

    def _opening(
        self,
        policy: Policy,
        purpose: str,
        request: RequestId,
        settled: int,
        finished: tuple[tuple[ChunkId, int], ...],
        avoid: tuple[DiskId, ...],
    ) -> ChunkOpenedRecord:
        """The record that opens a chunk for a session, which has finished some others."""
        world, owner = self._world, self._owner
        owner.finish_granted(request.session, finished)
        self._journal.wake()
        table = world.control.views.policy(policy.text)
        groups = () if table is None else table.groups
        live, now = world.live_disks(), world.clock.now()
        vital = purpose == RUN and self._journal.is_full
        avoided = world.suspect_disks().union(avoid, () if vital else world.full_disks())
        bytes_max = VITAL_CHUNK_BYTES if vital else CHUNK_BYTES_MAX
        near = world.own_disks() if purpose == RUN else frozenset[DiskId]()  # look-ups need its blocks
        return owner.opening(policy, purpose, request, settled, groups, live, avoided, now, bytes_max, near)

    # --- background

    async def _checkpoints(self) -> None:
        clock = self._world.clock
        last_at = clock.now()
        while True:
            await trio.sleep(CHECKPOINT_LOOK_SECONDS)
            journal, last = self._journal.core, self._checkpointer
            n_bytes = journal.written_bytes - last.covered_bytes
            n_records = journal.written_records - last.covered_records
            if (
                n_bytes >= CHECKPOINT_JOURNAL_BYTES
                or n_records >= CHECKPOINT_JOURNAL_RECORDS
                or self._state.map.n_changed >= CHANGED_KEYS_MAX
                or last.has_merged
                or (self._journal.is_full and n_records and clock.now() - last_at >= CHECKPOINT_FULL_SECONDS)
            ):
                try:
                    await self.checkpoint()
                    last_at = clock.now()
                except BlockStoreError as error:
                    log.warning("checkpoint_failed volume=%d why=%s", self.record.volume, error)
                    await trio.sleep(CHECKPOINT_RETRY_SECONDS)

    async def _merge(self) -> None:
        """Keep the map's runs few. What was merged is named by the next checkpoint. Not on a full store: it
        takes space before it gives some back, and what is left is for what is needed to delete."""
        while True:
            await trio.sleep(CHECKPOINT_LOOK_SECONDS)
            if self._journal.is_full:
                continue
            try:
                await self._checkpointer.merge()
            except BlockStoreError as error:
                log.warning("merge_failed volume=%d why=%s", self.record.volume, error)
                await trio.sleep(CHECKPOINT_RETRY_SECONDS)

    async def checkpoint(self) -> None:
        """Write one now, and let the journal begin where it ends."""
        if self._owner.applied_to is None:
            return  # it has no journal chunk yet
        async with self._checkpointer.turn:
            chunk, offset = self._owner.applied_to
            journal = self._journal.core
            await self._checkpointer.write(chunk, offset, journal.written_bytes, journal.written_records)

    async def _tidy(self) -> None:
        """Purge history after a snapshot's end, end idle sessions' chunks, drop chunks that nothing refers
        to."""
        while True:
            await trio.sleep(TIDY_SECONDS)
            if self._serving:
                await self._tidy_once()

    def _needed_chunks(self) -> frozenset[ChunkId]:
        """Those that nothing in the map need refer to: of the journal, of the checkpoint, being packed."""
        journal = frozenset(one.chunk for one in self._control_record.current().journal)
        packing = self._packer.needed_chunks() | self._flattening.needed_chunks()
        return journal | self._checkpointer.needed_chunks() | packing

    async def _pack(self) -> None:
        """Bring the values of left behind journal chunks to their final place, and empty chunks that are
        mostly dead."""
        pause = PACK_LOOK_SECONDS
        while True:
            await trio.sleep(pause)
            pause = PACK_LOOK_SECONDS
            candidates = self._owner.to_empty(
                self._needed_chunks(), self._world.clock.now(), journals_too=self._policy.k > 1
            )
            chosen = choose_chunks(candidates)
            if not chosen:
                continue
            try:
                n_moved = await self._packer.empty(frozenset(chunk for chunk, _ in chosen))
            except BlockStoreError as error:
                log.warning("packing_failed volume=%d why=%s", self.record.volume, error)
                n_moved = 0
            if not n_moved:
                pause = PACK_RETRY_SECONDS

    async def _tidy_once(self) -> None:
        owner, checkpointer, now = self._owner, self._checkpointer, self._world.clock.now()
        await self._purge()
        owner.end_idle_grants(now)
        self._state.end_views(now)
        owner.drop_dead(self._needed_chunks(), now, runs_too=not checkpointer.is_writing)
        self._journal.wake()
        for chunk, disks, length in owner.take_ended():
            seal_members(self._world, chunk, disks, self.record.epoch, length)
        for chunk, placement in self._state.chunks.take_dropped():
            self._garbage.add(chunk, placement.disks)
        control = self._world.control
        reachable = [disk.disk for disk in control.views.disks() if control.is_live(disk.node)]
        for disk, chunk in self._garbage.next(reachable):
            self._delete(disk, chunk)

    async def _purge(self) -> None:
        """Drop history that no snapshot sees: until there is none, or enough has changed for a run."""
        while self._state.map.n_changed < CHANGED_KEYS_MAX:
            try:
                if not await self._with_blocks(lambda: self._owner.purge_some(PURGE_KEYS)):
                    return
            except BlockStoreError as error:
                log.warning("purge_failed volume=%d why=%s", self.record.volume, error)
                return
            await trio.lowlevel.checkpoint()

    async def _with_blocks(self, work: Callable[[], T]) -> T:
        return await with_blocks(self._world.reader, self._world.clock, self._state.map.cache, work)

    def _delete(self, disk: DiskId, chunk: ChunkId) -> None:
        garbage = self._garbage

        def on_answer(outcome: Answer | BlockStoreError) -> None:
            if isinstance(outcome, Answer):
                outcome.payload.release()
            if isinstance(outcome, Answer | NotFound | StaleEpoch):  # or it is another owner's to say
                garbage.on_deleted(disk, chunk)
            else:
                garbage.on_failed(disk, chunk)

        address = self._world.nodes.address_of_disk(disk)
        if address is None:
            garbage.on_failed(disk, chunk)
            return
        message = DeleteFragment(disk, chunk, self.record.epoch)
        deadline = self._world.clock.now() + DELETE_SECONDS
        self._world.network.lane(address).post(message, (), deadline, on_answer)

    def under_protected(self) -> tuple[int, int]:
        """How many chunks lack members of their group, and how many failures the worst of them survives."""
        return self._state.chunks.under_protected() if self._serving else (0, 0)

    def facts(self) -> dict[str, int | float | str]:
        return {
            "keys": self._state.map.n_live,
            "sequence": self._state.sequence,
            "epoch": self.record.epoch,
            "owner": self._world.me,
            "policy": self.record.policy,
            "journal_waiting_bytes": self._journal.core.waiting_bytes,
            "cache_bytes": self._cache.size,
            "cache_hits": self._cache.hits,
            "cache_misses": self._cache.misses,
            "map_blocks_fetched": self._blocks.n_fetched,
            "map_keys_merged": self._checkpointer.merging[0],
            "map_keys_to_merge": self._checkpointer.merging[1],
            **state_facts(self._state),
            **self._flattening.facts(),
            **amplification(
                self._policy,
                self._owner,
                self._state,
                self._checkpointer.written_bytes,
                self._packer.moved_bytes,
            ),
        }


def _answer(call: IncomingCall, result: Result | BlockStoreError) -> None:
    if isinstance(result, Failed):
        call.fail(from_wire(result.name, result.fields))
    elif isinstance(result, BlockStoreError):
        call.fail(result)
    else:
        call.answer(result)
