"""A volume's record in control, as its owner changes it, and what an owner tells the members of chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from blockstore.codec.control_record import VolumeRecord, encode_record
from blockstore.codec.messages import Compare, SealFragment
from blockstore.config import ATTEMPT_SECONDS, OPERATION_SECONDS
from blockstore.control.views import volume_key
from blockstore.errors import BlockStoreError, TransactionConflict
from blockstore.ids import ChunkId, DiskId, RequestId, SessionId
from blockstore.runtime.interfaces import Answer
from blockstore.volume.record_shell import Deposed, JournalList
from tests.simulation.cores.tasks import Promise

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node


class OwnedRecord:
    """`Deposed` is raised as soon as this copy of control names another owner, or a later epoch."""

    def __init__(self, node: Node, record: VolumeRecord) -> None:
        self.record = record
        self._node = node
        self._session = SessionId(node.rng.getrandbits(62))
        self._n_requests = 0
        self._changing: list[Promise[None]] | None = None  # those that wait for the change under way

    def current(self) -> VolumeRecord:
        found = self._node.control.views.volume(self.record.volume)
        if found is None or (found.epoch, found.owner) != (self.record.epoch, self._node.me):
            raise Deposed
        return found

    async def change(
        self, *, journal: Callable[[JournalList], JournalList] | None = None, root: bytes | None = None
    ) -> None:
        while self._changing is not None:  # one at a time
            promise: Promise[None] = Promise()
            self._changing.append(promise)
            await promise
        self._changing = []
        try:
            await self._change_alone(journal, root)
        finally:
            waiting, self._changing = self._changing, None
            for promise in waiting:
                promise.keep(None)

    async def _change_alone(
        self, journal: Callable[[JournalList], JournalList] | None, root: bytes | None
    ) -> None:
        control, node = self._node.control, self._node
        key = volume_key(self.record.volume)
        deadline = node.now() + OPERATION_SECONDS
        while True:
            revision = control.views.modified(key)
            current = self.current()
            wanted = msgspec.structs.replace(
                current,
                root=current.root if root is None else root,
                journal=current.journal if journal is None else journal(current.journal),
            )
            self._n_requests += 1
            try:
                await control.transact(
                    (Compare(key, revision),),
                    ((key, encode_record(wanted)),),
                    request=RequestId(self._session, self._n_requests),
                    deadline=deadline,
                )
            except TransactionConflict:
                await node.sleep(0.02)
            else:
                return


def tell_disk(
    node: Node,
    disk: DiskId,
    message: Callable[[DiskId], Any],
    on_answer: Callable[[Answer | BlockStoreError], None] = lambda _: None,
) -> None:
    address = node.table.address_of_disk(disk) if disk else None
    if address is not None:
        node.network.post(node, address, message(disk), (), node.now() + ATTEMPT_SECONDS, on_answer)


def seal_members(node: Node, epoch: int, chunk: ChunkId, disks: tuple[DiskId, ...], length: int) -> None:
    if length:
        for disk in disks:
            tell_disk(node, disk, lambda disk: SealFragment(disk, chunk, epoch, length))
