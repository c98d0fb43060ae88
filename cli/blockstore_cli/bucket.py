"""`blockstore bucket …`: make, list, show and delete buckets."""

from __future__ import annotations

import click

from blockstore_cli.flattening import clone_facts, flatten
from blockstore_cli.output import answer, confirm, facts_table, table
from blockstore_cli.settings import Noun, example, settings


@click.group(cls=Noun)
def bucket() -> None:
    """Buckets: volumes that hold objects."""


@bucket.command("create", epilog=example("blockstore bucket create photos --policy 'ec(4,2)'"))
@click.argument("name")
@click.option("--policy", default="", help="replicated(N) or ec(K,M); left out, the store's default.")
@click.option("--exist-ok", is_flag=True, help="Succeed if it is there already, with the same policy.")
def create(name: str, policy: str, exist_ok: bool) -> None:
    """Make a bucket; and if --store is a directory that is missing or empty, the store in it."""
    with settings().open(create=True) as store:
        made = store.create_bucket(name, policy=policy or None, exist_ok=exist_ok)
        answer({"name": made.name, "policy": made.policy}, f"Bucket {made.name} is there, {made.policy}.")


@bucket.command("list", epilog=example("blockstore bucket list"))
def list_buckets() -> None:
    """List the buckets."""
    with settings().open() as store:
        found = [
            {"name": one.name, "policy": one.policy, "clone_of": one.clone_of} for one in store.buckets()
        ]
    text = table(
        ("BUCKET", "POLICY", "CLONE OF"), [(one["name"], one["policy"], one["clone_of"]) for one in found]
    )
    answer({"buckets": found}, text or "No buckets yet; make one with `blockstore bucket create NAME`.")


@bucket.command("show", epilog=example("blockstore bucket show photos"))
@click.argument("name")
def show(name: str) -> None:
    """Say what a bucket holds and where it is served."""
    with settings().open() as store:
        found = store.bucket(name)
        facts = {
            "name": found.name, "policy": found.policy, **clone_facts(found, store.buckets), **found.facts(),
        }  # fmt: skip
        snapshots = [one.name for one in found.snapshots()]
    answer({**facts, "snapshots": snapshots}, facts_table(facts, snapshots))


@bucket.command("flatten", epilog=example("blockstore bucket flatten experiment-42"))
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
def flatten_bucket(name: str, no_wait: bool) -> None:
    """Make a clone independent of the bucket that it was made of: it copies what it has in common with it.

    It begins by itself when that bucket is deleted. Interrupted, it goes on in the background.
    """
    with settings().open() as store:
        flatten(store.bucket(name), store.buckets, "Bucket", wait=not no_wait)


@bucket.command("delete", epilog=example("blockstore bucket delete photos --yes"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--even-held", is_flag=True, help="Also if snapshots are held, or its owner cannot be asked.")
def delete(name: str, yes: bool, even_held: bool) -> None:
    """Delete a bucket, every object and every snapshot in it."""
    with settings().open() as store:
        store.bucket(name)  # a name that is not there is said before anybody is asked
        confirm(f"Delete bucket {name!r} with all its objects and snapshots", yes)
        store.delete_bucket(name, even_held=even_held)
    answer({"deleted": name}, f"Bucket {name} is deleted.")
