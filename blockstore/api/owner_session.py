"""A client's session with one volume: who owns it, what was asked of it, what came back.

Every request carries `RequestId(session, number)` and `settled`, the smallest number not yet answered. A
retry is the same request with the same id, so it is applied once, whichever owner answers it in the end. A
request whose time ran out is given up: its number counts as settled then, and an owner drops it should it
still arrive.

An attempt goes to the believed owner. When it fails in a way that says retrying is safe, or stays unanswered
while control names another owner, the view is refreshed and the request sent again, after a pause with
jitter, until the operation's deadline: this is the one layer that retries (STYLE 2). Written over `Caller`
alone; many tasks may use one session at once, and nothing else runs between two awaits, which keeps the
numbers right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from blockstore import config
from blockstore.api.cluster import (
    HEDGE_SECONDS,
    Attempts,
    Backoff,
    ClusterSession,
    may_retry,
    unexpected,
)
from blockstore.codec.messages import (
    Batch,
    Delete,
    Grant,
    KeyHistory,
    ListChanges,
    ListKeys,
    Lookup,
    LookupMany,
    Put,
    Restore,
    SnapshotClone,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotHold,
    SnapshotList,
    VolumeCall,
    VolumeInfo,
    VolumeView,
)
from blockstore.errors import (
    BlockStoreError,
    Busy,
    DeadlineExceeded,
    NotFound,
    NotOwner,
    StaleEpoch,
    Unavailable,
    kind_words,
)
from blockstore.ids import NodeId, RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import Address, Answer, Buffer

FIRST_ATTEMPT_SECONDS = 0.5
"""An owner answers in milliseconds. One that has not by then may be paused or cut off, and a successor
serving."""

WATCH_SECONDS = 0.25
"""While a later attempt is unanswered, control is asked this often whether the owner changed."""

LOOKUPS_IN_FLIGHT = 4

Op = (
    Put
    | Delete
    | Lookup
    | LookupMany
    | ListKeys
    | SnapshotCreate
    | SnapshotDelete
    | SnapshotList
    | Grant
    | VolumeInfo
    | ListChanges
    | KeyHistory
    | Restore
    | SnapshotHold
    | Batch
    | SnapshotClone
)


A = TypeVar("A")


class OwnerSession:
    """Requests to the owner of the volume called `name`."""

    def __init__(self, cluster: ClusterSession, name: str, kind: str = "bucket") -> None:
        self.cluster = cluster
        self.name = name
        self._kind = kind
        self._caller = cluster.caller
        self._session = SessionId(cluster.rng.getrandbits(63))
        self._next_number = 1
        self._unanswered: dict[int, None] = {}  # in order of number: the first is the smallest
        self._volume = VolumeId(0)
        self._epoch = 0
        self._owner: Address | None = None
        self._refreshing = False

    async def fetch_view(self, timeout: float) -> VolumeView:
        """What control says about the volume. NotFound when there is none."""
        deadline = self._caller.now() + timeout
        volume = await self.cluster.repeat(
            lambda: self.cluster.fetch_volume(self.name, self._kind, deadline), deadline
        )
        self._adopt(volume)
        return volume

    # --- requests

    async def call(self, op: Op, payload: Sequence[Buffer], deadline: float) -> Answer:
        """The owner's answer to `op`. Raises what the owner said, or Unavailable at the deadline."""
        number = self._next_number
        self._next_number = number + 1
        unanswered = self._unanswered
        unanswered[number] = None
        attempts = Attempts()
        tried = -1
        try:
            owner = self._owner
            if owner is not None:
                tried = self._epoch
                until = self._caller.now() + FIRST_ATTEMPT_SECONDS
                try:
                    return await self._caller.call(
                        owner, self._message(number, op), payload, until if until < deadline else deadline
                    )
                except BlockStoreError as error:
                    _raise_if_final(error, op)
                    attempts.add(owner, error)
                    self._learn_from(error)
            return await self._call_again(number, op, payload, deadline, attempts, tried)
        finally:
            del unanswered[number]

    async def _call_again(
        self, number: int, op: Op, payload: Sequence[Buffer], deadline: float, attempts: Attempts, tried: int
    ) -> Answer:
        """Attempts after the first, each at whoever is believed to be the owner then. `tried` is the epoch
        that the last one was meant for: as long as nothing newer is known, pause and ask control."""
        caller = self._caller
        backoff = Backoff(self.cluster.rng)
        while (now := caller.now()) < deadline:
            is_news = self._epoch != tried
            tried = self._epoch
            owner = self._owner
            try:
                if not is_news:
                    await caller.sleep(min(backoff.next(), deadline - now))
                if owner is None or not (is_news or isinstance(attempts.last, Busy)):
                    await self._refresh(deadline)
                    tried, owner = self._epoch, self._owner
                return await self._attempt(number, op, payload, deadline)
            except BlockStoreError as error:
                _raise_if_final(error, op)
                attempts.add(owner or "no owner", error)
                self._learn_from(error)
        raise Unavailable(
            f"{kind_words(self._kind).capitalize()} {self.name!r} did not answer in time: "
            f"{attempts.sentence()}."
        )

    async def _attempt(self, number: int, op: Op, payload: Sequence[Buffer], deadline: float) -> Answer:
        """One attempt at the believed owner, given up for a newer one as soon as control names it."""
        owner, epoch, caller = self._owner, self._epoch, self._caller
        if owner is None:
            raise Unavailable("it has no owner at the moment")
        until = min(deadline, caller.now() + config.ATTEMPT_SECONDS)
        flight = caller.flight()
        try:
            flight.start(None, owner, self._message(number, op), payload, until)
            while True:
                taken = await flight.next(min(until, caller.now() + WATCH_SECONDS))
                if taken is not None:
                    _, outcome = taken
                    if isinstance(outcome, BlockStoreError):
                        raise outcome
                    return outcome
                if caller.now() >= until:
                    raise DeadlineExceeded(f"{owner} did not answer within {config.ATTEMPT_SECONDS:g} s")
                await self._watch(until)
                if self._epoch != epoch:
                    raise NotOwner(self._volume, 0, self._epoch)
        finally:
            flight.abandon()

    async def _watch(self, deadline: float) -> None:
        try:
            await self._refresh(deadline)
        except BlockStoreError as error:
            if not may_retry(error):  # that nobody else answers either is no reason to stop waiting
                raise

    def _message(self, number: int, op: Op) -> VolumeCall:
        return VolumeCall(
            self._volume, self._epoch, RequestId(self._session, number), next(iter(self._unanswered)), op
        )

    # --- the way to the owner

    async def _refresh(self, deadline: float) -> None:
        if self._refreshing:  # by another task: its answer serves us as well
            await self._caller.sleep(HEDGE_SECONDS)
            return
        self._refreshing = True
        try:
            self._adopt(await self.cluster.fetch_volume(self.name, self._kind, deadline, avoid=self._owner))
        finally:
            self._refreshing = False

    def _adopt(self, view: VolumeView) -> None:
        """Believe a view, unless a later one is known: ids and epochs only grow."""
        if (view.volume, view.epoch) < (self._volume, self._epoch):
            return
        if view.volume != self._volume:  # deleted and made anew under the same name
            self._begin_anew()
        self._volume, self._epoch = view.volume, view.epoch
        self._owner = self.cluster.find_address(view.owner)

    def _begin_anew(self) -> None:
        """The volume is another one from now on."""

    def _learn_from(self, error: BlockStoreError) -> None:
        """A node that is not the owner names whom it believes to be."""
        if not isinstance(error, NotOwner):
            return
        volume, owner, epoch = (int(field) for field in error.fields)
        address = self.cluster.find_address(NodeId(owner))
        if volume == self._volume and epoch > self._epoch and address is not None:
            self._epoch, self._owner = epoch, address

    async def ask(self, op: Op, kind: type[A], timeout: float, payload: Sequence[Buffer] = ()) -> A:
        """An answer of that kind, without payload."""
        answer = await self.call(op, payload, self._caller.now() + timeout)
        answer.payload.release()
        if not isinstance(answer.message, kind):
            raise unexpected(answer.message)
        return answer.message

    async def change(self, op: Delete | SnapshotDelete | SnapshotClone | Restore, timeout: float) -> None:
        """Carry out `op`; durable when this returns."""
        answer = await self.call(op, (), self._caller.now() + timeout)
        answer.payload.release()

    # --- many requests

    async def _call_many(self, ops: Sequence[LookupMany], deadline: float) -> list[Answer]:
        """Answers in order; several requests are under way at once, and what fails goes the slow way
        alone."""
        answers: dict[int, Answer] = {}
        if ops and (len(ops) == 1 or self._owner is None):
            answers[0] = await self.call(ops[0], (), deadline)
        owner = self._owner
        if len(ops) > len(answers) and owner is not None:
            await self._call_flight(ops, owner, deadline, answers)
        for index, op in enumerate(ops):
            if index not in answers:
                answers[index] = await self.call(op, (), deadline)
        return [answers[index] for index in range(len(ops))]

    async def _call_flight(
        self, ops: Sequence[LookupMany], owner: Address, deadline: float, answers: dict[int, Answer]
    ) -> None:
        """One attempt at each op that has no answer yet."""
        flight = self._caller.flight()
        waiting = [index for index in range(len(ops)) if index not in answers][::-1]
        numbers: list[int] = []
        n_open = 0
        until = min(deadline, self._caller.now() + config.ATTEMPT_SECONDS)
        try:
            while waiting or n_open:
                if waiting and n_open < LOOKUPS_IN_FLIGHT:
                    index = waiting.pop()
                    number = self._next_number
                    self._next_number = number + 1
                    self._unanswered[number] = None
                    numbers.append(number)
                    flight.start(index, owner, self._message(number, ops[index]), (), until)
                    n_open += 1
                    continue
                taken = await flight.next(until)
                if taken is None:
                    return
                n_open -= 1
                tag, outcome = taken
                index = int(tag)
                if isinstance(outcome, BlockStoreError):
                    _raise_if_final(outcome, ops[index])
                    self._learn_from(outcome)
                else:
                    answers[index] = outcome
                    until = min(deadline, self._caller.now() + config.ATTEMPT_SECONDS)
        finally:
            flight.abandon()
            for number in numbers:
                del self._unanswered[number]


def _raise_if_final(error: BlockStoreError, op: Op) -> None:
    """Go on only if the same request may be sent again. A node whose copy of control is older than the volume
    says that there is no such volume; control is asked then. An owner's word that it cannot take extents is
    remembered as the request's result: their bytes must be written anew, under a new request."""
    if isinstance(error, NotFound) and str(error.fields[0]).startswith("volume "):
        return
    if not may_retry(error) or (isinstance(error, StaleEpoch) and _names_extents(op)):
        raise error


def _names_extents(op: Op) -> bool:
    if isinstance(op, Batch):
        return any(change.extents for change in op.changes)
    return isinstance(op, Put) and bool(op.extents)
