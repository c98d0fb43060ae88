"""The bus over ZeroMQ: one receiving socket for all, one sending socket for each peer.

ZeroMQ brings reconnection, bounded queues and its own I/O thread, so a heartbeat leaves while the loop is
busy. What we add are the walls:

- CURVE: a connection is encrypted and both ends prove their keys. Which keys may speak is decided by
  `peer_of_key` twice: when a connection shakes hands (ZAP, RFC 27, answered by our own task) and again for
  each message, so that a node taken off the list falls silent at once, whatever connections it still has.
- A plain bus (no keys) believes the sender's id in the message, and so binds to loopback only.
- Every queue has a bound, in messages (high-water marks) and in bytes (`maxmsgsize`); only single-frame
  messages are taken. libzmq holds a message of many frames until its last one is there: only a listed node
  can send those.
- Nothing is queued for a peer that is not connected (`IMMEDIATE`): a restarted peer gets news, not history.

Lost messages are the rule of the bus, not an error: they are counted in `dropped` and `refused`.
"""

from __future__ import annotations

import ipaddress
import logging
import socket as sockets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

import trio
import zmq
from zmq.utils import z85

from blockstore.config import BUS_PACK_BYTES_MAX, BUS_PACKS_QUEUED_MAX, HANDSHAKE_SECONDS_MAX
from blockstore.errors import AddressInUse, InvalidRequest, ProtocolViolation
from blockstore.ids import KiB, NodeId
from blockstore.runtime.bus_pack import MESSAGE_BYTES_MAX, packs, unpack
from blockstore.runtime.interfaces import BusPeer, Clock, OnBusMessage

log = logging.getLogger(__name__)

PeerOfKey = Callable[[bytes], NodeId | None]
"""The node that control lists with this CURVE public key (Z85), or None."""

RECONNECT_MS = 50
RECONNECT_MS_MAX = 500
CONNECT_TIMEOUT_MS = 1_000
UNACKNOWLEDGED_MS_MAX = 3_000
"""A link cut without a word (no FIN) is noticed by then, by the kernel, and connected anew. Not by ZMTP's own
heartbeats: libzmq aborts the process when it finds a PING among the messages that it holds back while a queue
is full and the connection has broken meanwhile (its issue 4364), as after a partition."""

KEEPALIVE_SECONDS, KEEPALIVE_PROBES = 1, 3
"""The same for the receiving end, which has nothing unacknowledged."""

UNREACHED_SECONDS_MAX = 5.0
"""A peer not reached for so long gets a new socket. libzmq never dials again once it was turned away for
good, and while a peer is down its port may be another program's."""

UNSENT_BYTES_MAX = BUS_PACK_BYTES_MAX * BUS_PACKS_QUEUED_MAX
"""To one peer within one tick: more would not fit its queue anyway."""

CURVE_BYTES = 64
"""What encryption adds to a message: command name, nonce and authenticator are 33 bytes (RFC 26)."""

MESSAGES_PER_TURN = 64
"""Taken from the socket before others have their turn."""

STREAM_EVENTS_QUEUED_MAX = 1_000
"""Per subscriber of the event stream; a slow one misses events and reads them over a lane."""

STREAM_SUBSCRIPTION_BYTES_MAX = 4 * KiB

REFUSED_KEYS_REMEMBERED = 256
REFUSED_KEY_SILENCE_SECONDS = 60.0
"""A refused node tries again several times a second; one line a minute says all that there is."""

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by RFC 27
_ZAP_DOMAIN = b"blockstore"
_ZAP_FRAMES = 7


@dataclass(frozen=True, slots=True)
class BusKeys:
    """A CURVE key pair in Z85, 40 characters each."""

    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> BusKeys:
        return cls(*zmq.curve_keypair())

    @classmethod
    def from_secret(cls, secret: bytes) -> BusKeys:
        return cls(zmq.curve_public(secret), secret)


@dataclass(slots=True)
class _Link:
    """The sending side towards one peer."""

    peer: BusPeer
    socket: zmq.Socket[bytes] | None  # None: its address or key cannot be used
    reached: float  # when a pack last went out, or this socket was made
    unsent: list[bytes]
    unsent_bytes: int = 0


class RealBus:
    """`async with RealBus(…) as bus`: bound and served within the block, gone after it."""

    def __init__(
        self,
        me: NodeId,
        on_message: OnBusMessage,
        keys: BusKeys | None,
        peer_of_key: PeerOfKey,
        clock: Clock,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        stream_path: str = "",
    ) -> None:
        """`port` 0 takes a free one (see `port`). `stream_path`: where local programs subscribe to events."""
        self._me, self._on_message, self._keys, self._peer_of_key = me, on_message, keys, peer_of_key
        self._clock, self._host, self._stream_path = clock, host, stream_path
        self.port = port
        self.dropped = 0
        """Messages that could not be queued for their peer."""
        self.refused = 0
        """Messages and connections that were not let in."""
        self.packs_sent = 0
        self.packs_received = 0
        self._links: dict[NodeId, _Link] = {}
        self._unflushed: list[_Link] = []
        self._flusher: trio.lowlevel.Task | None = None  # parked, waiting for something to send
        self._refused_keys: dict[bytes, float] = {}

    async def __aenter__(self) -> RealBus:
        self._context = zmq.Context(io_threads=1)  # its own: the ZAP endpoint is one for each context
        self._bound: list[zmq.Socket[bytes]] = []
        try:
            zap = self._bind_zap() if self._keys is not None else None  # first: before anyone can ask
            receiving = self._bind_receiving()
            self._stream = self._bind_stream() if self._stream_path else None
        except BaseException:
            self._close_sockets()
            raise
        self._tasks = trio.open_nursery()
        self._nursery = await self._tasks.__aenter__()
        if zap is not None:
            self._nursery.start_soon(self._admit, zap)
        self._nursery.start_soon(self._receive, receiving)
        self._nursery.start_soon(self._flush)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nursery.cancel_scope.cancel()
        try:
            # The block's own error is not handed to the nursery, which would wrap it in a group.
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._close_sockets()

    # --- sending

    def send(self, to: NodeId, message: bytes) -> None:
        link = self._links.get(to)
        if link is None:
            self.dropped += 1
        else:
            self._enqueue((link,), message)

    def publish(self, message: bytes) -> None:
        self._enqueue(self._links.values(), message)

    def stream(self, event: bytes) -> None:
        """To every local subscriber; nothing happens without a stream or subscribers."""
        if self._stream is not None:
            self._stream.send(event)  # PUB never blocks: it drops for a subscriber that is full

    def set_peers(self, peers: Mapping[NodeId, BusPeer]) -> None:
        """Connect to exactly these, this node excepted; a link whose peer did not change is left alone."""
        for node, link in list(self._links.items()):
            if peers.get(node) != link.peer:
                del self._links[node]
                self.dropped += len(link.unsent)
                link.unsent.clear()
                _close(link.socket)
        for node, peer in peers.items():
            if node != self._me and node not in self._links:
                self._links[node] = _Link(peer, self._connect(node, peer), self._clock.now(), [])

    def _enqueue(self, links: Iterable[_Link], message: bytes) -> None:
        for link in links:
            link.unsent_bytes += len(message)
            if len(message) > MESSAGE_BYTES_MAX or link.unsent_bytes > UNSENT_BYTES_MAX:
                link.unsent_bytes -= len(message)
                self.dropped += 1
                continue
            if not link.unsent:
                self._unflushed.append(link)
            link.unsent.append(message)
        if self._unflushed and self._flusher is not None:
            trio.lowlevel.reschedule(self._flusher)
            self._flusher = None

    async def _flush(self) -> None:
        """Woken by the first message of a tick, runs in the next: what came meanwhile goes along."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._flusher = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if not self._unflushed:
                self._flusher = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            links, self._unflushed = self._unflushed, []
            for link in links:
                messages, link.unsent, link.unsent_bytes = link.unsent, [], 0
                self._send_all(link, messages)
            await trio.lowlevel.checkpoint()

    def _send_all(self, link: _Link, messages: list[bytes]) -> None:
        now = self._clock.now()
        left = len(messages)
        for pack, count in packs(self._me, messages):
            if link.socket is None or not _try_send(link.socket, pack):
                break
            link.reached = now
            self.packs_sent += 1
            left -= count
        self.dropped += left
        if left and now - link.reached > UNREACHED_SECONDS_MAX:
            for node, known in self._links.items():
                if known is link:
                    _close(link.socket)
                    link.socket, link.reached = self._connect(node, link.peer), now

    # --- receiving

    async def _receive(self, receiving: zmq.Socket[bytes]) -> None:
        while True:
            for _ in range(MESSAGES_PER_TURN):
                try:
                    frame = receiving.recv(zmq.DONTWAIT, copy=False)
                except zmq.Again:
                    await _readable(receiving)
                    break
                more = frame.more
                while receiving.rcvmore:
                    receiving.recv(zmq.DONTWAIT, copy=False)
                if more:
                    self._refuse("a message of several frames")
                else:
                    self._take(frame)
            await trio.lowlevel.checkpoint()

    def _take(self, frame: zmq.Frame) -> None:
        try:
            sender, messages = unpack(frame.bytes)
        except ProtocolViolation as violation:
            self._refuse(str(violation))
            return
        if self._keys is not None:
            key = str(frame.get("User-Id")).encode()  # what our ZAP answer said of this connection
            if self._peer_of_key(key) != sender:
                self._refuse(f"a message that claims to be node {sender}'s under the key {key.decode()}")
                return
        elif sender not in self._links:
            self._refuse(f"a message of node {sender}, which is no peer")
            return
        self.packs_received += 1
        for message in messages:
            self._on_message(sender, message)

    def _refuse(self, what: str) -> None:
        self.refused += 1
        log.warning("bus: refused %s", what)

    async def _admit(self, zap: zmq.Socket[bytes]) -> None:
        """Answer libzmq's questions about who may connect."""
        while True:
            try:
                request = zap.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                await _readable(zap)
                continue
            zap.send_multipart(self._answer_zap(request))
            await trio.lowlevel.checkpoint()

    def _answer_zap(self, request: list[bytes]) -> list[bytes]:
        version, request_id = request[0], request[1]
        if len(request) == _ZAP_FRAMES and request[5] == b"CURVE":
            address, key = request[3].decode("ascii", "replace"), z85.encode(request[6])
            if self._peer_of_key(key) is not None:
                return [version, request_id, b"200", b"", key, b""]
            self._refuse_key(key, address)
        # 3xx says nothing to the client, and hangs up when HANDSHAKE_IVL is over. After 4xx the client's
        # libzmq would never try again, and a node that has just joined is unknown to those who have not yet
        # heard of it.
        return [version, request_id, b"300", b"", b"", b""]

    def _refuse_key(self, key: bytes, address: str) -> None:
        self.refused += 1
        now = self._clock.now()
        said = self._refused_keys.get(key)
        if said is not None and now - said < REFUSED_KEY_SILENCE_SECONDS:
            return
        self._refused_keys.pop(key, None)
        while len(self._refused_keys) >= REFUSED_KEYS_REMEMBERED:
            del self._refused_keys[next(iter(self._refused_keys))]  # the one said longest ago
        self._refused_keys[key] = now
        log.warning("bus: refused the unknown key %s from %s", key.decode(), address)

    # --- sockets

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_SECONDS_MAX * 1_000))
        socket.setsockopt(zmq.SNDHWM, BUS_PACKS_QUEUED_MAX)
        socket.setsockopt(zmq.RCVHWM, BUS_PACKS_QUEUED_MAX)
        socket.setsockopt(zmq.MAXMSGSIZE, BUS_PACK_BYTES_MAX + CURVE_BYTES)
        return socket

    def _bind_zap(self) -> zmq.Socket[bytes]:
        zap = self._context.socket(zmq.REP)
        self._bound.append(zap)
        zap.setsockopt(zmq.LINGER, 0)
        zap.bind(_ZAP_ENDPOINT)
        return zap

    def _bind_receiving(self) -> zmq.Socket[bytes]:
        host = _numeric(self._host)
        if self._keys is None and not ipaddress.ip_address(host).is_loopback:
            raise InvalidRequest(
                f"A bus without keys believes anyone, so it listens on loopback only, not on {self._host}."
            )
        socket = self._socket(zmq.PULL)
        self._bound.append(socket)
        if self._keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        socket.setsockopt(zmq.IPV6, ":" in host)
        _notice_cut_links(socket)
        _bind(socket, _endpoint(host, self.port or "*"))
        self.port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2].rstrip("\0"))
        return socket

    def _bind_stream(self) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.PUB)
        self._bound.append(socket)
        socket.setsockopt(zmq.SNDHWM, STREAM_EVENTS_QUEUED_MAX)
        socket.setsockopt(zmq.MAXMSGSIZE, STREAM_SUBSCRIPTION_BYTES_MAX)
        _bind(socket, f"ipc://{self._stream_path}")
        return socket

    def _connect(self, node: NodeId, peer: BusPeer) -> zmq.Socket[bytes] | None:
        socket = self._socket(zmq.PUSH)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        _notice_cut_links(socket)
        socket.setsockopt(zmq.IPV6, ":" in peer.host)
        try:
            if self._keys is not None:
                socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
                socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
                socket.setsockopt(zmq.CURVE_SERVERKEY, peer.public_key)
            socket.connect(_endpoint(peer.host, peer.port))
        except zmq.ZMQError as error:
            # One bad record among the members must not cost this node its bus.
            log.warning("bus: cannot connect to node %d at %s:%d: %s", node, peer.host, peer.port, error)
            socket.close()
            return None
        return socket

    def _close_sockets(self) -> None:
        for socket in self._bound:
            socket.close()
        for link in self._links.values():
            _close(link.socket)
        self._links.clear()
        self._context.term()


# --- pieces


def _try_send(socket: zmq.Socket[bytes], pack: bytes) -> bool:
    """False when the peer is away or its queue is full."""
    try:
        socket.send(pack, zmq.DONTWAIT)
    except zmq.Again:
        # libzmq looks at its own mailbox only now and then while sending; reading EVENTS makes it look, and
        # it may find there that the peer has connected, or that the queue has room again.
        if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            return False
        try:
            socket.send(pack, zmq.DONTWAIT)
        except zmq.Again:
            return False
    return True


async def _readable(socket: zmq.Socket[bytes]) -> None:
    """Call it after `Again` only. ZMQ_FD shows one edge for many events, and every send, receive or look at
    EVENTS clears it; so EVENTS is read after the edge may have been cleared, and the descriptor waited for
    only if that says that nothing is there. After a send the caller comes back here through `recv` and
    `Again`."""
    if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
        await trio.lowlevel.wait_readable(int(socket.getsockopt(zmq.FD)))


def _notice_cut_links(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.TCP_MAXRT, UNACKNOWLEDGED_MS_MAX)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_SECONDS)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            raise AddressInUse(endpoint) from error
        raise InvalidRequest(f"The bus cannot listen on {endpoint}: {error}.") from error


def _close(socket: zmq.Socket[bytes] | None) -> None:
    if socket is not None:
        socket.close()


def _endpoint(host: str, port: int | str) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _numeric(host: str) -> str:
    """ZeroMQ binds to numbers only."""
    try:
        return str(
            sockets.getaddrinfo(host, None, type=sockets.SOCK_STREAM, flags=sockets.AI_PASSIVE)[0][4][0]
        )
    except OSError as error:
        raise InvalidRequest(f"The bus cannot listen on {host!r}: {error.strerror}.") from error
