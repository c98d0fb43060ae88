"""The volumes that this node owns, as control says: started when it names this node, ended when it names another."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from blockstore.codec.messages import VolumeCall
from blockstore.errors import BlockStoreError, NotFound, NotOwner
from blockstore.ids import VolumeId
from blockstore.runtime.interfaces import IncomingCall
from blockstore.volume.owner_shell import VolumeOwner
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

RESTART_SECONDS = 0.5


@dataclass(slots=True)
class _Owned:
    owner: VolumeOwner
    epoch: int
    scope: trio.CancelScope


class VolumeHost:
    def __init__(self, world: World) -> None:
        self._world = world
        self._owned: dict[VolumeId, _Owned] = {}

    def owned(self) -> tuple[VolumeId, ...]:
        return tuple(self._owned)

    def handle(self, call: IncomingCall) -> bool:
        """Take the call if it is for a volume; NotOwner if that is not owned here."""
        message = call.message
        if not isinstance(message, VolumeCall):
            return False
        owned = self._owned.get(message.volume)
        if owned is not None:
            owned.owner.handle(call, message)
            return True
        record = self._world.control.views.volume(message.volume)
        if record is None:
            call.fail(NotFound(f"volume {message.volume}"))
        else:
            call.fail(NotOwner(message.volume, record.owner, record.epoch))
        return True

    async def run(self) -> None:
        control = self._world.control
        async with trio.open_nursery() as nursery:
            while True:
                revision = control.revision
                self._reconcile(nursery)
                await control.changed(revision)

    def _reconcile(self, nursery: trio.Nursery) -> None:
        named = {record.volume: record for record in self._world.control.views.volumes_of(self._world.me)}
        for volume, owned in list(self._owned.items()):
            if volume not in named or named[volume].epoch != owned.epoch:
                owned.scope.cancel()
                del self._owned[volume]
        for volume, record in named.items():
            if volume not in self._owned:
                owned = _Owned(VolumeOwner(self._world, record), record.epoch, trio.CancelScope())
                self._owned[volume] = owned
                nursery.start_soon(self._own, owned)

    async def _own(self, owned: _Owned) -> None:
        """Run the owner; when it falls by an error, begin again with a takeover: the journal is the truth."""
        volume = owned.owner.record.volume
        with owned.scope:
            while self._owned.get(volume) is owned:
                try:
                    await owned.owner.run()
                except* BlockStoreError as errors:
                    log.error("owner_failed volume=%d epoch=%d why=%s", volume, owned.epoch, errors.exceptions)
                await trio.sleep(RESTART_SECONDS)
                record = self._world.control.views.volume(volume)
                if record is None or (record.epoch, record.owner) != (owned.epoch, self._world.me):
                    break
                owned.owner = VolumeOwner(self._world, record)
        if self._owned.get(volume) is owned:
            del self._owned[volume]
