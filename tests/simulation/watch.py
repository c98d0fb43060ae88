"""What must hold at every instant, looked at from outside, all nodes at once.

- No two nodes lead control in one term.
- No two nodes may answer reads of one volume: each by its own copy of control, its own lease, its own clock.
- No two owners serve one volume in one epoch, and no epoch serves again after it ended.
- What is sealed keeps its length and its bytes.
- Queues keep their bounds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from blockstore import config
from blockstore.codec.fragment_file import DATA_START
from blockstore.daemon.node_shell import Node
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.node.fragment import Fragment
from blockstore.runtime.sim.disk import SimDisk
from blockstore.volume.owner_shell import VolumeOwner
from tests.simulation.cluster import SimCluster, SimNode

AGENDA_MAX = 50_000
"""Messages, timers and disk work under way in a cluster of seven nodes: a second of the busiest seed."""


class Watch:
    def __init__(self, cluster: SimCluster) -> None:
        self.violations: list[str] = []
        self.rotten_disks: set[DiskId] = set()  # whose bytes were changed on purpose
        self.n_looks = 0
        self.n_sealed_seen = 0
        self._cluster = cluster
        self._leaders: dict[int, str] = {}  # by term
        self._servers: dict[tuple[VolumeId, int], object] = {}  # by volume and epoch
        self._sealed: dict[tuple[DiskId, ChunkId], tuple[int, int]] = {}  # length and sum

    def accuse(self, words: str) -> None:
        self.violations.append(words)
        self._cluster.world.tell(f"VIOLATION {words}")

    def look(self) -> None:
        self.n_looks += 1
        self._look_at_leaders()
        self._look_at_leases()
        self._look_at_owners()
        self._look_at_queues()

    def look_at_sealed(self) -> None:
        """Dearer: reads what is new, or was not looked at since it was sealed."""
        for one, node in self._running():
            for disk, shell in node.disks.items():
                if disk not in self.rotten_disks:
                    mounted = one.machine.disk(one.facts.disks[0].directory)
                    for chunk, fragment in shell._fragments.items():
                        if fragment.sealed:
                            self._look_at_fragment(mounted, disk, chunk, fragment, again=False)

    def look_at_sealed_again(self) -> None:
        """Every byte of every sealed fragment."""
        for one, node in self._running():
            for disk, shell in node.disks.items():
                if disk not in self.rotten_disks:
                    mounted = one.machine.disk(one.facts.disks[0].directory)
                    for chunk, fragment in shell._fragments.items():
                        if fragment.sealed:
                            self._look_at_fragment(mounted, disk, chunk, fragment, again=True)

    def _running(self) -> list[tuple[SimNode, Node]]:
        return [(one, one.node) for one in self._cluster.nodes if one.node is not None]

    def _look_at_leaders(self) -> None:
        for one, node in self._running():
            raft = node.control._replica.raft
            if raft.is_leader:
                name = self._leaders.setdefault(raft.term, one.machine.name)
                if name != one.machine.name:
                    self.accuse(f"{name} and {one.machine.name} both lead control in term {raft.term}")

    def _look_at_leases(self) -> None:
        holders: dict[VolumeId, str] = {}
        for one, node in self._running():
            control = node.control
            if control.lease_valid(one.machine.clock.now()):
                for volume in control.views.volumes_of(control.me):
                    other = holders.setdefault(volume.volume, one.machine.name)
                    if other != one.machine.name:
                        self.accuse(
                            f"{other} and {one.machine.name} both have a lease for volume {volume.volume}"
                        )

    def _look_at_owners(self) -> None:
        for one, _, owner in self._owners():
            if owner._serving:
                epoch = (owner.record.volume, owner.record.epoch)
                other = self._servers.setdefault(epoch, owner)
                if other is not owner:
                    self.accuse(
                        f"a second owner, on {one.machine.name}, serves volume {epoch[0]} in epoch {epoch[1]}"
                    )

    def _owners(self) -> list[tuple[SimNode, Node, VolumeOwner]]:
        return [
            (one, node, owned.owner)
            for one, node in self._running()
            for owned in node.host._owned.values()
            if owned.owner is not None
        ]

    def _look_at_queues(self) -> None:
        for one, _, owner in self._owners():
            if owner._serving:
                waiting = owner._journal.core.waiting_bytes
                self._bound(one, "journal", waiting, config.OWNER_QUEUE_BYTES_MAX + config.INLINE_BYTES_MAX)
        for one, node in self._running():
            for shell in node.disks.values():
                self._bound(one, "disk", shell._n_queued, config.DISK_QUEUED_APPENDS_MAX)
                self._bound(one, "disk reads", shell._n_reading, config.DISK_QUEUED_READS_MAX)
            self._bound(one, "control", len(node.control._calls._parked), config.CONTROL_CALLS_MAX)
        n_planned = len(self._cluster.world.agenda)
        if n_planned > AGENDA_MAX:
            self.accuse(f"{n_planned} events are under way")

    def _bound(self, one: SimNode, what: str, now: int, most: int) -> None:
        if now > most:
            self.accuse(f"the {what} queue of {one.machine.name} holds {now}, its bound is {most}")

    def _look_at_fragment(
        self, mounted: SimDisk, disk: DiskId, chunk: ChunkId, fragment: Fragment, *, again: bool
    ) -> None:
        known = self._sealed.get((disk, chunk))
        if known is not None and not again and known[0] == fragment.length:
            return
        self.n_sealed_seen += known is None
        read: Callable[[str, int, int], bytes] = mounted.peek
        data = read(f"fragments/{fragment.slot:08d}", DATA_START, fragment.length)
        now = (fragment.length, zlib.crc32(data))
        if self._sealed.setdefault((disk, chunk), now) != now:
            self.accuse(f"the sealed fragment of {chunk} on disk {disk} changed: {known} is now {now}")
