"""A node's directory: who the node is, and where its parts are.

    DIR/
      node.json   this record, written last when the node is made: without it DIR is not a node
      node.pem    its certificate and key, in a cluster with TLS
      bus.key     its CURVE secret key, Z85, in a cluster with TLS
      control/    the replicated control state (`consensus/raft_log.py`)
      disk-1/ …   its disks, unless they were put elsewhere
      lanes.sock  where programs on this host reach it without TCP, while it runs

Nothing in it is edited by hand; `blockstore node start` changes addresses.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from blockstore.errors import InvalidRequest, NotAStore, UnknownFormat, of_path
from blockstore.ids import DiskId, NodeId
from blockstore.runtime.interfaces import Address

VERSION = 1
CONTROL = "control"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
UNIX_PATH_BYTES_MAX = 100
"""The system takes 107; the server's own temporary name beside it needs a few."""


@dataclass(frozen=True, slots=True)
class DiskPlace:
    disk: DiskId
    directory: str  # relative to the node's directory, or absolute


@dataclass(frozen=True, slots=True)
class NodeFile:
    """What node.json holds."""

    cluster: str
    name: str
    node: NodeId
    security: str  # "tls", "plain", or "embedded": nothing listens
    host: str
    port: int
    bus_port: int
    zone: tuple[str, ...]
    disks: tuple[DiskPlace, ...]


class NodeDirectory:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @property
    def bundle(self) -> Path:
        return self.path / "node.pem"

    @property
    def part(self) -> Path:
        """Present while the node is being made (`setup_places.py`)."""
        return self.path / "setup.part"

    @property
    def bus_key(self) -> Path:
        return self.path / "bus.key"

    @property
    def control(self) -> Path:
        return self.path / CONTROL

    def unix_path(self) -> str:
        """Where lanes listen on this host; "" when the directory's name is too long for a socket."""
        path = os.fspath(self.path.resolve() / "lanes.sock")
        return path if len(os.fsencode(path)) <= UNIX_PATH_BYTES_MAX else ""

    def exists(self) -> bool:
        return (self.path / "node.json").exists()

    def read(self) -> NodeFile:
        """Raise NotAStore or UnknownFormat."""
        try:
            facts = json.loads((self.path / "node.json").read_text())
            version = facts.pop("version")
            if version != VERSION:
                raise UnknownFormat(f"The node in {self.path}", version, VERSION)
            disks = tuple(DiskPlace(DiskId(one["disk"]), one["directory"]) for one in facts.pop("disks"))
            return NodeFile(**facts | {"zone": tuple(facts["zone"]), "disks": disks})
        except FileNotFoundError:
            why = "it does not exist" if not self.path.exists() else "there is no node.json in it"
            raise NotAStore(str(self.path), why) from None
        except NotADirectoryError:
            raise NotAStore(str(self.path), "it is not a directory") from None
        except OSError as error:
            raise of_path(error, str(self.path)) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise NotAStore(str(self.path), f"its node.json cannot be understood ({error})") from error

    def write(self, facts: NodeFile) -> None:
        text = json.dumps({"version": VERSION, **asdict(facts)}, indent=2) + "\n"
        part = self.path / "node.json.part"
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / "node.json")
        sync_directory(self.path)


def sync_directory(path: Path) -> None:
    """Make the names in it durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def host_id() -> str:
    """The same for every process of this running system and its network namespace, and for no other: who
    shares it shares Unix sockets. Containers of one system are so many hosts to us: what is cut off for TCP
    must not be reached by another way, and their file systems differ anyway."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return ""


def parse_listen(text: str) -> tuple[str, int]:
    """The two parts of `host:port`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not _is_port(port):
        raise InvalidRequest(f"{text!r} is no address to listen on; write it like 127.0.0.1:7440.")
    return host.strip("[]"), int(port)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65_535


def address_of(facts: NodeFile, directory: NodeDirectory) -> Address:
    """Where the node is reached; an embedded one only within its own process."""
    if facts.security == "embedded":
        return Address(facts.host, facts.port)
    return Address(facts.host, facts.port, directory.unix_path(), host_id())
