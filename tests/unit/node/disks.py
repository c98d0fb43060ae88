"""A disk of a node on a simulated disk, driven by hand: what the tests of this folder share."""

from __future__ import annotations

from random import Random

from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import FragmentSpec
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, DiskId, MiB, VolumeId
from blockstore.node.disk_shell import DiskShell, format_disk
from blockstore.runtime.sim.disk import SimDisk

DISK = DiskId(3)
CLUSTER = "test"
VOLUME = VolumeId(7)
SPEC = FragmentSpec(shard_index=0, k=1, m=2, capacity=2 * MiB)


def chunk(number: int = 1, epoch: int = 1, volume: int = VOLUME) -> ChunkId:
    return ChunkId(VolumeId(volume), epoch, number)


def bytes_for(seed: int, length: int) -> bytes:
    return Random(seed).randbytes(length)


class Bench:
    """One disk, its shell, and the outcomes of what was asked, by tag."""

    def __init__(self, seed: int = 0, **options: int) -> None:
        self.disk = SimDisk(Random(seed), **options)
        format_disk(self.disk, DISK, CLUSTER)
        self.events = list[tuple[str, str]]()
        self.outcomes = dict[object, object]()
        self.open()

    def open(self) -> None:
        self.shell = DiskShell(self.disk, DISK, CLUSTER, lambda code, text: self.events.append((code, text)))
        self.shell.recover()
        self.shell.start()

    def restart(self) -> None:
        """Everything ends in order and begins again."""
        self.disk.settle()
        self.shell.close()
        self.open()
        self.disk.settle()

    def crash(self, rng: Random) -> None:
        self.disk.crash(rng)
        self.open()
        self.disk.settle()

    # --- requests; what comes of them is in `outcomes` once the disk got there

    def append(
        self,
        tag: object,
        where: ChunkId,
        offset: int,
        data: bytes,
        *,
        epoch: int | None = None,
        spec: FragmentSpec | None = SPEC,
        crc: int | None = None,
    ) -> None:
        self.shell.append(
            where,
            where.epoch if epoch is None else epoch,
            offset,
            memoryview(data),
            crc32c(data) if crc is None else crc,
            spec if offset == 0 else None,
            self.taker(tag),
        )

    def taker(self, tag: object):  # type: ignore[no-untyped-def]
        def take(outcome: object) -> None:
            assert tag not in self.outcomes, "answered twice"
            self.outcomes[tag] = outcome

        return take

    # --- the same, to the end

    def appended(self, where: ChunkId, offset: int, data: bytes, **options: object) -> object:
        tag = object()
        self.append(tag, where, offset, data, **options)  # type: ignore[arg-type]
        self.disk.settle()
        return self.outcomes.pop(tag)

    def sealed(self, where: ChunkId, length: int, epoch: int | None = None) -> object:
        tag = object()
        self.shell.seal(where, where.epoch if epoch is None else epoch, length, self.taker(tag))
        self.disk.settle()
        return self.outcomes.pop(tag)

    def deleted(self, where: ChunkId, epoch: int | None = None) -> object:
        tag = object()
        self.shell.delete(where, where.epoch if epoch is None else epoch, self.taker(tag))
        self.disk.settle()
        return self.outcomes.pop(tag)

    def fenced(self, epoch: int, *chunks: ChunkId, volume: VolumeId = VOLUME) -> object:
        tag = object()
        self.shell.fence(volume, epoch, chunks, self.taker(tag))
        self.disk.settle()
        return self.outcomes.pop(tag)

    def read(self, where: ChunkId, offset: int, length: int) -> object:
        try:
            data = self.shell.read_now(where, offset, length)
        except BlockStoreError as error:
            return error
        if data is None:
            tag = object()
            self.shell.submit_read(where, offset, length, self.taker(tag))
            self.disk.settle()
            found = self.outcomes.pop(tag)
            return bytes(found) if isinstance(found, memoryview) else found
        return bytes(data)

    def state(self, where: ChunkId):  # type: ignore[no-untyped-def]
        states = self.shell.states((where,))
        return states[0] if states else None
