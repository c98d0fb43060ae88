"""`blockstore dev`: a cluster of daemons on this machine, for as long as the command runs."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import click

import blockstore
from blockstore.daemon import setup
from blockstore.daemon.local_cluster import USUAL_PORT, LocalCluster, free_ports
from blockstore.errors import BlockStoreError, InvalidRequest, Unavailable
from blockstore_cli.output import answer, note
from blockstore_cli.settings import LocalCommand, example

SETTLE_SECONDS_MAX = 20.0
"""From the last daemon's start until every node hears every other: an election and a heartbeat, about 1 s."""


@click.command(cls=LocalCommand, epilog=example("blockstore dev --nodes 6 --dir ./cluster"))
@click.option("--nodes", "n_nodes", type=click.IntRange(1, 50), help="How many daemons; 3 if left out.")
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False),
              help="Keep the cluster here; the next `dev` with it starts the same one again.")  # fmt: skip
@click.option("--plain", is_flag=True, help="Without TLS and keys.")
@click.option("--port", type=click.IntRange(1024, 65000), help="First of two ports for each node.")
def dev(n_nodes: int | None, directory: Path | None, plain: bool, port: int | None) -> None:
    """Run a cluster on this machine's loopback until Ctrl-C; without --dir its data goes when it stops."""
    signal.signal(signal.SIGTERM, _raise_interrupt)
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockstore-dev-")))
        cluster = stack.enter_context(_started(directory, n_nodes, plain, port))
        wait_until_settled(cluster)
        credentials = f" BLOCKSTORE_CREDENTIALS={cluster.credentials}" if cluster.credentials else ""
        answer(
            cluster.facts(),
            f"{len(cluster.nodes)} nodes run, their files in {cluster.directory}. In another terminal:\n"
            f"  export BLOCKSTORE={cluster.location}{credentials}\n"
            "Ctrl-C stops them.",
        )
        with suppress(KeyboardInterrupt):
            _watch(cluster)
        note("Stopping.")


def wait_until_settled(cluster: LocalCluster) -> None:
    """Return when a control leader is there and every node that runs is live in its eyes."""
    until = time.monotonic() + SETTLE_SECONDS_MAX
    expected = {node.node for node in cluster.nodes if node.running}
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as store:
        while True:
            try:
                status = store.status()
                live = {node.node for node in status.nodes if node.live}
                if status.leader and expected <= live:
                    return
                missing = f"nodes {sorted(expected - live)} are silent" if status.leader else "no leader yet"
            except BlockStoreError as error:
                if not error.retry:
                    raise
                missing = str(error)
            if time.monotonic() > until:
                raise Unavailable(f"The cluster did not settle within {SETTLE_SECONDS_MAX:.0f} s: {missing}.")
            time.sleep(0.05)


@contextmanager
def _started(directory: Path, n_nodes: int | None, plain: bool, port: int | None) -> Generator[LocalCluster]:
    """A new cluster, or the one that is there: then its size and security are what they are."""
    if not LocalCluster.exists(directory):
        security: setup.Security = "plain" if plain else "tls"
        n_nodes = n_nodes or 3
        first = port or free_ports(n_nodes, preferred=USUAL_PORT)
        with LocalCluster.create(directory, n_nodes, security=security, first_port=first) as cluster:
            yield cluster
        return
    with LocalCluster.open(directory) as cluster:
        if n_nodes not in {None, len(cluster.nodes)}:
            raise InvalidRequest(
                f"{directory} holds a cluster of {len(cluster.nodes)} nodes; leave --nodes out."
            )
        if plain and cluster.security != "plain":
            raise InvalidRequest(f"{directory} holds a cluster with TLS, which stays so; leave --plain out.")
        if port is not None:
            raise InvalidRequest(f"{directory} holds a cluster whose ports are fixed; leave --port out.")
        cluster.start()
        yield cluster


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch(cluster: LocalCluster) -> None:
    """Until interrupted. A daemon that ends by itself is told about, once; the others go on."""
    told: set[int] = set()
    while True:
        for node in cluster.nodes:
            if not node.running and node.node not in told:
                told.add(node.node)
                note(f"Node {node.node} has ended; {node.log} ends with:\n{node.log_tail()}")
        time.sleep(0.5)
