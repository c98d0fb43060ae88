"""The daemon: one node in one process, until it is told to stop."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import trio

from blockstore.daemon.node_directory import NodeDirectory
from blockstore.daemon.node_shell import open_node
from blockstore.daemon.real_doors_shell import DaemonDoors
from blockstore.errors import InvalidRequest, NotAStore
from blockstore.ids import MiB, NodeId

DESCRIPTORS_WANTED = 16_384
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BLOCK_BYTES = 32 * MiB
"""Blocks up to this are kept for the next one; glibc takes no more."""
KEPT_BYTES = 128 * MiB
"""Freed memory at the heap's end that is not given back: some 30 answers of 4 MiB."""

log = logging.getLogger("blockstore.daemon")


def run_node(directory: Path, *, ready_json: bool = False) -> None:
    """Run the node in this directory in the foreground; signals end it, cleanly, and this returns. SIGINT at
    once, as when all of a cluster stops; SIGTERM, if there is no second one, when others own its volumes and
    lead control.

    Logs go to stderr. With `ready_json`, one line on stdout says when it takes requests:
    `{"node": …, "pid": …, "address": …}`."""
    level = os.environ.get("BLOCKSTORE_LOG", "INFO")
    if level not in logging.getLevelNamesMapping():
        raise InvalidRequest(f"BLOCKSTORE_LOG is {level!r}; it may be DEBUG, INFO, WARNING or ERROR.")
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    trio.run(_run, directory, ready_json, strict_exception_groups=True)


async def _run(directory: Path, ready_json: bool) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        raise_descriptor_limit()
        keep_freed_memory()
        place = NodeDirectory(directory)
        facts = place.read()
        if facts.security == "embedded":
            raise NotAStore(str(directory), "it is a store that programs open; it does not run as a daemon")
        async with open_node(facts, DaemonDoors(place, facts)) as node:
            log.info(
                "node_ready node=%d address=%s:%d pid=%d", facts.node, facts.host, facts.port, os.getpid()
            )
            if ready_json:
                ready = {"node": facts.node, "pid": os.getpid(), "address": f"{facts.host}:{facts.port}"}
                print(json.dumps(ready), flush=True)
            if await _next_signal(facts.node, signals) is signal.SIGTERM:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_at_signal, facts.node, signals, nursery.cancel_scope)
                    await node.hand_over()
                    nursery.cancel_scope.cancel()


async def _next_signal(node: NodeId, signals: AsyncIterator[int]) -> signal.Signals:
    number = signal.Signals(await anext(signals))
    log.info("node_stops node=%d signal=%s", node, number.name)
    return number


async def _cancel_at_signal(node: NodeId, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """Who asks twice wants it at once."""
    await _next_signal(node, signals)
    scope.cancel()


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed: touching fresh memory costs 2.3 us for each 4 KiB page, more
    than what is then done with it (DATAPATH section 0). Where there is no glibc, nothing happens."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def raise_descriptor_limit() -> None:
    """A node of many disks and clients holds more files than a shell's usual 1,024 (KILLERS 14)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
