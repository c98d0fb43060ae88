"""Looks at all nodes at once, from outside, and tells `claims.py` what it sees.

Each node is believed for what it is about itself: its own copy of control, its own lease by its own clock,
its own queues. What is sealed is read from the disk and not through the node."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from blockstore import config
from blockstore.codec.fragment_file import DATA_START
from blockstore.codec.journal_record import ChunkDroppedRecord, JournalRecord, MovedRecord
from blockstore.codec.run_file import Result
from blockstore.daemon.node_shell import Node
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.node.slots_shell import file_name
from blockstore.volume.checkpoint import Written
from blockstore.volume.checkpoint_shell import Appending
from blockstore.volume.owner_shell import VolumeOwner
from blockstore.volume.state import VolumeState
from tests.simulation.claims import Claims
from tests.simulation.cluster import SimCluster, SimNode
from tests.simulation.cores.history import Violation
from tests.simulation.cores.witness import Witness

AGENDA_MAX = 50_000
"""Messages, timers and disk work under way in a cluster of seven nodes: a second of the busiest seed."""


class Watch:
    def __init__(self, cluster: SimCluster) -> None:
        self.violations: list[str] = []
        self.rotten_disks: set[DiskId] = set()  # whose bytes were changed on purpose
        self.n_looks = 0
        self.n_dropped = self.n_moved = 0  # chunks, and records of values that moved to other chunks
        self.claims, self.witness = Claims(self.accuse), Witness()
        self._cluster = cluster

    def accuse(self, words: str) -> None:
        self.violations.append(words)
        self._cluster.world.tell(f"VIOLATION {words}")

    def look(self) -> None:
        self.n_looks += 1
        claims = self.claims
        for one, node in self._running():
            raft = node.control._replica.raft
            if raft.is_leader:
                claims.see_leader(raft.term, one.machine.name)
        claims.see_holders(
            (volume.volume, one.machine.name)
            for one, node in self._running()
            if node.control.lease_valid(one.machine.clock.now())
            for volume in node.control.views.volumes_of(node.control.me)
        )
        for one, owner in self._serving():
            claims.see_server(owner.record.volume, owner.record.epoch, owner, one.machine.name)
        self._look_at_queues()

    def look_at_sealed(self, *, again: bool) -> None:
        """Read what is new, or (`again`) every byte of every sealed fragment."""
        for one, node in self._running():
            mounted = one.machine.disk(one.facts.disks[0].directory)
            for disk, shell in node.disks.items():
                if disk in self.rotten_disks:
                    continue
                for chunk, fragment in shell._fragments.items():
                    length = fragment.length
                    if fragment.sealed and (again or not self.claims.knows_sealed(disk, chunk, length)):
                        data = mounted.peek(file_name(fragment.slot), DATA_START, length)
                        self.claims.see_sealed(disk, chunk, length, zlib.crc32(data))

    @contextmanager
    def listening_to_owners(self) -> Generator[None]:
        """What any of them applies to its volume, live and in replay, and writes of its map is seen."""
        with self._listening_to_journals(), self._listening_to_runs():
            yield

    @contextmanager
    def _listening_to_runs(self) -> Generator[None]:
        add, finish = Appending.add, Appending.finish
        parts: dict[Appending, bytearray] = {}

        async def note(run: Appending, data: bytes) -> None:
            parts.setdefault(run, bytearray()).extend(data)
            await add(run, data)

        async def end(run: Appending) -> Written:
            written = await finish(run)
            self.witness.run_bytes[written.extents] = bytes(parts.pop(run, b""))
            return written

        setattr(Appending, "add", note)  # noqa: B010 - a method, for a while
        setattr(Appending, "finish", end)  # noqa: B010
        try:
            yield
        finally:
            setattr(Appending, "add", add)  # noqa: B010
            setattr(Appending, "finish", finish)  # noqa: B010

    @contextmanager
    def _listening_to_journals(self) -> Generator[None]:
        witness, usual = self.witness, VolumeState.apply

        def apply(
            state: VolumeState, record: JournalRecord, sequence: int, chunk: ChunkId, offset: int
        ) -> Result:
            result, n_replayed = usual(state, record, sequence, chunk, offset), witness.n_replayed
            try:
                witness.on_applied(state, record, sequence, result)
                # In replay there are versions that had been purged: the journal says nothing of that.
                is_new = n_replayed == witness.n_replayed and not state.history_to_purge
                if is_new and isinstance(record, ChunkDroppedRecord):
                    self.n_dropped += 1
                    witness.on_dropped(state, record.chunk, self._clones())
                self.n_moved += is_new and isinstance(record, MovedRecord)
            except Violation as violation:
                self.accuse(str(violation))
            return result

        setattr(VolumeState, "apply", apply)  # noqa: B010 - a method, for a while
        try:
            yield
        finally:
            setattr(VolumeState, "apply", usual)  # noqa: B010

    def _clones(self) -> frozenset[VolumeId]:
        """Volumes that depend on others in the eyes of every node: one that is not there yet, or any more,
        for one of them says nothing."""
        running = self._running()
        counts = Counter(clone.volume for _, node in running for clone in node.control.views.clones())
        return frozenset(volume for volume, n in counts.items() if n == len(running))

    def _running(self) -> list[tuple[SimNode, Node]]:
        return [(one, one.node) for one in self._cluster.nodes if one.node is not None]

    def _serving(self) -> list[tuple[SimNode, VolumeOwner]]:
        return [
            (one, owned.owner)
            for one, node in self._running()
            for owned in node.host._owned.values()
            if owned.owner is not None and owned.owner._serving
        ]

    def _look_at_queues(self) -> None:
        see = self.claims.see_queue
        for one, owner in self._serving():
            waiting = owner._journal.core.waiting_bytes
            see("journal", one.machine.name, waiting, config.OWNER_QUEUE_BYTES_MAX + config.INLINE_BYTES_MAX)
        for one, node in self._running():
            name = one.machine.name
            for shell in node.disks.values():
                see("disk", name, shell._n_queued, config.DISK_QUEUED_APPENDS_MAX)
                see("disk read", name, shell.reads.n_queued, config.DISK_QUEUED_READS_MAX)
            see("control", name, len(node.control._calls._parked), config.CONTROL_CALLS_MAX)
        see("agenda", "the world", len(self._cluster.world.agenda), AGENDA_MAX)
