"""What must hold at every moment, looked at over all nodes at once.

Told of what owners apply, serve and drop, and shown the disks now and then. Each claim raises `Violation`
when it does not hold; `tests/simulation/cores/test_checkers.py` shows each of them failing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Protocol

from blockstore.codec.journal_record import JournalRecord, MovedRecord
from blockstore.codec.messages import Extent, Written
from blockstore.codec.run_file import Result, decode_version
from blockstore.ids import ChunkId, DiskId, RequestId, VolumeId
from blockstore.volume.sorted_run import KeyState
from blockstore.volume.state import VolumeState
from blockstore.volume.versioned_map import VersionedMap
from tests.simulation.cores.history import Violation

if TYPE_CHECKING:
    from tests.simulation.cores.node import Node
    from tests.simulation.cores.owner import OwnerRun


class Holder(Protocol):
    """Somebody who may serve a volume."""

    name: str

    def holds(self, volume: VolumeId) -> bool:
        """Whether it would answer a read of the volume at this moment."""
        ...


class Witness:
    def __init__(self) -> None:
        self.n_applied = 0
        self.n_replayed = 0
        self.n_packed = 0
        self.n_merged = 0
        self.n_blocks_fetched = 0
        self.run_bytes: dict[tuple[Extent, ...], bytes] = {}
        """Of every run that was written, by its place."""
        self._claims: dict[tuple[VolumeId, int], str] = {}
        self._named: set[ChunkId] = set()
        self._applied: dict[VolumeId, list[tuple[JournalRecord, Result]]] = {}
        self._before: dict[VolumeId, int] = {}  # sequences of a clone that are its parent's
        self._states: dict[VolumeId, VolumeState] = {}  # of who applied last
        self._carried_out: dict[RequestId, int] = {}
        self._sealed: dict[tuple[DiskId, ChunkId], tuple[int, bytes]] = {}
        self._rotten: set[tuple[DiskId, ChunkId]] = set()
        self.holders: list[Holder] = []

    # --- owners

    def on_claimed(self, volume: VolumeId, epoch: int, by: Node) -> None:
        self.claim(volume, epoch, f"{by.name} in its run {by.life}")

    def claim(self, volume: VolumeId, epoch: int, who: str) -> None:
        """An epoch belongs to one run of one owner."""
        if (volume, epoch) in self._claims:
            raise Violation(
                f"epoch {epoch} of volume {volume} belongs to {self._claims[volume, epoch]} and to {who}"
            )
        self._claims[volume, epoch] = who

    def on_chunk_named(self, chunk: ChunkId) -> None:
        """A chunk's id is used once, ever."""
        if chunk in self._named:
            raise Violation(f"chunk {chunk} was opened twice")
        self._named.add(chunk)

    def on_serving(self, run: OwnerRun) -> None:
        if run.node.holds(run.record.volume):  # one that was stopped on its way here holds nothing
            self.check_alone(run.record.volume, run.node)

    def on_read(self, run: OwnerRun) -> None:
        self.check_alone(run.record.volume, run.node)

    def check_alone(self, volume: VolumeId, holder: Holder) -> None:
        """While one owner serves, no other holds a lease to."""
        for other in self.holders:
            if other is not holder and other.holds(volume):
                raise Violation(f"{holder.name} serves volume {volume} while {other.name} may answer for it")

    # --- the journal

    def on_applied(self, state: VolumeState, record: JournalRecord, sequence: int, result: Result) -> None:
        """Whoever applies a sequence applies the same record with the same result; a request takes effect
        once."""
        applied = self._applied.setdefault(state.volume, [])
        # A clone's journal begins behind what its parent wrote, whose chunks it knows then.
        before = self._before.setdefault(state.volume, sequence - 1 if state.chunks.foreign else 0)
        self._states[state.volume] = state
        if sequence - before <= len(applied):
            self.n_replayed += 1
            if applied[sequence - before - 1] != (record, result):
                raise Violation(
                    f"volume {state.volume}, sequence {sequence} was applied twice:\n"
                    f"  first {applied[sequence - 1]}\n  then  {(record, result)}"
                )
            return
        if sequence != before + len(applied) + 1:
            raise Violation(f"volume {state.volume}: sequence {sequence} follows {before + len(applied)}")
        applied.append((record, result))
        self.n_applied += 1
        if isinstance(record, MovedRecord):
            self.n_packed += len(record.moves)
        request: RequestId | None = getattr(record, "request", None)
        if request is not None and isinstance(result, Written) and result.sequence == sequence:
            first = self._carried_out.setdefault(request, sequence)
            if first != sequence:
                raise Violation(f"request {request} took effect at sequence {first} and at {sequence}")

    def on_dropped(self, state: VolumeState, chunk: ChunkId, others: Collection[VolumeId] = ()) -> None:
        """Its fragments are about to be deleted: nothing may refer to it, in this volume and in `others`,
        which are there."""
        self._check_unused(state, chunk)
        for volume in others:
            other = self._states.get(volume)
            # One that is replaying is not what its volume is.
            if (
                other is not None
                and chunk in other.chunks.foreign
                and other.sequence == self._before[volume] + len(self._applied[volume])
            ):
                self._check_unused(other, chunk)

    def _check_unused(self, state: VolumeState, chunk: ChunkId) -> None:
        for key, (newest, older) in self._keys_of(state.map).items():
            for packed in older if newest is None else (newest, *older):
                version = decode_version(packed)
                if any(extent.chunk == chunk for extent in version.extents):
                    raise Violation(
                        f"chunk {chunk} is deleted, and {key!r} of volume {state.volume} at sequence "
                        f"{version.sequence} is in it"
                    )

    def _keys_of(self, keys: VersionedMap) -> dict[bytes, KeyState]:
        """Of all keys, without asking any node for blocks."""
        states: dict[bytes, KeyState] = {}
        for run in reversed(keys.runs):
            data = memoryview(self.run_bytes[run.info.extents])
            for body in run.bodies(0, run.n_blocks, data[: run.info.index_at]):
                states |= {key: (newest, older) for key, newest, older in run.entries_in(body)}
        for table in (keys._frozen, keys._recent):
            states |= {} if table is None else table.states
        return states

    # --- disks

    def on_rot(self, disk: DiskId, chunk: ChunkId) -> None:
        """We changed it ourselves."""
        self._rotten.add((disk, chunk))

    def see_sealed(self, disk: DiskId, sealed: Iterable[tuple[ChunkId, int, bytes]]) -> None:
        """What a disk holds of sealed chunks: always the same bytes; and where two replicas have a byte, the
        same one."""
        for chunk, length, content in sealed:
            if (disk, chunk) in self._rotten:
                continue
            before = self._sealed.setdefault((disk, chunk), (length, content))
            if before[0] != length:
                raise Violation(
                    f"chunk {chunk} on disk {disk} was sealed at {before[0]} and is {length} long"
                )
            if before[1] != content:
                raise Violation(f"the bytes of chunk {chunk} on disk {disk} changed after it was sealed")

    def check_replicas(self, is_replicated: Callable[[ChunkId], bool]) -> None:
        by_chunk: dict[ChunkId, list[tuple[DiskId, bytes]]] = {}
        for (disk, chunk), (_, content) in self._sealed.items():
            if (disk, chunk) not in self._rotten and is_replicated(chunk):
                by_chunk.setdefault(chunk, []).append((disk, content))
        for chunk, copies in by_chunk.items():
            first_disk, first = copies[0]
            for disk, content in copies[1:]:
                n = min(len(first), len(content))
                if first[:n] != content[:n]:
                    raise Violation(f"chunk {chunk} differs between disks {first_disk} and {disk}")
