"""A store for tests of the client: three nodes in memory that answer every message, from dictionaries.

It shares no code with the engine. Faults are told to it one request at a time.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from blockstore.api.cluster import ClusterSession
from blockstore.api.store import Opened, Store
from blockstore.codec import messages as m
from blockstore.codec.checksum import crc32c
from blockstore.errors import (
    AlreadyExists,
    BlockStoreError,
    Busy,
    ConnectionLost,
    FragmentSealed,
    InvalidRequest,
    NotFound,
    NotLeader,
    NotOwner,
    PreconditionFailed,
    StaleEpoch,
)
from blockstore.ids import ChunkId, DiskId, MiB, NodeId, RequestId, VolumeId
from blockstore.runtime.interfaces import Address, IncomingCall, Peer
from blockstore.runtime.memory_net import MemoryListener, MemoryNetwork
from blockstore.runtime.trio_caller import TrioCaller

Fault = str
"""What becomes of one request: "lose", "lose answer" (after carrying it out), "twice", "hang up", "busy"."""

CLIENT = Peer("client", "test", "admin")


class TrioClock:
    """trio's clock: of a test with `autojump_clock`, virtual."""

    def now(self) -> float:
        return trio.current_time()

    def wall(self) -> float:
        return 1_000_000.0 + trio.current_time()

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)


@dataclass
class Version:
    sequence: int
    meta: bytes | None  # None: deleted
    size: int = 0
    crc: int = 0
    value: bytes | None = None  # inline
    extents: tuple[m.Extent, ...] = ()


@dataclass
class Volume:
    volume: VolumeId
    name: str
    policy: str
    epoch: int
    owner: NodeId
    sequence: int = 0
    keys: dict[bytes, list[Version]] = field(default_factory=dict[bytes, list[Version]])
    snapshots: dict[str, m.SnapshotRecord] = field(default_factory=dict[str, m.SnapshotRecord])
    results: dict[RequestId, object] = field(default_factory=dict[RequestId, object])
    settled: dict[int, int] = field(default_factory=dict[int, int])
    chunks: dict[ChunkId, m.Placement] = field(default_factory=dict[ChunkId, m.Placement])

    def view(self) -> m.VolumeView:
        return m.VolumeView(self.volume, self.name, "bucket", self.policy, self.epoch, self.owner)

    def find(self, key: bytes, at: int) -> Version | None:
        for version in reversed(self.keys.get(key, [])):
            if not at or version.sequence <= at:
                return None if version.meta is None else version
        return None


class FakeStore:
    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.addresses = {NodeId(n): Address("node", n) for n in (1, 2, 3)}
        self.listeners: dict[NodeId, MemoryListener] = {}
        self.leader = NodeId(1)
        self.revision = 1
        self.volumes: dict[str, Volume] = {}
        self.fragments: dict[tuple[DiskId, ChunkId], bytearray] = {}
        self.sealed: set[ChunkId] = set()
        self.applied: list[m.VolumeCall] = []  # changes carried out
        self.heard: list[tuple[NodeId, object]] = []
        self.settled_told: list[tuple[int, int]] = []  # (number, settled) of each volume call
        self.faults: list[tuple[type, Fault]] = []
        self.paused: set[NodeId] = set()
        self.lagging: dict[NodeId, tuple[int, dict[str, Volume]]] = {}
        self.serves = True  # whether the owner is past its takeover
        for node in self.addresses:
            self.start(node)

    # --- what a test does

    def start(self, node: NodeId) -> None:
        self.listeners[node] = self.network.attach(self.addresses[node], partial(self._handle, node), CLIENT)

    def kill(self, node: NodeId) -> None:
        self.listeners[node].close()

    def move(self, name: str, owner: int) -> None:
        volume = self.volumes[name]
        volume.owner, volume.epoch = NodeId(owner), volume.epoch + 1
        self.revision += 1

    def make_volume(self, name: str, policy: str = "") -> Volume:
        self.revision += 1
        return Volume(VolumeId(self.revision), name, policy or "replicated(3)", 1, NodeId(2))

    def fail_next(self, op: type, *faults: Fault) -> None:
        self.faults += [(op, fault) for fault in faults]

    def count(self, kind: type) -> int:
        """Volume requests of that kind that reached a node."""
        return sum(isinstance(got, m.VolumeCall) and isinstance(got.op, kind) for _, got in self.heard)

    # --- answering

    def _handle(self, node: NodeId, call: IncomingCall) -> None:
        message = call.message
        self.heard.append((node, message))
        if node in self.paused:
            return
        what = kind_of(message)
        fault = next((fault for kind, fault in self.faults if kind is what), None)
        if fault is not None:
            self.faults.remove((what, fault))
        match fault:
            case "lose":
                return
            case "busy":
                raise Busy("the fake store")
            case "hang up":
                raise ConnectionLost("the fake store hung up")
            case "lose answer" | "twice":
                self._answer(node, call)
                if fault == "lose answer":
                    return
            case _:
                pass
        answer, payload = self._answer(node, call)
        call.answer(answer, payload)

    def _answer(self, node: NodeId, call: IncomingCall) -> tuple[object, Sequence[bytes]]:
        message = call.message
        match message:
            case m.VolumeCall():
                return self._volume_call(node, message, call.payload.view)
            case m.FetchView():
                return self._view(node, message.volume), ()
            case m.AppendFragment() | m.ReadFragments():
                return self._fragments(message, call.payload.view)
            case _:
                return self._control(node, message), ()

    def _view(self, node: NodeId, name: str) -> m.View:
        revision, volumes = self.lagging.get(node, (self.revision, self.volumes))
        nodes = tuple(
            m.NodeView(number, address.host, address.port, "", "", (), True, (DiskId(number),))
            for number, address in self.addresses.items()
        )
        volume = volumes.get(name)
        return m.View("fake", revision, self.leader, nodes, volume.view() if volume else None)

    def _control(self, node: NodeId, message: object) -> object:
        changes = (m.CreateVolume, m.DeleteVolume, m.CreateCredential, m.RevokeCredential)
        if isinstance(message, changes) and node != self.leader:
            raise NotLeader(self.leader)
        match message:
            case m.CreateVolume(name, _, policy, exist_ok):
                if name in self.volumes and not exist_ok:
                    raise AlreadyExists(f"bucket {name!r}")
                if name not in self.volumes:
                    self.volumes[name] = self.make_volume(name, policy)
                return self._view(node, name)
            case m.DeleteVolume(name):
                if name not in self.volumes:
                    raise NotFound(f"volume {name!r}")
                del self.volumes[name]
                self.revision += 1
                return m.Ok()
            case m.ListVolumes():
                return m.Volumes(tuple(volume.view() for volume in self.volumes.values()))
            case m.FetchEvents(after):
                return m.Events((m.Event(after + 1, 5.0, node, "code", "text"),), after + 1)
            case m.FetchStatus():
                return m.Status("fake", self.revision, self.leader, 1, (), (), (), "All is well.", 0)
            case _:
                raise InvalidRequest(f"the fake store does not know {type(message).__name__}")

    # --- volumes

    def _volume_call(
        self, node: NodeId, call: m.VolumeCall, payload: memoryview
    ) -> tuple[object, Sequence[bytes]]:
        volume = next((one for one in self.volumes.values() if one.volume == call.volume), None)
        if volume is None:
            raise NotFound(f"volume {call.volume}")
        if volume.owner != node:
            raise NotOwner(volume.volume, volume.owner, volume.epoch)
        self.settled_told.append((call.request.number, call.settled))
        op = call.op
        if isinstance(op, m.Put | m.Delete | m.SnapshotCreate | m.SnapshotDelete | m.Grant):
            return self._change(volume, call, bytes(payload)), ()
        if isinstance(op, m.Lookup):
            return self._lookup(volume, op)
        if isinstance(op, m.LookupMany):
            return self._lookup_many(volume, op)
        if isinstance(op, m.ListKeys):
            return self._page(volume, op), ()
        if isinstance(op, m.SnapshotList):
            return m.SnapshotRecords(tuple(volume.snapshots.values())), ()
        return m.VolumeFacts({"keys": len(volume.keys)}), ()

    def _change(self, volume: Volume, call: m.VolumeCall, payload: bytes) -> object:
        session, number = call.request
        known = volume.results.get(call.request)
        if known is None:
            if number < volume.settled.get(session, 0):
                raise InvalidRequest("settled before")
            volume.settled[session] = max(volume.settled.get(session, 0), call.settled)
            for request in list(volume.results):
                if request.session == session and request.number < volume.settled[session]:
                    del volume.results[request]
            try:
                known = self._apply(volume, call.op, payload)
            except BlockStoreError as error:
                known = error
            else:
                self.applied.append(call)
            volume.results[call.request] = known
        if isinstance(known, BlockStoreError):
            raise known
        return known

    def _apply(self, volume: Volume, op: object, payload: bytes) -> object:
        volume.sequence += 1
        sequence = volume.sequence
        match op:
            case m.Put():
                assert crc32c(payload) == op.crc or op.extents
                self._check(volume, op.key, op.expected)
                for extent in op.extents:
                    if extent.chunk.epoch < volume.epoch:
                        raise StaleEpoch(volume.volume, extent.chunk.epoch, volume.epoch)
                value = None if op.extents else payload
                version = Version(sequence, op.meta, op.size, op.crc, value, op.extents)
                volume.keys.setdefault(op.key, []).append(version)
                return m.Written(sequence)
            case m.Delete():
                self._check(volume, op.key, op.expected)
                if volume.find(op.key, 0) is None:
                    raise NotFound(f"object {op.key!r}")
                volume.keys[op.key].append(Version(sequence, None))
                return m.Written(sequence)
            case m.SnapshotCreate(name):
                if name in volume.snapshots:
                    raise AlreadyExists(f"snapshot {name!r}")
                volume.snapshots[name] = m.SnapshotRecord(name, sequence, float(sequence))
                return volume.snapshots[name]
            case m.SnapshotDelete(name):
                if volume.snapshots.pop(name, None) is None:
                    raise NotFound(f"snapshot {name!r}")
                return m.Ok()
            case _:
                k, n = (2, 3) if volume.policy.startswith("ec") else (1, 3)
                placement = m.Placement(k, n - k, tuple(DiskId(number) for number in range(1, n + 1)))
                chunk = ChunkId(volume.volume, volume.epoch, sequence)
                volume.chunks[chunk] = placement
                return m.Granted(chunk, volume.epoch, placement, 8 * MiB)

    def _check(self, volume: Volume, key: bytes, expected: int) -> None:
        present = volume.find(key, 0)
        if expected == m.ABSENT and present:
            raise PreconditionFailed("exists")
        if expected > 0 and (present is None or present.sequence != expected):
            raise PreconditionFailed("changed")

    def _lookup(self, volume: Volume, op: m.Lookup) -> tuple[object, Sequence[bytes]]:
        self._check_at(volume, op.at)
        version = volume.find(op.key, op.at)
        if version is None:
            raise NotFound(f"object {op.key!r}")
        if not op.want_data:
            return m.Found(self._entry(op.key, version, -1, ())), ()
        if version.value is None:
            placements = {extent.chunk: volume.chunks[extent.chunk] for extent in version.extents}
            return m.Found(self._entry(op.key, version, -1, version.extents), placements), ()
        data = version.value[op.start : None if op.end < 0 else op.end]
        return m.Found(self._entry(op.key, version, len(data), ())), (data,)

    def _lookup_many(self, volume: Volume, op: m.LookupMany) -> tuple[object, Sequence[bytes]]:
        self._check_at(volume, op.at)
        entries: list[m.Entry | None] = []
        values: list[bytes] = []
        placements: dict[ChunkId, m.Placement] = {}
        for index, key in enumerate(op.keys):
            version = volume.find(key, op.at)
            if version is None:
                entries.append(None)
            elif version.value is None:
                placements |= {extent.chunk: volume.chunks[extent.chunk] for extent in version.extents}
                entries.append(self._entry(b"", version, -1, version.extents))
            else:
                start, end = op.ranges[index] if op.ranges else (0, -1)
                data = version.value[start : None if end < 0 else end]
                values.append(data)
                entries.append(self._entry(b"", version, len(data), ()))
        return m.FoundMany(tuple(entries), placements), values

    def _entry(self, key: bytes, version: Version, inline: int, extents: tuple[m.Extent, ...]) -> m.Entry:
        assert version.meta is not None
        return m.Entry(key, version.sequence, version.meta, version.size, version.crc, extents, inline)

    def _check_at(self, volume: Volume, at: int) -> None:
        if at and all(snapshot.sequence != at for snapshot in volume.snapshots.values()):
            raise NotFound(f"snapshot at sequence {at} (it was deleted)")

    def _page(self, volume: Volume, op: m.ListKeys) -> m.KeyPage:
        self._check_at(volume, op.at)
        folded: dict[bytes, m.Entry] = {}
        for key in sorted(volume.keys):
            version = volume.find(key, op.at)
            if version is None or not key.startswith(op.prefix):
                continue
            cut = key.find(op.delimiter, len(op.prefix)) if op.delimiter else -1
            if cut >= 0:
                name = key[: cut + len(op.delimiter)]
                folded.setdefault(name, m.Entry(name, 0, b"", 0, 0, ()))
            else:
                folded[key] = self._entry(key, version, -1, ())
        after = [entry for name, entry in folded.items() if name > op.after]
        return m.KeyPage(tuple(after[: op.limit]), len(after) > op.limit, op.at)

    # --- fragments

    def _fragments(
        self, message: m.AppendFragment | m.ReadFragments, payload: memoryview
    ) -> tuple[object, Sequence[bytes]]:
        if isinstance(message, m.AppendFragment):
            if message.chunk in self.sealed:
                raise FragmentSealed(0)
            fragment = self.fragments.setdefault((message.disk, message.chunk), bytearray())
            if message.offset == len(fragment):
                fragment += payload
            return m.Appended(len(fragment)), ()
        crcs: list[int] = []
        data: list[bytes] = []
        failed: dict[int, m.Failed] = {}
        for index, wanted in enumerate(message.ranges):
            found = self.fragments.get((wanted.disk, wanted.chunk))
            if found is None:
                failed[index] = m.Failed("NotFound", (f"fragment of chunk {wanted.chunk}",))
                crcs.append(0)
                continue
            part = bytes(found[wanted.offset : wanted.offset + wanted.length])
            crcs.append(crc32c(part))
            data.append(part)
        return m.FragmentData(tuple(crcs), failed), data


def kind_of(message: object) -> type[object]:
    """What a fault is told for: the operation, of a volume call."""
    asked: object = message.op if isinstance(message, m.VolumeCall) else message
    return type(asked)


@asynccontextmanager
async def opened_store(seed: int = 1) -> AsyncGenerator[tuple[FakeStore, Store]]:
    """The fake, and a client of it."""
    clock = TrioClock()
    async with MemoryNetwork(clock) as network:
        fake = FakeStore(network)
        cluster = ClusterSession(TrioCaller(network, clock), (Address("node", seed),), random.Random(1))

        @asynccontextmanager
        async def opening() -> AsyncGenerator[Opened]:
            yield Opened(cluster, trio.to_thread.run_sync, None)

        async with Store(opening()) as store:
            yield fake, store
