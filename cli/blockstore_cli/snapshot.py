"""`blockstore snapshot …`: name a moment of a volume, list such moments, forget one."""

from __future__ import annotations

import click

from blockstore.errors import NotFound
from blockstore_cli.output import answer, confirm, table, when
from blockstore_cli.settings import Noun, example, settings


@click.group(cls=Noun)
def snapshot() -> None:
    """Snapshots: instant, whatever the size; read one as BUCKET@SNAPSHOT."""


@snapshot.command("create", epilog=example("blockstore snapshot create photos before-cleaning"))
@click.argument("bucket")
@click.argument("name")
def create(bucket: str, name: str) -> None:
    """Name the present moment of BUCKET: it holds what was acknowledged before, and nothing after."""
    with settings().open() as store:
        made = store.bucket(bucket).snapshot(name)
    answer(
        {"bucket": bucket, "name": made.name, "sequence": made.sequence, "created": made.created},
        f"Snapshot {bucket}@{made.name} is taken.",
    )


@snapshot.command("list", epilog=example("blockstore snapshot list photos"))
@click.argument("bucket")
def list_snapshots(bucket: str) -> None:
    """List the snapshots of BUCKET, oldest first."""
    with settings().open() as store:
        found = store.bucket(bucket).snapshots()
    facts = [{"name": one.name, "sequence": one.sequence, "created": one.created} for one in found]
    text = table(
        ("SNAPSHOT", "TAKEN", "SEQUENCE"),
        [(one.name, when(one.created), one.sequence) for one in found],
        right="SEQUENCE",
    )
    answer({"bucket": bucket, "snapshots": facts}, text or f"Bucket {bucket} has no snapshots.")


@snapshot.command("delete", epilog=example("blockstore snapshot delete photos before-cleaning --yes"))
@click.argument("bucket")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(bucket: str, name: str, yes: bool) -> None:
    """Forget a snapshot; what only it held becomes garbage."""
    with settings().open() as store:
        volume = store.bucket(bucket)
        if name not in [one.name for one in volume.snapshots()]:
            raise NotFound(f"snapshot {name!r} of bucket {bucket!r}")
        confirm(f"Delete snapshot {bucket}@{name}, and what only it holds", yes)
        volume.delete_snapshot(name)
    answer({"bucket": bucket, "deleted": name}, f"Snapshot {bucket}@{name} is deleted.")
