"""What a volume's owner does with requests: which are answered already, which go into the journal, what their
results are; and which chunks it opens, ends and drops.

Pure. The shell brings requests and durable batches, sends answers, seals and deletes. Every request is
applied once (DESIGN invariant 10): it is known from the state, or under way here, or new. Garbage is only
what this says is garbage (invariant 9): sealed, nothing refers to it, and nothing that waits in the journal
is about to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from blockstore.codec.journal_record import (
    HEADER_BYTES,
    BatchRecord,
    ChunkDroppedRecord,
    ChunkOpenedRecord,
    ChunkSealedRecord,
    EpochRecord,
    JournalRecord,
    PutRecord,
    inline_sizes,
)
from blockstore.codec.run_file import Result
from blockstore.config import (
    CHUNK_BYTES_MAX,
    OWNER_QUEUE_BYTES_MAX,
    SESSION_CHUNKS_OPEN_MAX,
    SESSION_IDLE_SECONDS,
    SESSION_RESULTS_MAX,
    SESSION_UNSETTLED_MAX,
)
from blockstore.errors import BlockStoreError, Busy, InvalidRequest
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId
from blockstore.placement.policy import Policy
from blockstore.volume.chunk_places import ChunkPlaces
from blockstore.volume.chunk_table import DATA, RUN, ChunkEntry
from blockstore.volume.journal import Committed, Journal
from blockstore.volume.state import VolumeState, keys_of

OnResult = Callable[[Result | BlockStoreError], None]
DROPS_MAX = 2_000
"""Chunks dropped in one round: 120 GiB. Of a snapshot's end nothing need be felt."""


class Ended(NamedTuple):
    """A chunk that takes no more: its members are to be told."""

    chunk: ChunkId
    disks: tuple[DiskId, ...]
    length: int


class Owner:
    """`keep(chunk, offset, value)` is offered each inline value as it becomes true."""

    def __init__(
        self,
        state: VolumeState,
        journal: Journal,
        places: ChunkPlaces,
        epoch: int,
        wall: float,
        keep: Callable[[ChunkId, int, bytes], None],
        chunk_bytes: int = CHUNK_BYTES_MAX,
        idle_seconds: float = SESSION_IDLE_SECONDS,
    ) -> None:
        self.state, self.journal, self.places, self.epoch = state, journal, places, epoch
        self.applied_to: tuple[ChunkId, int] | None = None
        self._keep = keep
        self._chunk_bytes, self._idle_seconds = chunk_bytes, idle_seconds
        self._pending: dict[RequestId, list[OnResult]] = {}
        self._in_flight: Counter[SessionId] = Counter()
        self._heard: dict[SessionId, float] = {}
        self._since: float | None = None  # when this owner first looked who is idle
        self._ending: set[ChunkId] = set()  # their ends are on their way through the journal
        self._dropping: set[ChunkId] = set()  # and the ends of these
        self._ended: list[Ended] = []
        self.put_bytes = self.placed_bytes = 0
        """Of values put since this owner began; and of these, what clients wrote into chunks themselves."""
        self._keys: dict[RequestId, Collection[bytes]] = {}  # pinned in the map
        self._expected: dict[RequestId, int] = {}  # not in the journal yet, and their bytes
        self._expected_bytes = 0
        self._purge_from: bytes | None = None
        journal.add(EpochRecord(epoch, wall), None, None)

    # --- requests

    def find_answer(self, request: RequestId, now: float, on_result: OnResult) -> bool:
        """Whether the request was seen before: then it is, or will be, answered like the first time. Raise
        InvalidRequest or Busy when it must not be taken."""
        self._heard[request.session] = now
        sessions = self.state.sessions
        known = sessions.find(request)
        if known is not None:
            on_result(known)
            return True
        pending = self._pending.get(request)
        if pending is not None:
            pending.append(on_result)
            return True
        if sessions.is_settled(request):
            raise InvalidRequest("The request was settled before; it is not applied again.")
        if self._in_flight[request.session] >= SESSION_RESULTS_MAX:
            raise Busy("the session has too many requests in flight")
        if sessions.n_results(request.session) >= SESSION_UNSETTLED_MAX:
            raise Busy("the session has too many results that it does not settle")
        if self.journal.waiting_bytes + self._expected_bytes > OWNER_QUEUE_BYTES_MAX:
            raise Busy("the volume's journal has too much waiting")
        return False

    def expect(self, request: RequestId, on_result: OnResult, n_bytes: int = 0) -> None:
        """It is here, with so many bytes, and will be submitted or refused; `find_answer` has not found
        it."""
        self._pending[request] = [on_result]
        self._in_flight[request.session] += 1
        self._expected[request] = n_bytes
        self._expected_bytes += n_bytes

    def submit(self, request: RequestId, record: JournalRecord, value: memoryview | bytes | None) -> None:
        """Into the journal with what was expected. BlocksMissing: fetch them first, and submit it then."""
        keys = keys_of(record)
        if keys:
            self.state.map.pin(keys)
            self._keys[request] = keys
        self._expected_bytes -= self._expected.pop(request, 0)
        self.journal.add(record, value, request)

    def apply(self, committed: Committed) -> None:
        """A batch is durable: what it says becomes true, and whoever waits for it hears so."""
        batch, chunk, offset = committed.batch, committed.chunk, committed.offset
        apply, keep, pending = self.state.apply, self._keep, self._pending
        for i, (record, token) in enumerate(zip(batch.records, committed.tokens, strict=True)):
            at = batch.value_offsets[i]
            result = apply(record, batch.base_sequence + i, chunk, offset + at)
            for size in inline_sizes(record) or ():
                start = at - HEADER_BYTES
                keep(chunk, offset + at, batch.body[start : start + size])
                at += size
            if isinstance(record, PutRecord):
                self.put_bytes += record.size
                self.placed_bytes += 0 if record.inline else record.size
            elif isinstance(record, BatchRecord):
                self.put_bytes += sum(change.size for change in record.changes)
                self.placed_bytes += sum(change.size for change in record.changes if change.extents)
            if isinstance(token, RequestId):
                self._unpin(token)
                self._forget_in_flight(token.session)
                for on_result in pending.pop(token, ()):
                    on_result(result)
        self.applied_to = (chunk, offset + batch.length)

    def refuse(self, tokens: Iterable[object], error: BlockStoreError) -> None:
        """What never becomes true: the journal has taken it back, or never had it."""
        for token in tokens:
            if isinstance(token, RequestId):
                self._unpin(token)
                self._expected_bytes -= self._expected.pop(token, 0)
                self._forget_in_flight(token.session)
                for on_result in self._pending.pop(token, ()):
                    on_result(error)

    def _unpin(self, request: RequestId) -> None:
        keys = self._keys.pop(request, None)
        if keys is not None:
            self.state.map.unpin(keys)

    def _forget_in_flight(self, session: SessionId) -> None:
        left = self._in_flight[session] - 1
        if left:
            self._in_flight[session] = left
        else:
            del self._in_flight[session]

    def give_up(self) -> list[OnResult]:
        """This owner has fallen: everybody who waits for a result that will not come from here."""
        pending, self._pending = self._pending, {}
        return [on_result for waiting in pending.values() for on_result in waiting]

    @property
    def n_pending(self) -> int:
        return len(self._pending)

    # --- chunks

    def finish_granted(self, session: SessionId, finished: Iterable[tuple[ChunkId, int]]) -> None:
        """A session says where chunks end that it appends to no more. Only its own, and nothing that is
        referred to: what a client says must never cut a journal."""
        for chunk, length in finished:
            entry = self.state.chunks.find(chunk)
            if entry is not None and entry.session == session and length >= entry.committed:
                self._end(chunk, length)

    def opening(
        self,
        policy: Policy,
        purpose: str,
        request: RequestId,
        settled: int,
        groups: Sequence[tuple[DiskId, ...]],
        live: Collection[DiskId],
        avoid: Collection[DiskId],
        now: float,
        bytes_max: int = CHUNK_BYTES_MAX,
        preferred: Collection[DiskId] = (),
    ) -> ChunkOpenedRecord:
        """The record that opens a chunk for the request's session. Raise QuorumLost or Busy."""
        if self.state.chunks.n_open(request.session) >= SESSION_CHUNKS_OPEN_MAX:
            raise Busy("the session has too many open chunks")
        placement = self.places.choose(policy, groups, live, preferred, now, avoid)
        capacity = min(self._chunk_bytes, bytes_max) // policy.k
        return ChunkOpenedRecord(request, settled, self.places.next_chunk(), placement, capacity, purpose)

    def _end(self, chunk: ChunkId, length: int) -> None:
        """Nobody appends to it any more: fix its length, in the journal and then at its members. Not before:
        a put that waits in the journal may refer to more of it than is known here."""
        entry = self.state.chunks.find(chunk)
        if entry is None or entry.length >= 0 or not 0 <= length <= entry.capacity or chunk in self._ending:
            return

        def on_result(result: Result | BlockStoreError) -> None:
            self._ending.discard(chunk)
            if not isinstance(result, BlockStoreError):
                self._ended.append(Ended(chunk, entry.placement.disks, entry.length))

        self._ending.add(chunk)
        self._submit_own(ChunkSealedRecord(chunk, length), on_result)

    def _submit_own(self, record: JournalRecord, on_result: OnResult) -> None:
        """One that names no keys."""
        request = self.journal.own_request()
        self.expect(request, on_result)
        self.submit(request, record, None)

    def take_ended(self) -> list[Ended]:
        """Chunks whose end has become durable since the last call."""
        ended, self._ended = self._ended, []
        return ended

    # --- tidying

    def end_idle_grants(self, now: float) -> None:
        is_gone = self._gone_by(now)
        for chunk, entry in self.state.chunks.open_chunks(DATA):
            if is_gone(entry.session):
                # What lies behind the last reference was never acknowledged to anybody.
                self._end(chunk, entry.committed)
        self._heard = {
            session: when for session, when in self._heard.items() if now - when <= self._idle_seconds
        }

    def _gone_by(self, now: float) -> Callable[[SessionId], bool]:
        """Whether a session is idle for so long that it has lost its grants. One that this owner never heard
        of had an earlier owner, and is given as long again. One with a request under way is there."""
        since = self._since = now if self._since is None else self._since
        heard, in_flight, idle = self._heard, self._in_flight, self._idle_seconds
        return lambda session: session not in in_flight and now - heard.get(session, since) > idle

    def purge_some(self, n_keys: int) -> bool:
        """Drop history that no snapshot sees, of so many keys. False: there is none left to look at.
        BlocksMissing."""
        state = self.state
        if state.history_to_purge:
            state.history_to_purge = False
            self._purge_from = b""
        if self._purge_from is None:
            return False
        self._purge_from = state.purge_some(self._purge_from, n_keys) or None
        return True

    def drop_dead(self, needed: frozenset[ChunkId], now: float, *, runs_too: bool = True) -> None:
        """Drop what nothing refers to, is about to, or needs (`needed`: journal and checkpoint). `runs_too`:
        no checkpoint is being written, so a run's chunk that is not needed is not about to be."""
        dropping = self._dropping
        dead = self.state.chunks.dead_chunks(needed | self.journal.referred_chunks(), self._gone_by(now))
        for chunk, entry in dead[:DROPS_MAX]:
            if chunk not in dropping and (runs_too or entry.purpose != RUN):
                dropping.add(chunk)
                self._submit_own(ChunkDroppedRecord(chunk), self._on_dropped(chunk))

    def to_empty(
        self, needed: frozenset[ChunkId], now: float, *, journals_too: bool
    ) -> list[tuple[ChunkId, ChunkEntry]]:
        """`ChunkTable.to_empty`, without those that records under way still refer to."""
        needed |= self.journal.referred_chunks()
        return self.state.chunks.to_empty(needed, self._gone_by(now), journals_too=journals_too)

    def _on_dropped(self, chunk: ChunkId) -> OnResult:
        return lambda _: self._dropping.discard(chunk)
