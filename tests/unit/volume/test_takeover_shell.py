"""A takeover on a node in this process: what its order protects, at the moments where it matters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import trio

from blockstore.codec.checksum import crc32c
from blockstore.errors import StaleEpoch
from blockstore.ids import ChunkId, VolumeId
from blockstore.node.disk_shell import DiskShell, OnStates
from blockstore.volume.chunk_table import OPEN
from blockstore.volume.journal_shell import JournalShell
from tests.node_harness import VOLUME, running


async def test_an_owner_of_before_can_append_nothing_once_lengths_were_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know yet that it was replaced. What it could append now, and tell as durable, would lie
    behind the end that its successor has just found."""
    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        await bucket.put("key", b"value")
    outcomes: list[object] = []
    fence = DiskShell.fence

    def fence_and_be_late(
        disk: DiskShell, volume: VolumeId, epoch: int, chunks: Iterable[ChunkId], on_done: OnStates
    ) -> None:
        asked = tuple(chunks)

        def told(states: object) -> None:
            for state in disk.states(asked):
                late, chunk = memoryview(b"late"), state.chunk
                disk.append(chunk, chunk.epoch, state.length, late, crc32c(late), None, outcomes.append)
            on_done(disk.states(asked))

        fence(disk, volume, epoch, asked, told)

    monkeypatch.setattr(DiskShell, "fence", fence_and_be_late)
    async with running(tmp_path) as one:
        bucket = await one.store.bucket("x")
        assert await bucket.get("key") == b"value"
    assert outcomes
    assert all(isinstance(outcome, StaleEpoch) for outcome in outcomes)


async def test_control_has_the_end_of_what_was_replayed_before_anything_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next owner could find another end, and what readers saw would be gone."""
    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        await bucket.put("key", b"value")

    async def no_chunk_of_its_own(_: JournalShell) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(JournalShell, "run", no_chunk_of_its_own)
    async with running(tmp_path) as one:
        bucket = await one.store.bucket("x")
        assert await bucket.get("key") == b"value"
        record = one.node.control.views.volume(VOLUME)
        assert record is not None
        assert record.journal
        assert all(chunk.length != OPEN for chunk in record.journal)
