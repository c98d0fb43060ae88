"""Lanes and the bus as messages under a schedule, with what a network does to them.

A lane keeps its order, loses nothing while it stands, and when it breaks nobody knows what arrived: that is
TCP. While a link is cut what was sent waits, as it does there, and may arrive long after its sender gave
up. A bus message is lost, doubled, delayed and overtaken. With `wild` lanes, requests are doubled and
overtake each other too: nothing that the protocols promise depends on the order, only their progress does.

Messages travel as they are, not as bytes: the codecs have their own tests.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import log
from typing import Any

from blockstore.errors import BlockStoreError, ConnectionLost, DeadlineExceeded
from blockstore.runtime.interfaces import Address, Answer, Buffer, OnAnswer, Payload, Peer
from tests.simulation.cores.process import Process
from tests.simulation.cores.tasks import Promise
from tests.simulation.heap import Schedule

SWEEP_SECONDS = 0.05
SWEEP_SECONDS_MAX = 0.25
"""How seldom deadlines are looked after when none is near: the next call may have a nearer one."""


@dataclass(slots=True)
class Weather:
    """What the network is like, for one seed; delays in seconds."""

    delay: float = 0.001
    bus_loss: float = 0.0
    bus_doubling: float = 0.0
    very_late: float = 0.0  # how often a bus message takes a second
    wild: float = 0.0  # how often a request is doubled, or overtakes others


class Endpoint(Process):
    """A process that can be called."""

    peer: Peer
    address: Address
    slowness = 1.0

    def receive(self, call: Incoming) -> None:
        raise NotImplementedError

    def hear(self, sender: Any, message: Any) -> None:
        """A bus message."""
        raise NotImplementedError


class Call:
    """As its sender sees it."""

    __slots__ = ("budget", "deadline", "is_done", "lane", "life", "message", "on_answer", "payload")

    def __init__(
        self, lane: Lane, message: Any, payload: bytes, deadline: float, budget: float, on_answer: OnAnswer
    ) -> None:
        self.lane, self.message, self.payload, self.budget = lane, message, payload, budget
        self.deadline, self.life, self.on_answer = deadline, lane.source.life, on_answer
        self.is_done = False

    def finish(self, outcome: Answer | BlockStoreError) -> None:
        """In the sender's process."""
        if not self.is_done:
            self.is_done = True
            self.lane.open.pop(self, None)
            self.on_answer(outcome)


class Incoming:
    """`interfaces.IncomingCall`."""

    __slots__ = ("_call", "_is_answered", "_network", "deadline", "message", "payload", "peer")

    def __init__(self, network: Network, call: Call, deadline: float) -> None:
        self.peer = call.lane.source.peer
        self.message = call.message
        self.payload = Payload(memoryview(call.payload))
        self.deadline = deadline
        self._call, self._network = call, network
        self._is_answered = False

    def answer(
        self, message: Any, payload: Sequence[Buffer] = (), on_sent: Callable[[], None] | None = None
    ) -> None:
        self._send(Answer(message, Payload(memoryview(b"".join(payload)))))
        if on_sent is not None:
            on_sent()

    def fail(self, error: BlockStoreError) -> None:
        self._send(error)

    def _send(self, outcome: Answer | BlockStoreError) -> None:
        assert not self._is_answered, f"{self.message} was answered twice"
        self._is_answered = True
        self._network.send_back(self._call, outcome)


class Lane:
    """From one process to another, and what is on its way."""

    __slots__ = ("answers", "n_held", "open", "requests", "source", "sweeps_in", "target")

    def __init__(self, source: Endpoint, target: Endpoint) -> None:
        self.source, self.target = source, target
        self.requests: deque[Call] = deque()
        self.answers: deque[tuple[Call, Answer | BlockStoreError]] = deque()
        self.open: dict[Call, None] = {}
        self.n_held = [0, 0]  # requests and answers that arrived at a cut
        self.sweeps_in = 0  # the life of its source in which deadlines are looked after


class Network:
    def __init__(self, schedule: Schedule, rng: random.Random, weather: Weather) -> None:
        self.schedule, self.rng, self.weather = schedule, rng, weather
        self.endpoints: dict[str, Endpoint] = {}  # by the host of their address
        self.cut: set[tuple[str, str]] = set()
        self._lanes: dict[tuple[str, str], Lane] = {}
        self.n_messages = 0

    def _delay(self, source: Endpoint, target: Endpoint) -> float:
        delay = self.weather.delay * (0.2 - log(1.0 - self.rng.random()))  # exponential, and never nothing
        if source.slowness != 1.0 or target.slowness != 1.0:
            delay *= max(source.slowness, target.slowness)
        return delay

    # --- lanes

    def post(
        self,
        source: Endpoint,
        address: Address,
        message: Any,
        payload: Sequence[Buffer],
        deadline: float,
        on_answer: OnAnswer,
    ) -> None:
        """`deadline` is on the source's clock."""
        target = self.endpoints.get(address.host)
        if target is None:  # listed, and not there yet
            source.arrive(self.weather.delay, on_answer, ConnectionLost(f"nobody is at {address}"))
            return
        key = (source.name, target.name)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(source, target)
        budget = deadline - source.now()
        call = Call(lane, message, b"".join(payload) if payload else b"", deadline, budget, on_answer)
        lane.open[call] = None
        self.n_messages += 1
        if lane.sweeps_in != source.life:
            lane.sweeps_in = source.life
            source.after(SWEEP_SECONDS, self._sweep, lane)
        rng, wild = self.rng, self.weather.wild
        if wild and rng.random() < wild:
            lane.requests.insert(rng.randint(0, len(lane.requests)), call)
            if rng.random() < 0.5:
                lane.requests.append(call)
                self.schedule.arrive(rng.uniform(0.0, 0.3), self._bring, lane)
        else:
            lane.requests.append(call)
        self.schedule.arrive(self._delay(source, target), self._bring, lane)

    def _sweep(self, lane: Lane) -> None:
        """One timer for all calls of a lane, as its real one has: a call learns a little late that it is
        too late."""
        now = lane.source.now()
        for call in [call for call in lane.open if call.deadline <= now]:
            call.finish(DeadlineExceeded("no answer in time"))
        if lane.open:
            nearest = min(call.deadline for call in lane.open) - now
            pause = min(max(nearest, SWEEP_SECONDS), SWEEP_SECONDS_MAX)
            lane.source.after(pause, self._sweep, lane)
        else:
            lane.sweeps_in = 0

    def _bring(self, lane: Lane) -> None:
        """The next request arrives."""
        source, target = lane.source, lane.target
        if (source.name, target.name) in self.cut:
            lane.n_held[0] += 1
            return
        if not lane.requests:
            return  # the lane broke meanwhile
        call = lane.requests.popleft()
        if target.is_up:
            target.run(target.life, self._receive, (call, target))
        else:
            self._refuse(call)

    def _receive(self, call: Call, target: Endpoint) -> None:
        incoming = Incoming(self, call, target.now() + call.budget)
        try:
            target.receive(incoming)
        except BlockStoreError as error:
            incoming.fail(error)

    def send_back(self, call: Call, outcome: Answer | BlockStoreError) -> None:
        lane = call.lane
        lane.answers.append((call, outcome))
        self.schedule.arrive(self._delay(lane.target, lane.source), self._bring_back, lane)

    def _bring_back(self, lane: Lane) -> None:
        if (lane.target.name, lane.source.name) in self.cut:
            lane.n_held[1] += 1
            return
        if lane.answers:
            call, outcome = lane.answers.popleft()
            lane.source.run(call.life, call.finish, (outcome,))

    def _refuse(self, call: Call) -> None:
        source = call.lane.source
        source.run(call.life, call.finish, (ConnectionLost(f"{call.lane.target.name} refused"),))

    def break_lane(self, lane: Lane) -> None:
        """What is on its way is lost; who waits for answers hears that the lane broke."""
        lane.requests.clear()
        lane.answers.clear()
        for call in list(lane.open):
            lane.source.arrive(self.weather.delay, call.finish, ConnectionLost("the lane broke"))

    def on_crash(self, crashed: Endpoint, *, silent: bool) -> None:
        """`silent`: the machine is gone, and nobody says that its connections are."""
        for lane in self._lanes.values():
            if lane.source is crashed:
                lane.open.clear()
                lane.answers.clear()
                if self.rng.random() < 0.5:
                    lane.requests.clear()  # they had not left it
            elif lane.target is crashed and not silent:
                self.break_lane(lane)

    def lanes_of(self, name: str) -> list[Lane]:
        return [lane for lane in self._lanes.values() if name in (lane.source.name, lane.target.name)]

    # --- links

    def heal(self, links: Sequence[tuple[str, str]] | None = None) -> None:
        self.cut -= self.cut if links is None else set(links)
        for lane in self._lanes.values():
            there, back = (lane.source.name, lane.target.name), (lane.target.name, lane.source.name)
            for way, link, bring in ((0, there, self._bring), (1, back, self._bring_back)):
                if link not in self.cut:
                    for _ in range(lane.n_held[way]):
                        self.schedule.arrive(self.weather.delay, bring, lane)
                    lane.n_held[way] = 0

    # --- the bus

    def tell(self, source: Endpoint, target: Endpoint, sender: Any, message: Any) -> None:
        weather, rng = self.weather, self.rng
        self.n_messages += 1
        copies = 1
        if weather.bus_doubling and rng.random() < weather.bus_doubling:
            copies = 2
        for _ in range(copies):
            if weather.bus_loss and rng.random() < weather.bus_loss:
                continue
            delay = self._delay(source, target)
            if weather.very_late and rng.random() < weather.very_late:
                delay += rng.uniform(0.1, 2.0)
            self.schedule.arrive(delay, self._bring_word, source, target, sender, message)

    def _bring_word(self, source: Endpoint, target: Endpoint, sender: Any, message: Any) -> None:
        if target.is_up and (source.name, target.name) not in self.cut:
            target.run(target.life, target.hear, (sender, message))


class SimCaller:
    """`interfaces.Caller` for one run of a process."""

    def __init__(self, network: Network, process: Endpoint) -> None:
        self.network, self.process = network, process
        self.now = process.now
        self.sleep = process.sleep

    async def call(
        self, address: Address, message: Any, payload: Sequence[Buffer], deadline: float
    ) -> Answer:
        promise: Promise[Answer | BlockStoreError] = Promise()
        self.network.post(self.process, address, message, payload, deadline, promise.keep)
        outcome = await promise
        if isinstance(outcome, BlockStoreError):
            raise outcome
        return outcome

    def undoing(self, seconds: float) -> AbstractContextManager[object]:
        return nullcontext()

    def flight(self) -> SimFlight:
        return SimFlight(self)


class SimFlight:
    __slots__ = ("_caller", "_completed", "_generation", "_n_open", "_promise")

    def __init__(self, caller: SimCaller) -> None:
        self._caller = caller
        self._completed: deque[tuple[Any, Answer | BlockStoreError]] = deque()
        self._n_open = 0
        self._generation = 0
        self._promise: Promise[None] | None = None

    def start(
        self, tag: object, address: Address, message: Any, payload: Sequence[Buffer], deadline: float
    ) -> None:
        self._n_open += 1
        generation = self._generation

        def on_answer(outcome: Answer | BlockStoreError) -> None:
            if generation == self._generation:
                self._n_open -= 1
                self._completed.append((tag, outcome))
                if self._promise is not None:
                    self._promise.keep(None)

        caller = self._caller
        caller.network.post(caller.process, address, message, payload, deadline, on_answer)

    async def next(self, until: float) -> tuple[Any, Answer | BlockStoreError] | None:
        if not self._completed:
            if not self._n_open:
                return None
            promise: Promise[None] = Promise()
            self._promise = promise
            process = self._caller.process
            process.after(until - process.now(), promise.keep, None)
            await promise
            self._promise = None
            if not self._completed:
                return None
        return self._completed.popleft()

    def abandon(self) -> None:
        self._generation += 1
        self._n_open = 0
        self._completed.clear()
