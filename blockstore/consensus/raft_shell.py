"""Runs one member of the Raft group: its disk, its timers, its messages, and those who wait for it.

One task owns the core. Everything that happens is put in a queue and wakes it; it then asks the core about
all that has come, and writes what is to be durable with one sync while more comes in.
"""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial

import trio

from blockstore.codec.raft_file import HardState, Snapshot, decode_snapshot, encode_snapshot
from blockstore.codec.raft_messages import COMMAND, NOBODY, Entry, Members, decode_message, encode_message
from blockstore.config import (
    HEARTBEAT_SECONDS,
    OPERATION_SECONDS,
    RAFT_COMMAND_BYTES_MAX,
    RAFT_READS_MAX,
    RAFT_SNAPSHOT_BYTES,
    RAFT_SNAPSHOT_ENTRIES,
    RAFT_TRAILING_ENTRIES,
    RAFT_UNCOMMITTED_MAX,
)
from blockstore.consensus import raft_log
from blockstore.consensus.log_view import LogView
from blockstore.consensus.membership import Membership
from blockstore.consensus.quorum import quorum_size
from blockstore.consensus.raft import Raft, Ready
from blockstore.consensus.raft_log import RaftLog
from blockstore.consensus.voting import Role
from blockstore.consensus.waiting_shell import Waiter, Waiting
from blockstore.errors import (
    BlockStoreError,
    Busy,
    Corrupt,
    DeadlineExceeded,
    InvalidRequest,
    NoSpace,
    NotLeader,
    ProtocolViolation,
    QuorumLost,
    Unavailable,
)
from blockstore.ids import NodeId
from blockstore.runtime.interfaces import Clock, Disk

log = logging.getLogger(__name__)

INBOX_MAX = 4_096
"""Messages that wait for the task; what comes more is dropped, as the bus may: a second of a busy
leader's."""

FETCH_SECONDS = 2.0
"""For the first try to fetch a snapshot; twice as long after each that failed. A request that was lost in a
cut is asked again soon after, and a snapshot that takes longer to come gets its time."""

IDLE_SECONDS = 1.0
"""After so long without a write the log's last batch gets its mark: not after each write, for it costs a
sync."""

ROOM_SECONDS = 0.5
"""Between two looks whether a full disk has room again."""


def bootstrap(disk: Disk, me: NodeId, initial_snapshot: bytes, rng: random.Random) -> None:
    """A new group whose only voter is `me`, and whose state machine starts from `initial_snapshot`. Blocking.
    Raises AlreadyExists."""
    raft_log.create(disk, Snapshot(0, 0, Members((me,)), initial_snapshot), 0, rng)


def bootstrap_joined(disk: Disk, snapshot: bytes, rng: random.Random) -> None:
    """A member of a group, from what another's `current_snapshot` gave. Blocking. AlreadyExists, Corrupt."""
    decoded = decode_snapshot(snapshot)
    raft_log.create(disk, decoded, decoded.term, rng)


is_bootstrapped = raft_log.is_created


class RaftNode:
    def __init__(
        self,
        *,
        me: NodeId,
        disk: Disk,
        clock: Clock,
        rng: random.Random,
        send: Callable[[NodeId, bytes], None],
        fetch_snapshot: Callable[[NodeId, int], Awaitable[tuple[int, int, bytes]]],
        apply: Callable[[int, bytes], None],
        take_snapshot: Callable[[], bytes],
        install_snapshot: Callable[[int, bytes], None],
        on_leadership: Callable[[bool], None] = lambda leading: None,
    ) -> None:
        """`apply` gets each committed command once, in order; after `install_snapshot` those above its index.
        `fetch_snapshot` gives what `current_snapshot` of that node gave."""
        self.me = me
        self.applied_index = 0
        self.is_leader = False  # and has applied all that was committed before its term
        self._clock, self._rng, self._send_bytes = clock, rng, send
        self._fetch_snapshot, self._apply = fetch_snapshot, apply
        self._take_snapshot, self._install_snapshot = take_snapshot, install_snapshot
        self._on_leadership = on_leadership
        self._log = RaftLog(disk, rng)
        self._core: Raft | None = None
        self._wake = trio.Event()
        self._inbox: deque[tuple[NodeId, bytes]] = deque()
        self._asked: deque[Waiter] = deque()  # not told to the core yet
        self._waiting = Waiting()
        self._hard_state: HardState | None = None  # to be written
        self._entries: list[Entry] = []  # to be written
        self._anew: int | None = None  # the log is to be begun anew at this index, before anything else
        self._written: deque[tuple[HardState | None, Entry | None]] = deque()
        self._writing = False
        self._write_error: BlockStoreError | None = None
        self._wrote_at = 0.0
        self._wants_fetch: tuple[NodeId, int] | None = None
        self._fetching = False
        self._fetch_seconds = FETCH_SECONDS
        self._fetched: Snapshot | None = None
        self._snapshot_index = 0
        self._bytes_since_snapshot = 0
        self._full_until = -math.inf

    # --- what others see

    @property
    def leader(self) -> NodeId | None:
        core = self._core
        return core.leader if core is not None and core.leader != NOBODY else None

    @property
    def term(self) -> int:
        return self._core.term if self._core is not None else 0

    @property
    def voters(self) -> frozenset[NodeId]:
        return self._core.membership.voters if self._core is not None else frozenset()

    @property
    def learners(self) -> frozenset[NodeId]:
        return self._core.membership.learners if self._core is not None else frozenset()

    @property
    def lease_until(self) -> float:
        """Until then, on this node's clock, nobody else leads; 0 when we do not."""
        return self._core.lease_until if self._core is not None and self.is_leader else 0.0

    @property
    def commit_index(self) -> int:
        return self._core.commit_index if self._core is not None else 0

    @property
    def is_doubtful(self) -> bool:
        """Part of what this node knew was damaged, and it has not been healed by a leader yet."""
        return self._core is not None and self._core.doubt != 0

    def match_index(self, node: NodeId) -> int:
        """How much of the log `node` has durably, as its leader knows; 0 elsewhere."""
        core = self._core
        if core is None or core.leading is None:
            return 0
        if node == self.me:
            return core.log.persisted
        progress = core.leading.progress.get(node)
        return 0 if progress is None or progress.doubt else progress.match

    def current_snapshot(self) -> tuple[int, int, bytes]:
        """(index, term, content): what `fetch_snapshot` and `bootstrap_joined` want."""
        snapshot = self._make_snapshot()
        return snapshot.index, snapshot.term, encode_snapshot(snapshot)

    def on_message(self, sender: NodeId, body: bytes) -> None:
        if self._core is not None and len(self._inbox) < INBOX_MAX:
            self._inbox.append((sender, body))
            self._wake.set()

    async def propose(self, command: bytes, deadline: float) -> int:
        """The index of `command` once it is committed, and applied here.

        NotLeader and Busy: nothing was done. QuorumLost, DeadlineExceeded: it may still be applied."""
        if len(command) > RAFT_COMMAND_BYTES_MAX:
            raise InvalidRequest(
                f"A control command has {len(command)} bytes; {RAFT_COMMAND_BYTES_MAX} are the most."
            )
        return await self._ask_leader(Waiter(command), deadline)

    async def change_members(
        self, voters: frozenset[NodeId], learners: frozenset[NodeId], deadline: float
    ) -> None:
        """One voter more or less, and a new one was a learner that has caught up: else InvalidRequest or
        Busy. Otherwise as `propose`."""
        await self._ask_leader(Waiter((voters, learners)), deadline)

    async def read_barrier(self, deadline: float) -> int:
        """Every command committed before this was called is applied here when it returns, on any member; the
        index.

        Raises QuorumLost or DeadlineExceeded. Never relies on a clock: a leader asks a majority."""
        self._require_running()
        if self._waiting.n_reads >= RAFT_READS_MAX:
            raise Busy("control's reads")
        number = self._rng.getrandbits(63)
        try:
            return await self._wait(Waiter(number), deadline)
        finally:
            self._waiting.forget_read(number)
            if self._core is not None:
                self._core.forget_read(number)

    def resign(self) -> None:
        """Lead no more: another member does within a few messages' time. Nothing happens at one that does not
        lead, or that hears no other voter."""
        core = self._core
        if core is None or core.role is not Role.LEADER:
            return
        self._carry_out(core.resign(self._clock.now()))  # its task's steps do not await, so it is at rest
        if core.leader != self.me:
            doubt = "This node has just ceased to lead; whether the command was carried out is not known."
            self._waiting.fail_entries(Unavailable(doubt))
        self._notice_leadership(core)
        self._wake.set()

    async def _ask_leader(self, waiter: Waiter, deadline: float) -> int:
        core = self._require_running()
        if core.leading is None:
            raise NotLeader(core.leader)
        if len(self._asked) >= RAFT_UNCOMMITTED_MAX:
            raise Busy("control's log")
        return await self._wait(waiter, deadline)

    async def _wait(self, waiter: Waiter, deadline: float) -> int:
        self._asked.append(waiter)
        self._wake.set()
        with trio.move_on_after(max(0.0, deadline - self._clock.now())):
            await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error
        if not waiter.done.is_set():
            if waiter in self._asked:
                self._asked.remove(waiter)
            raise self._too_late()
        return waiter.index

    def _require_running(self) -> Raft:
        if self._core is None:
            raise Unavailable("This node's part in control is not running.")
        return self._core

    def _too_late(self) -> BlockStoreError:
        core = self._core
        if core is None or core.leader == NOBODY:
            return self._quorum_lost()
        if core.leading is not None:
            heard, needed = core.leading.n_heard(self._clock.now()), quorum_size(len(core.membership.voters))
            if heard < needed:
                return QuorumLost("Control", heard, needed)
        return DeadlineExceeded("Control did not answer in time.")

    def _quorum_lost(self) -> QuorumLost:
        heard, needed = 0, 1
        if self._core is not None:
            heard, needed = self._core.resigned_silent or (0, quorum_size(len(self._core.membership.voters)))
        return QuorumLost("Control", heard, needed)

    # --- running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, which is a crash: the log has what was promised. `started` when the state machine
        has the snapshot; committed entries after it are applied as this node learns that they are committed.

        Raises NotAStore, UnknownFormat, and Corrupt if what is damaged cannot be fetched from other voters;
        later DiskFailed, and whatever `apply` raises."""
        with self._opened():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick)
                task_status.started()
                await self._serve(nursery)

    @contextmanager
    def _opened(self) -> Generator[None]:
        try:
            self._load()
            yield
        finally:
            self._core = None
            self.is_leader = False
            self._log.close()
            stopped = Unavailable("This node stopped; whether the command was carried out is not known.")
            self._waiting.fail_all(stopped)
            for waiter in self._asked:
                waiter.fail(stopped)

    def _load(self) -> None:
        loaded = self._log.load()
        snapshot, hard_state = loaded.snapshot, loaded.hard_state
        view = LogView(loaded.base_index, loaded.base_term, loaded.entries)
        membership = Membership(snapshot.index, snapshot.members, loaded.entries)
        if hard_state.doubt:
            if membership.is_alone(self.me):
                raise Corrupt("control's log", loaded.damage or "found so before")
            log.warning("raft doubt node=%d damage=%r", self.me, loaded.damage)
        now = self._clock.now()
        self._wrote_at = now
        self._install_snapshot(snapshot.index, snapshot.data)
        self.applied_index = self._snapshot_index = snapshot.index
        self._core = Raft(self.me, hard_state, view, membership, snapshot.index, self._rng, now)
        self._carry_out(self._core.start(now))
        self._wake.set()

    async def _tick(self) -> None:
        while True:
            core = self._require_running()
            await self._clock.sleep_until(min(core.next_tick, self._clock.now() + HEARTBEAT_SECONDS))
            self._wake.set()

    async def _serve(self, nursery: trio.Nursery) -> None:
        core = self._require_running()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            self._look_for_room()
            if self._write_error is not None:
                raise self._write_error
            while self._written:
                hard_state, last = self._written.popleft()
                self._carry_out(core.persisted(hard_state, last, self._clock.now()))
            while self._inbox:
                self._receive(core, *self._inbox.popleft())
            if self._asked:
                self._ask(core)
            if self._clock.now() >= core.next_tick:
                self._carry_out(core.tick(self._clock.now()))
            self._notice_leadership(core)
            self._write(core)
            self._take_snapshot_if_due(core)
            if self._wants_fetch is not None and not self._fetching and not self._is_full:
                self._fetching = True
                nursery.start_soon(self._fetch, *self._wants_fetch)
            self._wants_fetch = None

    def _receive(self, core: Raft, sender: NodeId, body: bytes) -> None:
        try:
            ready = core.receive(sender, decode_message(body), self._clock.now())
        except ProtocolViolation as violation:
            log.warning("raft refused sender=%d: %s", sender, violation)
            return
        self._carry_out(ready)

    def _ask(self, core: Raft) -> None:
        """Tell the core what has been asked of us: all commands together."""
        asked, self._asked = self._asked, deque()
        now = self._clock.now()
        commands = {waiter: waiter.wish for waiter in asked if isinstance(waiter.wish, bytes)}
        if commands:
            self._ask_for(list(commands), lambda: core.propose(list(commands.values()), now))
        for waiter in asked:
            if isinstance(waiter.wish, tuple):
                self._ask_for([waiter], partial(core.change_members, *waiter.wish, now))
        reads = {waiter.wish: waiter for waiter in asked if isinstance(waiter.wish, int)}
        if reads:
            for number, waiter in reads.items():
                self._waiting.add_read(number, waiter)
            self._carry_out(core.read(list(reads), now))

    def _ask_for(self, waiters: list[Waiter], ask: Callable[[], Ready]) -> None:
        try:
            ready = ask()
        except BlockStoreError as error:  # NotLeader, Busy, InvalidRequest: nothing was taken
            for waiter in waiters:
                waiter.fail(error)
            return
        self._waiting.add_entries(waiters, ready.persist)
        self._carry_out(ready)

    # --- carrying out

    def _carry_out(self, ready: Ready) -> None:
        core = self._require_running()
        for to, message in ready.send:
            self._send_bytes(to, encode_message(message))
        if ready.hard_state is not None:
            self._hard_state = ready.hard_state
        self._entries += ready.persist
        for index in ready.commit:
            self._apply_entry(core, core.log.entry(index))
        for number, index in ready.reads:
            self._waiting.on_safe_read(number, index)
        self._waiting.finish_reads(self.applied_index)
        if ready.fetch_snapshot is not None:
            self._wants_fetch = ready.fetch_snapshot

    def _apply_entry(self, core: Raft, entry: Entry) -> None:
        if entry.kind == COMMAND:
            self._apply(entry.index, entry.payload)
        self.applied_index = entry.index
        self._bytes_since_snapshot += len(entry.payload)
        self._waiting.on_applied(entry, core.leader)

    def _notice_leadership(self, core: Raft) -> None:
        leads = core.leading is not None and self.applied_index >= core.leading.first_index
        if core.leading is None and core.resigned_silent is not None:
            self._waiting.fail_entries(self._quorum_lost())
        if leads != self.is_leader:
            self.is_leader = leads
            log.info("raft leadership node=%d leads=%s term=%d", self.me, leads, core.term)
            self._on_leadership(leads)

    # --- the disk

    @property
    def _is_full(self) -> bool:
        """The disk was, a moment ago: what needs room is not tried."""
        return self._clock.now() < self._full_until

    def _look_for_room(self) -> None:
        """A full disk ends no member: what needs room waits, and is tried again."""
        if self._log.waits_for_room and not self._is_full:
            self._wait_for_room("the log")
            self.resign()  # a leader that can write nothing holds everybody up
            self._log.try_again()

    def _wait_for_room(self, what: str) -> None:
        if self._clock.now() >= self._full_until + ROOM_SECONDS:  # not said already
            log.warning("raft waits for room node=%d what=%r", self.me, what)
        self._full_until = self._clock.now() + ROOM_SECONDS

    def _write(self, core: Raft) -> None:
        """Begin the next write, if none is under way."""
        if self._writing:
            return
        if self._fetched is not None and self._hard_state is None and not self._entries:
            try:
                self._install(core, self._fetched)
            except NoSpace:
                self._wait_for_room("a snapshot")
            self._fetched = None
        if self._anew is not None:
            next_index, self._anew = self._anew, None
            self._begin(partial(self._log.begin_anew, next_index), None, None)
        elif self._hard_state is not None:
            hard_state, self._hard_state = self._hard_state, None
            self._begin(partial(self._log.save_vote, hard_state), hard_state, None)
        elif self._entries:
            entries, self._entries = self._entries, []
            self._begin(partial(self._log.append, entries), None, entries[-1])
        elif self._log.wants_mark and self._clock.now() - self._wrote_at >= IDLE_SECONDS:
            self._begin(partial(self._log.mark, core.log.last_index + 1), None, None)

    def _begin(
        self,
        write: Callable[[Callable[[BlockStoreError | None], None]], None],
        hard_state: HardState | None,
        last: Entry | None,
    ) -> None:
        def on_done(error: BlockStoreError | None) -> None:
            self._writing = False
            self._write_error = self._write_error or error
            self._written.append((hard_state, last))
            self._wake.set()

        self._writing = True
        self._wrote_at = self._clock.now()
        write(on_done)

    def _make_snapshot(self) -> Snapshot:
        core = self._require_running()
        term = core.log.term_at(self.applied_index)
        assert term is not None
        return Snapshot(
            self.applied_index, term, core.membership.at(self.applied_index), self._take_snapshot()
        )

    def _take_snapshot_if_due(self, core: Raft) -> None:
        n_entries = self.applied_index - self._snapshot_index
        if n_entries < RAFT_SNAPSHOT_ENTRIES and self._bytes_since_snapshot < RAFT_SNAPSHOT_BYTES:
            return
        if self._is_full:
            return
        snapshot = self._make_snapshot()
        try:
            self._log.save_snapshot(snapshot)
        except NoSpace:
            self._wait_for_room("a snapshot")
            return
        self._snapshot_index, self._bytes_since_snapshot = snapshot.index, 0
        core.compact(max(core.log.base_index, snapshot.index - RAFT_TRAILING_ENTRIES))
        self._drop_old_entries(core)
        log.info("raft snapshot node=%d index=%d bytes=%d", self.me, snapshot.index, len(snapshot.data))

    def _drop_old_entries(self, core: Raft) -> None:
        """Not while we are in doubt: what is damaged may be all that is left of something."""
        if not core.doubt:
            self._log.drop_below(core.log.base_index + 1)

    async def _fetch(self, leader: NodeId, index: int) -> None:
        seconds = self._fetch_seconds
        self._fetch_seconds = min(OPERATION_SECONDS, 2 * seconds)
        try:
            with trio.move_on_after(seconds):
                _, _, content = await self._fetch_snapshot(leader, index)
                self._fetched = decode_snapshot(content)
                self._fetch_seconds = FETCH_SECONDS
        except BlockStoreError as error:
            log.info("raft snapshot not fetched node=%d leader=%d: %s", self.me, leader, error)
        finally:
            self._fetching = False
        self._wake.set()

    def _install(self, core: Raft, snapshot: Snapshot) -> None:
        """Durable first, so that a crash at any point finds either the old state or the new."""
        if not core.wants_snapshot(snapshot.index, snapshot.term):
            return
        self._log.save_snapshot(snapshot)
        ready, kept = core.snapshot_saved(snapshot.index, snapshot.term, snapshot.members, self._clock.now())
        if not kept:
            self._anew = snapshot.index + 1
        self._install_snapshot(snapshot.index, snapshot.data)
        self.applied_index = self._snapshot_index = snapshot.index
        self._bytes_since_snapshot = 0
        self._waiting.on_snapshot(snapshot.index)
        self._drop_old_entries(core)
        log.info("raft installed node=%d index=%d", self.me, snapshot.index)
        self._carry_out(ready)
