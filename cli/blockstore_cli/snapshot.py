"""`blockstore snapshot …`: name a moment of a volume, list, compare, hold and forget them, go back to one."""

from __future__ import annotations

import click

from blockstore.errors import InvalidRequest, NotFound, SnapshotHeld
from blockstore_cli.address import parse_place
from blockstore_cli.history import advancing, change_facts, change_line, tell_restored, would_be
from blockstore_cli.output import Progress, answer, confirm, table, when
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
    facts = [
        {"name": one.name, "sequence": one.sequence, "created": one.created, "held": one.held}
        for one in found
    ]
    text = table(
        ("SNAPSHOT", "TAKEN", "SEQUENCE", "HELD"),
        [(one.name, when(one.created), one.sequence, "held" if one.held else "") for one in found],
        right="SEQUENCE",
    )
    answer({"bucket": bucket, "snapshots": facts}, text or f"Bucket {bucket} has no snapshots.")


@snapshot.command(
    "diff",
    epilog=example(
        "blockstore snapshot diff photos@before-cleaning",
        "blockstore snapshot diff photos@monday:2026/ photos@friday",
    ),
)
@click.argument("since", metavar="BUCKET@SNAPSHOT[:PREFIX]")
@click.argument("until", metavar="[BUCKET@SNAPSHOT]", default="")
def diff(since: str, until: str) -> None:
    """Name what was added (+), changed (~) and removed (-) since a snapshot, up to another or up to now."""
    old, new = parse_place(since), parse_place(until) if until else None
    if not old.snapshot or (new and not new.snapshot):
        raise InvalidRequest("A diff begins at a snapshot: BUCKET@SNAPSHOT, and a second one or none.")
    if new and (new.bucket != old.bucket or new.name not in ("", old.name)):
        raise InvalidRequest(f"A diff is within one bucket; {old} and {new} do not go together.")
    counts = {"added": 0, "changed": 0, "removed": 0}
    with settings().open() as store:
        changes = store.bucket(old.bucket).diff(old.snapshot, new.snapshot if new else None, prefix=old.name)
        for change in changes:
            counts[change.kind] += 1
            answer(change_facts(change), change_line(change))
    answer(counts, ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) + ".")


@snapshot.command("rollback", epilog=example("blockstore snapshot rollback photos@before-cleaning"))
@click.argument("target", metavar="BUCKET@SNAPSHOT")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(target: str, yes: bool) -> None:
    """Make a whole bucket what it was at a snapshot; a safety snapshot of now is taken first.

    Readers may see a part of it while it runs. Interrupted, it may be repeated.
    """
    place = parse_place(target)
    if not place.snapshot or place.name:
        raise InvalidRequest(
            f"{target!r} is not BUCKET@SNAPSHOT; `blockstore restore` is for parts of a bucket."
        )
    with settings().open() as store:
        volume = store.bucket(place.bucket)
        found = volume.restore(prefix="", at=place.snapshot, dry_run=True)
        n_changes = found.added + found.changed + found.removed
        if n_changes:
            confirm(f"{would_be(found)} Roll bucket {place.bucket} back", yes)
        progress = Progress("restored", n_changes, 0)
        done = volume.rollback(place.snapshot, on_changes=advancing(progress))
        progress.end()
    tell_restored(done, ["snapshot", "rollback", f"{place.bucket}@{done.safety}"])


@snapshot.command("clone", epilog=example("blockstore snapshot clone photos@before-cleaning experiment-42"))
@click.argument("source", metavar="NAME@SNAPSHOT")
@click.argument("name", metavar="NEW")
def clone(source: str, name: str) -> None:
    """Make a writable volume called NEW of a snapshot of a bucket or a block device, without copying
    anything.

    Neither sees what is changed in the other. The snapshot and what it is of may be deleted afterwards.
    """
    parent, _, of = source.partition("@")
    if not (parent and of) or ":" in source:
        raise InvalidRequest(f"{source!r} is not NAME@SNAPSHOT; `blockstore snapshot list` names snapshots.")
    with settings().open() as store:
        if parent in [one.name for one in store.block_devices()]:
            kind, policy = "block", store.block_device(parent).clone(of, name).policy
        else:
            kind, policy = "bucket", store.bucket(parent).clone(of, name).policy
    answer(
        {"name": name, "kind": kind, "policy": policy, "clone_of": f"{parent}@{of}"},
        f"{'Bucket' if kind == 'bucket' else 'Block device'} {name} is there, a clone of {parent}@{of}.",
    )


@snapshot.command("hold", epilog=example("blockstore snapshot hold photos paper-2026"))
@click.argument("bucket")
@click.argument("name")
def hold(bucket: str, name: str) -> None:
    """Let nobody delete a snapshot, nor its bucket, until it is released."""
    with settings().open() as store:
        store.bucket(bucket).hold_snapshot(name)
    answer({"bucket": bucket, "name": name, "held": True}, f"Snapshot {bucket}@{name} is held.")


@snapshot.command("release", epilog=example("blockstore snapshot release photos paper-2026"))
@click.argument("bucket")
@click.argument("name")
def release(bucket: str, name: str) -> None:
    """Let a held snapshot be deleted again."""
    with settings().open() as store:
        store.bucket(bucket).release_snapshot(name)
    answer({"bucket": bucket, "name": name, "held": False}, f"Snapshot {bucket}@{name} may be deleted.")


@snapshot.command("delete", epilog=example("blockstore snapshot delete photos before-cleaning --yes"))
@click.argument("bucket")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(bucket: str, name: str, yes: bool) -> None:
    """Forget a snapshot; what only it held becomes garbage."""
    with settings().open() as store:
        volume = store.bucket(bucket)
        found = [one for one in volume.snapshots() if one.name == name]
        if not found:
            raise NotFound(f"snapshot {name!r} of bucket {bucket!r}")
        if found[0].held:
            raise SnapshotHeld(f"Snapshot {name!r} of bucket {bucket!r}")
        confirm(f"Delete snapshot {bucket}@{name}, and what only it holds", yes)
        volume.delete_snapshot(name)
    answer({"bucket": bucket, "deleted": name}, f"Snapshot {bucket}@{name} is deleted.")
