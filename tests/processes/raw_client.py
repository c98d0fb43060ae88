"""A client without manners: it speaks TLS or not, and sends whatever bytes it is given to a real daemon.

And what the daemon must be like afterwards: `unharmed` is entered before, and checks at its end.
"""

from __future__ import annotations

import socket
import ssl
import statistics
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import blockstore
from blockstore.codec.credential import Bundle, read_bundle
from blockstore.codec.frame import PREFIX_BYTES, FrameWire
from blockstore.codec.messages import Failed
from blockstore.daemon.local_cluster import LocalCluster, LocalNode
from blockstore.errors import BlockStoreError
from blockstore.ids import MiB
from blockstore.runtime.interfaces import REQUEST, Message, Prefix
from blockstore.runtime.tls import client_context

WIRE = FrameWire()

REFUSED_SECONDS = 2.0
"""What we promise is 1 s; tests may share the machine with others."""

RSS_GROWTH_MAX = 32 * MiB

P99_SECONDS_MAX = 1.0
"""Of the other client's small puts and gets; alone it is some 10 ms."""

LONGEST_SECONDS_MAX = 5.0
"""Of any of them: an election on a busy machine is forgiven, waiting behind strangers is not."""


def context_of(bundle: Bundle) -> ssl.SSLContext:
    return client_context(bundle.ca_certificate, bundle.certificate, bundle.key)


class RawClient:
    """One connection; `with` it."""

    def __init__(self, node: LocalNode, credential: Bundle | ssl.SSLContext | None) -> None:
        """Without a credential: plain TCP. PermissionDenied comes with the first answer, not here."""
        host, _, port = node.address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), timeout=10)
        self.name = "tcp://{}:{}".format(*self.sock.getsockname())
        if credential is not None:
            context = credential if isinstance(credential, ssl.SSLContext) else context_of(credential)
            self.sock = context.wrap_socket(self.sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it may hang up before it has read all
            self.sock.sendall(data)

    def ask(self, message: Message, payload: bytes = b"", call_id: int = 1) -> Message:
        """The answer to one request, its error as an exception."""
        self.send(request(message, payload, call_id))
        prefix, answer, _ = self.receive()
        assert prefix.call_id in (call_id, 0), prefix
        if (error := WIRE.error_of(answer)) is not None:
            raise error
        return answer

    def refusal(self, message: Message, payload: bytes = b"") -> BlockStoreError:
        """The error that answers, within a second or so."""
        began = time.monotonic()
        try:
            answer = self.ask(message, payload)
        except BlockStoreError as error:
            assert time.monotonic() - began < REFUSED_SECONDS
            return error
        raise AssertionError(f"{message} was answered with {answer}")

    def receive(self) -> tuple[Prefix, Message, bytes]:
        prefix = WIRE.parse_prefix(self._read(PREFIX_BYTES))
        message = WIRE.decode(prefix, self._read(prefix.header_bytes))
        return prefix, message, self._read(prefix.payload_bytes)

    def last_words(self, seconds: float = REFUSED_SECONDS) -> str:
        """What the daemon says before it hangs up, which must happen in time; "" if nothing."""
        until, said = time.monotonic() + seconds, ""
        try:
            while True:
                self.sock.settimeout(max(0.01, until - time.monotonic()))
                _, message, _ = self.receive()
                if isinstance(message, Failed):
                    said = str(WIRE.error_of(message))
        except (EOFError, ConnectionError, ssl.SSLError):
            return said

    def wait_for_hangup(self, seconds: float = REFUSED_SECONDS) -> None:
        """Whatever it says before."""
        self.sock.settimeout(seconds)
        with suppress(ConnectionError):
            while self.sock.recv(65_536):
                pass

    def _read(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            part = self.sock.recv(n_bytes - len(data))
            if not part:
                raise EOFError
            data += part
        return data


def request(message: Message, payload: bytes = b"", call_id: int = 1, budget_ms: int = 5_000) -> bytes:
    return WIRE.encode(REQUEST, call_id, message, len(payload), budget_ms) + payload


def memory_bytes(pid: int, what: str) -> int:
    """`VmRSS`: what the process holds in memory now; `VmHWM`: the most since `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass
class Log:
    """What one daemon has written since some moment."""

    path: Path
    start: int = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.path.stat().st_size

    def text(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read().decode(errors="replace")

    def lines(self, *words: str) -> list[str]:
        """Those that hold all of these words."""
        return [line for line in self.text().splitlines() if all(word in line for word in words)]

    def wait(self, *words: str, n: int = 1, seconds: float = REFUSED_SECONDS) -> list[str]:
        """Those lines, once there are so many."""
        until = time.monotonic() + seconds
        while len(found := self.lines(*words)) < n:
            assert time.monotonic() < until, f"{len(found)} of {n} lines say {words}:\n{self.text()[-3_000:]}"
            time.sleep(0.02)
        return found


class Bystander(threading.Thread):
    """Another client at work: small puts and gets, one after the other."""

    def __init__(self, cluster: LocalCluster, bucket: str) -> None:
        super().__init__(name="bystander", daemon=True)
        self._cluster, self._bucket = cluster, bucket
        self._stop_asked = threading.Event()
        self.seconds: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with blockstore.connect(self._cluster.location, credentials=self._cluster.credentials) as store:
                bucket = store.create_bucket(self._bucket, exist_ok=True)
                number = 0
                while not self._stop_asked.wait(0.005):
                    began = time.perf_counter()
                    name, value = f"k{number % 100}", b"%d" % number
                    bucket.put(name, value)
                    assert bucket.get(name) == value
                    self.seconds.append(time.perf_counter() - began)
                    number += 1
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(30)
        assert not self.is_alive()


@contextmanager
def unharmed(cluster: LocalCluster) -> Generator[Log]:
    """The first node's log from here on. At the end: every daemon is the process it was, has never grown
    much, has logged no traceback; and another client that worked all the while has noticed nothing."""
    logs = [Log(node.log) for node in cluster.nodes]
    pids = [node.pid for node in cluster.nodes]
    bystander = Bystander(cluster, "bystander")
    bystander.start()
    while bystander.is_alive() and len(bystander.seconds) < 3:
        time.sleep(0.01)
    before = [memory_bytes(pid, "VmRSS") for pid in pids]
    for pid in pids:
        forget_peak(pid)
    try:
        yield logs[0]
        grown = [memory_bytes(pid, "VmHWM") - was for pid, was in zip(pids, before, strict=True)]
    finally:
        bystander.stop()
    assert [node.pid for node in cluster.nodes] == pids
    assert max(grown) < RSS_GROWTH_MAX, grown
    for log in logs:
        assert "Traceback" not in log.text(), log.text()
    assert bystander.error is None, bystander.error
    if len(bystander.seconds) >= 100:
        assert statistics.quantiles(bystander.seconds, n=100)[98] < P99_SECONDS_MAX
    assert max(bystander.seconds) < LONGEST_SECONDS_MAX


def admin_of(cluster: LocalCluster) -> Bundle:
    assert cluster.credentials is not None
    return read_bundle(str(cluster.credentials))


def listed(cluster: LocalCluster, name: str, role: str, folder: Path) -> Bundle:
    """A new credential that the cluster lists."""
    path = folder / f"{name}.pem"
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        store.create_credential(name, role, path)
    return read_bundle(str(path))


def owner_of(cluster: LocalCluster, bucket: str) -> tuple[LocalNode, int, int]:
    """The daemon that owns a bucket's volume, the volume, and its epoch."""
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        [view] = [one for one in store.buckets() if one.name == bucket]
    [node] = [one for one in cluster.nodes if one.node == view.owner]
    return node, view.volume, view.epoch
