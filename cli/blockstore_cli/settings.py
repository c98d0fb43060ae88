"""Which store a command means, with what credential, and how it shall answer.

In this order: the option, the environment (BLOCKSTORE, BLOCKSTORE_CREDENTIALS), the file
~/.config/blockstore/config.toml. The options may stand before or after the noun.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

import blockstore
from blockstore.errors import InvalidRequest

Kept = TypeVar("Kept")


@dataclass(slots=True)
class Settings:
    store: str = ""
    credentials: str = ""
    json: bool = False

    def location(self) -> str:
        """The store that was named; InvalidRequest, with the ways to name one, when none was."""
        found = self.store or os.environ.get("BLOCKSTORE", "") or _config_file().get("store", "")
        if not found:
            raise InvalidRequest(
                "Which store? Say --store DIRECTORY or --store tcp://host:port, or export BLOCKSTORE."
            )
        return found

    def credentials_file(self) -> str | None:
        found = self.credentials or os.environ.get("BLOCKSTORE_CREDENTIALS", "")
        return found or _config_file().get("credentials") or None

    def is_cluster(self) -> bool:
        return "://" in self.location()

    def open(self) -> blockstore.Store:
        """A context manager."""
        if self.is_cluster():
            return blockstore.connect(self.location(), credentials=self.credentials_file())
        return blockstore.open(self.directory())

    def directory(self) -> str:
        """Of an embedded store. `blockstore.open` makes a missing one; a name that was misspelt must not."""
        found = self.location()
        if not Path(found).is_dir():
            raise InvalidRequest(f"There is no directory {found}; make it first, or say tcp://host:port.")
        return found


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

    def keep(context: click.Context, _: click.Parameter, value: Kept) -> Kept:
        if value:
            root = context.find_root()
            setattr(root.ensure_object(Settings), name, value)
        return value

    callback: Callable[[click.Context, click.Parameter, Any], Any] = keep
    return click.Option([flag], expose_value=False, callback=callback, **attributes)


def _config_file() -> dict[str, str]:
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    path = Path(folder) / "blockstore" / "config.toml"
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}.") from error
    unknown = sorted(values.keys() - {"store", "credentials"})
    if unknown:
        raise InvalidRequest(
            f"{path} has {', '.join(unknown)}; only store and credentials mean something there."
        )
    return {name: str(value) for name, value in values.items()}
