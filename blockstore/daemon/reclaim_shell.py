"""Gives back the space of volumes that were deleted: this node's fragments of them go, one after the other.

That a volume is deleted is a record of control, written when its name goes and kept for ever, so a node that
was away learns it when it is back; that a volume is not there is no reason to delete anything. First the
volume is fenced on each disk with the highest epoch there is: whoever still appends to it, an owner that has
not heard or a client with a grant, is refused from then on, across restarts too. Then its fragments are
deleted, a few at a time. A crash between two of them leaves the rest to the next start.

A volume that clones still refer to is fenced all the same, and its fragments stay until control names no
clone of it. Since only its owner could make a new one, and it has none, or a clone of it, which is there
itself, one that is free once is free for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import trio

from blockstore.codec.messages import FragmentState
from blockstore.control.control_shell import Control
from blockstore.errors import BlockStoreError
from blockstore.ids import DiskId, VolumeId
from blockstore.node.disk_shell import DiskShell

log = logging.getLogger("blockstore.daemon")

LAST_EPOCH = 2**63 - 1
DELETES_AT_ONCE = 64
RETRY_SECONDS = 60.0
"""After a fragment that could not be deleted: its disk is failing."""

OnError = Callable[[BlockStoreError | None], None]


async def reclaim(control: Control, disks: Mapping[DiskId, DiskShell]) -> None:
    """Runs for as long as the node does."""
    emptied: set[tuple[DiskId, VolumeId]] = set()
    fenced: set[tuple[DiskId, VolumeId]] = set()
    while True:
        revision = control.revision
        due = [
            (disk, record.volume)
            for record in control.views.deleted_volumes()
            for disk in disks
            if (disk, record.volume) not in emptied
        ]
        needed = control.views.bases()
        n_failed = 0
        for disk, volume in due:
            if (disk, volume) not in fenced:
                if not await _fence(disks[disk], volume):
                    n_failed += 1
                    continue
                fenced.add((disk, volume))
            if volume in needed:
                continue
            if await _empty(disks[disk], volume):
                emptied.add((disk, volume))
            else:
                n_failed += 1
        with trio.move_on_after(RETRY_SECONDS if n_failed else float("inf")):
            await control.changed(revision)


async def _fence(shell: DiskShell, volume: VolumeId) -> bool:
    """Whether nothing is written for the volume any more."""

    def fence(done: OnError) -> None:
        def fenced(outcome: tuple[FragmentState, ...] | BlockStoreError) -> None:
            done(outcome if isinstance(outcome, BlockStoreError) else None)

        shell.fence(volume, LAST_EPOCH, (), fenced)

    return await _outcomes([fence]) == [None]


async def _empty(shell: DiskShell, volume: VolumeId) -> bool:
    """Whether nothing of the volume is left on the disk."""
    chunks = shell.chunks_of(volume)
    errors: list[BlockStoreError] = []
    for first in range(0, len(chunks), DELETES_AT_ONCE):
        some = chunks[first : first + DELETES_AT_ONCE]
        outcomes = await _outcomes([partial(shell.delete, chunk, LAST_EPOCH) for chunk in some])
        errors += [error for error in outcomes if error is not None]
    if chunks:
        log.info(
            "volume_reclaimed volume=%d disk=%d fragments=%d failed=%d",
            volume, shell.disk_id, len(chunks), len(errors),
        )  # fmt: skip
    return not errors


async def _outcomes(actions: list[Callable[[OnError], None]]) -> list[BlockStoreError | None]:
    """Of all of these, begun at once."""
    outcomes: list[BlockStoreError | None] = []
    done = trio.Event()

    def one_done(error: BlockStoreError | None) -> None:
        outcomes.append(error)
        if len(outcomes) == len(actions):
            done.set()

    for action in actions:
        action(one_done)
    await done.wait()
    return outcomes
