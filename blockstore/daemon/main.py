"""The daemon: one node in one process, until it is told to stop."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

import trio

from blockstore.daemon.node_shell import open_node

log = logging.getLogger("blockstore.daemon")


def run_node(directory: Path, *, ready_json: bool = False) -> None:
    """Run the node in this directory in the foreground; SIGTERM and SIGINT end it, cleanly, and this returns.

    Logs go to stderr. With `ready_json`, one line on stdout says when it takes requests:
    `{"node": …, "pid": …, "address": …}`."""
    logging.basicConfig(
        level=os.environ.get("BLOCKSTORE_LOG", "INFO"),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    trio.run(_run, directory, ready_json, strict_exception_groups=True)


async def _run(directory: Path, ready_json: bool) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_node(os.fspath(directory)) as node:
            log.info("node_ready node=%d address=%s pid=%d", node.node, node.address, os.getpid())
            if ready_json:
                facts = {
                    "node": node.node,
                    "pid": os.getpid(),
                    "address": f"{node.address.host}:{node.address.port}",
                }
                print(json.dumps(facts), flush=True)
            async for number in signals:
                log.info("node_stops node=%d signal=%s", node.node, signal.Signals(number).name)
                break
