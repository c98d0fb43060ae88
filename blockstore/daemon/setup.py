"""Making clusters, nodes and embedded stores on disk: once, before anything runs.

Each ends by writing node.json (and a disk by its superblock), so what was interrupted is not taken for
whole. Blocking; each runs an event loop of its own for as long as it takes, so none may be called from
inside one."""

from __future__ import annotations

import errno
import os
import random
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from blockstore.codec import credential
from blockstore.codec.control_record import ClusterRecord, CredentialRecord, NodeRecord
from blockstore.codec.frame import FrameWire
from blockstore.codec.grant import KEY_BYTES
from blockstore.codec.messages import Hello, Joined, JoinNode
from blockstore.config import OPERATION_SECONDS
from blockstore.control.bootstrap import bootstrap_cluster, bootstrap_node
from blockstore.daemon.node_directory import (
    LOOPBACK,
    DiskPlace,
    NodeDirectory,
    NodeFile,
    host_id,
    parse_listen,
    sync_directory,
)
from blockstore.errors import (
    AddressInUse,
    AlreadyExists,
    BlockStoreError,
    InvalidRequest,
    NotAStore,
    ProtocolViolation,
    Unavailable,
    of_path,
)
from blockstore.ids import DiskId, NodeId, RequestId, SessionId
from blockstore.node.disk_shell import format_disk
from blockstore.runtime.interfaces import Address
from blockstore.runtime.real_bus import BusKeys
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.real_disk import open_real_disk
from blockstore.runtime.real_net import RealNetwork
from blockstore.runtime.secret_file import write_secret_file
from blockstore.runtime.tls import client_context
from blockstore.version import RELEASE

Security = Literal["tls", "plain"]
ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class InitResult:
    credentials: Path | None  # None in a plain cluster
    address: str  # host:port


def init_cluster(
    directory: Path,
    *,
    name: str,
    listen: str = "127.0.0.1:7440",
    bus_port: int | None = None,
    disks: Sequence[Path] = (),
    zone: tuple[str, ...] = (),
    security: Security = "tls",
    credentials_out: Path | None = None,
) -> InitResult:
    """Make a cluster of one node, node 1, in an empty or missing directory, and its administrator's
    credential, in a new file."""
    host, port = parse_listen(listen)
    bus_port = _bus_port(port, bus_port)
    if security == "plain" and host not in LOOPBACK:
        raise InvalidRequest(f"A plain cluster listens on loopback only, not on {host}; leave out --plain.")
    cluster = secrets.token_hex(8)
    places = _Places(directory, disks)
    node = NodeId(1)
    keys = BusKeys.generate() if security == "tls" else None
    fingerprint, admin_record = "", None
    with places.made():
        if keys is not None:
            authority = credential.create_authority(name)
            bundle = credential.issue(authority, "node", str(node))
            admin = credential.issue(authority, "client", ADMIN, with_authority=True)
            credential.write_bundle(str(places.node.bundle), bundle)
            write_secret_file(str(places.node.bus_key), keys.secret, "bus key")
            credentials_out = credentials_out or directory / "admin.pem"
            if os.path.lexists(credentials_out):
                raise AlreadyExists(f"file {credentials_out}")
            credential.write_bundle(str(credentials_out), admin)
            fingerprint = bundle.fingerprint
            admin_record = CredentialRecord(ADMIN, "admin", admin.fingerprint)
        listening = Address(host, port, places.node.unix_path(), host_id())
        node_record = NodeRecord(
            node, 0, host, port, bus_port, listening.unix, listening.host_id,
            b"" if keys is None else keys.public, zone or (f"host-{node}",), fingerprint,
        )  # fmt: skip
        disk_ids = tuple(DiskId(1 + i) for i in range(len(places.disks)))
        places.format(
            disk_ids,
            cluster,
            ClusterRecord(cluster, name, time.time(), security, secrets.token_bytes(KEY_BYTES)),
            node_record,
            admin_record,
        )
        places.finish(
            NodeFile(
                cluster, name, node, security, host, port, bus_port, node_record.zone,
                places.disk_places(disk_ids),
            )
        )  # fmt: skip
    return InitResult(credentials_out if keys is not None else None, f"{host}:{port}")


def init_embedded(directories: Sequence[Path]) -> None:
    """Make a store that a program embeds: one node, nothing that listens. The first directory is the node's
    own; with one directory its disk is in it, with several each is a disk."""
    cluster = secrets.token_hex(8)
    places = _Places(directories[0], [path / "disk" for path in directories] if len(directories) > 1 else ())
    node = NodeId(1)
    with places.made():
        disk_ids = tuple(DiskId(1 + i) for i in range(len(places.disks)))
        record = NodeRecord(node, 0, "embedded", 0, 0, "", "", b"", ("embedded",), "")
        places.format(
            disk_ids,
            cluster,
            ClusterRecord(cluster, "embedded", time.time(), "plain", secrets.token_bytes(KEY_BYTES)),
            record,
            None,
        )
        places.finish(
            NodeFile(
                cluster,
                "embedded",
                node,
                "embedded",
                "embedded",
                0,
                0,
                record.zone,
                places.disk_places(disk_ids),
            )
        )


def join_cluster(
    directory: Path,
    *,
    store: str,
    credentials: Path | None,
    listen: str = "127.0.0.1:7440",
    bus_port: int | None = None,
    disks: Sequence[Path] = (),
    zone: tuple[str, ...] = (),
) -> NodeId:
    """Bring this machine into the cluster at `store`, as a new node in an empty or missing directory.

    Its ports are tried first: the cluster would wait for ever for a node that can never start."""
    host, port = parse_listen(listen)
    bus_port = _bus_port(port, bus_port)
    for wanted in (port, bus_port):
        _try_to_listen(host, wanted)
    seeds = [parse_listen(part) for part in store.removeprefix("tcp://").split(",")]
    admin = None if credentials is None or not os.fspath(credentials) else _admin(credentials)
    security: Security = "plain" if admin is None else "tls"
    if security == "plain" and host not in LOOPBACK:
        raise InvalidRequest(
            "To join a cluster from another machine, name the administrator's --credentials."
        )
    places = _Places(directory, disks)
    with places.made():
        keys, bundle = None, None
        if admin is not None:
            keys = BusKeys.generate()
            bundle = credential.issue(admin.authority, "node", f"n-{secrets.token_hex(6)}")
            credential.write_bundle(str(places.node.bundle), bundle)
            write_secret_file(str(places.node.bus_key), keys.secret, "bus key")
        request = JoinNode(
            b"" if bundle is None else bundle.der,
            host,
            port,
            bus_port,
            places.node.unix_path(),
            host_id(),
            b"" if keys is None else keys.public,
            zone,
            places.capacities(),
            RequestId(SessionId(secrets.randbits(63)), 1),
        )
        joined, snapshot = trio.run(_join, seeds, admin, request)
        places.format_joined(joined, snapshot)
        places.finish(
            NodeFile(
                joined.cluster, joined.cluster, joined.node, security, host, port,
                bus_port, zone, places.disk_places(joined.disks),
            )
        )  # fmt: skip
    return joined.node


def _bus_port(port: int, bus_port: int | None) -> int:
    found = port + 1 if bus_port is None else bus_port
    if not 0 < found <= 65_535 or found == port:
        raise InvalidRequest(
            f"The bus cannot have port {found} beside {port}; choose another from 1 to 65535."
        )
    return found


def _try_to_listen(host: str, port: int) -> None:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"{host}:{port}") from error
        raise InvalidRequest(f"Nothing can listen on {host}:{port}: {error.strerror}.") from error


def _admin(path: Path) -> credential.Bundle:
    bundle = credential.read_bundle(str(path))
    if not bundle.ca_key:
        raise InvalidRequest(
            f"{path} does not hold the cluster's authority; joining needs the administrator's credential, "
            "the one that `cluster init` wrote."
        )
    return bundle


async def _join(
    seeds: Sequence[tuple[str, int]], admin: credential.Bundle | None, request: JoinNode
) -> tuple[Joined, bytes]:
    """Ask each seed in turn, again and again until one could commit it; the same request is applied once."""

    def check_server(address: Address, certificate: bytes) -> None:
        credential.identity_of(certificate)

    clock = RealClock()
    network = RealNetwork(
        clock,
        FrameWire(),
        ssl_context=None
        if admin is None
        else client_context(admin.ca_certificate, admin.certificate, admin.key),
        hello=Hello(ADMIN, RELEASE) if admin is None else None,
        check_server=check_server,
    )
    deadline = clock.now() + OPERATION_SECONDS
    last: BlockStoreError = Unavailable("nobody was asked")
    async with network:
        while clock.now() < deadline:
            for host, port in seeds:
                try:
                    answer = await network.lane(Address(host, port)).call(request, (), clock.now() + 10.0)
                except BlockStoreError as error:
                    if not error.retry:
                        raise
                    last = error
                    continue
                if not isinstance(answer.message, Joined):
                    raise ProtocolViolation(f"a node answered a join with {type(answer.message).__name__}")
                return answer.message, bytes(answer.payload.view)
            await trio.sleep(0.2)
    hint = "" if admin is not None else "; a cluster with TLS needs the administrator's --credentials"
    raise Unavailable(f"No node of the cluster could take the new one in: {last}{hint}.")


class _Places:
    """The directories that are being made. What `made` did not finish it removes, as far as it made it."""

    def __init__(self, directory: Path, disks: Sequence[Path]) -> None:
        self.node = NodeDirectory(directory)
        self.disks = list(disks) or [directory / "disk-1"]
        self._made: list[Path] = []

    def made(self) -> _Places:
        return self

    def __enter__(self) -> None:
        if self.node.exists():
            raise AlreadyExists(f"node in {self.node.path}")
        try:
            for path in (self.node.path, *self.disks):
                if path.exists() and (not path.is_dir() or any(path.iterdir())):
                    why = "is not empty" if path.is_dir() else "is not a directory"
                    raise NotAStore(str(path), f"it {why}; a node is made in an empty or missing directory")
            for path in (self.node.path, self.node.control, *self.disks):
                for folder in reversed((path, *path.parents)):
                    if not folder.exists():
                        folder.mkdir()
                        self._made.append(folder)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        for path in reversed(self._made):
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            raise of_path(error, str(self.node.path)) from error

    def capacities(self) -> tuple[int, ...]:
        return tuple(shutil.disk_usage(path).total for path in self.disks)

    def disk_places(self, disk_ids: Sequence[DiskId]) -> tuple[DiskPlace, ...]:
        return tuple(
            DiskPlace(
                disk,
                os.path.relpath(path, self.node.path)
                if _within(path, self.node.path)
                else str(path.resolve()),
            )
            for disk, path in zip(disk_ids, self.disks, strict=True)
        )

    def format(
        self,
        disk_ids: Sequence[DiskId],
        cluster: str,
        cluster_record: ClusterRecord,
        node_record: NodeRecord,
        admin: CredentialRecord | None,
    ) -> None:
        """A new cluster's first node."""

        async def work() -> None:
            await self._format_disks(disk_ids, cluster)
            async with open_real_disk(self.node.control) as disk:
                bootstrap_cluster(
                    disk,
                    cluster=cluster_record,
                    node=node_record,
                    disk_bytes=self.capacities(),
                    admin=admin,
                    rng=_chance(),
                )

        trio.run(work)

    def format_joined(self, joined: Joined, snapshot: bytes) -> None:
        async def work() -> None:
            await self._format_disks(joined.disks, joined.cluster)
            async with open_real_disk(self.node.control) as disk:
                bootstrap_node(disk, snapshot, _chance())

        trio.run(work)

    async def _format_disks(self, disk_ids: Sequence[DiskId], cluster: str) -> None:
        for disk_id, path in zip(disk_ids, self.disks, strict=True):
            async with open_real_disk(path) as disk:
                format_disk(disk, disk_id, cluster)

    def finish(self, facts: NodeFile) -> None:
        """Every name that leads to the node is durable before the file that makes it one."""
        for folder in dict.fromkeys(path.parent for path in self._made):
            sync_directory(folder)
        self.node.write(facts)


def _within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


def _chance() -> random.Random:
    return random.Random(secrets.randbits(64))
