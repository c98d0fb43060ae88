"""Nodes in memory that keep the fragment protocol: what reading and writing chunks is tested against.

One disk on each node, numbered alike. Time is trio's (a mock clock makes waiting free) or, with `blocking`, a
number that waiting moves on, so that nothing ever suspends, as over blocking sockets. Appends are carried out
when they are sent, in order, and answered `delay` seconds later."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import (
    Appended,
    AppendFragment,
    Failed,
    FragmentData,
    FragmentSpec,
    Granted,
    NodeView,
    Placement,
    ReadFragments,
    View,
)
from blockstore.errors import (
    BlockStoreError,
    ConnectionLost,
    Corrupt,
    DeadlineExceeded,
    DiskFailed,
    FragmentFull,
    FragmentSealed,
    InvalidRequest,
    NotFound,
    OffsetMismatch,
    StaleEpoch,
    to_wire,
)
from blockstore.ids import ChunkId, DiskId, NodeId, VolumeId
from blockstore.runtime.interfaces import Address, Answer, Buffer, Message, Payload

T = TypeVar("T")
VOLUME = VolumeId(7)


@dataclass
class Fragment:
    spec: FragmentSpec
    data: bytearray = field(default_factory=bytearray)
    sealed: bool = False
    rotten: bool = False  # its checksum fails when it is read
    misplaced: bool = False  # other bytes are returned, with a checksum that fits them


class FakeNode:
    def __init__(self, number: int) -> None:
        self.disk = DiskId(number)
        self.fragments: dict[ChunkId, Fragment] = {}
        self.delay = 0.001
        self.is_dead = False
        self.is_paused = False
        self.fenced = 0
        self.appends_left = -1  # after so many the disk fails
        self.n_messages = 0
        self.asked: list[tuple[ChunkId, int, int]] = []

    def serve(self, message: Message, payload: bytes) -> tuple[Message, bytes]:
        self.n_messages += 1
        if isinstance(message, AppendFragment):
            return self._append(message, payload), b""
        assert isinstance(message, ReadFragments)
        crcs: list[int] = []
        failed: dict[int, Failed] = {}
        parts: list[bytes] = []
        for index, one in enumerate(message.ranges):
            assert one.disk == self.disk
            self.asked.append((one.chunk, one.offset, one.length))
            try:
                parts.append(self._read(one.chunk, one.offset, one.length))
                crcs.append(crc32c(parts[-1]))
            except BlockStoreError as error:
                failed[index] = Failed(*to_wire(error))
                crcs.append(0)
        return FragmentData(tuple(crcs), failed), b"".join(parts)

    def _append(self, message: AppendFragment, payload: bytes) -> Appended:
        assert message.disk == self.disk
        assert message.chunk.epoch == message.epoch
        if message.epoch < self.fenced:
            raise StaleEpoch(message.chunk.volume, message.epoch, self.fenced)
        if self.appends_left == 0:
            raise DiskFailed(int(self.disk), "Input/output error")
        self.appends_left -= 1
        fragment = self.fragments.get(message.chunk)
        if fragment is None:
            if message.create is None:
                raise OffsetMismatch(0)
            fragment = self.fragments[message.chunk] = Fragment(message.create)
        assert crc32c(payload) == message.crc
        if fragment.sealed:
            raise FragmentSealed(len(fragment.data))
        if message.offset != len(fragment.data):
            raise OffsetMismatch(len(fragment.data))
        if message.offset + len(payload) > fragment.spec.capacity:
            raise FragmentFull
        fragment.data += payload
        return Appended(len(fragment.data))

    def _read(self, chunk: ChunkId, offset: int, length: int) -> bytes:
        fragment = self.fragments.get(chunk)
        if fragment is None:
            raise NotFound(f"fragment of chunk {chunk}")
        if offset + length > len(fragment.data):
            raise InvalidRequest("The range is past the end of the fragment.")
        if fragment.rotten:
            raise Corrupt(f"Fragment of chunk {chunk}", f"disk {self.disk}")
        data = bytes(fragment.data[offset : offset + length])
        return bytes(byte ^ 0x55 for byte in data) if fragment.misplaced else data


class FakeCluster:
    """Nodes, the caller that reaches them, and an owner that grants chunks."""

    def __init__(self, n_nodes: int, *, blocking: bool = False) -> None:
        self.nodes = {number: FakeNode(number) for number in range(1, n_nodes + 1)}
        self.blocking = blocking
        self.placements: dict[ChunkId, Placement] = {}
        self.finished: dict[ChunkId, int] = {}
        self.avoided: list[tuple[DiskId, ...]] = []
        self.n_grants = 0
        self.grant_delay = 0.0
        self.epoch = 1
        self.n_given_back = 0
        self.n_payloads = 0
        self._clock = 0.0
        self._ticket = itertools.count()

    # --- Caller

    def now(self) -> float:
        return self._clock if self.blocking else trio.current_time()

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self.now() + seconds)

    async def sleep_until(self, when: float) -> None:
        if self.blocking:
            self._clock = max(self._clock, when)
        else:
            await trio.sleep_until(when)

    def undoing(self, seconds: float) -> AbstractContextManager[object]:
        return nullcontext()

    def flight(self) -> FakeFlight:
        return FakeFlight(self)

    async def call(
        self, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> Answer:
        flight = self.flight()
        flight.start(None, address, message, payload, deadline)
        taken = await flight.next(deadline + 1)
        assert taken is not None
        if isinstance(taken[1], BlockStoreError):
            raise taken[1]
        return taken[1]

    def answer(
        self, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> tuple[float, Answer | BlockStoreError]:
        """What comes back, and when."""
        node = self.nodes[address.port]
        now = self.now()
        if node.is_dead:
            return now, ConnectionLost(f"{address} hung up")
        if node.is_paused:
            return deadline, DeadlineExceeded(f"{address} did not answer")
        try:
            reply, data = node.serve(message, b"".join(payload))
        except BlockStoreError as error:
            return now + node.delay, error
        if now + node.delay > deadline:
            return deadline, DeadlineExceeded(f"{address} did not answer")
        self.n_payloads += 1
        return now + node.delay, Answer(reply, Payload(memoryview(data), self._on_release))

    def _on_release(self) -> None:
        self.n_given_back += 1

    # --- control and the owner

    def view(self, dead: Sequence[int] = ()) -> View:
        nodes = tuple(
            NodeView(NodeId(n), "node", n, "", f"host-{n}", (), n not in dead, (DiskId(n),))
            for n in self.nodes
        )
        return View("test", 1, NodeId(1), nodes, None)

    def place(self, k: int, m: int) -> Placement:
        """On the first nodes that work and are not avoided; holes if there are too few."""
        avoided = set(self.avoided[-1]) if self.avoided else set[DiskId]()
        good = [n.disk for n in self.nodes.values() if not n.is_dead and n.disk not in avoided]
        return Placement(k, m, tuple((good + [DiskId(0)] * (k + m))[: k + m]))

    def granter(self, k: int, m: int, capacity: int) -> Any:
        async def grant(
            finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
        ) -> Granted:
            if self.grant_delay:
                await self.sleep(self.grant_delay)
            for chunk, length in finished:
                assert chunk not in self.finished, "told once"
                self.finished[chunk] = length
            self.avoided.append(avoid)
            self.n_grants += 1
            chunk = ChunkId(VOLUME, self.epoch, self.n_grants)
            self.placements[chunk] = self.place(k, m)
            return Granted(chunk, self.epoch, self.placements[chunk], capacity)

        return grant


class FakeFlight:
    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._coming: list[tuple[float, int, Any, Answer | BlockStoreError]] = []
        self._ticket = itertools.count()

    def start(
        self, tag: object, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> None:
        due, outcome = self._cluster.answer(address, message, payload, deadline)
        heapq.heappush(self._coming, (due, next(self._ticket), tag, outcome))

    async def next(self, until: float) -> tuple[Any, Answer | BlockStoreError] | None:
        if not self._coming:
            return None
        due = self._coming[0][0]
        await self._cluster.sleep_until(max(min(due, until), self._cluster.now()))
        if due > until:
            return None
        _, _, tag, outcome = heapq.heappop(self._coming)
        return tag, outcome

    def abandon(self) -> None:
        for _, _, _, outcome in self._coming:
            if isinstance(outcome, Answer):
                outcome.payload.release()
        self._coming.clear()


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what never suspends, as the blocking client does."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waited for an event loop")
