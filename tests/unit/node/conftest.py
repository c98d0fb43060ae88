"""What the tests of a node share."""

from __future__ import annotations

import pytest

from tests.unit.node.disks import Bench


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.disk.settle()
    return bench
