"""The file of a disk's fences: carries out `fence.py`.

A fact is appended to the preallocated file in use, so that a full disk can still fence and delete. When the
file is full, and at every start, what is alive is rewritten into the other one. A file that failed is final
(`failed`): the disk can promise nothing any more, and its shell takes no writes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from blockstore.codec.fence_file import (
    FILE_BYTES,
    HEADER_BYTES,
    NAMES,
    RECORDS_MAX,
    Fact,
    FenceFile,
    Kind,
    decode_fence_file,
    encode_facts,
    encode_header,
    record_offset,
)
from blockstore.errors import BlockStoreError, NoSpace
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.node.fence import Fences
from blockstore.runtime.interfaces import Disk, File, Write
from blockstore.runtime.unreadable import read_or_nothing

OnDone = Callable[[BlockStoreError | None], None]


def format_fences(disk: Disk, disk_id: DiskId) -> None:
    """Both files of a new disk. Blocking."""
    for name in NAMES:
        disk.open(name, FILE_BYTES).close()
    file = disk.open(NAMES[0])
    file.write((Write(0, (encode_header(disk_id, 1),)),))
    file.close()


class FenceShell:
    def __init__(self, disk: Disk, disk_id: DiskId, on_error: Callable[[BlockStoreError], None]) -> None:
        self.fences = Fences()
        self.failed: BlockStoreError | None = None
        self._disk = disk
        self._disk_id = disk_id
        self._on_error = on_error
        self._file: File | None = None
        self._generation = 0
        self._n_facts = 0
        self._n_durable = 0
        self._waiting: list[tuple[VolumeId, int, Callable[[], None]]] = []

    def recover(self) -> bool:
        """Read what is remembered; False when some of it may be lost. Blocking."""
        best: FenceFile | None = None
        is_lost = False  # one of them, perhaps the newer
        for name in NAMES:
            content = read_or_nothing(self._disk, name)
            found = None if content is None else decode_fence_file(content, self._disk_id)
            if found is None and content is not None:
                is_lost = is_lost or not content or any(content[:HEADER_BYTES])  # blank: it was being made
            if found is not None and (best is None or found.generation > best.generation):
                best = found
        if best is None:
            return False
        self.fences.recall(best.facts)
        # Past the generation that is lost: its records would be taken for those of the next file.
        self._generation = best.generation + (2 if is_lost else 0)
        return not best.damaged and not is_lost

    def rewrite(self) -> None:
        """All that is alive into the other file, and that one into use. Blocking."""
        generation = self._generation + 1
        facts = self.fences.facts()
        if len(facts) > RECORDS_MAX:
            raise NoSpace(f"the fences of disk {self._disk_id}")
        file = self._disk.open(NAMES[(generation - 1) % 2], FILE_BYTES)
        records = encode_facts(self._disk_id, generation, 0, len(facts), facts)
        file.write((Write(record_offset(0), (records,)),))
        file.write((Write(0, (encode_header(self._disk_id, generation),)),))  # makes it the one in use
        self.close()
        self._file, self._generation = file, generation
        self._n_facts = self._n_durable = len(facts)
        for fact in facts:
            self.fences.on_durable(fact.volume, fact.epoch)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remember(self, facts: tuple[Fact, ...], on_done: OnDone) -> None:
        """Write facts down; their order with other writes does not matter."""
        if self.failed is None and self._n_facts + len(facts) > RECORDS_MAX:
            try:
                self.rewrite()  # a stall of two syncs, once in thousands of facts
            except BlockStoreError as error:
                self._fail(error)
        if self.failed is not None:
            on_done(self.failed)
            return
        first, generation = self._n_facts, self._generation
        self._n_facts += len(facts)
        records = encode_facts(self._disk_id, generation, first, self._n_durable, facts)
        assert self._file is not None
        self._file.submit(
            (Write(record_offset(first), (records,)),),
            partial(self._on_written, facts, generation, self._n_facts, on_done),
        )

    def _on_written(
        self, facts: tuple[Fact, ...], generation: int, n: int, on_done: OnDone, error: BlockStoreError | None
    ) -> None:
        if error is not None:
            self._fail(error)
        else:
            if generation == self._generation:
                self._n_durable = max(self._n_durable, n)
            for fact in facts:
                self.fences.on_durable(fact.volume, fact.epoch)
        on_done(error)
        waiting, self._waiting = self._waiting, []
        for volume, epoch, then in waiting:
            self.after(volume, epoch, then)

    def _fail(self, error: BlockStoreError) -> None:
        if self.failed is None:
            self.failed = error
            self._on_error(error)

    def see(self, chunk: ChunkId, epoch: int) -> None:
        """A request that was taken carries `epoch`: refuse lower ones from now on.

        A chunk's own epoch is in its header; a higher one has to be written down (`after` tells when it is).
        """
        if epoch > self.fences.highest(chunk.volume):
            self.fences.raise_to(chunk.volume, epoch)
            if epoch > chunk.epoch:
                self.remember((Fact(Kind.FENCE, chunk.volume, epoch),), lambda _: None)

    def after(self, volume: VolumeId, epoch: int, then: Callable[[], None]) -> None:
        """Call `then` once `epoch` is remembered for good, or never can be (`failed`)."""
        if self.failed is not None or self.fences.is_durable(volume, epoch):
            then()
        else:
            self._waiting.append((volume, epoch, then))
