"""Which volumes is this node to own, and under which epochs has it claimed them?

Pure. An owner begins by claiming: it commits the next epoch for itself. So an epoch belongs to one run of one
owner, whatever named it (control's choice, a restart of this process, an owner that fell and begins anew),
and the chunk ids that it counts out under this epoch were never used before (DESIGN invariant 4)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from blockstore.codec.control_record import VolumeRecord
from blockstore.ids import NodeId, VolumeId


class Hosting:
    """An owner runs for each volume in `owned`; the epochs are those that do not mean its end."""

    def __init__(self, me: NodeId) -> None:
        self.owned: dict[VolumeId, tuple[int, int]] = {}  # named and claimed
        self._me = me

    def reconcile(self, named: Iterable[VolumeRecord]) -> tuple[list[VolumeId], list[VolumeId]]:
        """Given the volumes that control says are this node's: whose owners end now, and which begin."""
        records = {record.volume: record for record in named}
        ended = [
            volume
            for volume, epochs in self.owned.items()
            if volume not in records or records[volume].epoch not in epochs
        ]
        for volume in ended:
            del self.owned[volume]
        begun = [volume for volume in records if volume not in self.owned]
        for volume in begun:
            self.owned[volume] = (records[volume].epoch, 0)
        return ended, begun

    def claim(self, record: VolumeRecord | None) -> VolumeRecord | None:
        """The record to commit, if nothing has changed it, before the next owner of it runs here; None when
        the volume is not this node's any more."""
        if record is None or record.owner != self._me:
            return None
        self.owned[record.volume] = (record.epoch, record.epoch + 1)
        return msgspec.structs.replace(record, epoch=record.epoch + 1)

    def forget(self, volume: VolumeId) -> None:
        """Its owner has ended by itself."""
        self.owned.pop(volume, None)
