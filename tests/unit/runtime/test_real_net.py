"""Real lanes beyond their common contract: which socket is taken, when is dialled again, who may listen
where."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from blockstore.codec.messages import Ok, Ping
from blockstore.config import RECONNECT_SECONDS_MIN
from blockstore.errors import AddressInUse, BlockStoreError, ConnectionLost, PermissionDenied
from blockstore.runtime.interfaces import Address, IncomingCall
from blockstore.runtime.lane_server import RealListener, serve_lanes
from blockstore.runtime.real_net import RealNetwork
from blockstore.runtime.sockets import connect_unix, listen_unix
from tests.lane_harness import HELLO, LaneHarness


@pytest.fixture
def lanes(tmp_path: Path) -> LaneHarness:
    return LaneHarness("unix", tmp_path)


def answer(call: IncomingCall) -> None:
    call.answer(Ok())


def serve(lanes: LaneHarness, address: Address) -> RealListener:
    return serve_lanes(address, answer, lanes.authorize, clock=lanes.clock, wire=lanes.wire)


def families(listener: RealListener) -> list[str]:
    return ["unix" if "unix" in connection.name else "tcp" for connection in listener.connections]


# --- which socket


async def test_the_unix_socket_is_taken_on_the_same_machine_alone(lanes: LaneHarness) -> None:
    async with serve(lanes, lanes.new_address()) as listener:
        for host_id, expected in (("here", "unix"), ("elsewhere", "tcp"), ("", "tcp")):
            async with RealNetwork(lanes.clock, lanes.wire, host_id=host_id, hello=HELLO) as network:
                await network.lane(listener.address).call(Ping(), [], lanes.soon())
                assert families(listener)[-1:] == [expected]


async def test_tcp_is_taken_when_the_unix_socket_cannot_be_reached(lanes: LaneHarness) -> None:
    async with serve(lanes, Address("127.0.0.1", 0)) as listener:
        there = Address("127.0.0.1", listener.address.port, str(lanes.directory / "missing"), "here")
        async with lanes.real_network() as network:
            await network.lane(there).call(Ping(), [], lanes.soon())
        assert families(listener) == ["tcp"]


async def test_a_host_name_is_resolved(lanes: LaneHarness) -> None:
    async with serve(lanes, Address("127.0.0.1", 0)) as listener, lanes.real_network() as network:
        await network.lane(Address("localhost", listener.address.port)).call(Ping(), [], lanes.soon())


async def test_ipv6_works(lanes: LaneHarness) -> None:
    try:
        listening = serve(lanes, Address("::1", 0))
        async with listening as listener, lanes.real_network() as network:
            await network.lane(listener.address).call(Ping(), [], lanes.soon())
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


# --- dialling again


async def test_after_a_failed_connect_nobody_dials_for_a_while(lanes: LaneHarness) -> None:
    """The port opens at once, but what is sent within the pause still fails, with the first failure's
    words."""
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    address = Address("127.0.0.1", port)
    async with lanes.real_network() as network:
        lane = network.lane(address)
        with pytest.raises(ConnectionLost, match=f"tcp://127.0.0.1:{port}: Connection refused"):
            await lane.call(Ping(), [], lanes.soon())
        failed_at = lanes.clock.now()
        async with serve(lanes, address):
            with pytest.raises(ConnectionLost, match=f"tcp://127.0.0.1:{port}: Connection refused"):
                await lane.call(Ping(), [], lanes.soon())
            await lanes.clock.sleep_until(failed_at + RECONNECT_SECONDS_MIN)
            await lane.call(Ping(), [], lanes.soon())


async def test_what_is_posted_while_connecting_waits_and_goes_together(lanes: LaneHarness) -> None:
    async with serve(lanes, lanes.new_address()) as listener, lanes.real_network() as network:
        answered: list[object] = []
        done = trio.Event()

        def on_answer(outcome: object) -> None:
            answered.append(outcome)
            if len(answered) == 50:
                done.set()

        for _ in range(50):
            network.lane(listener.address).post(Ping(), [b"x" * 1000], lanes.soon(), on_answer)
        with trio.fail_after(5):
            await done.wait()
        assert not any(isinstance(outcome, BlockStoreError) for outcome in answered)
        assert len(listener.connections) == 1


async def test_a_callback_may_post_again(lanes: LaneHarness) -> None:
    """Also the callback that is told that the connection is lost."""
    told: list[object] = []
    done = trio.Event()
    async with lanes.real_network() as network:
        lane = network.lane(Address("127.0.0.1", 1))

        def first(outcome: object) -> None:
            told.append(outcome)
            lane.post(Ping(), [], lanes.soon(), second)

        def second(outcome: object) -> None:
            told.append(outcome)
            done.set()

        lane.post(Ping(), [], lanes.soon(), first)
        with trio.fail_after(5):
            await done.wait()
        assert [type(outcome) for outcome in told] == [ConnectionLost, ConnectionLost]


async def test_a_server_may_be_refused_by_its_certificate(tmp_path: Path) -> None:
    lanes = LaneHarness("tls", tmp_path)
    assert lanes.authority is not None
    judged: list[tuple[Address, int]] = []

    def check_server(address: Address, certificate: bytes) -> None:
        judged.append((address, len(certificate)))
        raise PermissionDenied("this certificate is not node 3's")

    async with lanes.serve(answer) as listener:
        async with RealNetwork(
            lanes.clock, lanes.wire, ssl_context=lanes.authority.client_context(), check_server=check_server
        ) as network:
            with pytest.raises(PermissionDenied, match="not node 3's"):
                await network.lane(listener.address).call(Ping(), [], lanes.soon())
        assert judged[0][0] == listener.address
        assert judged[0][1] > 100


# --- listening


async def test_a_port_in_use_is_said_to_be(lanes: LaneHarness) -> None:
    async with serve(lanes, Address("127.0.0.1", 0)) as listener:
        with pytest.raises(AddressInUse, match=str(listener.address)):
            async with serve(lanes, listener.address):
                pass


async def test_a_unix_socket_in_use_is_not_taken_over(lanes: LaneHarness) -> None:
    async with serve(lanes, lanes.new_address()) as listener, lanes.real_network() as network:
        with pytest.raises(AddressInUse, match="lane"):
            async with serve(lanes, lanes.new_address()):
                pass
        await network.lane(listener.address).call(Ping(), [], lanes.soon())
        assert families(listener)[0] == "unix"


async def test_a_unix_socket_is_for_its_user_alone_and_goes_with_its_listener(lanes: LaneHarness) -> None:
    path = lanes.directory / "lane"
    async with serve(lanes, lanes.new_address()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_socket_file_left_behind_is_replaced(lanes: LaneHarness) -> None:
    path = lanes.directory / "lane"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serve(lanes, lanes.new_address()) as listener, lanes.real_network() as network:
        await network.lane(listener.address).call(Ping(), [], lanes.soon())
        assert families(listener) == ["unix"]


async def test_a_file_that_is_no_socket_is_left_alone(lanes: LaneHarness) -> None:
    path = lanes.directory / "lane"
    path.write_text("precious")
    with pytest.raises(AddressInUse):
        async with serve(lanes, lanes.new_address()):
            pass
    assert path.read_text() == "precious"


async def test_a_successors_socket_file_is_not_removed(lanes: LaneHarness) -> None:
    path = lanes.directory / "lane"
    async with serve(lanes, lanes.new_address()):
        os.unlink(path)
        successor = listen_unix(str(path))
    assert path.exists()
    successor.close()


async def test_a_deep_directory_does_not_hinder(lanes: LaneHarness) -> None:
    deep = lanes.directory / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    listening = listen_unix(str(deep / "lane"))
    sock = await connect_unix(str(deep / "lane"))
    sock.close()
    listening.close()
    assert stat.S_ISSOCK((deep / "lane").stat().st_mode)


async def test_cancelling_a_server_at_any_moment_leaves_nothing_open(lanes: LaneHarness) -> None:
    """Cut at later and later moments of connecting, asking and answering; the last run gets through."""
    before = set(os.listdir("/proc/self/fd"))
    for n_steps in range(40):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_after, scope, n_steps)
                async with serve(lanes, lanes.new_address()) as listener, lanes.real_network() as network:
                    await network.lane(listener.address).call(Ping(), [b"x" * 100_000], lanes.soon())
                nursery.cancel_scope.cancel()
        assert not (lanes.directory / "lane").exists()
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


async def cancel_after(scope: trio.CancelScope, n_steps: int) -> None:
    for _ in range(n_steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()
