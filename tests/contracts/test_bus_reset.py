"""A peer's connection that breaks while much of it is unread, as after a partition."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys

import trio

from blockstore.ids import NodeId
from blockstore.runtime.interfaces import BusPeer
from blockstore.runtime.real_bus import RealBus
from blockstore.runtime.real_clock import RealClock

A, B = NodeId(1), NodeId(2)
BLOCKED_SECONDS = 3.0

LISTENER = f"""
import sys, time, trio
from blockstore.ids import NodeId
from blockstore.runtime.interfaces import BusPeer
from blockstore.runtime.real_bus import RealBus
from blockstore.runtime.real_clock import RealClock
heard = []
def on_message(sender, message):
    if not heard:
        time.sleep({BLOCKED_SECONDS})  # a loop that is busy with something else
    heard.append(bytes(message))
async def main():
    async with RealBus(NodeId(1), on_message, None, lambda key: None, RealClock()) as bus:
        bus.set_peers({{NodeId(2): BusPeer("127.0.0.1", 9)}})
        print(bus.port, flush=True)
        with trio.fail_after(20):
            while b"end" not in heard:
                await trio.sleep(0.01)
trio.run(main)
"""


async def test_a_flood_that_ends_in_a_reset_does_not_end_the_process() -> None:
    """libzmq aborts when it finds a ZMTP PING behind the messages that it holds back while its queue is full,
    once the connection is broken (its issue 4364)."""
    with spawn() as listener:
        assert listener.stdout is not None
        port = int(await trio.to_thread.run_sync(listener.stdout.readline))
        [server] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        through = server.socket.getsockname()[1]
        async with (
            server,
            RealBus(B, lambda sender, message: None, None, lambda key: None, RealClock()) as bus,
        ):
            bus.set_peers({A: BusPeer("127.0.0.1", through)})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, bus)
                arriving = await server.accept()
                leaving = await trio.open_tcp_stream("127.0.0.1", port)
                with arriving.socket, leaving.socket:
                    await relay_held_up(arriving, leaving)
                nursery.cancel_scope.cancel()
            bus.set_peers({A: BusPeer("127.0.0.1", port)})
            with trio.move_on_after(15):
                while listener.poll() is None:
                    bus.send(A, b"end")
                    await trio.sleep(0.02)
        assert listener.poll() == 0


def spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE)


async def flood(bus: RealBus) -> None:
    while True:
        bus.send(A, b"x")
        await trio.sleep(0.02)


async def relay_held_up(arriving: trio.SocketStream, leaving: trio.SocketStream) -> None:
    """Everything flows; then for a while nothing, as on a cut link; then all of it comes at once, and the
    connection is reset."""
    held: list[bytes | bytearray] = []
    is_cut = False

    async def forward() -> None:
        async for data in arriving:
            if is_cut:
                held.append(data)
            else:
                await leaving.send_all(data)

    async def back() -> None:
        async for data in leaving:
            await arriving.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forward)
        nursery.start_soon(back)
        await trio.sleep(0.3)
        is_cut = True
        await trio.sleep(1.5)
        await leaving.send_all(b"".join(held))
        await trio.sleep(0.2)
        leaving.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        nursery.cancel_scope.cancel()
