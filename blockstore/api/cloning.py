"""Clones, of every kind of volume: asked for, and made independent of what they were made of."""

from __future__ import annotations

from datetime import datetime

from blockstore.api.cluster import unexpected
from blockstore.api.history import fetch_snapshots
from blockstore.api.session import VolumeSession
from blockstore.api.snapshot import choose_snapshot
from blockstore.codec.messages import FlattenVolume, SnapshotClone, View, VolumeView
from blockstore.errors import NotFound, kind_words
from blockstore.kinds.bucket import check_snapshot_name, check_volume_name


async def clone_of(
    session: VolumeSession, kind: str, snapshot: str | datetime, name: str, timeout: float
) -> VolumeSession:
    """A session with a new volume called `name`, of what the snapshot shows. NotFound, AlreadyExists."""
    words = kind_words(kind)
    check_volume_name(words, name)
    if isinstance(snapshot, str):
        check_snapshot_name(snapshot)
        wanted = snapshot
    else:
        records = await fetch_snapshots(session, timeout)
        wanted = choose_snapshot(session.name, records, snapshot, words).name
    try:
        await session.change(SnapshotClone(wanted, name), timeout)
    except NotFound as error:
        if str(error.fields[0]).startswith("snapshot "):
            raise NotFound(f"snapshot {wanted!r} of {words} {session.name!r}") from None
        raise
    return VolumeSession(session.cluster, name, kind)


async def flatten(session: VolumeSession, timeout: float) -> VolumeView:
    """Let a clone become independent, in the background. What control says of it now."""
    cluster = session.cluster
    view = await session.fetch_view(timeout)  # there is one, of that kind
    message = FlattenVolume(view.name, cluster.next_request())
    answer = await cluster.control(message, cluster.caller.now() + timeout)
    if not isinstance(answer, View) or answer.volume is None:
        raise unexpected(answer)
    return answer.volume
