"""A store inside the calling program: one node, one voter, the owner of everything, and nothing that listens.

The same code, formats and guarantees as a daemon's (DESIGN section 5, "Embedded"). The first use of an
empty or missing directory makes the store; a lock file keeps a second process out."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from blockstore.daemon import setup
from blockstore.daemon.node_directory import NodeDirectory
from blockstore.daemon.node_shell import open_node
from blockstore.daemon.real_doors_shell import EmbeddedDoors
from blockstore.errors import NotAStore
from blockstore.runtime.interfaces import Address, Caller


@asynccontextmanager
async def run_embedded(
    directories: Sequence[str | os.PathLike[str]],
) -> AsyncGenerator[tuple[Caller, Address]]:
    """Open, or make, the store in these directories (one disk each); it runs until the block is left.

    Raise NotAStore, StoreLocked, UnknownFormat."""
    paths = [Path(directory) for directory in directories]
    first = NodeDirectory(paths[0])
    if not first.exists():
        await trio.to_thread.run_sync(setup.init_embedded, paths)
    facts = first.read()
    if facts.security != "embedded":
        raise NotAStore(str(paths[0]), "it is a node of a cluster; start it with `blockstore node start`")
    doors = EmbeddedDoors(first, facts)
    async with open_node(facts, doors):
        yield doors.program, doors.address
