"""A control state to test on: nodes 1…n with a disk each, made by the same commands that a cluster uses."""

from __future__ import annotations

from blockstore.codec.control_record import ClusterRecord, Transaction, encode_record
from blockstore.control import commands
from blockstore.control.commands import Listening
from blockstore.control.state import ControlState
from blockstore.control.views import CLUSTER, Views
from blockstore.ids import GiB, NodeId, RequestId, SessionId


class Requests:
    def __init__(self) -> None:
        self._number = 0

    def next(self) -> RequestId:
        self._number += 1
        return RequestId(SessionId(7), self._number)


def fingerprint(number: int) -> str:
    return f"{number:064x}"


def listening(number: int) -> Listening:
    return Listening("127.0.0.1", 7000 + number, 8000 + number, "", "host", b"x" * 40)


class Cluster:
    """State, views and a way to change them."""

    def __init__(self, n_nodes: int = 0, n_disks: int = 1, zones: tuple[tuple[str, ...], ...] = ()) -> None:
        self.state = ControlState()
        self.views = Views(self.state)
        self.requests = Requests()
        record = ClusterRecord("c0ffee", "test", 0.0, "tls")
        self.apply(Transaction(self.requests.next(), (), ((CLUSTER, encode_record(record)),)))
        for number in range(1, n_nodes + 1):
            self.join(number, n_disks, zones[number - 1] if zones else ())

    def apply(self, transaction: Transaction | None) -> None:
        assert transaction is not None
        self.state.apply(transaction)

    def join(self, number: int, n_disks: int = 1, zone: tuple[str, ...] = ()) -> None:
        self.apply(
            commands.join_node(
                self.views,
                listening=listening(number),
                zone=zone,
                fingerprint=fingerprint(number),
                disk_bytes=(GiB,) * n_disks,
                request=self.requests.next(),
            )
        )

    @property
    def nodes(self) -> frozenset[NodeId]:
        return frozenset(node.node for node in self.views.nodes())

    def create(self, name: str, policy: str = "", *, exist_ok: bool = False, kind: str = "bucket") -> None:
        transaction = commands.create_volume(
            self.views,
            self.nodes,
            name=name,
            kind=kind,
            policy=policy,
            exist_ok=exist_ok,
            created=1.0,
            request=self.requests.next(),
        )
        if transaction is not None:
            self.apply(transaction)
