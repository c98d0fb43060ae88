"""`blockstore cluster …`: make a cluster, bring a machine in, see how it is, follow what happens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

import blockstore
from blockstore.daemon import setup
from blockstore.errors import QuorumLost, Unavailable
from blockstore_cli.health import node_facts, node_table
from blockstore_cli.output import answer, note, say, shown, table, when
from blockstore_cli.settings import LocalCommand, Noun, example, settings

STATUS_SECONDS = 10.0
"""Whoever asks is waiting, and that nobody answered by then is an answer too."""

FOLLOW_SECONDS = 20.0
"""How long one question for events may be held back: well within what idle connections survive."""


@click.group(cls=Noun)
def cluster() -> None:
    """Clusters: make one, join one, see how it is."""


@cluster.command(
    "init",
    cls=LocalCommand,
    epilog=example("blockstore cluster init /var/lib/blockstore --name lab --listen 10.0.0.1:7440"),
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", default="blockstore", show_default=True, help="What to call the cluster.")
@click.option("--listen", default="127.0.0.1:7440", show_default=True, metavar="HOST:PORT")
@click.option(
    "--bus-port",
    type=click.IntRange(1, 65_535),
    help="For the nodes' own messages; the port after --listen's if left out.",
)
@click.option("--disk", "disks", multiple=True, type=click.Path(path_type=Path), help="May be given again.")
@click.option("--zone", default="", metavar="A/B/C", help="Where it stands: room/rack/host.")
@click.option("--plain", is_flag=True, help="Without TLS and keys; only possible on loopback.")
@click.option(
    "--credentials-out", type=click.Path(path_type=Path), help="Where the administrator's key goes."
)
def init(
    directory: Path,
    name: str,
    listen: str,
    bus_port: int | None,
    disks: tuple[Path, ...],
    zone: str,
    plain: bool,
    credentials_out: Path | None,
) -> None:
    """Make a cluster of one node, whose files are in DIRECTORY; start it with `node start`."""
    security: setup.Security = "plain" if plain else "tls"
    made = setup.init_cluster(
        directory,
        name=name,
        listen=listen,
        bus_port=bus_port,
        disks=disks,
        zone=_zone(zone),
        security=security,
        credentials_out=credentials_out,
    )
    store, key = f"tcp://{made.address}", made.credentials
    facts = {"cluster": name, "node": 1, "store": store, "credentials": str(key) if key else None}
    told = f"its administrator's key is in {key}" if key else "plain, so it has no keys"
    export = f"BLOCKSTORE={store}" + (f" BLOCKSTORE_CREDENTIALS={key}" if key else "")
    answer(
        facts,
        f"Cluster {name} is made; {told}. Next:\n  blockstore node start {directory}\n  export {export}",
    )


@cluster.command(
    "join",
    epilog=example(
        "blockstore cluster join /var/lib/blockstore --store tcp://10.0.0.1:7440 --listen 10.0.0.2:7440"
    ),
)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--listen", default="127.0.0.1:7440", show_default=True, metavar="HOST:PORT")
@click.option(
    "--bus-port",
    type=click.IntRange(1, 65_535),
    help="For the nodes' own messages; the port after --listen's if left out.",
)
@click.option("--disk", "disks", multiple=True, type=click.Path(path_type=Path), help="May be given again.")
@click.option("--zone", default="", metavar="A/B/C", help="Where it stands: room/rack/host.")
def join(directory: Path, listen: str, bus_port: int | None, disks: tuple[Path, ...], zone: str) -> None:
    """Bring this machine into the cluster that --store names, as a new node whose files are in DIRECTORY."""
    known = settings().cluster()
    node = setup.join_cluster(
        directory,
        store="tcp://" + ",".join(f"{seed.host}:{seed.port}" for seed in known.seeds),
        credentials=Path(known.credentials) if known.credentials else None,
        listen=listen,
        bus_port=bus_port,
        disks=disks,
        zone=_zone(zone),
    )
    answer(
        {"node": node, "address": listen, "dir": str(directory)},
        f"This is node {node}. Next:\n  blockstore node start {directory}",
    )


@cluster.command("status", epilog=example("blockstore cluster status"))
def status() -> None:
    """One screen of health. Exit code: 0 healthy, 1 degraded, 2 data at risk or nobody answers."""
    try:
        with settings().open() as store:
            found = store.status(timeout=STATUS_SECONDS)
    except (Unavailable, QuorumLost) as error:
        answer({"severity": 2, "sentence": str(error), "facts": [], "nodes": [], "volumes": []})
        if not settings().json:
            note(f"{error}\n{error.next_step}")
        click.get_current_context().exit(2)
    facts = _status_facts(found)
    answer(facts)
    if not settings().json:
        _show_status(found)
    click.get_current_context().exit(found.severity)


@cluster.command("events", epilog=example("blockstore cluster events --follow"))
@click.option("--follow", is_flag=True, help="Stay, and tell what happens as it happens.")
def events(follow: bool) -> None:
    """What happened lately: nodes that came and went, owners that moved, chunks that were sealed early."""
    with settings().open() as store:
        after = 0
        while True:
            page = store.events(after=after, wait=FOLLOW_SECONDS if follow and after else 0.0)
            for event in page.events:
                facts = {
                    "number": event.number, "when": event.when, "node": event.node,
                    "code": event.code, "text": event.text,
                }  # fmt: skip
                answer(facts, f"{when(event.when)}  node {event.node}  {event.code}  {shown(event.text)}")
            after = page.next
            if not follow:
                return


def _status_facts(found: blockstore.Status) -> dict[str, Any]:
    return {
        "severity": found.severity,
        "sentence": found.sentence,
        "cluster": found.cluster,
        "revision": found.revision,
        "leader": found.leader,
        "term": found.term,
        "facts": [
            {
                "code": fact.code, "severity": fact.severity, "what": fact.what, "since": fact.since,
                "meaning": fact.meaning, "doing": fact.doing, "advice": fact.advice,
            }
            for fact in found.facts
        ],
        "nodes": [node_facts(node, found) for node in found.nodes],
        "volumes": [
            {"name": one.name, "kind": one.kind, "policy": one.policy, "epoch": one.epoch, "owner": one.owner}
            for one in found.volumes
        ],
    }  # fmt: skip


def _show_status(found: blockstore.Status) -> None:
    say(found.sentence)
    for fact in found.facts:
        since = f" (for {time.time() - fact.since:.0f} s)" if fact.since else ""
        say(f"\n{fact.severity}: {fact.what}{since}")
        for sentence in (fact.meaning, fact.doing, fact.advice):
            if sentence:
                say(f"  {sentence}")
    leader = f"node {found.leader} leads" if found.leader else "no leader"
    say(f"\nCluster {found.cluster}: {leader}, term {found.term}, revision {found.revision}.\n")
    say(node_table(found))
    if found.volumes:
        rows = [(one.name, one.kind, one.policy, f"node {one.owner}", one.epoch) for one in found.volumes]
        say("\n" + table(("VOLUME", "KIND", "POLICY", "OWNER", "EPOCH"), rows, right="EPOCH"))


def _zone(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("/") if part)
