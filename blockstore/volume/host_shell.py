"""The volumes that this node owns, as control says: started when it names this node, ended when it names
another. Which, and under which epochs, is decided in `hosting.py`; who comes next when this node stops, in
`control/assignment.py`."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

import trio

from blockstore.codec.control_record import VolumeRecord, encode_record
from blockstore.codec.messages import Compare, VolumeCall
from blockstore.config import OPERATION_SECONDS
from blockstore.control.assignment import move_transaction, plan_handover
from blockstore.control.views import volume_key
from blockstore.errors import BlockStoreError, NotFound, NotOwner, TransactionConflict, UnknownFormat
from blockstore.ids import RequestId, SessionId, VolumeId
from blockstore.runtime.interfaces import IncomingCall
from blockstore.volume.hosting import Hosting
from blockstore.volume.owner_shell import VolumeOwner
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

RESTART_SECONDS = 0.2


@dataclass(slots=True)
class _Owned:
    scope: trio.CancelScope
    owner: VolumeOwner | None = None
    refusal: UnknownFormat | None = None  # why the last owner fell, if the next one will as well


class VolumeHost:
    def __init__(self, world: World) -> None:
        self._world = world
        self._session = SessionId(world.rng.getrandbits(63))
        self._n_claims = 0
        self._core = Hosting(world.me)
        self._owned: dict[VolumeId, _Owned] = {}
        self._leaving = False

    def owned(self) -> tuple[VolumeId, ...]:
        return tuple(self._owned)

    def under_protected(self) -> tuple[tuple[VolumeId, int, int], ...]:
        """Volumes with chunks that were opened on fewer disks than their group has: volume, how many such
        chunks, and how many more failures the worst of them survives."""
        found: list[tuple[VolumeId, int, int]] = []
        for volume, owned in self._owned.items():
            n_chunks, survives = (0, 0) if owned.owner is None else owned.owner.under_protected()
            if n_chunks:
                found.append((volume, n_chunks, survives))
        return tuple(found)

    def handle(self, call: IncomingCall) -> bool:
        """Take the call if it is for a volume; NotOwner if that is not owned here."""
        message = call.message
        if not isinstance(message, VolumeCall):
            return False
        owned = self._owned.get(message.volume)
        if owned is not None and owned.refusal is not None:
            call.payload.release()
            call.fail(owned.refusal)
            return True
        if owned is not None and owned.owner is not None:
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

    async def hand_over(self) -> None:
        """Before this node stops: own nothing any more, then name the next owners, who begin at once. Cut
        short, or when control does not answer, they are named when this node's lease has run out."""
        world = self._world
        self._leaving = True
        for volume in list(self._owned):
            self._owned.pop(volume).scope.cancel()
        while moves := plan_handover(world.control.views, world.control.live_nodes(), world.me):
            planned = move_transaction(world.control.views, moves, world.control.next_request())
            deadline = world.clock.now() + OPERATION_SECONDS
            with suppress(TransactionConflict):  # planned anew
                await world.control.transact(
                    planned.compares, planned.puts, request=planned.request, deadline=deadline
                )
                log.info("handed_over volumes=%s", [move.volume for move in moves])

    def _reconcile(self, nursery: trio.Nursery) -> None:
        if self._leaving:
            return
        ended, begun = self._core.reconcile(self._world.control.views.volumes_of(self._world.me))
        for volume in ended:
            self._owned.pop(volume).scope.cancel()
        for volume in begun:
            owned = self._owned[volume] = _Owned(trio.CancelScope())
            nursery.start_soon(self._own, volume, owned)

    async def _own(self, volume: VolumeId, owned: _Owned) -> None:
        """Own until control names another; when the owner falls by an error, begin again: the journal is
        the truth."""
        with owned.scope:
            while self._owned.get(volume) is owned:
                try:
                    record = await self._claim(volume)
                    if record is None:
                        break
                    owned.owner = VolumeOwner(self._world, record)
                    await owned.owner.run()
                except* UnknownFormat as errors:
                    owned.refusal = _first_of(errors)
                    log.error("owner_cannot_read volume=%d why=%s", volume, owned.refusal)
                except* BlockStoreError as errors:
                    log.error("owner_failed volume=%d why=%s", volume, errors.exceptions)
                owned.owner = None
                if owned.refusal is not None:
                    await trio.sleep_forever()  # until control names another, or a newer release starts here
                await trio.sleep(RESTART_SECONDS)
        if self._owned.get(volume) is owned:
            del self._owned[volume]
            self._core.forget(volume)

    async def _claim(self, volume: VolumeId) -> VolumeRecord | None:
        """Commit the next epoch for this run; None when the volume is not this node's any more."""
        world = self._world
        key = volume_key(volume)
        revision = world.control.views.modified(key)
        claimed = self._core.claim(world.control.views.volume(volume))
        if claimed is None:
            return None
        self._n_claims += 1
        await world.control.transact(
            (Compare(key, revision),),
            ((key, encode_record(claimed)),),
            request=RequestId(self._session, self._n_claims),
            deadline=world.clock.now() + OPERATION_SECONDS,
        )
        return claimed


def _first_of(group: BaseExceptionGroup[UnknownFormat]) -> UnknownFormat:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
