"""How a client finds its way in a cluster, and asks control.

Any node answers a `FetchView` from its copy of the control state, so the client asks whichever it knows: the
one that answered last, then the others, then the seeds it was given. A silent one delays it by
`HEDGE_SECONDS`, for by then the next is asked as well. Written over `Caller` alone: it runs under trio and
over blocking sockets alike.

Retries: `control` and the volume sessions above are the one layer that repeats requests (STYLE 2). What
repeats is the same message with the same request id, so applying it twice is applying it once.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from blockstore import config
from blockstore.chunk.chunk_shell import NodeTable
from blockstore.codec.messages import FetchView, NodeView, View, VolumeView, WireMessage
from blockstore.errors import (
    BlockStoreError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotLeader,
    ProtocolViolation,
    StaleEpoch,
    Unavailable,
    kind_words,
)
from blockstore.ids import NodeId, RequestId, SessionId
from blockstore.runtime.interfaces import Address, Caller

T = TypeVar("T")

HEDGE_SECONDS = 0.1
"""A view takes a millisecond; who has not answered by then is slow or gone."""

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 0.3
"""So a client tries three times a second while nobody serves, and finds a new owner well under a second after
it began to."""


def may_retry(error: BlockStoreError) -> bool:
    """Whether the same request, sent again, may succeed. An owner that learns it was fenced is about to say
    so."""
    return error.retry or isinstance(error, StaleEpoch)


class Backoff:
    """Pauses of one operation: doubling, with jitter, bounded."""

    __slots__ = ("_pause", "_rng")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pause = BACKOFF_SECONDS_MIN

    def next(self) -> float:
        pause = self._pause * (0.5 + self._rng.random() / 2)
        self._pause = min(2 * self._pause, BACKOFF_SECONDS_MAX)
        return pause


class Attempts:
    """What was tried, for the sentence of a failure."""

    __slots__ = ("count", "last", "telling", "where")

    def __init__(self) -> None:
        self.count = 0
        self.last: BlockStoreError | None = None
        self.telling: BlockStoreError | None = None
        self.where: object = ""

    def add(self, where: object, error: BlockStoreError) -> None:
        self.count += 1
        self.last = error
        if self.telling is None or not isinstance(
            error, DeadlineExceeded
        ):  # that time ran out says nothing new
            self.telling, self.where = error, where

    def sentence(self) -> str:
        if self.telling is None:
            return "nothing could be tried in the time given"
        times = "once" if self.count == 1 else f"{self.count} times"
        told = str(self.telling)
        where = "" if told.startswith(str(self.where)) else f"{self.where}: "
        return f"tried {times}; {where}{told}"


class ClusterSession:
    """One client's knowledge of one cluster. Many tasks of one thread may use it at once."""

    def __init__(
        self, caller: Caller, seeds: Sequence[Address], rng: random.Random, host_id: str = ""
    ) -> None:
        assert seeds
        self.caller = caller
        self.rng = rng
        self.nodes = NodeTable(host_id)
        self.session = SessionId(rng.getrandbits(63))
        self._next_number = 1
        self._seeds = tuple(seeds)
        self._addresses: dict[NodeId, Address] = {}
        self._view: View | None = None
        self._preferred = seeds[0]

    @property
    def revision(self) -> int:
        """Of the newest control state seen."""
        return self._view.revision if self._view else 0

    @property
    def cluster_id(self) -> str:
        """No other cluster has it; "" while no node has answered."""
        return self._view.cluster if self._view else ""

    def next_request(self) -> RequestId:
        """The id of a new control request."""
        number = self._next_number
        self._next_number += 1
        return RequestId(self.session, number)

    def find_address(self, node: NodeId) -> Address | None:
        return self._addresses.get(node)

    def learn(self, view: View) -> None:
        """Take a view in; one that is older than what is known teaches nothing."""
        if view.revision < self.revision:
            return
        if self._view is None or view.nodes != self._view.nodes:
            self._addresses = {node.node: _address_of(node) for node in view.nodes}
            self.nodes.update(view)
        self._view = view

    async def fetch_view(self, volume: str, deadline: float, avoid: Address | None = None) -> View:
        """The view of the first node that answers, asked one after the other without waiting for silent ones.
        `avoid` (one that just failed) is asked last. Unavailable when none answers."""
        caller = self.caller
        until = min(deadline, caller.now() + config.ATTEMPT_SECONDS)
        question = FetchView(volume, self.revision)
        attempts = Attempts()
        stale: View | None = None
        flight = caller.flight()
        try:
            candidates = self._candidates(avoid)
            asked = candidates[0]
            n_open = 0
            while n_open or candidates:
                if candidates:
                    asked = candidates.pop(0)
                    flight.start(asked, asked, question, (), until)
                    n_open += 1
                patience = min(until, caller.now() + HEDGE_SECONDS) if candidates else until
                taken = await flight.next(patience)
                if taken is None:
                    if caller.now() >= until:
                        attempts.add(asked, DeadlineExceeded("no answer in time"))
                        break
                    continue
                n_open -= 1
                address, outcome = taken
                if isinstance(outcome, BlockStoreError):
                    if not may_retry(outcome):
                        raise outcome
                    attempts.add(address, outcome)
                    continue
                outcome.payload.release()
                if not isinstance(outcome.message, View):
                    raise unexpected(outcome.message)
                if outcome.message.revision < self.revision:
                    stale = outcome.message  # a node that lags: use it only if no other answers
                    continue
                self._preferred = address
                self.learn(outcome.message)
                return outcome.message
        finally:
            flight.abandon()
        if stale is not None:
            return stale
        raise Unavailable(f"No node of the store answers: {attempts.sentence()}.")

    async def repeat(self, ask: Callable[[], Awaitable[T]], deadline: float) -> T:
        """What `ask` returns, asked again with pauses until the deadline while nobody can tell."""
        backoff = Backoff(self.rng)
        while True:
            try:
                return await ask()
            except BlockStoreError as error:
                pause = backoff.next()
                if not may_retry(error) or self.caller.now() + pause >= deadline:
                    raise
                await self.caller.sleep(pause)

    async def fetch_volume(
        self, name: str, kind: str, deadline: float, avoid: Address | None = None
    ) -> VolumeView:
        """The volume of that name and kind. NotFound only when the leader of control says so too: another
        node's copy may be older than the volume."""
        view = await self.fetch_view(name, deadline, avoid)
        volume = view.volume
        leader = self._addresses.get(view.leader)
        if volume is None:
            if leader is None:
                raise Unavailable("No leader of control is known just now, who could say what there is.")
            if leader != self._preferred or view.revision < self.revision:
                volume = await self._ask_for_volume(name, leader, deadline)
        if volume is None:
            raise NotFound(f"{kind_words(kind)} {name!r}")
        if volume.kind != kind:
            raise InvalidRequest(f"{name!r} is a {kind_words(volume.kind)}, not a {kind_words(kind)}.")
        return volume

    async def _ask_for_volume(self, name: str, node: Address, deadline: float) -> VolumeView | None:
        until = min(deadline, self.caller.now() + config.ATTEMPT_SECONDS)
        answer = await self.caller.call(node, FetchView(name, self.revision), (), until)
        answer.payload.release()
        if not isinstance(answer.message, View):
            raise unexpected(answer.message)
        self.learn(answer.message)
        return answer.message.volume

    async def control(self, message: WireMessage, deadline: float, wait: float = 0.0) -> WireMessage:
        """Ask control at any node until one answers; NotLeader leads to the leader. `wait` is how long the
        answer may be held back on purpose."""
        caller = self.caller
        backoff = Backoff(self.rng)
        attempts = Attempts()
        candidates = self._candidates(None)
        while (now := caller.now()) < deadline:
            address = candidates.pop(0)
            candidates.append(address)
            try:
                answer = await caller.call(
                    address, message, (), min(deadline, now + wait + config.ATTEMPT_SECONDS)
                )
            except BlockStoreError as error:
                if not may_retry(error):
                    raise
                attempts.add(address, error)
                leader = self._leader_in(error)
                if leader is not None and leader != address:
                    candidates = [leader, *(other for other in candidates if other != leader)]
                await caller.sleep(min(backoff.next(), max(0.0, deadline - caller.now())))
            else:
                answer.payload.release()
                self._preferred = address
                reply: WireMessage = answer.message
                if isinstance(reply, View):
                    self.learn(reply)
                return reply
        raise Unavailable(f"Control did not answer in time: {attempts.sentence()}.")

    def _leader_in(self, error: BlockStoreError) -> Address | None:
        if not isinstance(error, NotLeader):
            return None
        (leader,) = error.fields
        return self._addresses.get(NodeId(int(leader)))

    def _candidates(self, avoid: Address | None) -> list[Address]:
        """Every known address once, the best first: who answered last, live nodes in random order, the
        rest."""
        live: list[Address] = []
        silent: list[Address] = []
        for node in self._view.nodes if self._view else ():
            (live if node.live else silent).append(self._addresses[node.node])
        self.rng.shuffle(live)
        ordered = dict.fromkeys([self._preferred, *live, *silent, *self._seeds])
        if avoid in ordered:
            del ordered[avoid]
            ordered[avoid] = None
        return list(ordered)


def _address_of(node: NodeView) -> Address:
    return Address(node.host, node.port, node.unix, node.host_id)


def unexpected(message: object) -> ProtocolViolation:
    """An answer of the wrong kind."""
    return ProtocolViolation(
        f"a node answered with {type(message).__name__}, which does not fit the question"
    )
