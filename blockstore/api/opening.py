"""Opening a store under trio: over a cluster's network, or with a node inside this process.

Imports trio and the daemon only when something is opened, so that importing the client costs little.
"""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from blockstore.api.cluster import ClusterSession
from blockstore.api.location import Cluster, Directories, PathLike, resolve
from blockstore.api.store import Opened, Store
from blockstore.codec.frame import FrameWire
from blockstore.codec.messages import Hello
from blockstore.errors import InvalidRequest, NotAStore, ProtocolViolation, Unavailable
from blockstore.runtime.interfaces import Address
from blockstore.version import RELEASE

CONNECT_SECONDS = 5.0
"""Until somebody answers. Daemons that are just starting are there within a second or two."""


def connect(
    location: PathLike | None = None,
    *,
    credentials: PathLike | None = None,
    timeout: float = CONNECT_SECONDS,
) -> Store:
    """The store at `tcp://host:port[,host:port…]`, for `async with`. Unavailable when nobody answers there
    within `timeout`, PermissionDenied when the credential is not accepted."""
    return Store(_connected(as_cluster(location, credentials), timeout))


def open(
    location: PathLike | Sequence[PathLike] | None = None,
    *,
    credentials: PathLike | None = None,
    create: bool = True,
    timeout: float = CONNECT_SECONDS,
) -> Store:
    """The store in a directory (or several: each is a disk), for `async with`; made there if there is none
    yet, unless `create` is False. Everything runs in this process. An address is connected to."""
    place = resolve(location, credentials)
    if isinstance(place, Cluster):
        return Store(_connected(place, timeout))
    check_directories(place, create)
    return Store(open_embedded(place))


def as_cluster(location: PathLike | None, credentials: PathLike | None) -> Cluster:
    place = resolve(location, credentials)
    if isinstance(place, Directories):
        raise InvalidRequest(
            f"{place.paths[0]} is a directory: open it with blockstore.open; connect takes tcp://host:port."
        )
    return place


def check_directories(place: Directories, create: bool) -> None:
    """A store is made only where there is nothing that somebody else put there. NotAStore."""
    for path in place.paths:
        if path.exists() and not path.is_dir():
            raise NotAStore(str(path), "it is not a directory")
    first = place.paths[0]
    if (first / "node.json").exists():
        return
    if not create:
        raise NotAStore(str(first), _why_no_store(first))
    if (first / "setup.part").exists():
        return  # making it was interrupted, and is taken up again
    for path in place.paths:
        if path.exists() and (found := next(path.iterdir(), None)) is not None:
            raise NotAStore(str(path), f"it holds other things ({found.name}); name an empty directory")


def _why_no_store(directory: Path) -> str:
    if not directory.exists():
        return "it does not exist"
    if (directory / "cluster.json").exists():
        return "it holds a cluster; `blockstore dev --dir` with it starts that and says its address"
    return "there is no store in it"


@dataclass(frozen=True, slots=True)
class Identity:
    """How a connection says who we are, and checks who answers."""

    ssl_context: ssl.SSLContext | None
    hello: Hello | None
    check_server: Callable[[Address, bytes], None] | None


def load_identity(place: Cluster) -> Identity:
    """InvalidRequest or PermissionDenied when the credential file cannot be used."""
    if place.credentials is None:
        return Identity(None, Hello("client", RELEASE), None)
    from blockstore.api import credentials  # slow to import, and not needed without TLS

    context, check_server = credentials.load(place.credentials)
    return Identity(context, None, check_server)


def new_rng() -> random.Random:
    """Session ids are drawn from it: no two clients may share its state."""
    return random.Random(random.SystemRandom().getrandbits(128))


async def reach(cluster: ClusterSession, place: Cluster, timeout: float) -> None:
    """Return when some node has answered."""
    try:
        deadline = cluster.caller.now() + timeout
        await cluster.repeat(lambda: cluster.fetch_view("", deadline), deadline)
    except Unavailable as error:
        where = ",".join(f"{seed.host}:{seed.port}" for seed in place.seeds)
        hint = " Is the address right, and does a daemon run there?"
        if not place.credentials:
            hint += " A cluster with TLS needs credentials, and none were given."
        raise Unavailable(f"Nobody answers at tcp://{where}: {error}{hint}") from error
    except ProtocolViolation as error:
        if place.credentials and "does not speak TLS" in str(error):
            raise ProtocolViolation(
                f"{error}; if it is a plain cluster, connect without credentials"
            ) from error
        raise


@asynccontextmanager
async def _connected(place: Cluster, timeout: float) -> AsyncGenerator[Opened]:
    import trio

    from blockstore.daemon.node_directory import host_id
    from blockstore.runtime.real_clock import RealClock
    from blockstore.runtime.real_net import RealNetwork
    from blockstore.runtime.trio_caller import TrioCaller

    identity = await trio.to_thread.run_sync(load_identity, place)
    clock = RealClock()
    async with RealNetwork(
        clock,
        FrameWire(),
        ssl_context=identity.ssl_context,
        host_id=host_id(),
        hello=identity.hello,
        check_server=identity.check_server,
    ) as network:
        cluster = ClusterSession(TrioCaller(network, clock), place.seeds, new_rng(), host_id())
        await reach(cluster, place, timeout)
        yield Opened(cluster, trio.to_thread.run_sync, place.credentials)


@asynccontextmanager
async def open_embedded(place: Directories) -> AsyncGenerator[Opened]:
    import trio

    from blockstore.daemon.embedded import run_embedded

    async with run_embedded([os.fspath(path) for path in place.paths]) as (caller, address):
        yield Opened(ClusterSession(caller, (address,), new_rng()), trio.to_thread.run_sync, None)
