"""Answers to listings. One of many pages goes through a view, the state as of its first page, for as long as
it goes on; a new owner does not have it, and says so."""

from __future__ import annotations

from blockstore.codec.messages import KeyPage, ListKeys
from blockstore.volume.requests import check_read
from blockstore.volume.state import VolumeState

VIEW_SECONDS = 60.0
"""Between two pages, at most."""


def list_keys(op: ListKeys, state: VolumeState, now: float) -> KeyPage:
    """Raise InvalidRequest or NotFound; or BlocksMissing."""
    check_read(op, state)
    entries, rest = state.map.page(
        op.prefix, op.after, op.delimiter, op.limit, op.at, op.start, with_places=op.with_places
    )
    at = op.at
    if at:
        state.prolong_view(at, now + VIEW_SECONDS)
    elif rest:
        at = state.open_view(now + VIEW_SECONDS)
    placements = state.chunks.placements_of(extent for entry in entries for extent in entry.extents)
    return KeyPage(tuple(entries), bool(rest), at, rest, placements)
