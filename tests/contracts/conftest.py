"""What contract tests share: one cluster of real daemons, and the store that a way leads to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import pytest

from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster
from tests.contracts.ways import Way


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[LocalCluster]:
    with LocalCluster.create(tmp_path_factory.mktemp("cluster"), 3, security="tls") as running:
        yield running


@pytest.fixture
async def store(way: Way) -> AsyncGenerator[aio.Store]:
    async with way.open() as found:
        yield found
