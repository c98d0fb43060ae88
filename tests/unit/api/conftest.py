"""Tests of the client against the store in memory run in virtual time: waiting takes none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
from trio.testing import MockClock


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(getattr(item, "module", None), "IN_VIRTUAL_TIME", False):
            item.add_marker(pytest.mark.trio(run=_run), append=False)  # before trio_mode's own


def _run(
    test: Callable[[], Awaitable[object]], clock: object, instruments: Sequence[trio.abc.Instrument]
) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0), instruments=instruments)
