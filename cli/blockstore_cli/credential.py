"""`blockstore credential …`: who may speak to a cluster, and what they may do."""

from __future__ import annotations

from pathlib import Path

import click

from blockstore_cli.output import answer, confirm, table
from blockstore_cli.settings import Noun, example, settings


@click.group(cls=Noun)
def credential() -> None:
    """Credentials: keys that the cluster lists, each with a role."""


@credential.command(
    "create", epilog=example("blockstore credential create trainer --role read --out trainer.pem")
)
@click.argument("name")
@click.option("--role", type=click.Choice(["read", "write", "admin"]), required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it; NAME.pem if left out.")
def create(name: str, role: str, out: Path | None) -> None:
    """Make a key, list it with the cluster, and write it to a file that only you can read."""
    path = out or Path(f"{name}.pem")
    with settings().open() as store:
        made = store.create_credential(name, role, path)
    answer(
        {"name": made.name, "role": made.role, "fingerprint": made.fingerprint, "file": str(path)},
        f"Credential {made.name} may {made.role}; its key is in {path}. Keep it secret.",
    )


@credential.command("list", epilog=example("blockstore credential list"))
def list_credentials() -> None:
    """List the credentials and their roles."""
    with settings().open() as store:
        found = store.credentials()
    facts = [
        {"name": one.name, "role": one.role, "fingerprint": one.fingerprint, "revoked": one.revoked}
        for one in found
    ]
    rows = [
        (one.name, one.role, "revoked" if one.revoked else "valid", one.fingerprint[:16]) for one in found
    ]
    answer({"credentials": facts}, table(("NAME", "ROLE", "STATE", "FINGERPRINT"), rows))


@credential.command("revoke", epilog=example("blockstore credential revoke trainer --yes"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def revoke(name: str, yes: bool) -> None:
    """Refuse a credential from now on, and close its connections."""
    with settings().open() as store:
        confirm(f"Revoke credential {name!r}; whoever uses it is cut off", yes)
        store.revoke_credential(name)
    answer({"revoked": name}, f"Credential {name} is revoked.")
