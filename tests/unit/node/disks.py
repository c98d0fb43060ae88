"""A disk of a node on a simulated disk, driven by hand: what the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import FragmentSpec, FragmentState
from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, DiskId, GiB, MiB, VolumeId
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

    def __init__(self, seed: int = 0, capacity_bytes: int = GiB) -> None:
        self.disk = SimDisk(Random(seed), capacity_bytes=capacity_bytes)
        format_disk(self.disk, DISK, CLUSTER)
        self.events = list[tuple[str, str]]()
        self.outcomes = dict[object, object]()
        self.last_states: tuple[FragmentState, ...] = ()
        self.open()

    def open(self) -> None:
        self.shell = DiskShell(self.disk, DISK, CLUSTER, lambda code, text: self.events.append((code, text)))
        self.shell.recover()
        self.shell.start()
        self.shell.make_spares()

    def restart(self) -> None:
        """Everything ends in order and begins again."""
        self.disk.settle()
        self.shell.close()
        self.open()
        self.disk.settle()

    def kill(self) -> None:
        """The process ends at once; what it wrote is in the cache of the system."""
        self.disk.process_ended()
        self.disk.power_on()
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
        take: Callable[[object], None] | None = None,
    ) -> None:
        self.shell.append(
            where,
            where.epoch if epoch is None else epoch,
            offset,
            memoryview(data),
            crc32c(data) if crc is None else crc,
            spec if offset == 0 else None,
            take or self.taker(tag),
        )

    def taker(self, tag: object) -> Callable[[object], None]:
        def take(outcome: object) -> None:
            assert tag not in self.outcomes, "answered twice"
            self.outcomes[tag] = outcome

        return take

    # --- the same, to the end

    def appended(
        self, where: ChunkId, offset: int, data: bytes, epoch: int | None = None, crc: int | None = None
    ) -> object:
        tag = object()
        self.append(tag, where, offset, data, epoch=epoch, crc=crc)
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

    def fenced(
        self, epoch: int, *chunks: ChunkId, volume: VolumeId = VOLUME
    ) -> tuple[FragmentState, ...] | BlockStoreError:
        found = list[tuple[FragmentState, ...] | BlockStoreError]()
        self.shell.fence(volume, epoch, chunks, found.append)
        self.disk.settle()
        (outcome,) = found
        if isinstance(outcome, tuple):
            self.last_states = outcome
        return outcome

    def read(self, where: ChunkId, offset: int, length: int) -> bytes | BlockStoreError:
        found = list[memoryview | BlockStoreError]()
        try:
            data = self.shell.reads.read_now(where, offset, length)
        except BlockStoreError as error:
            return error
        if data is None:
            self.shell.reads.submit_read(where, offset, length, found.append)
            self.disk.settle()
        else:
            found.append(data)
        (outcome,) = found
        return outcome if isinstance(outcome, BlockStoreError) else bytes(outcome)

    def state(self, where: ChunkId) -> FragmentState | None:
        states = self.shell.states((where,))
        return states[0] if states else None


def file_of(bench: Bench, where: ChunkId) -> str:
    """The one slot file that holds `where`."""
    number = where.number.to_bytes(8, "little")
    names = [
        name
        for name in bench.disk.names("fragments")
        if bench.disk.peek(f"fragments/{name}", 64, 8) == number
    ]
    (name,) = names
    return f"fragments/{name}"
