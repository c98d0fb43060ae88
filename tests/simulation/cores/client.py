"""Clients: the product's own session over simulated lanes, and what they ask of it, written down as
history."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from blockstore.api.cluster import ClusterSession
from blockstore.api.session import VolumeSession
from blockstore.codec.messages import (
    ABSENT,
    ANY,
    Batch,
    Delete,
    Entry,
    KeyPage,
    KeyWrite,
    ListKeys,
    Put,
    Restore,
    SnapshotCreate,
    SnapshotDelete,
    SnapshotRecord,
    Written,
)
from blockstore.errors import (
    AlreadyExists,
    BlockStoreError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    StaleEpoch,
)
from blockstore.runtime.interfaces import Address, Buffer, Peer
from tests.simulation.cores.control import address_of
from tests.simulation.cores.history import Read, Snapshot, SnapshotRead, Write, show
from tests.simulation.cores.network import Endpoint, Incoming, SimCaller

if TYPE_CHECKING:
    from tests.simulation.cores.world import World

REWRITES_MAX = 3
KINDS = (
    "put", "large", "create", "replace", "delete", "get", "list", "many", "snapshot", "look", "unsnap",
    "batch", "restore", "pages",
)  # fmt: skip
BATCH_KEYS_MAX = 4
RESTORED = b"restored-"
"""What names of restored keys begin with: each is used once."""


class Source:
    """Bytes in memory, as a session reads them."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    async def read(self, n_bytes: int) -> Buffer:
        part = self._data[self._at : self._at + n_bytes]
        self._at += len(part)
        return part

    async def rewind(self) -> bool:
        self._at = 0
        return True


class Client(Endpoint):
    def __init__(self, world: World, number: int, rng: random.Random, volume: str) -> None:
        super().__init__(f"client {number}", world.schedule, rng, world.settings.drift)
        self.world, self.number, self.volume = world, number, volume
        self.peer = Peer("client", f"c{number}", "write")
        self.address = Address(f"c{number}", 1)
        self.history = world.histories[volume]
        self._n_values = 0

    def receive(self, call: Incoming) -> None:
        raise NotImplementedError

    def say(self, text: str, *values: object) -> None:
        if self.world.trace is not None:
            self.world.say(self.name, text.format(*values))

    def start(self) -> None:
        """A new run, with a new session: what the one before had under way, nobody waits for."""
        self.life += 1
        self.is_up = True
        seeds = [address_of(node) for node in self.world.nodes]
        self.rng.shuffle(seeds)
        cluster = ClusterSession(SimCaller(self.world.network, self), seeds, random.Random(self.rng.random()))
        self.session = VolumeSession(cluster, self.volume)
        self.begin(self._work())

    def crash(self) -> None:
        super().crash()
        self.world.network.on_crash(self, silent=False)

    # --- what it asks

    async def _work(self) -> None:
        world, rng = self.world, self.rng
        while not world.is_draining:
            await self.one_operation()
            if rng.random() < world.settings.p_think:
                await self.sleep(rng.expovariate(1 / world.settings.think_seconds))
        world.on_client_done(self)

    async def one_operation(self) -> None:
        rng, settings = self.rng, self.world.settings
        key = rng.choice(settings.keys)
        match rng.choices(KINDS, settings.mix)[0]:
            case "put":
                await self.put(key, ANY, large=False)
            case "large":
                await self.put(key, ANY, large=True)
            case "create":
                await self.put(key, ABSENT, large=rng.random() < 0.3)
            case "replace":
                sequence = await self.get(key)
                if sequence:
                    await self.put(key, sequence, large=False)
            case "delete":
                await self.delete(key)
            case "get":
                await self.get(key)
            case "list":
                await self.list_keys()
            case "many":
                await self.get_many()
            case "snapshot":
                await self.take_snapshot()
            case "look":
                await self.look_at_snapshot()
            case "batch":
                await self.change_together()
            case "restore":
                await self.restore()
            case "pages":
                await self.list_in_pages()
            case _:
                await self.delete_snapshot()

    @property
    def _timeout(self) -> float:
        return self.world.settings.timeout

    def _value(self, large: bool) -> bytes:
        self._n_values += 1
        rng, settings = self.rng, self.world.settings
        n = rng.randint(1, settings.large_bytes if large else settings.small_bytes)
        return b"%d/%d/%d" % (self.number, self.life, self._n_values) + b"." * n

    def _done(self) -> None:
        self.history.n_acknowledged += 1
        self.world.on_acknowledged()

    async def put(self, key: bytes, expected: int, *, large: bool) -> None:
        value = self._value(large)
        write = Write(key, value, self.schedule.now, expected=expected)
        self.history.writes.append(write)
        try:
            if large:
                sequence = await self._put_large(key, value, expected)
            else:
                sequence, _ = await self.session.put_small(key, b"", value, expected, self._timeout)
        except (PreconditionFailed, InvalidRequest) as error:
            self.say("{} = {}: {}", key, value[:20], error)
            if isinstance(error, InvalidRequest):
                raise AssertionError(f"a right request was refused: {error}") from error
            self.history.writes.remove(write)
            self._done()
            return
        except BlockStoreError as error:
            self.say("{} = {}: outcome unknown ({})", key, value[:20], type(error).__name__)
            return
        write.end, write.sequence = self.schedule.now, sequence
        self.say("{} = {} (sequence {})", key, value[:20], sequence)
        self._done()

    async def _put_large(self, key: bytes, value: bytes, expected: int) -> int:
        """As `VolumeSession.put` does with values past the inline bound, which would be too many bytes
        here."""
        session = self.session
        for _ in range(REWRITES_MAX):
            source = Source(value)
            extents, size, crc = await session._write_pieces(
                await source.read(1 << 30), source, self._timeout
            )
            try:
                answer = await session.call(
                    Put(key, b"", size, crc, tuple(extents), expected), (), self._now() + self._timeout
                )
            except StaleEpoch:
                continue
            assert isinstance(answer.message, Written)
            return answer.message.sequence
        raise StaleEpoch(0, 0, 0)

    def _now(self) -> float:
        return self.now()

    async def delete(self, key: bytes) -> None:
        write = Write(key, None, self.schedule.now)
        self.history.writes.append(write)
        try:
            written = await self.session.ask(Delete(key), Written, self._timeout)
        except NotFound:
            self.history.writes.remove(write)
            self.history.reads.append(Read(key, None, write.start, self.schedule.now))
        except BlockStoreError as error:
            self.say("delete {}: outcome unknown ({})", key, type(error).__name__)
            return
        else:
            write.end, write.sequence = self.schedule.now, written.sequence
            self.say("delete {} (sequence {})", key, written.sequence)
        self._done()

    async def change_together(self) -> None:
        """Some keys in one batch."""
        rng = self.rng
        keys = rng.sample(self.world.settings.keys, min(BATCH_KEYS_MAX, len(self.world.settings.keys)))
        batch = self.history.new_batch()
        writes: list[Write] = []
        changes: list[KeyWrite] = []
        values: list[bytes] = []
        for key in keys[: rng.randint(1, len(keys))]:
            value = None if rng.random() < 0.2 else self._value(large=False)
            expected = ABSENT if value is not None and rng.random() < 0.1 else ANY
            writes.append(Write(key, value, self.schedule.now, expected=expected, batch=batch))
            changes.append(
                KeyWrite(key, None, 0, 0, expected)
                if value is None
                else KeyWrite(key, b"", len(value), self.world.crc32c(value), expected)
            )
            values += () if value is None else (value,)
        self.history.writes += writes
        said = ", ".join(f"{write.key!r} = {show(write.value)}" for write in writes)
        try:
            written = await self.session.ask(Batch(tuple(changes)), Written, self._timeout, values)
        except (NotFound, PreconditionFailed) as error:
            self.say("together {}: {}", said, error)
            self.history.forget(writes)
            self._done()
            return
        except BlockStoreError as error:
            self.say("together {}: outcome unknown ({})", said, type(error).__name__)
            return
        for write in writes:
            write.end, write.sequence = self.schedule.now, written.sequence
        self.say("together {} (sequence {})", said, written.sequence)
        self._done()

    async def get(self, key: bytes) -> int:
        """The sequence of what is there; 0 when there is nothing, or it could not be read."""
        start = self.schedule.now
        try:
            found, data = await self.session.fetch(key, 0, 0, -1, self._timeout)
        except NotFound:
            self.history.reads.append(Read(key, None, start, self.schedule.now))
            sequence = 0
            self.say("{} is not there", key)
        except BlockStoreError as error:
            self.world.on_read_failed(self, key, error)
            return 0
        else:
            self.history.reads.append(Read(key, data, start, self.schedule.now))
            sequence = found.entry.sequence
            self.say("{} is {} (sequence {})", key, data[:20], sequence)
        self._done()
        return sequence

    async def get_many(self) -> None:
        keys = self.world.settings.keys
        start = self.schedule.now
        try:
            values = await self.session.fetch_many(keys, (), 0, self._timeout)
        except BlockStoreError as error:
            self.world.on_read_failed(self, b"many", error)
            return
        end = self.schedule.now
        self.history.reads += [Read(key, value, start, end) for key, value in zip(keys, values, strict=True)]
        self._done()

    async def list_keys(self) -> None:
        start = self.schedule.now
        try:
            page = await self.session.ask(ListKeys(), KeyPage, self._timeout)
        except BlockStoreError as error:
            self.world.on_read_failed(self, b"list", error)
            return
        end = self.schedule.now
        listed = {entry.key: entry for entry in page.entries}
        for key in self.world.settings.keys:
            entry = listed.pop(key, None)
            value = None if entry is None else self._value_of(key, entry)
            self.history.reads.append(Read(key, value, start, end))
        self._check_known(listed)
        self._done()

    async def list_in_pages(self) -> None:
        """Of one instant, which was while the first page was asked for; or the owner changed, and that is
        told."""
        keys = self.world.settings.keys
        n = self.rng.randint(1, max(1, len(keys) // 2))
        start = self.schedule.now
        listed: dict[bytes, Entry] = {}
        try:
            page = await self.session.ask(ListKeys(limit=n), KeyPage, self._timeout)
            end = self.schedule.now
            listed.update((entry.key, entry) for entry in page.entries)
            while page.more:
                op = ListKeys(limit=n, at=page.at, start=page.next)
                page = await self.session.ask(op, KeyPage, self._timeout)
                listed.update((entry.key, entry) for entry in page.entries)
        except NotFound:
            return
        except BlockStoreError as error:
            self.world.on_read_failed(self, b"pages", error)
            return
        for key in keys:
            entry = listed.pop(key, None)
            value = None if entry is None else self._value_of(key, entry)
            self.history.reads.append(Read(key, value, start, end))
        self._check_known(listed)
        self._done()

    def _check_known(self, listed: Iterable[bytes]) -> None:
        unknown = [key for key in listed if not key.startswith(RESTORED)]
        assert not unknown, f"keys were listed that nobody wrote: {sorted(unknown)}"

    def _value_of(self, key: bytes, entry: Entry) -> bytes:
        """The value that was written with the listed checksum."""
        crc32c = self.world.crc32c
        for write in reversed(self.history.writes):
            value = write.value
            if write.key == key and value is not None and len(value) == entry.size:
                if crc32c(value) != entry.crc:
                    continue
                return value
        raise AssertionError(f"{key!r} was listed with a checksum that nothing written to it has")

    # --- snapshots

    async def take_snapshot(self) -> None:
        self._n_values += 1
        name = f"s{self.number}-{self.life}-{self._n_values}"
        start = self.schedule.now
        try:
            taken = await self.session.ask(SnapshotCreate(name), SnapshotRecord, self._timeout)
        except AlreadyExists as error:
            raise AssertionError("a snapshot's name is used once") from error
        except BlockStoreError:
            return
        snapshot = Snapshot(name, start, self.schedule.now, taken.sequence)
        self.history.snapshots.append(snapshot)
        self.world.live_snapshots[self.volume][name] = snapshot
        self.say("snapshot {} at sequence {}", name, taken.sequence)
        self._done()

    async def look_at_snapshot(self) -> None:
        live = self.world.live_snapshots[self.volume]
        if not live:
            return
        snapshot = self.rng.choice(list(live.values()))
        key = self.rng.choice(self.world.settings.keys)
        await self.read_snapshot(snapshot, key)

    async def read_snapshot(self, snapshot: Snapshot, key: bytes) -> bool:
        value: bytes | None = None
        try:
            _, value = await self.session.fetch(key, snapshot.sequence, 0, -1, self._timeout)
        except NotFound as error:
            if "snapshot" in str(error.fields[0]):
                live = self.world.live_snapshots[self.volume]
                assert snapshot.name not in live, f"snapshot {snapshot.name} is gone, which nobody deleted"
                return True
        except BlockStoreError as error:
            self.world.on_read_failed(self, key, error)
            return False
        self.history.snapshot_reads.append(SnapshotRead(snapshot.name, key, value))
        self._done()
        return True

    async def restore(self) -> None:
        """A key as a snapshot shows it, under a name of its own: what is there then, the snapshot showed."""
        live = self.world.live_snapshots[self.volume]
        if not live:
            return
        snapshot = self.rng.choice(list(live.values()))
        key = self.rng.choice(self.world.settings.keys)
        self._n_values += 1
        target = RESTORED + b"%d-%d-%d" % (self.number, self.life, self._n_values)
        value: bytes | None = None
        try:
            await self.session.change(Restore((key,), snapshot.sequence, (target,)), self._timeout)
            with suppress(NotFound):
                _, value = await self.session.fetch(target, 0, 0, -1, self._timeout)
                await self.session.change(Delete(target), self._timeout)
        except NotFound:
            assert snapshot.name not in live, f"snapshot {snapshot.name} is gone, which nobody deleted"
            return
        except BlockStoreError as error:
            self.say("restoring {} of {}: {}", key, snapshot.name, type(error).__name__)
            if value is None:
                return
        self.history.snapshot_reads.append(SnapshotRead(snapshot.name, key, value))
        self.say("{} restored from {} is {}", key, snapshot.name, show(value))
        self._done()

    async def delete_snapshot(self) -> None:
        live = self.world.live_snapshots[self.volume]
        if not live:
            return
        name = self.rng.choice(list(live))
        del live[name]
        try:
            await self.session.change(SnapshotDelete(name), self._timeout)
        except NotFound:
            pass  # another client was first
        except BlockStoreError:
            return
        self.say("snapshot {} is deleted", name)
        self._done()
