"""How blocking code runs the async client: over sockets in the calling thread, or in one thread with a node.

A bridge's `run` is given what to do with an async Store, and returns when that is done.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext, suppress
from typing import Any, Protocol, TypeVar

import trio

from blockstore.api.cluster import ClusterSession
from blockstore.api.location import Cluster, Directories
from blockstore.api.opening import Identity, load_identity, new_rng, open_embedded, reach
from blockstore.api.store import Opened, Store
from blockstore.api.value_source import offload_in_place
from blockstore.codec.frame import FrameWire
from blockstore.daemon.node_directory import host_id
from blockstore.errors import BlockStoreError, InvalidRequest, Unavailable
from blockstore.kinds.turns import Wake
from blockstore.runtime.blocking_net import BlockingCaller, run

T = TypeVar("T")

STOP_SECONDS = 10.0
"""A node stops within milliseconds; past this something hangs, and leaving it is a crash, which loses
nothing."""

Work = Callable[[Store], Coroutine[Any, Any, T]]


class Bridge(Protocol):
    def run(self, work: Work[T]) -> T: ...

    def new_wake(self) -> Wake:
        """For what `run` runs, to wait for another such."""
        ...

    def close(self) -> None: ...


# --- connected


class _Client:
    """One thread's at a time: connections, and sessions of their own."""

    def __init__(self, place: Cluster, identity: Identity) -> None:
        self.caller = BlockingCaller(
            FrameWire(),
            ssl_context=identity.ssl_context,
            host_id=host_id(),
            hello=identity.hello,
            check_server=identity.check_server,
        )
        self.cluster = ClusterSession(self.caller, place.seeds, new_rng(), host_id())
        self.store = Store(nullcontext(Opened(self.cluster, offload_in_place, place.credentials)))
        run(self.store.__aenter__())


class _ThreadWake:
    """A thread's coroutine that waits blocks the thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        self._event.wait()


class ConnectedBridge:
    """Calls run in the calling thread; there is no other. Any thread may call: each takes a client that is
    free, or a new one, so there are as many as calls were ever under way at once.

    After a fork the child makes clients of its own. It must: a session's request numbers say which requests
    are the same, and two processes counting on from one number would have theirs mistaken for retries.
    """

    def __init__(self, place: Cluster, timeout: float) -> None:
        self._place, self._timeout = place, timeout
        self._identity = load_identity(place)
        self._pid = os.getpid()
        self._free: list[_Client] = []  # append and pop are atomic
        self._is_closed = False
        client = _Client(place, self._identity)
        self._free.append(client)
        try:
            run(reach(client.cluster, place, timeout))
        except BaseException:
            self.close()
            raise

    def __reduce__(self) -> tuple[type[ConnectedBridge], tuple[Cluster, float]]:
        """A store, and what was made of it, may be sent to another process, which connects by itself."""
        return ConnectedBridge, (self._place, self._timeout)

    def run(self, work: Work[T]) -> T:
        if self._pid != os.getpid():
            self._start_anew()
        if self._is_closed:
            raise InvalidRequest("This store is closed.")
        try:
            client = self._free.pop()
        except IndexError:
            client = _Client(self._place, self._identity)
        try:
            return run(work(client.store))
        finally:
            self._free.append(client)
            if self._is_closed:  # meanwhile, by another thread
                self.close()

    def new_wake(self) -> Wake:
        return _ThreadWake()

    def close(self) -> None:
        """Hang up. What other threads have under way ends by itself."""
        self._is_closed = True
        with suppress(IndexError):
            while True:
                self._free.pop().caller.close()

    def _start_anew(self) -> None:
        inherited, self._free = self._free, []
        self._pid = os.getpid()
        for client in inherited:
            client.caller.close_inherited()


# --- embedded


class EmbeddedBridge:
    """One thread runs the node, and every call; it ends with `close`, or with the process."""

    def __init__(self, place: Directories) -> None:
        self._place = place
        self._pid = os.getpid()
        self._ready = threading.Event()
        self._store: Store | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._is_closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="blockstore", daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:  # Ctrl-C: a node that is only just starting stops as soon as it has
            self.close()
            raise
        if self._store is None:
            self._thread.join()
            assert self._failure is not None
            raise self._failure
        atexit.register(self.close)

    def __reduce__(self) -> str:
        raise InvalidRequest(
            "An embedded store lives in one process and cannot be sent to another. Run daemons "
            "(`blockstore dev`) and connect to them: that works across processes."
        )

    def run(self, work: Work[T]) -> T:
        store, token = self._store, self._token
        if self._pid != os.getpid():
            raise InvalidRequest(
                f"This store runs in process {self._pid}, which forked; a child cannot use it. Open it after "
                "the fork, or run daemons (`blockstore dev`) and connect to them: that works across forks."
            )
        if store is None or token is None:
            raise self._over()
        try:
            return trio.from_thread.run(_awaited, work, store, trio_token=token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise self._over() from None

    def new_wake(self) -> Wake:
        return trio.Event()

    def close(self) -> None:
        """Stop the node. What other threads have under way fails."""
        if self._pid != os.getpid():
            return
        atexit.unregister(self.close)
        self._is_closed = True
        token, stop, self._token = self._token, self._stop, None
        if token is not None and stop is not None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(stop.set)
        self._thread.join(STOP_SECONDS)

    def _over(self) -> BlockStoreError:
        if not self._is_closed:
            self._thread.join(STOP_SECONDS)  # it is ending, and will have said why
        if self._failure is None:
            return InvalidRequest("This store is closed.")
        return Unavailable(f"The store in {self._place.paths[0]} stopped: {self._failure}")

    def _main(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as failure:  # told to whoever waits for the start, or calls later
            self._failure = failure
        finally:
            self._store = None
            self._ready.set()

    async def _serve(self) -> None:
        stop = trio.Event()
        async with Store(open_embedded(self._place)) as store:
            self._store, self._stop = store, stop
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            if not self._is_closed:
                await stop.wait()


async def _awaited(work: Callable[[Store], Awaitable[T]], store: Store) -> T:
    return await work(store)
