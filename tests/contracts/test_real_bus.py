"""The walls of the real bus, tried from outside with plain ZeroMQ sockets."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import zmq

from blockstore.config import BUS_PACK_BYTES_MAX
from blockstore.errors import InvalidRequest
from blockstore.ids import MiB, NodeId
from blockstore.runtime.bus_pack import packs
from blockstore.runtime.interfaces import BusPeer
from blockstore.runtime.real_bus import UNREACHED_SECONDS_MAX, BusKeys, RealBus
from blockstore.runtime.real_clock import RealClock
from tests.contracts.test_bus import A, B, Inbox

CLOCK = RealClock()
SERVER, CLIENT = BusKeys.generate(), BusKeys.generate()


def nobody(_: bytes) -> NodeId | None:
    return None


class Outside:
    """Sockets that are not the bus's own."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        self._sockets.append(self.context.socket(kind))
        return self._sockets[-1]

    def dial(self, bus: RealBus, keys: BusKeys | None = None) -> zmq.Socket[bytes]:
        socket = self.socket(zmq.PUSH)
        if keys is not None:
            socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            socket.setsockopt(zmq.CURVE_SERVERKEY, SERVER.public)
        socket.connect(f"tcp://127.0.0.1:{bus.port}")
        return socket


@pytest.fixture
def outside() -> Iterator[Outside]:
    outside = Outside()
    yield outside
    outside.context.destroy(linger=0)


def pack_of(sender: NodeId, *messages: bytes) -> bytes:
    [(pack, _)] = packs(sender, messages)
    return pack


async def test_messages_of_one_tick_travel_as_one() -> None:
    inbox = Inbox()
    async with (
        RealBus(A, inbox, None, nobody, CLOCK) as a,
        RealBus(B, Inbox(), None, nobody, CLOCK) as b,
    ):
        a.set_peers({B: BusPeer("127.0.0.1", b.port)})
        b.set_peers({A: BusPeer("127.0.0.1", a.port)})
        await inbox.until(lambda: bool(inbox.messages), lambda: b.send(A, b"hello"))
        sent, received, heard = b.packs_sent, a.packs_received, len(inbox.messages)
        for number in range(100):
            b.send(A, b"%d" % number)
            b.publish(b"p%d" % number)
        await inbox.until(lambda: len(inbox.messages) == heard + 200)
        assert b.packs_sent == sent + 1
        assert a.packs_received == received + 1
        expected = [message for n in range(100) for message in (b"%d" % n, b"p%d" % n)]
        assert [message for _, message in inbox.messages[heard:]] == expected  # in the order sent


async def test_a_tick_larger_than_a_message_is_split_and_more_than_the_queue_is_dropped() -> None:
    inbox = Inbox()
    async with (
        RealBus(A, inbox, None, nobody, CLOCK) as a,
        RealBus(B, Inbox(), None, nobody, CLOCK) as b,
    ):
        a.set_peers({B: BusPeer("127.0.0.1", b.port)})
        b.set_peers({A: BusPeer("127.0.0.1", a.port)})
        await inbox.until(lambda: bool(inbox.messages), lambda: b.send(A, b"hello"))
        heard = len(inbox.messages)
        for _ in range(5):
            b.send(A, bytes(BUS_PACK_BYTES_MAX // 2))
        await inbox.until(lambda: len(inbox.messages) == heard + 5)
        dropped = b.dropped
        for _ in range(80):
            b.send(A, bytes(BUS_PACK_BYTES_MAX // 2))
        assert b.dropped > dropped


async def test_an_unknown_key_is_refused_in_one_line_until_it_is_known(
    outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    known: dict[bytes, NodeId] = {}
    inbox = Inbox()
    with caplog.at_level(logging.WARNING):
        async with RealBus(A, inbox, SERVER, known.get, CLOCK) as bus:
            stranger = outside.dial(bus, CLIENT)
            stranger.send(pack_of(B, b"let me in"))
            await inbox.until(lambda: bus.refused >= 3)  # it tries again and again
            assert not inbox.messages
            [line] = [record.getMessage() for record in caplog.records]
            assert CLIENT.public.decode() in line
            assert "127.0.0.1" in line
            known[CLIENT.public] = B
            await inbox.until(lambda: (B, b"let me in") in inbox.messages)


async def test_a_revoked_node_falls_silent_though_connected(
    outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    known = {CLIENT.public: B}
    inbox = Inbox()
    async with RealBus(A, inbox, SERVER, known.get, CLOCK) as bus:
        peer = outside.dial(bus, CLIENT)
        peer.send(pack_of(B, b"1"))
        await inbox.until(lambda: bool(inbox.messages))
        known.clear()
        peer.send(pack_of(B, b"2"))
        await inbox.until(lambda: bus.refused == 1)
        assert inbox.messages == [(B, b"1")]
    assert "claims to be node 2" in caplog.text


async def test_a_node_cannot_speak_as_another(outside: Outside, caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox()
    async with RealBus(A, inbox, SERVER, {CLIENT.public: B}.get, CLOCK) as bus:
        outside.dial(bus, CLIENT).send(pack_of(NodeId(3), b"I am 3"))
        await inbox.until(lambda: bus.refused == 1)
        assert not inbox.messages
    assert "claims to be node 3" in caplog.text


async def test_a_client_without_curve_is_not_heard(outside: Outside) -> None:
    inbox = Inbox()
    async with RealBus(A, inbox, SERVER, {CLIENT.public: B}.get, CLOCK) as bus:
        outside.dial(bus).send(pack_of(B, b"in the clear"))
        listed = outside.dial(bus, CLIENT)
        await inbox.until(lambda: bool(inbox.messages), lambda: listed.send(pack_of(B, b"in private")))
        assert {message for _, message in inbox.messages} == {b"in private"}


async def test_ten_megabytes_are_refused_and_others_unhurt(outside: Outside) -> None:
    known = {CLIENT.public: B}
    inbox = Inbox()
    async with RealBus(A, inbox, SERVER, known.get, CLOCK) as bus:
        huge = outside.dial(bus, CLIENT)
        monitor = huge.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        huge.send(bytes(10 * MiB))
        sound = outside.dial(bus, CLIENT)
        await inbox.until(lambda: bool(inbox.messages), lambda: sound.send(pack_of(B, b"small")))
        await inbox.until(lambda: bool(monitor.poll(0)))  # hung up on
        assert {message for _, message in inbox.messages} == {b"small"}
        huge.disable_monitor()
        monitor.close()


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 64, pack_of(B, b"abc")[:-1], b"\x02" + bytes(8)])
async def test_what_is_no_pack_is_refused(
    outside: Outside, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    inbox = Inbox()
    async with RealBus(A, inbox, SERVER, {CLIENT.public: B}.get, CLOCK) as bus:
        peer = outside.dial(bus, CLIENT)
        peer.send(content)
        peer.send(pack_of(B, b"sound"))
        await inbox.until(lambda: bool(inbox.messages))
        assert inbox.messages == [(B, b"sound")]
        assert bus.refused == 1
    assert "refused A bus message" in caplog.text


async def test_a_message_of_several_frames_is_refused(
    outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()
    async with RealBus(A, inbox, SERVER, {CLIENT.public: B}.get, CLOCK) as bus:
        peer = outside.dial(bus, CLIENT)
        peer.send_multipart([pack_of(B, b"one"), pack_of(B, b"two"), pack_of(B, b"three")])
        peer.send(pack_of(B, b"four"))
        await inbox.until(lambda: bool(inbox.messages))
        assert inbox.messages == [(B, b"four")]
        assert bus.refused == 1
    assert "several frames" in caplog.text


async def test_a_plain_bus_listens_on_loopback_only() -> None:
    with pytest.raises(InvalidRequest, match="loopback only"):
        async with RealBus(A, Inbox(), None, nobody, CLOCK, host="0.0.0.0"):
            pass


async def test_a_bad_record_among_the_members_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox()
    known = {SERVER.public: A, CLIENT.public: B}
    async with (
        RealBus(A, inbox, SERVER, known.get, CLOCK) as a,
        RealBus(B, Inbox(), CLIENT, known.get, CLOCK) as b,
    ):
        b.set_peers(
            {
                NodeId(7): BusPeer("127.0.0.1", 1, b"not a key"),
                A: BusPeer("127.0.0.1", a.port, SERVER.public),
            }
        )
        await inbox.until(lambda: bool(inbox.messages), lambda: b.publish(b"hello"))
    assert "cannot connect to node 7" in caplog.text


class SetClock(RealClock):
    """Monotonic time as the test says."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


async def test_a_peer_that_turned_us_away_for_good_is_reached_again(outside: Outside) -> None:
    """As another program might that has the port while the peer is down: libzmq never dials again by
    itself."""
    inbox, clock = Inbox(), SetClock()
    zap = outside.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")
    other = outside.socket(zmq.PULL)
    other.setsockopt(zmq.CURVE_SERVER, 1)
    other.setsockopt(zmq.CURVE_SECRETKEY, SERVER.secret)
    other.setsockopt(zmq.ZAP_DOMAIN, b"other")
    port = other.bind_to_random_port("tcp://127.0.0.1")
    monitor = other.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    known = {SERVER.public: A, CLIENT.public: B}
    async with RealBus(B, Inbox(), CLIENT, known.get, clock) as b:
        b.set_peers({A: BusPeer("127.0.0.1", port, SERVER.public)})
        await inbox.until(lambda: bool(zap.poll(0)))
        request = zap.recv_multipart()
        zap.send_multipart([request[0], request[1], b"400", b"go away", b"", b""])
        await inbox.until(lambda: bool(monitor.poll(0)))
        other.disable_monitor()
        monitor.close()
        outside.context.destroy(linger=0)  # waits until the port is free
        async with RealBus(A, inbox, SERVER, known.get, CLOCK, port=port):
            clock.ahead = UNREACHED_SECONDS_MAX + 1
            await inbox.until(lambda: bool(inbox.messages), lambda: b.send(A, b"there you are"))


async def test_local_programs_subscribe_to_events(outside: Outside) -> None:
    with tempfile.TemporaryDirectory() as directory:  # a socket's path must be short
        path = str(Path(directory) / "events")
        async with RealBus(A, Inbox(), None, nobody, CLOCK, stream_path=path) as bus:
            subscriber = outside.socket(zmq.SUB)
            subscriber.setsockopt(zmq.SUBSCRIBE, b"")
            subscriber.connect(f"ipc://{path}")
            await Inbox().until(lambda: bool(subscriber.poll(0)), lambda: bus.stream(b"node 3 is away"))
            assert subscriber.recv() == b"node 3 is away"


async def test_an_error_in_the_block_is_seen_as_it_is_and_nothing_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InvalidRequest, match="ours"):
        async with RealBus(A, Inbox(), SERVER, nobody, CLOCK):
            raise InvalidRequest("ours")
    with trio.move_on_after(0):
        async with RealBus(A, Inbox(), SERVER, nobody, CLOCK):
            await trio.sleep_forever()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_error_in_a_callback_ends_the_block(outside: Outside) -> None:
    def fail(_sender: NodeId, _message: bytes) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with RealBus(A, fail, SERVER, {CLIENT.public: B}.get, CLOCK) as bus:
            outside.dial(bus, CLIENT).send(pack_of(B, b"x"))
            await trio.sleep_forever()
