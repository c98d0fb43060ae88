"""Non-blocking TCP, Unix and TLS sockets under trio: opened here, with the options that lanes need.

Everything raises OSError (`ssl.SSLError` is one) and leaves nothing open behind.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final

import trio

from blockstore.config import FAREWELL_SECONDS_MAX, SEND_STALL_SECONDS_MAX
from blockstore.errors import AddressInUse
from blockstore.ids import KiB, MiB

UNIX_BUFFER_BYTES: Final = 4 * MiB
"""With the default of 208 KiB, 4 MiB take 20 wakeups; the system may grant less (net.core.wmem_max)."""

_BACKLOG: Final = 1_024
_SUN_PATH_BYTES_MAX: Final = 107  # unix(7): 108 with the final NUL


async def connect_tcp(host: str, port: int) -> socket.socket:
    """The first of the host's addresses that answers."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    refused: OSError | None = None
    for family, kind, protocol, _, where in found:
        try:
            sock = await _connect(socket.socket(family, kind, protocol), where)
        except OSError as error:
            refused = error
        else:
            tune_tcp(sock)
            return sock
    assert refused is not None  # getaddrinfo answers with at least one, or raises
    raise refused


async def connect_unix(path: str) -> socket.socket:
    with short_path(path) as short:
        sock = await _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), short)
    tune_unix(sock)
    return sock


async def shake_hands(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_name: str | None = None,
    *,
    server_side: bool = False,
    on_failure: Callable[[ssl.SSLError], None] | None = None,
    on_heard: Callable[[], None] = lambda: None,
) -> ssl.SSLSocket:
    """TLS over a connected socket, whose ownership passes to the result. With `on_failure`: called when it
    fails, and then the peer gets a moment to read the alert that says why. `on_heard`: whenever the peer has
    said something."""
    try:
        secured = context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=server_name if context.check_hostname else None,
            do_handshake_on_connect=False,
        )
    except OSError:
        sock.close()
        raise
    try:
        while True:
            try:
                secured.do_handshake()
                return secured
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secured)
                on_heard()
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secured)
    except BaseException as error:
        if on_failure is not None and isinstance(error, ssl.SSLError):
            on_failure(error)
            with suppress(OSError):
                secured.shutdown(socket.SHUT_WR)  # from here on it is a plain socket
                await linger(secured)
        trio.lowlevel.notify_closing(secured)
        secured.close()
        raise


async def linger(sock: socket.socket) -> None:
    """Read, and ignore, until the peer hangs up, for at most FAREWELL_SECONDS_MAX. Closing while bytes are
    unread would reset the connection, and the peer might never read what was sent last."""
    ignored = bytearray(64 * KiB)
    with trio.move_on_after(FAREWELL_SECONDS_MAX):
        while True:
            try:
                if not sock.recv_into(ignored):
                    return
                await trio.lowlevel.checkpoint()
            except (BlockingIOError, ssl.SSLWantReadError):
                await trio.lowlevel.wait_readable(sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(sock)
            except OSError:
                return


async def listen_tcp(host: str, port: int) -> socket.socket:
    """AddressInUse if somebody listens there."""
    family, kind, protocol, _, where = (
        await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(where)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"tcp://{host}:{port}") from error
        raise
    return sock


def listen_unix(path: str) -> socket.socket:
    """For this user alone (mode 0600). A socket file that nobody listens on any more is replaced;
    AddressInUse if somebody does, or if the file is something else."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with short_path(path) as short:
            try:
                sock.bind(short)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_stale(path, short):
                    raise
                os.unlink(path)
                sock.bind(short)
            os.chmod(path, 0o600)  # nobody can connect before `listen`
        tune_unix(sock)  # accepted sockets inherit it
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"unix:{path}") from error
        raise
    return sock


def tune_tcp(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(
        socket, "TCP_USER_TIMEOUT"
    ):  # a machine that vanished is noticed by this, not after 15 minutes
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_STALL_SECONDS_MAX * 1000))
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


def tune_unix(sock: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, UNIX_BUFFER_BYTES)


async def _connect(sock: socket.socket, where: object) -> socket.socket:
    try:
        sock.setblocking(False)
        try:
            sock.connect(where)  # type: ignore[arg-type]  # its form depends on the family
        except BlockingIOError:
            if sock.family == socket.AF_UNIX:
                raise  # the listener's queue is full; nothing is on its way
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        trio.lowlevel.notify_closing(sock)
        sock.close()
        raise
    return sock


def _is_stale(path: str, short: str) -> bool:
    """A socket file that refuses connections belongs to a process that is gone."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # a full backlog, for one, means that it lives
    return False


@contextmanager
def short_path(path: str) -> Generator[str]:
    """A name of the same file that fits a socket address: data directories may lie deep."""
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES_MAX:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        with suppress(OSError):
            os.close(fd)
