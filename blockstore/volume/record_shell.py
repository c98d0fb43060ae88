"""The volume's record in control, as its owner changes it: by compare-and-set, while its epoch owns the
volume."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from blockstore.codec.control_record import JournalChunk, VolumeRecord, encode_record
from blockstore.codec.messages import Compare
from blockstore.config import OPERATION_SECONDS
from blockstore.control.control_shell import Control
from blockstore.control.views import volume_key
from blockstore.errors import TransactionConflict
from blockstore.ids import RequestId, SessionId
from blockstore.volume.world import World

JournalList = tuple[JournalChunk, ...]

CONFLICT_SECONDS = 0.02
"""So long is waited for news before a change is tried again."""


class Deposed(Exception):
    """Somebody else owns the volume by now, or it is gone. The owner stops; nothing is lost."""


async def wait_for_news(control: Control, revision: int) -> None:
    """After a conflict: this copy of control may be behind the leader that judged; look again when it has
    caught up."""
    with trio.move_on_after(CONFLICT_SECONDS):
        await control.changed(revision)


class RecordShell:
    """One change at a time: the journal's switch and the checkpoint must not overwrite each other's."""

    def __init__(self, world: World, record: VolumeRecord, session: SessionId) -> None:
        self._world = world
        self._record = record
        self._session = session
        self._n_requests = 0
        self._lock = trio.Lock()

    def current(self) -> VolumeRecord:
        """As this node's copy of control has it; raise Deposed."""
        found = self._world.control.views.volume(self._record.volume)
        if found is None or (found.epoch, found.owner) != (self._record.epoch, self._world.me):
            raise Deposed
        return found

    async def change(
        self, *, journal: Callable[[JournalList], JournalList] | None = None, root: bytes | None = None
    ) -> None:
        """Commit the change, however often others change the record meanwhile; raise Deposed or what
        control says."""
        key = volume_key(self._record.volume)
        deadline = self._world.clock.now() + OPERATION_SECONDS
        async with self._lock:
            while True:
                known = self._world.control.revision
                current = self.current()
                wanted = msgspec.structs.replace(
                    current,
                    root=current.root if root is None else root,
                    journal=current.journal if journal is None else journal(current.journal),
                )
                self._n_requests += 1
                try:
                    await self._world.control.transact(
                        (Compare(key, self._world.control.views.modified(key)),),
                        ((key, encode_record(wanted)),),
                        request=RequestId(self._session, self._n_requests),
                        deadline=deadline,
                    )
                except TransactionConflict:
                    await wait_for_news(self._world.control, known)
                    continue
                return
