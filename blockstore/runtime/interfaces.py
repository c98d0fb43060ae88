"""What the rest of the program may know of the world: small Protocols, real and simulated alike.

Everything above `runtime/` reaches network, disk, clock, chance and threads through these. Each has a real
implementation (`real_*.py`), a simulated one (`sim/`), and one suite in `tests/contracts/` run on both.

Callbacks (`on_done`, `on_answer`, a `Handler`) always run in the trio thread, never re-entrantly from inside
the call that registered them, and must not block or raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from blockstore.errors import BlockStoreError
from blockstore.ids import NodeId

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview
Message = Any
"""A frozen struct of `codec/messages.py`. Lanes carry it and never look inside; codec/ cannot be imported
here."""


# --- time and chance


class Clock(Protocol):
    def now(self) -> float:
        """Seconds on a monotonic clock: the only one that decisions may use."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, as data only."""
        ...

    async def sleep_until(self, when: float) -> None: ...


# --- lanes: requests, answers and data


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer listens. `unix` is preferred when it is set and `host_id` is this machine's."""

    host: str
    port: int
    unix: str = ""
    host_id: str = ""

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as its certificate (or the in-memory network) vouches."""

    kind: Literal["node", "client", "local"]
    name: str  # a node's id in decimal, a client's credential name
    role: Literal["node", "admin", "write", "read"]
    fingerprint: str = ""  # SHA-256 of the certificate, hex

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Payload:
    """The raw bytes behind a frame's header. `view` is valid until `release`, which gives the buffer back.

    Not releasing is safe (the buffer is then garbage collected), releasing early and reading on is not.
    """

    __slots__ = ("_give_back", "view")

    def __init__(self, view: memoryview, give_back: Callable[[], None] | None = None) -> None:
        self.view = view
        self._give_back = give_back

    def __len__(self) -> int:
        return self.view.nbytes

    def release(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            self.view = memoryview(b"")
            give_back()


@dataclass(slots=True)
class Answer:
    message: Message
    payload: Payload


class IncomingCall(Protocol):
    """A request that a peer sent here. Exactly one of `answer` and `fail` is called, once, now or later."""

    @property
    def peer(self) -> Peer: ...
    @property
    def message(self) -> Message: ...
    @property
    def payload(self) -> Payload: ...
    @property
    def deadline(self) -> float:
        """On the receiver's monotonic clock: what remains of the sender's budget."""
        ...

    def answer(
        self, message: Message, payload: Sequence[Buffer] = (), on_sent: Callable[[], None] | None = None
    ) -> None:
        """Queue the answer; the buffers belong to the lane until they are sent, which `on_sent` tells (once,
        also when the peer is gone). Nothing else happens if it is gone. Releasing the request's payload is up
        to the handler, before or after."""
        ...

    def fail(self, error: BlockStoreError) -> None: ...


Handler = Callable[[IncomingCall], None]
"""Called for each request. A BlockStoreError raised here is the answer; any other is logged and answered as
ours."""

OnAnswer = Callable[[Answer | BlockStoreError], None]


class Lane(Protocol):
    """One connection to one peer, opened when first needed, opened again after it was lost."""

    def post(self, message: Message, payload: Sequence[Buffer], deadline: float, on_answer: OnAnswer) -> None:
        """Send without waiting. `on_answer` is called exactly once: with the answer, the error that the peer
        answered, `ConnectionLost`, `DeadlineExceeded` (monotonic `deadline` passed) or `Busy` (queue bound).
        Requests posted to one lane in one order arrive in that order. Costs no task and no cancel scope. The
        buffers must not change before an `Answer` has come; after an error they may still be on their way."""
        ...

    async def call(self, message: Message, payload: Sequence[Buffer], deadline: float) -> Answer:
        """`post` and wait; raises the error. Cancelling forgets the answer, not the request."""
        ...


class Network(Protocol):
    """Dials peers; one lane each, kept."""

    def lane(self, address: Address) -> Lane: ...


class Listener(Protocol):
    """A started server of lanes."""

    @property
    def address(self) -> Address: ...

    def drop(self, fingerprint: str, reason: BlockStoreError) -> None:
        """Close every connection of this certificate, saying why."""
        ...


# --- the wire: how frames are spelled, for whoever moves them


REQUEST: Final = 1
ANSWER: Final = 2
HELLO: Final = 3
"""First frame of a client that has no certificate; carries `Hello`, answered under the same call id."""
CLOSING: Final = 4
"""A server's last frame before it hangs up; carries `Failed`, the outcome of every call still open."""


class Prefix(NamedTuple):
    """A frame's fixed part, checked: its lengths are within the limits and may be believed."""

    kind: int
    call_id: int
    header_bytes: int
    payload_bytes: int
    budget_ms: int  # what was left of the sender's deadline
    header_crc: int


class Wire(Protocol):
    """`codec/frame.py`, seen from below. A frame is a prefix of `prefix_bytes`, a header, a raw payload."""

    @property
    def prefix_bytes(self) -> int: ...

    def parse_prefix(self, buffer: Buffer, offset: int = 0) -> Prefix:
        """ProtocolViolation or UnknownFormat, with a sentence that says what is wrong."""
        ...

    def encode(self, kind: int, call_id: int, message: Message, payload_bytes: int, budget_ms: int) -> bytes:
        """Prefix and header; the payload follows. InvalidRequest if it would break a limit."""
        ...

    def decode(self, prefix: Prefix, header: Buffer) -> Message:
        """ProtocolViolation if the header is damaged, unknown or not of the prefix's kind."""
        ...

    def hello_answer(self) -> Message: ...

    def failed(self, error: BlockStoreError) -> Message: ...

    def error_of(self, message: Message) -> BlockStoreError | None:
        """The error that a `Failed` carries; None for any other message."""
        ...


# --- the caller: what client code needs, over trio or over blocking sockets


class Flight(Protocol):
    """Several calls under way at once, taken as they complete."""

    def start(
        self, tag: object, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> None: ...

    async def next(self, until: float) -> tuple[Any, Answer | BlockStoreError] | None:
        """The next completed call as `(tag, outcome)`; None when monotonic `until` passes first, or nothing
        is left."""
        ...

    def abandon(self) -> None:
        """Forget what is still under way; late answers are dropped and their buffers released."""
        ...


class Caller(Protocol):
    """The async client code is written over this alone, so that it runs under trio (`real_net.py`) and,
    driven by one `coroutine.send(None)`, over blocking sockets (`blocking_net.py`), where nothing ever
    suspends."""

    def now(self) -> float: ...

    async def call(
        self, address: Address, message: Message, payload: Sequence[Buffer], deadline: float
    ) -> Answer: ...

    def flight(self) -> Flight: ...

    async def sleep(self, seconds: float) -> None: ...

    def undoing(self, seconds: float) -> AbstractContextManager[object]:
        """What is awaited in it goes on for so long although the task is cancelled: it takes back what others
        must not be left with."""
        ...


# --- bus: small messages among nodes that may be lost


class BusPeer(NamedTuple):
    """Where a node's bus listens, and the CURVE key (Z85) that it must prove to have; none in a plain
    cluster."""

    host: str
    port: int
    public_key: bytes = b""


class Bus(Protocol):
    """Sends without waiting; what cannot be queued is dropped. Messages of one tick travel packed as one."""

    def send(self, to: NodeId, message: bytes) -> None: ...

    def publish(self, message: bytes) -> None:
        """To every node this one knows, itself not included."""
        ...


OnBusMessage = Callable[[NodeId, bytes], None]
"""Called with the authenticated sender."""


# --- disk


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes to put at `offset` of a file, gathered from several buffers."""

    offset: int
    buffers: Sequence[Buffer]


class File(Protocol):
    """An open file of a disk. After a failed write or sync it answers every further one with DiskFailed."""

    @property
    def name(self) -> str: ...

    def submit(self, writes: Sequence[Write], on_done: Callable[[BlockStoreError | None], None]) -> None:
        """Write, then fdatasync, then `on_done(None)`; or `on_done(error)` (NoSpace, DiskFailed). Submissions
        to one file are carried out in order; all that wait when a sync begins share it (group commit). A
        failed submission fails every later one of the file."""
        ...

    def read_now(self, offset: int, into: memoryview) -> bool:
        """Fill `into` from cached pages without blocking; False if that is not possible (then
        `submit_read`)."""
        ...

    def submit_read(
        self, offset: int, into: memoryview, on_done: Callable[[BlockStoreError | None], None]
    ) -> None:
        """Fill `into` in a worker thread. Reading past the end is DiskFailed."""
        ...

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`; blocking, for start-up. Reading past the end is DiskFailed."""
        ...

    def write(self, writes: Sequence[Write]) -> None:
        """Write, then fdatasync; blocking, for start-up, when nothing else is under way on this file."""
        ...

    def forget_cached(self) -> None:
        """Drop cached pages that are clean, so that the next read shows what the disk has: after a write that
        failed, the cache may show bytes that were never stored, also to a later process."""
        ...

    def close(self) -> None:
        """Synchronous; waits for what is under way."""
        ...


class Disk(Protocol):
    """One directory on one file system. Names are flat or `sub/name`. Blocking calls are for start-up and for
    small metadata; they raise NoSpace or DiskFailed."""

    @property
    def path(self) -> str: ...

    async def offload(self, work: Callable[[], T]) -> T:
        """What `work` returns, done in a worker thread: many blocking calls at start-up, while others run."""
        ...

    def free_bytes(self) -> int: ...

    def names(self, sub: str = "") -> list[str]:
        """File names in the directory, or in a folder of it, sorted; empty if there is no such folder."""
        ...

    def open(self, name: str, size: int | None = None) -> File:
        """Open for reading and writing. With `size`: create it when missing, preallocated to `size` bytes,
        its directory entry durable when this returns. Without: NotFound when missing."""
        ...

    def submit_open(self, name: str, size: int, on_done: Callable[[File | BlockStoreError], None]) -> None:
        """`open` with `size` in a worker thread: creating a fragment must not stall the loop."""
        ...

    def read_file(self, name: str) -> bytes | None:
        """The whole of a small file; None when there is none."""
        ...

    def replace_file(self, name: str, content: bytes) -> None:
        """Write, sync, rename over, sync the directory: afterwards either the old or the new is there,
        whole."""
        ...

    def remove(self, name: str) -> None:
        """Unlink and sync the directory; no error when missing."""
        ...

    def sync_all(self) -> None:
        """Everything that can be read here, and every name, is on the disk when this returns: also what an
        earlier process wrote and did not live to sync. Blocking, for start-up."""
        ...

    def submit_remove(self, name: str, on_done: Callable[[BlockStoreError | None], None]) -> None:
        """`remove` in a worker thread: freeing 64 MiB of blocks takes the file system a while."""
        ...
