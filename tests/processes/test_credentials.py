"""Whom real daemons let in, and how far: keys that are listed, unlisted, revoked, of others; and roles."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import blockstore
from blockstore.codec import credential
from blockstore.codec.checksum import crc32c
from blockstore.codec.credential import Bundle
from blockstore.codec.messages import (
    AppendFragment,
    CreateCredential,
    CreateVolume,
    Delete,
    DeleteFragment,
    DeleteVolume,
    Extent,
    Fence,
    FetchControlSnapshot,
    FetchStatus,
    FragmentSpec,
    Grant,
    Granted,
    Hello,
    JoinNode,
    ListCredentials,
    ListFragments,
    Ok,
    Ping,
    Put,
    RevokeCredential,
    SealFragment,
    SnapshotCreate,
    SnapshotDelete,
    Transact,
    VolumeCall,
    Written,
)
from blockstore.daemon.local_cluster import LocalCluster, LocalNode
from blockstore.errors import BlockStoreError, InvalidRequest, PermissionDenied
from blockstore.ids import ChunkId, DiskId, MiB, RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import HELLO, Message
from tests.processes.raw_client import (
    REFUSED_SECONDS,
    WIRE,
    Log,
    RawClient,
    admin_of,
    listed,
    owner_of,
    request,
    unharmed,
)

CHANCE = random.Random()


def new_request() -> RequestId:
    return RequestId(SessionId(CHANCE.getrandbits(63)), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def reader(cluster: LocalCluster, folder: Path) -> Bundle:
    return listed(cluster, "reader", "read", folder)


@pytest.fixture(scope="module")
def writer(cluster: LocalCluster, folder: Path) -> Bundle:
    return listed(cluster, "writer", "write", folder)


@pytest.fixture(scope="module")
def bucket(cluster: LocalCluster) -> str:
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        made = store.create_bucket("target")
        made.put("small", b"kept")
        made.put("large", bytes(300_000))
    return "target"


def assert_intact(cluster: LocalCluster, bucket: str) -> None:
    """What was there is read, and writing goes on, small and large."""
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        found = store.bucket(bucket)
        assert found.get("small") == b"kept"
        assert found.get("large") == bytes(300_000)
        found.put("next", b"x")
        found.put("next large", bytes(200_000))
        assert found.get("next large") == bytes(200_000)


# --- who is let in


def test_a_signed_key_that_is_not_listed_opens_nothing(cluster: LocalCluster, folder: Path) -> None:
    path = folder / "unlisted.pem"
    credential.write_bundle(str(path), credential.issue(admin_of(cluster).authority, "client", "unlisted"))
    with unharmed(cluster) as log:
        began = time.monotonic()
        with pytest.raises(PermissionDenied, match=r"'unlisted'.*does not list"):
            blockstore.connect(f"tcp://{cluster.nodes[0].address}", credentials=path)
        assert time.monotonic() - began < REFUSED_SECONDS
        [line] = log.wait("WARNING", "'unlisted'", "does not list")
        assert "tcp://127.0.0.1:" in line or "unix process" in line


@pytest.mark.parametrize("name", ["2", "99", "elsewhere"])
def test_a_node_certificate_that_is_not_listed_is_no_nodes(cluster: LocalCluster, name: str) -> None:
    """Signed by the right authority, and naming node 2: it is the fingerprint that counts."""
    impostor = credential.issue(admin_of(cluster).authority, "node", name)
    with unharmed(cluster) as log, RawClient(cluster.nodes[0], impostor) as client:
        assert f"Node '{name}' shows a certificate" in client.last_words()
        [line] = log.wait("WARNING", client.name)
        assert f"Node '{name}'" in line


def test_a_listed_key_under_another_name_is_refused(cluster: LocalCluster) -> None:
    """An administrator lists a certificate that says it is somebody else."""
    stolen = credential.issue(admin_of(cluster).authority, "client", "admin")
    with RawClient(cluster.nodes[0], admin_of(cluster)) as client:
        client.ask(CreateCredential("mallory", "read", stolen.fingerprint, new_request()))
    with unharmed(cluster) as log, RawClient(cluster.nodes[0], stolen) as client:
        assert "listed as 'mallory' says that it is 'admin'" in client.last_words()
        log.wait("WARNING", client.name, "'mallory'")


@pytest.mark.parametrize("kind", ["client", "node"])
def test_another_clusters_keys_are_refused(
    cluster: LocalCluster, kind: credential.Kind, tmp_path: Path
) -> None:
    stranger = credential.issue(credential.create_authority("other"), kind, "1")
    with unharmed(cluster) as log:
        with pytest.raises(ssl.SSLError), RawClient(cluster.nodes[0], stranger):
            pass  # it does not know us either
        # and one that would talk to us all the same
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        (tmp_path / "own.pem").write_text(stranger.certificate + stranger.key)
        trusting.load_cert_chain(tmp_path / "own.pem")
        with RawClient(cluster.nodes[0], trusting) as client:
            client.send(request(Ping()))
            assert client.last_words() == ""
            [line] = log.wait("WARNING", client.name)
            assert "certificate" in line


def test_no_key_at_all_is_refused(cluster: LocalCluster) -> None:
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    with unharmed(cluster) as log, RawClient(cluster.nodes[0], anonymous) as client:
        client.send(request(Ping()))
        assert client.last_words() == ""
        [line] = log.wait("WARNING", client.name)
        assert "certificate" in line


@pytest.mark.parametrize(
    "data",
    [WIRE.encode(HELLO, 0, Hello("node 1", "1"), 0, 0) + request(Ping()), b"GET / HTTP/1.1\r\n\r\n"],
    ids=["frames", "http"],
)
def test_plain_text_at_a_tls_port_is_refused(cluster: LocalCluster, data: bytes) -> None:
    with unharmed(cluster) as log, RawClient(cluster.nodes[0], None) as client:
        client.send(data)
        client.wait_for_hangup()
        [line] = log.wait("WARNING", client.name)
        assert "TLS failed" in line


def test_a_revoked_key_is_cut_off_at_once_and_everywhere(cluster: LocalCluster, folder: Path) -> None:
    leaver = listed(cluster, "leaver", "write", folder)
    with unharmed(cluster):
        logs = [Log(node.log) for node in cluster.nodes]
        clients = [RawClient(node, leaver) for node in cluster.nodes]
        assert [client.ask(Ping()) for client in clients] == [Ok()] * 3
        with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
            store.revoke_credential("leaver")
        for client, log in zip(clients, logs, strict=True):
            assert "revoked" in client.last_words()
            log.wait("WARNING", client.name, "client leaver", "revoked")
            client.sock.close()
        for node, log in zip(cluster.nodes, logs, strict=True):
            with RawClient(node, leaver) as client:
                assert "'leaver' has been revoked" in client.last_words()
                log.wait("WARNING", client.name, "'leaver' has been revoked")
        with pytest.raises(PermissionDenied, match="'leaver' has been revoked"):
            blockstore.connect(cluster.location, credentials=folder / "leaver.pem")


def test_a_recorded_session_cannot_be_played_again(cluster: LocalCluster, writer: Bundle) -> None:
    """Every byte that a client sent, sent once more."""
    recorded = bytearray()
    host, _, port = cluster.nodes[0].address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listening, unharmed(cluster) as log:

        def record() -> None:
            ours, _ = listening.accept()
            with ours, socket.create_connection((host, int(port))) as theirs:

                def back() -> None:
                    with suppress(OSError):  # the other thread closes both when the client has hung up
                        while data := theirs.recv(65_536):
                            ours.sendall(data)

                threading.Thread(target=back, daemon=True).start()
                while data := ours.recv(65_536):
                    recorded.extend(data)
                    theirs.sendall(data)

        listener = threading.Thread(target=record, daemon=True)
        listener.start()
        proxied = LocalNode(cluster.nodes[0].node, Path(), f"127.0.0.1:{listening.getsockname()[1]}")
        with RawClient(proxied, writer) as client:
            client.ask(CreateVolume("replayed", "bucket", "", False, new_request()))
        listener.join(10)
        with RawClient(cluster.nodes[0], None) as again:
            again.send(bytes(recorded))
            again.wait_for_hangup()
            log.wait("WARNING", again.name, "TLS failed")


def test_a_request_sent_twice_is_applied_once(cluster: LocalCluster, bucket: str, writer: Bundle) -> None:
    node, volume, epoch = owner_of(cluster, bucket)
    op = Put(b"twice", b"\x93\x01\x00\x80", 2, crc32c(b"ab"))
    put = VolumeCall(VolumeId(volume), epoch, new_request(), 1, op)
    answers: list[Message] = []
    for _ in range(2):
        with RawClient(node, writer) as client:
            answers.append(client.ask(put, b"ab"))
    assert isinstance(answers[0], Written)
    assert answers[0] == answers[1]


# --- how far

NODE_ONLY: dict[str, Message] = {
    "Fence": Fence(VolumeId(1), 2**62),
    "SealFragment": SealFragment(DiskId(1), ChunkId(VolumeId(1), 1, 1), 2**62, 0),
    "DeleteFragment": DeleteFragment(DiskId(1), ChunkId(VolumeId(1), 1, 1), 2**62),
    "Transact": Transact(new_request(), (), (("cluster", b""),)),
    "FetchControlSnapshot": FetchControlSnapshot(0),
}
ADMIN_ONLY: dict[str, Message] = {
    "ListFragments": ListFragments(DiskId(1)),
    "JoinNode": JoinNode(b"", "127.0.0.1", 1, 2, "", "", b"", (), (1,), new_request()),
    "CreateCredential": CreateCredential("mine", "admin", "0" * 64, new_request()),
    "RevokeCredential": RevokeCredential("admin", new_request()),
    "ListCredentials": ListCredentials(),
}
WRITERS: dict[str, Message] = {
    "CreateVolume": CreateVolume("never", "bucket", "", False, new_request()),
    "DeleteVolume": DeleteVolume("target", new_request()),
    "AppendFragment": AppendFragment(
        DiskId(1), ChunkId(VolumeId(1), 1, 99), 1, 0, crc32c(b"x"), FragmentSpec(0, 1, 2, 1 * MiB)
    ),
}
WRITER_OPS = (
    Put(b"k", b"", 1, crc32c(b"x")),
    Delete(b"small"),
    SnapshotCreate("never"),
    SnapshotDelete("never"),
    Grant(),
)


def test_a_reader_changes_nothing(cluster: LocalCluster, bucket: str, reader: Bundle) -> None:
    node, volume, epoch = owner_of(cluster, bucket)
    with unharmed(cluster):
        log = Log(node.log)
        for name, message in (NODE_ONLY | ADMIN_ONLY | WRITERS).items():
            with RawClient(node, reader) as client:
                refused = client.refusal(message, b"x" if name == "AppendFragment" else b"")
                assert isinstance(refused, PermissionDenied)
                assert str(refused).startswith("Client reader has the role read; ")
                assert f"{name} needs " in str(refused)
                [line] = log.wait("WARNING", client.name)
                assert "client reader" in line
                assert f"{name} needs" in line
        for op in WRITER_OPS:
            call = VolumeCall(VolumeId(volume), epoch, new_request(), 1, op)
            with RawClient(node, reader) as client:
                refused = client.refusal(call, b"x" if isinstance(op, Put) else b"")
                assert isinstance(refused, PermissionDenied)
                assert str(refused) == (
                    f"Client reader has the role read; {type(op).__name__} needs admin or node or write."
                )
                assert len(log.wait("WARNING", client.name, "client reader")) == 1
        with RawClient(node, reader) as client:  # and still it may read
            client.ask(FetchStatus())
            for _ in range(50):
                client.refusal(ListCredentials())
            assert len(log.lines("WARNING", client.name)) == 1  # many refusals are one line
    assert_intact(cluster, bucket)


def test_nobody_but_a_node_does_what_nodes_do(cluster: LocalCluster, bucket: str, writer: Bundle) -> None:
    for bundle, name, messages in (
        (writer, "writer", NODE_ONLY | ADMIN_ONLY),
        (admin_of(cluster), "admin", NODE_ONLY),
    ):
        for kind, message in messages.items():
            with RawClient(cluster.nodes[0], bundle) as client:
                refused = client.refusal(message)
                assert isinstance(refused, PermissionDenied)
                assert str(refused).startswith(f"Client {name} has the role ")
                assert f"{kind} needs" in str(refused)
    assert_intact(cluster, bucket)


def disk_of(cluster: LocalCluster, index: int) -> DiskId:
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        [node] = [one for one in store.nodes() if one.node == cluster.nodes[index].node]
    return node.disks[0]


def append(disk: DiskId, chunk: ChunkId, epoch: int, grant: bytes = b"", offset: int = 0) -> AppendFragment:
    spec = FragmentSpec(0, 1, 2, 1 * MiB) if offset == 0 else None
    return AppendFragment(disk, chunk, epoch, offset, crc32c(b"evil"), spec, grant)


def test_a_writer_appends_to_nothing_but_its_grants(
    cluster: LocalCluster, bucket: str, reader: Bundle, writer: Bundle
) -> None:
    node, number, epoch = owner_of(cluster, bucket)
    volume = VolumeId(number)
    disk = disk_of(cluster, 0)
    with unharmed(cluster):
        with RawClient(node, writer) as client:
            granted = client.ask(VolumeCall(volume, epoch, new_request(), 1, Grant()))
            assert isinstance(granted, Granted)
        token = granted.token
        strange = [
            append(disk, ChunkId(volume, 2**62, 1), 2**62),  # would fence the volume for ever
            append(disk, ChunkId(volume, 2**62, 1), 2**62, token),
            append(disk, granted.chunk, 2**62, token),
            append(disk, granted.chunk._replace(number=granted.chunk.number + 1), epoch, token),  # the next
            append(disk, ChunkId(volume, granted.epoch, 1), granted.epoch, token, offset=100),  # the journal
            append(disk, ChunkId(VolumeId(2**40), 1, 1), 1, token),
            append(disk, ChunkId(VolumeId(-1), -1, -1), -1, token),
            append(disk, granted.chunk, granted.epoch, bytes(16)),
            append(disk, granted.chunk, granted.epoch, b""),
        ]
        for message in strange:
            with RawClient(cluster.nodes[0], writer) as client:
                refused = client.refusal(message, b"evil")
                assert isinstance(refused, PermissionDenied)
                assert f"Client writer was not granted chunk {message.chunk}" in str(refused)
        with RawClient(cluster.nodes[0], admin_of(cluster)) as client:  # nor does the token serve another
            refused = client.refusal(append(disk, granted.chunk, granted.epoch, token), b"evil")
            assert isinstance(refused, PermissionDenied)
        if disk in granted.placement.disks:
            with RawClient(cluster.nodes[0], writer) as client:
                client.ask(append(disk, granted.chunk, granted.epoch, token), b"evil")
    assert_intact(cluster, bucket)


def test_a_writer_cannot_end_or_refer_to_what_is_not_its_own(
    cluster: LocalCluster, bucket: str, writer: Bundle
) -> None:
    node, number, epoch = owner_of(cluster, bucket)
    volume = VolumeId(number)
    everything = tuple((ChunkId(volume, e, n), 0) for e in range(1, epoch + 1) for n in range(1, 30))
    with unharmed(cluster), RawClient(node, writer) as client:

        def call(op: Grant | Put) -> VolumeCall:
            return VolumeCall(volume, epoch, new_request(), 1, op)

        disks = tuple(DiskId(disk) for disk in range(1, 1_000))
        granted = client.ask(call(Grant(everything, disks)))  # the ends of others' chunks, and no good disk
        assert isinstance(granted, Granted)
        for chunk, _ in everything:
            put = Put(b"stolen", b"", 10, 0, (Extent(chunk, 0, 10, 10, 0),))
            assert isinstance(client.refusal(call(put)), BlockStoreError)
        for extent in (
            Extent(granted.chunk, 2**63, 10, 10, 0),
            Extent(granted.chunk, -1, 10, 10, 0),
            Extent(granted.chunk, 0, 10, 0, 0),
            Extent(granted.chunk, 0, 10, -1, 0),
            Extent(granted.chunk, 2**63 - 5, 10, 10, 2**63),
            Extent(granted.chunk._replace(volume=VolumeId(volume + 1)), 0, 10, 10, 0),
        ):
            assert isinstance(client.refusal(call(Put(b"k", b"", 10, 0, (extent,)))), InvalidRequest)
    assert_intact(cluster, bucket)
