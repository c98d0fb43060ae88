"""Which store a command means, with what credential, and how it shall answer.

The options may stand before or after the noun; what they leave open, `blockstore.api.location` looks up in
the environment and in the configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import click

import blockstore
from blockstore.api.location import Cluster, Directories, resolve
from blockstore.errors import InvalidRequest

Kept = TypeVar("Kept")


@dataclass(slots=True)
class Settings:
    store: str = ""
    credentials: str = ""
    json: bool = False

    def place(self) -> Directories | Cluster:
        """The store that is meant; InvalidRequest when none was named."""
        return resolve(self.store or None, self.credentials or None)

    def cluster(self) -> Cluster:
        """For what only a cluster can do."""
        found = self.place()
        if isinstance(found, Directories):
            raise InvalidRequest(
                f"{found.paths[0]} is an embedded store; this needs a cluster, tcp://host:port."
            )
        return found

    def open(self, *, create: bool = False) -> blockstore.Store:
        """For `with`. What is not there is not made unless said: a misspelt name must not become a store."""
        return blockstore.open(self.store or None, credentials=self.credentials or None, create=create)


def settings() -> Settings:
    """Those of the command that runs."""
    found = click.get_current_context().ensure_object(Settings)
    assert isinstance(found, Settings)
    return found


class Command(click.Command):
    """A command of ours: it takes --json, and unless it is `Local` --store and --credentials as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += store_options() + json_option()


class LocalCommand(click.Command):
    """A command that talks to no store."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += json_option()


class Noun(click.Group):
    command_class = Command


def store_options() -> list[click.Parameter]:
    return [
        _kept("--store", "store", metavar="LOCATION", help="A directory, or tcp://host:port[,host:port…]."),
        _kept(
            "--credentials", "credentials", metavar="FILE", help="The PEM bundle to speak to a cluster with."
        ),
    ]


def json_option() -> list[click.Parameter]:
    return [
        _kept("--json", "json", is_flag=True, help="Answer in JSON; docs/reference/cli.md has the fields.")
    ]


def example(*lines: str) -> str:
    """For `epilog=`: shown as it is, under a heading."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def _kept(flag: str, name: str, **attributes: Any) -> click.Option:
    """An option whose value goes into the settings, wherever on the line it stands."""

    def keep(context: click.Context, parameter: click.Parameter, value: Kept) -> Kept:
        if value == "":  # a script's unset variable must not mean the store that is configured
            raise click.BadParameter("it is empty.", context, parameter)
        if value:
            setattr(context.find_root().ensure_object(Settings), name, value)
        return value

    return click.Option([flag], expose_value=False, callback=keep, **attributes)
