"""`blockstore log`: what one object was."""

from __future__ import annotations

from typing import Any

import click

import blockstore
from blockstore_cli.address import parse_head
from blockstore_cli.output import answer, shown, size, table, when
from blockstore_cli.settings import Command, example, settings


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
