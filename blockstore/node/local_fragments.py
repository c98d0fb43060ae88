"""Reading the fragments on a node's own disks, from within the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blockstore.errors import BlockStoreError
from blockstore.ids import ChunkId, DiskId
from blockstore.node.disk_shell import DiskShell

OnRead = Callable[[bytes | BlockStoreError], None]


class LocalFragments:
    """What is read was verified."""

    def __init__(self, disks: Mapping[DiskId, DiskShell]) -> None:
        self._disks = disks

    def read(self, disk: DiskId, chunk: ChunkId, offset: int, length: int, on_done: OnRead) -> None:
        """The bytes, or what is wrong; `on_done` may be called before this returns."""
        reads = self._disks[disk].reads
        try:
            data = reads.read_now(chunk, offset, length)
        except BlockStoreError as error:
            on_done(error)
            return
        if data is not None:
            on_done(bytes(data))
            return

        def read(found: memoryview | BlockStoreError) -> None:
            on_done(found if isinstance(found, BlockStoreError) else bytes(found))

        reads.submit_read(chunk, offset, length, read)

    def read_now(self, disk: DiskId, chunk: ChunkId, offset: int, length: int) -> memoryview | None:
        """The bytes, if they are here and sound, and reading them takes no waiting."""
        try:
            return self._disks[disk].reads.read_now(chunk, offset, length)
        except BlockStoreError:
            return None
