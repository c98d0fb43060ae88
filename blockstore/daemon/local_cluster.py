"""A cluster of real daemon processes on this machine's loopback: for `dev`, `demo`, `bench`, chaos and tests.

    directory/
      cluster.json   written last, when every node has joined: the directory is then complete
      admin.pem      the administrator's credential; none in a plain cluster
      node-1/ …      one node's directory each; node-1.log beside it is what the daemon wrote to stderr

Blocking, and free of trio, so that any program may use it. Each daemon runs in a session of its own (a
terminal's Ctrl-C reaches the caller alone, who then stops them) and ends when its standard input does: none
outlives its caller. Processes are signalled through the handle of the one we started, never searched for.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from blockstore.daemon import setup
from blockstore.errors import AddressInUse, InvalidRequest, NotAStore, Unavailable, of_path
from blockstore.ids import NodeId

READY_SECONDS_MAX = 30.0
"""Starting twelve interpreters on two busy cores took 6 s; past this, the log says what is wrong."""

STOP_SECONDS_MAX = 10.0
"""A daemon asked to stop syncs and leaves within a second; after this it is killed, as a crash would."""

LOG_LINES_SHOWN = 15

USUAL_PORT = 7440
"""The first that `blockstore dev` tries. Node i listens on the first port + 2 i, its bus on the one after."""

PORTS_FROM, PORTS_BELOW = 10_000, 32_000
"""Linux gives out higher ones to outgoing connections, which could take a killed daemon's port from it."""


@dataclass(slots=True)
class LocalNode:
    """One daemon: its place, and its process while there is one."""

    node: NodeId
    directory: Path
    address: str  # host:port
    wrapper: tuple[str, ...] = ()
    """A command that puts the daemon somewhere (a network namespace) and then becomes it: one process."""
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False
    ready: bool = field(default=False, repr=False)

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    @property
    def running(self) -> bool:
        return self.pid != 0

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def spawn(self) -> None:
        """Start the daemon without waiting for it. Nothing happens if it runs."""
        if self.running:
            return
        self.ready = self.frozen = False
        command = [sys.executable, "-m", "blockstore_cli.main", "node", "start", str(self.directory)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *command, "--ready-json", "--until-stdin-ends"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self, seconds: float = READY_SECONDS_MAX) -> None:
        """Return when the daemon has said that it serves; else Unavailable, with the end of its log."""
        if self.ready:
            return
        assert self.process is not None, "spawn comes first"
        assert self.process.stdout is not None  # Popen was told to make a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            said = selector.select(seconds)
        line = self.process.stdout.readline() if said else b""
        if not line:
            why = "ended" if said else f"was not ready after {seconds:.0f} s"
            raise Unavailable(f"Node {self.node} {why}; {self.log} ends with:\n{self.log_tail()}")
        self.ready = True

    def start(self, seconds: float = READY_SECONDS_MAX) -> None:
        self.spawn()
        self.wait_ready(seconds)

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost its power but kept its page cache; returns when it is dead."""
        self._signal(signal.SIGKILL)
        self._reap(None)

    def stop(self, seconds: float = STOP_SECONDS_MAX) -> None:
        """Ask it to hand over and end, and wait; killed when it does not. Nothing happens if it does not
        run."""
        self.ask_to_stop()
        self.wait_stopped(seconds)

    def ask_to_stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.frozen:
            self.thaw()
        self._signal(how)

    def wait_stopped(self, seconds: float) -> None:
        """After `ask_to_stop`."""
        self._reap(seconds)

    def freeze(self) -> None:
        """SIGSTOP: it lives, keeps its connections, and does nothing."""
        self._signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self.frozen = False

    def log_tail(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(nothing)"
        return "\n".join(lines[-LOG_LINES_SHOWN:]) or "(nothing)"

    def _signal(self, what: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(what)  # nothing happens once it has been waited for

    def _reap(self, seconds: float | None) -> None:
        process, self.process = self.process, None
        self.ready = self.frozen = False
        if process is None:
            return
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class LocalCluster:
    """`with LocalCluster.create(directory, 6) as cluster:` makes and starts it; leaving stops it."""

    def __init__(self, directory: Path, security: setup.Security, nodes: Sequence[LocalNode]) -> None:
        self.directory = directory  # absolute
        self.security: setup.Security = security
        self.nodes = list(nodes)

    @classmethod
    def create(
        cls,
        directory: Path,
        n_nodes: int,
        *,
        security: setup.Security = "tls",
        first_port: int | None = None,
        disks_per_node: int = 1,
    ) -> LocalCluster:
        """Make a cluster in an empty or missing directory, and start it: every node is running and ready.
        When that fails, the directory is empty again.

        Each node is a zone of its own. `first_port` None: a free run of ports drawn at random.
        """
        if n_nodes < 1:
            raise InvalidRequest(f"A cluster has at least 1 node, not {n_nodes}.")
        directory = directory.resolve()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            is_empty = not any(directory.iterdir())
        except OSError as error:
            raise of_path(error, str(directory)) from error
        if not is_empty:
            raise NotAStore(
                str(directory), "it holds something else, or a cluster whose making was interrupted"
            )
        first_port = free_ports(n_nodes) if first_port is None else first_port
        cluster = cls(directory, security, [])
        try:
            for index in range(n_nodes):
                cluster._add(index, first_port, disks_per_node)
            for node in cluster.nodes:
                node.wait_ready()
            cluster._write()
        except BaseException:
            cluster.stop()
            for path in directory.iterdir():  # it was empty; half a cluster would keep the next try out
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
        return cluster

    @classmethod
    def open(cls, directory: Path) -> LocalCluster:
        """One that `create` made; its daemons do not run yet. NotAStore when it is none."""
        directory = directory.resolve()
        try:
            facts = json.loads((directory / "cluster.json").read_text())
            nodes = [
                LocalNode(NodeId(node["id"]), directory / node["dir"], node["address"])
                for node in facts["nodes"]
            ]
            security = facts["security"]
            if security not in ("tls", "plain"):
                raise ValueError(f"security is {security!r}")
            return cls(directory, security, nodes)
        except FileNotFoundError:
            raise NotAStore(str(directory), "there is no cluster.json in it") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NotAStore(str(directory), f"its cluster.json cannot be understood ({error})") from error

    @classmethod
    def exists(cls, directory: Path) -> bool:
        return (directory / "cluster.json").exists()

    @property
    def credentials(self) -> Path | None:
        """The administrator's; a plain cluster has none."""
        return self.directory / "admin.pem" if self.security == "tls" else None

    @property
    def location(self) -> str:
        """What `--store` and `blockstore.connect` take."""
        return "tcp://" + ",".join(node.address for node in self.nodes)

    def start(self) -> None:
        """Start every daemon that does not run, and wait until all of them are ready."""
        for node in self.nodes:
            if not node.running:
                _check_free(node.address)
                node.spawn()
        for node in self.nodes:
            node.wait_ready()

    def stop(self) -> None:
        """All at once, cleanly; returns when none runs. SIGINT: there is nobody to hand anything over to."""
        for node in self.nodes:
            node.ask_to_stop(signal.SIGINT)
        until = time.monotonic() + STOP_SECONDS_MAX
        for node in self.nodes:
            node.wait_stopped(max(0.1, until - time.monotonic()))

    def facts(self) -> dict[str, Any]:
        """What `blockstore dev --json` prints."""
        return {
            "store": self.location,
            "credentials": str(self.credentials) if self.credentials else None,
            "nodes": [
                {"id": node.node, "pid": node.pid, "dir": str(node.directory), "address": node.address}
                for node in self.nodes
            ],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _add(self, index: int, first_port: int, disks_per_node: int) -> None:
        """Make and spawn node `index`. The first must be ready before others can join through it; from then
        on one node's interpreter starts while the next one joins."""
        directory = self.directory / f"node-{index + 1}"
        address = f"127.0.0.1:{first_port + 2 * index}"
        disks = [directory / f"disk-{number + 1}" for number in range(disks_per_node)]
        zone = (f"zone-{index + 1}",)
        _check_free(address)
        bus_port = first_port + 2 * index + 1
        if index == 0:
            setup.init_cluster(
                directory,
                name=self.directory.name or "dev",
                listen=address,
                bus_port=bus_port,
                disks=disks,
                zone=zone,
                security=self.security,
                credentials_out=self.credentials,
            )
            node = NodeId(1)
        else:
            node = setup.join_cluster(
                directory,
                store=f"tcp://{self.nodes[0].address}",
                credentials=self.credentials,
                listen=address,
                bus_port=bus_port,
                disks=disks,
                zone=zone,
            )
        self.nodes.append(LocalNode(node, directory, address))
        self.nodes[-1].spawn()
        if index == 0:
            self.nodes[0].wait_ready()

    def _write(self) -> None:
        nodes = [
            {"id": node.node, "dir": node.directory.name, "address": node.address} for node in self.nodes
        ]
        text = json.dumps({"security": self.security, "nodes": nodes}, indent=2) + "\n"
        part = self.directory / "cluster.json.part"
        part.write_text(text)
        part.replace(self.directory / "cluster.json")


def free_ports(n_nodes: int, preferred: int | None = None) -> int:
    """The first of two free ports in a row for each node: `preferred` if it is one, else drawn at random."""
    n_ports = 2 * n_nodes
    chance = random.Random()
    drawn = (chance.randrange(PORTS_FROM, PORTS_BELOW - n_ports, 2) for _ in range(100))
    for first in drawn if preferred is None else (preferred, *drawn):
        with suppress(AddressInUse), _holding(first, n_ports):
            return first
    raise AddressInUse(f"127.0.0.1, {n_ports} ports in a row")


@contextmanager
def _holding(first: int, n_ports: int) -> Generator[None]:
    with ExitStack() as sockets:
        for port in range(first, first + n_ports):
            taken = sockets.enter_context(socket.socket())
            taken.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the daemon does: TIME_WAIT is free
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                raise AddressInUse(f"127.0.0.1:{port}") from None
        yield


def _check_free(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with _holding(port, 1):
        pass


def end_with_stdin() -> None:
    """For the daemon's side, in a thread of its own: when standard input ends, ask this process to stop."""
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGINT)  # at once: who started us, and the other daemons, is gone
