"""A journal whose chunks all end at their first append asks control for new ones ever more slowly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from blockstore.errors import NoSpace
from blockstore.node.disk_shell import DiskShell
from tests.node_harness import VOLUME, running


async def test_appends_that_all_fail_open_few_chunks_and_room_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = DiskShell.append
    is_full = False
    tried: set[object] = set()

    def full_at_times(self: DiskShell, chunk: object, *rest: Any) -> None:
        tried.add(chunk)
        if is_full:
            next(one for one in rest if callable(one))(NoSpace("the disk"))  # its waiter
        else:
            append(self, chunk, *rest)  # type: ignore[arg-type] # as it came

    monkeypatch.setattr(DiskShell, "append", full_at_times)
    async with running(tmp_path) as one:
        bucket = await one.store.create_bucket("x")
        await bucket.put("before", b"1")
        is_full = True
        tried.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bucket.put, "meanwhile", b"2")
            began = trio.current_time()
            while trio.current_time() < began + 2:  # noqa: ASYNC110 - nothing tells of attempts
                await trio.sleep(0.01)
            assert 3 <= len(tried) <= 10
            is_full = False
        assert await bucket.get("meanwhile") == b"2"
        record = one.node.control.views.volume(VOLUME)
        assert record is not None
        assert len(record.journal) <= 3  # chunks in which nothing was written are named no more
