"""Making clusters, nodes and embedded stores on disk: once, before anything runs.

Each ends by writing node.json (and a disk by its superblock), so what was interrupted is not taken for
whole, and can be repeated (`setup_places.py`). Blocking; each runs an event loop of its own for as long as it
takes, so none may be called from inside one."""

from __future__ import annotations

import errno
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    NodeDirectory,
    NodeFile,
    host_id,
    parse_listen,
)
from blockstore.daemon.setup_places import SetupPlaces
from blockstore.errors import (
    AddressInUse,
    AlreadyExists,
    BlockStoreError,
    InvalidRequest,
    ProtocolViolation,
    Unavailable,
)
from blockstore.ids import DiskId, NodeId, RequestId, SessionId
from blockstore.runtime.interfaces import Address, Disk
from blockstore.runtime.real_bus import BusKeys
from blockstore.runtime.real_clock import RealClock
from blockstore.runtime.real_disk import open_real_disk
from blockstore.runtime.real_net import RealNetwork
from blockstore.runtime.secret_file import read_secret_file, write_secret_file
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
    node = NodeId(1)
    keys = BusKeys.generate() if security == "tls" else None
    fingerprint, admin_record = "", None
    with SetupPlaces(directory, disks) as places:
        if keys is not None:
            credentials_out = credentials_out or directory / "admin.pem"
            bundle, admin = _first_credentials(name, places.node, credentials_out)
            write_secret_file(str(places.node.bus_key), keys.secret, "bus key")
            fingerprint = bundle.fingerprint
            admin_record = CredentialRecord(ADMIN, "admin", admin.fingerprint)
        listening = Address(host, port, places.node.unix_path(), host_id())
        node_record = NodeRecord(
            node, 0, host, port, bus_port, listening.unix, listening.host_id,
            b"" if keys is None else keys.public, zone or (f"host-{node}",), fingerprint,
        )  # fmt: skip
        disk_ids = tuple(DiskId(1 + i) for i in range(len(places.disks)))
        _found(places, disk_ids, name, security, node_record, admin_record)
        places.finish(
            NodeFile(
                places.token, name, node, security, host, port, bus_port, node_record.zone,
                places.disk_places(disk_ids),
            )
        )  # fmt: skip
    return InitResult(credentials_out if keys is not None else None, f"{host}:{port}")


def init_embedded(directories: Sequence[Path]) -> None:
    """Make a store that a program embeds: one node, nothing that listens. The first directory is the node's
    own; with one directory its disk is in it, with several each is a disk."""
    node = NodeId(1)
    disks = [path / "disk" for path in directories] if len(directories) > 1 else ()
    with SetupPlaces(directories[0], disks) as places:
        disk_ids = tuple(DiskId(1 + i) for i in range(len(places.disks)))
        record = NodeRecord(node, 0, "embedded", 0, 0, "", "", b"", ("embedded",), "")
        _found(places, disk_ids, "embedded", "plain", record, None)
        places.finish(
            NodeFile(
                places.token, "embedded", node, "embedded", "embedded", 0, 0, record.zone,
                places.disk_places(disk_ids),
            )
        )  # fmt: skip


def _found(
    places: SetupPlaces,
    disk_ids: Sequence[DiskId],
    name: str,
    security: Security,
    node: NodeRecord,
    admin: CredentialRecord | None,
) -> None:
    """A new cluster, whose only node this is. Its id is the setup's token."""
    cluster = ClusterRecord(places.token, name, time.time(), security, secrets.token_bytes(KEY_BYTES))
    trio.run(places.format_disks, disk_ids, cluster.id)
    capacities = places.capacities()

    def make(disk: Disk) -> None:
        bootstrap_cluster(disk, cluster=cluster, node=node, disk_bytes=capacities, admin=admin, rng=_chance())

    trio.run(_bootstrap, places, make)


def _first_credentials(
    name: str, node: NodeDirectory, credentials_out: Path
) -> tuple[credential.Bundle, credential.Bundle]:
    """The node's and the administrator's: those that an interrupted setup left, or new ones. AlreadyExists
    for any other file: it may be some authority's only key."""
    if node.bundle.exists() and os.path.lexists(credentials_out):
        bundle, admin = (credential.read_bundle(str(path)) for path in (node.bundle, credentials_out))
        if bundle.ca_certificate == admin.ca_certificate:
            return bundle, admin
    if os.path.lexists(credentials_out):
        raise AlreadyExists(f"file {credentials_out}")
    authority = credential.create_authority(name)
    bundle = credential.issue(authority, "node", "1")
    admin = credential.issue(authority, "client", ADMIN, with_authority=True)
    credential.write_bundle(str(node.bundle), bundle)
    credential.write_bundle(str(credentials_out), admin)
    return bundle, admin


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
    """Bring this machine into the cluster at `store`, as a new node in an empty or missing directory. What
    was interrupted, or found nobody to answer, can be repeated and then makes the same node.

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
    with SetupPlaces(directory, disks) as places:
        keys, bundle = (None, None) if admin is None else _node_keys(places.node, admin)
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
            RequestId(SessionId(int(places.token, 16) >> 1), 1),
        )
        places.keep()
        try:
            joined, snapshot = trio.run(_join, seeds, admin, request)
        except BlockStoreError as error:
            if not error.retry:
                places.forget()  # refused, so nobody knows of this node
            raise
        trio.run(places.format_disks, joined.disks, joined.cluster)
        trio.run(_bootstrap, places, partial(bootstrap_node, joined=snapshot, rng=_chance()))
        places.finish(
            NodeFile(
                joined.cluster, joined.cluster, joined.node, security, host, port,
                bus_port, zone, places.disk_places(joined.disks),
            )
        )  # fmt: skip
    return joined.node


def _node_keys(node: NodeDirectory, admin: credential.Bundle) -> tuple[BusKeys, credential.Bundle]:
    """Those that an interrupted join left, for the cluster may know them by now; or new ones."""
    if node.bundle.exists() and node.bus_key.exists():
        bundle = credential.read_bundle(str(node.bundle))
        if bundle.ca_certificate == admin.ca_certificate:
            return BusKeys.from_secret(read_secret_file(str(node.bus_key), "bus key")), bundle
    keys = BusKeys.generate()
    bundle = credential.issue(admin.authority, "node", f"n-{secrets.token_hex(6)}")
    credential.write_bundle(str(node.bundle), bundle)
    write_secret_file(str(node.bus_key), keys.secret, "bus key")
    return keys, bundle


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


async def _bootstrap(places: SetupPlaces, make: Callable[[Disk], object]) -> None:
    async with open_real_disk(places.node.control) as disk:
        make(disk)


def _chance() -> random.Random:
    return random.Random(secrets.randbits(64))
