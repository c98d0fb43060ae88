"""Snapshots of several block devices that show one instant.

The writes of each device are *held*: its writer's key is put anew with the same token and a mark of who
holds it, so every batch that comes after that is refused, and its writer waits until the mark is gone.
While all are held nothing changes in any of them, and each is snapshotted. Then each is let go, by putting
the key as it was on condition that it still is as it was held. If that holds for all, nobody has written to
any of them from the last hold to the first release, so all snapshots show that time. If it does not, a
writer has lost its patience (HOLD_SECONDS), or was taken over: the snapshots are deleted. Who dies with
devices held delays their writers by HOLD_SECONDS."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

from blockstore.api.block_reading import fetch_size, words
from blockstore.api.block_writing import fetch_mark, put_mark
from blockstore.api.session import VolumeSession
from blockstore.codec.messages import SnapshotCreate, SnapshotDelete, SnapshotRecord
from blockstore.errors import BlockStoreError, PreconditionFailed, Unavailable
from blockstore.kinds.block import TOKEN_BYTES, WriterMark

HOLDING_SECONDS = 2.0
"""For all of it. A writer waits longer than that before it stops heeding a hold."""

HOLD_ATTEMPTS_MAX = 20
"""Each that fails met a writer that was settling something, or another who holds the device."""

HOLD_PAUSE_SECONDS = 0.05

UNDO_SECONDS = 3.0
"""For letting go, and deleting what was taken, when it came to nothing."""


async def snapshot_together(
    sessions: Sequence[VolumeSession], name: str, timeout: float
) -> list[tuple[SnapshotRecord, int]]:
    """A snapshot of that name of each device, with the device's size then. AlreadyExists; Unavailable when
    they could not be held together."""
    holds: list[tuple[VolumeSession, WriterMark, int]] = []
    taken: list[tuple[VolumeSession, SnapshotRecord]] = []
    is_one_instant = False
    caller = sessions[0].cluster.caller
    try:
        left_behind: set[bytes] = set()
        for session in sessions:
            await fetch_size(session, 0, timeout)  # it is a whole device
            left_behind.add(await _left_behind(session, timeout))
        until = caller.now() + min(timeout, HOLDING_SECONDS)
        hold = sessions[0].cluster.rng.getrandbits(8 * TOKEN_BYTES).to_bytes(TOKEN_BYTES, "big")
        for session in sessions:
            holds.append((session, *await _hold(session, hold, left_behind, until)))
        for session in sessions:
            left = max(0.0, until - caller.now())
            taken.append((session, await session.ask(SnapshotCreate(name), SnapshotRecord, left)))
        is_one_instant = await _release(holds, timeout)
        holds.clear()
        if not is_one_instant:
            raise Unavailable(
                f"A writer did not wait while {_names(sessions)} were snapshotted, so that would not show "
                "one instant; nothing was kept. Try again."
            )
        return [(record, await fetch_size(session, record.sequence, timeout)) for session, record in taken]
    finally:
        with caller.undoing(UNDO_SECONDS):
            if holds:
                with suppress(BlockStoreError):
                    await _release(holds, min(timeout, UNDO_SECONDS))
            if not is_one_instant:
                for session, _ in taken:
                    with suppress(BlockStoreError):
                        await session.change(SnapshotDelete(name), min(timeout, UNDO_SECONDS))


async def _left_behind(session: VolumeSession, timeout: float) -> bytes:
    """Whose hold stays for longer than anybody holds a device: it died, or the device is a clone of what was
    held; and no writer is there who would have ended it. Empty when there is none."""
    caller = session.cluster.caller
    _, first = await fetch_mark(session, timeout)
    until = caller.now() + HOLDING_SECONDS
    while first.hold and caller.now() < until:
        await caller.sleep(HOLD_PAUSE_SECONDS)
        _, mark = await fetch_mark(session, timeout)
        if mark != first:
            return b""
    return first.hold


async def _hold(
    session: VolumeSession, hold: bytes, left_behind: Collection[bytes], until: float
) -> tuple[WriterMark, int]:
    """The writer's mark as it was, and the sequence that it has as held."""
    caller = session.cluster.caller
    for _ in range(HOLD_ATTEMPTS_MAX):
        left = until - caller.now()
        if left <= 0:
            break
        sequence, mark = await fetch_mark(session, left)
        if not mark.hold or mark.hold in left_behind:
            with suppress(PreconditionFailed):
                held = await put_mark(session, WriterMark(mark.token, hold), sequence, left)
                return WriterMark(mark.token), held
        await caller.sleep(HOLD_PAUSE_SECONDS)
    raise Unavailable(f"The writes of {words(session.name)} could not be held; try again.")


async def _release(holds: Sequence[tuple[VolumeSession, WriterMark, int]], timeout: float) -> bool:
    """Let all write again. Whether nobody did before."""
    were_all_held = True
    error: BlockStoreError | None = None
    for session, mark, held in holds:
        try:
            await put_mark(session, mark, held, timeout)
        except PreconditionFailed:
            were_all_held = False
        except BlockStoreError as failed:
            error = failed
    if error is not None:
        raise error
    return were_all_held


def _names(sessions: Sequence[VolumeSession]) -> str:
    return ", ".join(words(session.name) for session in sessions)
