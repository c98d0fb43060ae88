"""Where is the store, and with what credential does one speak to it?

Pure but for reading the configuration file. In this order: what the caller said, the environment (BLOCKSTORE,
BLOCKSTORE_CREDENTIALS), `~/.config/blockstore/config.toml` with the keys `store` and `credentials`. A
location is a directory (an embedded store; several directories are several disks) or
`tcp://host:port[,host:port…]`. A variable or key that means nothing is refused, not passed over.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockstore.errors import InvalidRequest
from blockstore.runtime.interfaces import Address

DEFAULT_PORT = 7440
VARIABLES = ("BLOCKSTORE_CREDENTIALS", "BLOCKSTORE_LOG")
_OF_KUBERNETES = re.compile(r"BLOCKSTORE_(SERVICE|PORT)(_|$)")
"""What it sets in every container beside a service that is called blockstore."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Directories:
    """An embedded store."""

    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes to ask first; they know the others. Without credentials it must be a plain one."""

    seeds: tuple[Address, ...]
    credentials: str | None


def resolve(
    location: PathLike | Sequence[PathLike] | None,
    credentials: PathLike | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Directories | Cluster:
    """What is meant; InvalidRequest says what is wrong with it, or how to say it."""
    config: dict[str, str] | None = None
    if location is None:
        _check_environment(environment)
        location = environment.get("BLOCKSTORE", "")
        if not location:
            config = read_config(environment)
            location = config.get("store", "")
        if not location:
            raise InvalidRequest(
                "Which store? Say a directory or tcp://host:port, or set BLOCKSTORE, or `store` in "
                f"{config_path(environment)}."
            )
    if not isinstance(location, str | os.PathLike):
        return _directories(location)
    text = os.fspath(location)
    if "://" not in text:
        return _directories([text])
    seeds = parse_seeds(text)
    if credentials is None:
        credentials = environment.get("BLOCKSTORE_CREDENTIALS") or None
    if credentials is None:
        config = read_config(environment) if config is None else config
        credentials = config.get("credentials") or None
    return Cluster(seeds, None if credentials is None else os.path.expanduser(credentials))


def _check_environment(environment: Mapping[str, str]) -> None:
    """A misspelled variable must not be passed over, least of all by using another store."""
    for name in environment:
        if name.startswith("BLOCKSTORE_") and name not in VARIABLES and not _OF_KUBERNETES.match(name):
            raise InvalidRequest(
                f"The environment has {name}, which means nothing; BLOCKSTORE and "
                f"{' and '.join(VARIABLES)} do. Unset it, or say which store on the command line."
            )


def parse_seeds(text: str) -> tuple[Address, ...]:
    """The addresses in `tcp://host:port[,host:port…]`; an IPv6 host stands in brackets."""
    scheme, _, rest = text.partition("://")
    if scheme != "tcp":
        raise InvalidRequest(f"{text!r}: a store is reached over tcp://, not {scheme}://.")
    return tuple(_parse_address(part.strip(), text) for part in rest.rstrip("/").split(","))


def _parse_address(part: str, text: str) -> Address:
    host, colon, port_text = part.rpartition(":")
    if not colon or part.endswith("]"):
        host, port_text = part, str(DEFAULT_PORT)
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    port = int(port_text) if port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 else 0
    if not bare or (":" in bare) != is_bracketed or not 0 < port < 65_536 or set(bare) & set(" /@?#[]"):
        raise InvalidRequest(f"{part!r} in {text!r} is not an address; write it like tcp://10.0.0.1:7440.")
    return Address(bare, port)


def _directories(locations: Sequence[PathLike]) -> Directories:
    if not locations:
        raise InvalidRequest("Name at least one directory.")
    paths: list[Path] = []
    for location in locations:
        text = os.fspath(location)
        if not text or "\0" in text:
            raise InvalidRequest(f"{text!r} names no directory.")
        if "://" in text:
            raise InvalidRequest(f"{text!r} among several locations: write one tcp://host:port,host:port.")
        try:
            path = Path(text).expanduser()
        except RuntimeError as error:
            raise InvalidRequest(f"{text!r}: nobody's home directory is known by that name.") from error
        if path in paths:
            raise InvalidRequest(f"{text} is named twice; each directory is a disk of its own.")
        paths.append(path)
    return Directories(tuple(paths))


# --- the configuration file


def config_path(environment: Mapping[str, str]) -> Path:
    folder = environment.get("XDG_CONFIG_HOME")
    home = Path(environment.get("HOME") or Path.home())
    return (Path(folder) if folder else home / ".config") / "blockstore" / "config.toml"


def read_config(environment: Mapping[str, str]) -> dict[str, str]:
    """Its keys, none if there is no such file. InvalidRequest for what means nothing there."""
    path = config_path(environment)
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}.") from error
    for key, value in values.items():
        if key not in ("store", "credentials") or not isinstance(value, str):
            raise InvalidRequest(
                f"{path}: {key} means nothing there; only store and credentials do, as texts."
            )
    return values
