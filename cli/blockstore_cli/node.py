"""`blockstore node …`: run a daemon; see the nodes of a cluster."""

from __future__ import annotations

import threading
from pathlib import Path

import click

from blockstore.daemon import local_cluster
from blockstore.daemon import main as daemon
from blockstore.errors import NotFound
from blockstore_cli.health import node_facts, node_table
from blockstore_cli.output import answer, say, size, table
from blockstore_cli.settings import LocalCommand, Noun, example, settings


@click.group(cls=Noun)
def node() -> None:
    """Nodes: daemons and their disks."""


@node.command("start", cls=LocalCommand, epilog=example("blockstore node start /var/lib/blockstore"))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--ready-json", is_flag=True, help="Print one line of JSON when it serves, as --json does.")
@click.option(
    "--until-stdin-ends", is_flag=True, help="Stop when standard input ends: for whoever started it."
)
def start(directory: Path, ready_json: bool, until_stdin_ends: bool) -> None:
    """Run the daemon whose files are in DIRECTORY, in the foreground. SIGTERM and Ctrl-C stop it cleanly."""
    if until_stdin_ends:
        threading.Thread(target=local_cluster.end_with_stdin, name="stdin", daemon=True).start()
    daemon.run_node(directory, ready_json=ready_json or settings().json)


@node.command("list", epilog=example("blockstore node list"))
def list_nodes() -> None:
    """List the nodes of the cluster."""
    with settings().open() as store:
        status = store.status()
    answer({"nodes": [node_facts(one, status) for one in status.nodes]}, node_table(status))


@node.command("show", epilog=example("blockstore node show 3"))
@click.argument("number", type=int)
def show(number: int) -> None:
    """One node, its disks and what it owns."""
    with settings().open() as store:
        status = store.status()
    for one in status.nodes:
        if one.node == number:
            break
    else:
        raise NotFound(f"node {number}")
    facts = node_facts(one, status)
    answer(facts)
    if settings().json:
        return
    state = "live" if one.live else "silent"
    role = "leads control" if one.node == status.leader else "votes" if one.voter else "follows as a learner"
    say(f"Node {number} at {one.address} is {state} and {role}; this is run {one.incarnation} of its daemon.")
    say(f"Zone {'/'.join(one.zone) or '(none)'}; owns {', '.join(facts['owns']) or 'no volumes'}.\n")
    rows = [(disk, state, size(used), size(capacity)) for disk, capacity, used, state in one.disks]
    say(table(("DISK", "STATE", "USED", "CAPACITY"), rows, right="DISK,USED,CAPACITY"))
