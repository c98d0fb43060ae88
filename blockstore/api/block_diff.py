"""Where two moments of a block device differ: runs of blocks, found by comparing the spans that changed."""

from __future__ import annotations

from blockstore.api.block_reading import choose, fetch_size, fetch_span
from blockstore.api.history import Moment, fetch_changes
from blockstore.api.session import VolumeSession
from blockstore.kinds import block
from blockstore.kinds.block import RangeChange

SPANS_PER_DIFF = 64
"""Compared before a page of a diff is given out."""


class RangeCursor:
    """Where a diff stands. Knows no session, so that any may fetch its next page."""

    def __init__(self, since: Moment, until: Moment | None) -> None:
        self._moments = since, until
        self._between: tuple[int, int] | None = None
        self._size = 0
        self._start: bytes = block.SPAN_PREFIX
        self._more = True

    async def fetch(self, session: VolumeSession, timeout: float) -> list[RangeChange]:
        """The next runs, in the device's order; empty at the end."""
        if self._between is None:
            since, until = self._moments
            old = (await choose(session, since, timeout)).sequence
            new = 0 if until is None else (await choose(session, until, timeout)).sequence
            self._size = await fetch_size(session, new, timeout)
            self._between = old, new
        while self._more:
            runs = await self._compare(session, *self._between, timeout)
            if runs:
                return runs
        return []

    async def _compare(
        self, session: VolumeSession, since: int, until: int, timeout: float
    ) -> list[RangeChange]:
        page = await fetch_changes(session, since, until, self._start, block.SPANS_END, timeout)
        spans = sorted({block.span_of(change.key) for change in page.changes})
        self._more, self._start = bool(page.next), page.next
        if len(spans) > SPANS_PER_DIFF:
            del spans[SPANS_PER_DIFF:]
            self._more, self._start = True, block.span_key(spans[-1] + 1)
        elif self._more and spans:  # the last one is compared whole, whatever of it was named
            self._start = max(self._start, block.span_key(spans[-1] + 1))
        changes: list[RangeChange] = []
        for span in spans:
            old = await fetch_span(session, since, span, timeout)
            new = await fetch_span(session, until, span, timeout)
            changes += block.span_changes(span, old, new)
        return block.joined(changes, self._size)
