"""`blockstore log` and `blockstore restore`: what objects were, and making them so again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click

import blockstore
from blockstore.errors import InvalidRequest
from blockstore_cli.address import Place, parse_head
from blockstore_cli.output import Progress, answer, confirm, shown, size, table, when
from blockstore_cli.settings import Command, example, settings
from blockstore_cli.tree import as_folder


@click.command(cls=Command, epilog=example("blockstore log docs:2026/report.pdf"))
@click.argument("target", metavar="BUCKET:NAME")
def log(target: str) -> None:
    """List every version of an object that is there now or in a snapshot, newest first.

    What was overwritten between two snapshots is gone.
    """
    place = parse_head(target, name_needed=True)
    with settings().open() as store:
        versions = store.bucket(place.bucket).log(place.name)
    rows = [(*_state(version), _seen_in(version)) for version in versions]
    text = table(("WRITTEN", "SIZE", "ETAG", "SEEN IN"), rows, right="SIZE")
    answer({"name": place.name, "versions": [_facts(version) for version in versions]}, text)


@click.command(
    cls=Command,
    epilog=example(
        "blockstore restore docs:2026/report.pdf --at monday",
        "blockstore restore -r docs:2026/ --at '2026-11-23 18:30' --to found/",
    ),
)
@click.argument("target", metavar="BUCKET:NAME")
@click.option("--at", "at", metavar="WHEN", required=True, help="A snapshot, or a date and time.")
@click.option("-r", "--recursive", is_flag=True, help="Everything below BUCKET:NAME.")
@click.option("--to", metavar="NAME", help="Restore to this name (with -r: below it) instead.")
@click.option("--dry-run", is_flag=True, help="Only say what would be changed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore(target: str, at: str, recursive: bool, to: str | None, dry_run: bool, yes: bool) -> None:
    """Make an object what it was at a snapshot; with -r, all below a folder. What did not exist is deleted.

    A safety snapshot is taken first, and the command that undoes it all is printed.
    """
    place = parse_head(target, name_needed=not recursive)
    names, prefix = (None, as_folder(place.name)) if recursive else (place.name, None)
    if recursive and to is not None:
        to = as_folder(to)
    with settings().open() as store:
        bucket = store.bucket(place.bucket)
        moment = parse_moment(bucket, at)
        show = tell_changes if dry_run else None
        found = bucket.restore(names, prefix=prefix, at=moment, to=to, dry_run=True, on_changes=show)
        n_changes = found.added + found.changed + found.removed
        if dry_run or not n_changes:
            answer(restored_facts(found), f"{would_be(found)} Nothing was changed.")
            return
        confirm(f"{would_be(found)} Do it", yes)
        progress = Progress("restored", n_changes, 0)
        done = bucket.restore(names, prefix=prefix, at=moment, to=to, on_changes=advancing(progress))
        progress.end()
    undo = Place(place.bucket, place.name if to is None else to)
    options = ["-r"] if recursive else []
    tell_restored(done, ["restore", *options, str(undo), "--at", done.safety])


def parse_moment(bucket: blockstore.Bucket, text: str) -> str | datetime:
    """The name of a snapshot, or a date and time; a name comes first."""
    if any(snapshot.name == text for snapshot in bucket.snapshots()):
        return text
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r} is neither a snapshot of {bucket.name} nor a date and time like '2026-11-23 18:30'."
        ) from None


def tell_changes(changes: Sequence[blockstore.Change]) -> None:
    for change in changes:
        answer(change_facts(change), change_line(change))


def advancing(progress: Progress) -> Callable[[Sequence[blockstore.Change]], None]:
    return lambda changes: progress.advance(len(changes), 0)


def would_be(found: blockstore.Restored) -> str:
    """A sentence."""
    if not found.added + found.changed + found.removed:
        return f"All is as it was at @{found.snapshot}."
    return (
        f"As of @{found.snapshot}: {found.added:,} would be added, {found.changed:,} changed, "
        f"{found.removed:,} removed."
    )


def tell_restored(done: blockstore.Restored, undo: Sequence[str]) -> None:
    """What was done, and the command that undoes it."""
    if not done.safety:  # somebody else did it between the question and the answer
        answer(restored_facts(done), f"{would_be(done)} Nothing was changed.")
        return
    chosen = settings()
    options = ["--store", chosen.store] if chosen.store else []
    options += ["--credentials", chosen.credentials] if chosen.credentials else []
    command = shlex.join(["blockstore", *undo, *options])
    answer(
        {**restored_facts(done), "undo": command},
        f"As of @{done.snapshot}: {done.added:,} added, {done.changed:,} changed, {done.removed:,} removed.\n"
        f"What was before is kept as @{done.safety}; this undoes it:\n  {shown(command)}",
    )


def restored_facts(done: blockstore.Restored) -> dict[str, Any]:
    return {
        "snapshot": done.snapshot,
        "added": done.added,
        "changed": done.changed,
        "removed": done.removed,
        "safety": done.safety,
    }


def object_facts(info: blockstore.ObjectInfo) -> dict[str, Any]:
    """An object as `--json` shows it."""
    return {
        "name": info.name,
        "size": info.size,
        "etag": info.etag,
        "modified": info.modified,
        "metadata": info.metadata,
    }


def change_facts(change: blockstore.Change) -> dict[str, Any]:
    old, new = change.old, change.new
    return {
        "change": change.kind,
        "name": change.name,
        "old": object_facts(old) if old else None,
        "new": object_facts(new) if new else None,
    }


def change_line(change: blockstore.Change) -> str:
    """`+`, `~` or `-`, the name, and what is known of its size."""
    old, new = change.old, change.new
    if old is None or new is None:
        info = old or new
        mark = "+" if old is None else "-"
        return f"{mark} {shown(change.name)}  {size(info.size) if info else ''}"
    sizes = size(new.size) if old.size == new.size else f"{size(old.size)} → {size(new.size)}"
    return f"~ {shown(change.name)}  {sizes}"


def _state(version: blockstore.ObjectVersion) -> tuple[str, str, str]:
    info = version.info
    if info is not None:
        return when(info.modified), size(info.size), info.etag
    before = f"before {when(version.first_taken)}" if version.first_taken else "-"
    return before, "deleted", "-"


def _seen_in(version: blockstore.ObjectVersion) -> str:
    first, last, n_snapshots = version.first_snapshot, version.last_snapshot, version.n_snapshots
    parts = ["now"] if version.is_current else []
    if n_snapshots == 1:
        parts.append(f"@{first}")
    elif n_snapshots:
        parts.append(f"@{first} to @{last} ({n_snapshots:,} snapshots)")
    return ", ".join(parts)


def _facts(version: blockstore.ObjectVersion) -> dict[str, Any]:
    return {
        "object": object_facts(version.info) if version.info else None,
        "current": version.is_current,
        "snapshots": version.n_snapshots,
        "first_snapshot": version.first_snapshot,
        "last_snapshot": version.last_snapshot,
        "first_taken": version.first_taken,
    }
