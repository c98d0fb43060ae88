"""A cluster of cores under one schedule: nodes, clients, control, network and time, from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from blockstore.codec.checksum import crc32c
from blockstore.codec.control_record import ClusterRecord, Transaction, encode_record
from blockstore.codec.fragment_file import DATA_START
from blockstore.codec.raft_messages import Members
from blockstore.control import commands
from blockstore.control.assignment import Move
from blockstore.control.state import ControlState
from blockstore.control.views import CLUSTER, Views
from blockstore.errors import BlockStoreError, Corrupt
from blockstore.ids import ChunkId, DiskId, GiB, KiB, NodeId, RequestId, SessionId
from blockstore.node.slots_shell import file_name
from tests.simulation.cores.client import Client
from tests.simulation.cores.control import NodeControl, listening
from tests.simulation.cores.history import History, Snapshot, Violation
from tests.simulation.cores.network import Network
from tests.simulation.cores.node import Node
from tests.simulation.cores.raft_control import RaftControl
from tests.simulation.cores.raft_member import RaftDisk, RaftWitness, Saved, first_disk, joined_disk
from tests.simulation.cores.register import Register, RegisterControl
from tests.simulation.cores.settings import Settings
from tests.simulation.cores.witness import Witness
from tests.simulation.heap import Schedule
from tests.small_files import small_files

GRANT_KEY = b"g" * 32
QUEUED_MAX, PENDING_MAX, SESSIONS_MAX = 4_096, 2_000, 10_000
EVENTS_MAX = 50_000

with_small_files = partial(small_files, log_bytes=128 * KiB, fence_bytes=64 * KiB)
"""Room for 4,096 appends to a fragment, of which the largest has 64 KiB."""


class World:
    """With `register`, control is one register; otherwise the nodes' Raft group."""

    def __init__(
        self,
        settings: Settings,
        schedule: Schedule,
        rng: random.Random,
        *,
        register: bool,
        trace: list[str] | None = None,
    ) -> None:
        self.settings, self.schedule, self.rng, self.trace = settings, schedule, rng, trace
        self.crc32c = crc32c
        self.network = Network(schedule, self._fork(), settings.weather)
        self.witness = Witness()
        self.raft_witness = RaftWitness()
        self.nodes: dict[NodeId, Node] = {}
        self.clients: list[Client] = []
        self.histories: dict[str, History] = {}
        self.live_snapshots: dict[str, dict[str, Snapshot]] = {}
        self.raft_disks: dict[NodeId, RaftDisk] = {}
        self.is_draining = False
        self.n_clients_done = 0
        self.n_faults = 0
        self.n_acknowledged = 0
        self.n_reads_failed = 0
        self.corrupt_reads: list[str] = []
        self.has_rot = False
        self.moment_hook: Callable[[str, Node], None] | None = None
        self.disk_failed_hook: Callable[[Node], None] | None = None
        self.register: Register | None = None
        self._n_requests = 0
        state = ControlState()
        transactions = self._genesis(state)
        n_voters = 1 if settings.n_nodes < 3 else 3 if settings.n_nodes < 5 else 5
        members = Members(
            tuple(NodeId(n) for n in range(1, n_voters + 1)),
            tuple(NodeId(n) for n in range(n_voters + 1, settings.n_nodes + 1)),
        )
        if register:
            self.register = Register("control", schedule, self._fork(), settings.drift)
            self.network.endpoints[self.register.address.host] = self.register
            self.register.network = self.network
            self.register.on_moving = self.on_moving
            for transaction in transactions:
                self.register.commit(transaction, lambda _: None)
            self.register.begin_leading()
        first_state = state.to_snapshot()
        views = Views(state)
        for record in views.nodes():
            disk_ids = tuple(disk.disk for disk in views.disks_of(record.node))
            node = self.add_node(record.node, disk_ids)
            self.raft_disks[node.me] = first_disk(members, first_state)
        for node in self.nodes.values():
            node.start()
        names = list(self.histories)
        for number in range(settings.n_clients):
            client = Client(self, number + 1, self._fork(), names[number % len(names)])
            self.clients.append(client)
            client.start()

    def _fork(self) -> random.Random:
        return random.Random(self.rng.getrandbits(64))

    # --- the beginning

    def _request(self) -> RequestId:
        self._n_requests += 1
        return RequestId(SessionId(2), self._n_requests)

    def _genesis(self, state: ControlState) -> list[Transaction]:
        """A cluster with its nodes, disks and volumes, by the commands that people use."""
        settings, views = self.settings, Views(state)
        done: list[Transaction] = []

        def apply(transaction: Transaction | None) -> None:
            assert transaction is not None
            state.apply(transaction)
            done.append(transaction)

        cluster = ClusterRecord("sim", "sim", 0.0, "plain", GRANT_KEY)
        apply(Transaction(self._request(), (), ((CLUSTER, encode_record(cluster)),)))
        for number in range(1, settings.n_nodes + 1):
            apply(self.join_transaction(views, number))
        everybody = frozenset(node.node for node in views.nodes())
        for number, policy in enumerate(settings.policies):
            name = f"v{number + 1}"
            apply(
                commands.create_volume(
                    views, everybody, name=name, kind="bucket", policy=policy, exist_ok=False, created=0.0,
                    request=self._request(),
                )
            )  # fmt: skip
            self.histories[name] = History()
            self.live_snapshots[name] = {}
        return done

    def join_transaction(self, views: Views, number: int) -> Transaction:
        return commands.join_node(
            views, listening=listening(number), zone=(), fingerprint="",
            disk_bytes=(GiB,) * self.settings.n_disks, request=self._request(),
        )  # fmt: skip

    def add_node(self, me: NodeId, disk_ids: tuple[DiskId, ...]) -> Node:
        node = Node(self, me, disk_ids, self._fork())
        self.nodes[me] = node
        self.network.endpoints[node.address.host] = node
        self.witness.holders.append(node)
        return node

    def make_control(self, node: Node) -> NodeControl:
        def others() -> list[Node]:
            return list(self.nodes.values())

        if self.register is not None:
            return RegisterControl(node, self.network, self.register, others)
        disk, settings = self.raft_disks[node.me], self.settings
        return RaftControl(
            node, self.network, disk, self.raft_witness, others, settings.sync_seconds, settings.raft_log_max
        )

    def join(self, me: NodeId, disk_ids: tuple[DiskId, ...], saved: Saved) -> None:
        """A node that control has listed begins, with the leader's snapshot."""
        node = self.add_node(me, disk_ids)
        self.raft_disks[me] = joined_disk(saved)
        node.start()

    # --- who is who

    def up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.is_up]

    def leader(self) -> Node | None:
        """The leader of the latest term."""
        best: Node | None = None
        best_term = -1
        for node in self.up():
            control = node.control
            if not isinstance(control, RaftControl) or control.raft.core.leading is None:
                continue
            if control.raft.core.term > best_term:
                best, best_term = node, control.raft.core.term
        return best

    def owners(self) -> list[Node]:
        """Nodes that serve something, or are about to."""
        return [node for node in self.up() if node.runs]

    def journal_members(self) -> list[Node]:
        """Nodes that an open journal chunk is on."""
        disks: set[DiskId] = set()
        for node in self.up():
            for run in node.runs.values():
                if run.is_serving and run.journal.writer is not None:
                    disks |= {disk for _, disk in run.journal.writer.members}
        return [node for node in self.up() if disks & node.disks.keys()]

    # --- what is told

    def say(self, who: str, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.schedule.now:10.4f} s  {who:<9} {text}")

    def on_start(self, node: Node) -> None:
        """Before it runs."""

    def on_moment(self, what: str, node: Node) -> None:
        if self.moment_hook is not None:
            self.moment_hook(what, node)

    def on_moving(self, moves: tuple[Move, ...]) -> None:
        """The leader is about to take volumes from nodes that it believes to be gone."""
        for move in moves:
            if move.old_owner in self.nodes:
                self.on_moment("moving", self.nodes[move.old_owner])

    def on_acknowledged(self) -> None:
        self.n_acknowledged += 1

    def on_client_done(self, client: Client) -> None:
        self.n_clients_done += 1

    def on_disk_event(self, node: Node, code: str) -> None:
        """What an operator would hear."""
        if code == "disk-failed" and self.disk_failed_hook is not None:
            self.disk_failed_hook(node)

    def on_read_failed(self, client: Client, key: bytes, error: BlockStoreError) -> None:
        self.n_reads_failed += 1
        client.say("{} could not be read ({}: {})", key, type(error).__name__, error)
        if isinstance(error, Corrupt) and not self.has_rot:
            raise AssertionError(f"{client.name} read {key!r}: {error}")

    # --- looking at everything

    def check_disks(self) -> None:
        for node in self.up():
            for disk_id, shell in node.shells.items():
                disk = node.disks[disk_id]
                sealed: list[tuple[ChunkId, int, bytes]] = []
                for chunk, fragment in shell._fragments.items():
                    if fragment.sealed:
                        content = bytearray(fragment.length)
                        disk.contents[file_name(fragment.slot)].get(DATA_START, memoryview(content))
                        sealed.append((chunk, fragment.length, bytes(content)))
                self.witness.see_sealed(disk_id, sealed)

    def check_bounds(self) -> None:
        for node in self.up():
            for shell in node.shells.values():
                _check_bound(node, "calls queued at a disk", shell._n_queued, QUEUED_MAX)
            for run in node.runs.values():
                core = run.core
                if core is not None:
                    _check_bound(node, "requests under way at an owner", core.n_pending, PENDING_MAX)
                    _check_bound(node, "bytes of a value cache", run.cache.size, run.cache.bytes_max)
                    _check_bound(node, "sessions of a volume", len(core.state.sessions), SESSIONS_MAX)
        if len(self.schedule) > EVENTS_MAX:
            raise Violation(f"{len(self.schedule)} events are on their way: something piles up")

    def check_history(self) -> None:
        for history in self.histories.values():
            history.check()


def _check_bound(node: Node, what: str, found: int, most: int) -> None:
    if found > most:
        raise Violation(f"{node.name}: {found} {what}, and the most is {most}")
