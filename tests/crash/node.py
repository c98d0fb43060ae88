"""A node's disk under the explorer: appends, seals, deletes, fences, creations in used slots, reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import FragmentSpec, FragmentState
from blockstore.errors import BlockStoreError, FragmentSealed, NotFound, OffsetMismatch, StaleEpoch
from blockstore.ids import ChunkId, DiskId, KiB, MiB, VolumeId
from blockstore.node.disk_shell import DiskShell, format_disk
from tests.crash.losses import DiskState, WatchedDisk
from tests.small_files import small_files

DISK = DiskId(3)
CLUSTER = "test"
VOLUME = VolumeId(7)
SPEC = FragmentSpec(shard_index=0, k=1, m=2, capacity=MiB)
N_FENCE_RECORDS = 10
REFUSALS = (FragmentSealed, NotFound, OffsetMismatch, StaleEpoch)


def chunk(number: int, epoch: int = 1) -> ChunkId:
    return ChunkId(VOLUME, epoch, number)


A, B, C = chunk(1), chunk(2), chunk(3)  # open; sealed; deleted, and its slot is the next to be used
D, E, F = chunk(4), chunk(5), chunk(6, epoch=2)  # to be created


@cache
def stream(where: ChunkId) -> bytes:
    """Every chunk's bytes, known from its id."""
    return Random(str(where)).randbytes(64 * KiB)


@dataclass(frozen=True, slots=True)
class ChunkFacts:
    """What was asked and told of one chunk."""

    ends: tuple[int, ...] = ()  # of appends that were asked and not refused; also lengths it may have
    told: int = -1  # the length that was told; -1: not even that it is there
    seals_asked: tuple[int, ...] = ()
    seal_told: int | None = None
    delete_asked: bool = False
    delete_told: bool = False
    is_gone: bool = False  # found to be absent after a crash


@dataclass(frozen=True, slots=True)
class NodeFacts:
    chunks: tuple[tuple[ChunkId, ChunkFacts], ...]
    epoch_told: int = 1
    epoch_asked: int = 1


class NodeStory:
    def __init__(self, disk: WatchedDisk, facts: NodeFacts) -> None:
        self.disk = disk
        self.chunks = dict(facts.chunks)
        self.epoch_told, self.epoch_asked = facts.epoch_told, facts.epoch_asked
        self.shell = DiskShell(disk, DISK, CLUSTER, _no_event)
        self.shell.recover()
        self.shell.start()
        self.shell.make_spares()
        disk.settle()

    def facts(self) -> NodeFacts:
        return NodeFacts(tuple(sorted(self.chunks.items())), self.epoch_told, self.epoch_asked)

    def ask(self, operation: str) -> None:
        OPERATIONS[operation](self)

    # --- each keeps account of what was asked, and of what is told

    def append(self, where: ChunkId, length: int, epoch: int | None = None) -> None:
        epoch = where.epoch if epoch is None else epoch
        before = self._of(where)
        offset = max(before.ends, default=0)
        end = offset + length
        # Power may leave a fragment that is there and empty: its header, and nothing of its first append.
        self._set(where, ends=(*(before.ends or (0,)), end), is_gone=False)
        self._ask_epoch(epoch)
        data = stream(where)[offset:end]

        def told(outcome: object) -> None:
            now = self._of(where)
            if isinstance(outcome, BlockStoreError):
                assert isinstance(outcome, REFUSALS), outcome
                kept = tuple(known for known in now.ends if known != end or known in before.ends)
                self._set(where, ends=kept if before.ends or len(kept) > 1 else ())
                return
            assert outcome == end, outcome
            self._set(where, told=max(now.told, end))
            self._tell_epoch(epoch)

        spec = SPEC if offset == 0 else None
        self.shell.append(where, epoch, offset, memoryview(data), crc32c(data), spec, told)

    def seal(self, where: ChunkId, length: int, epoch: int) -> None:
        self._ask_epoch(epoch)
        before = self._of(where)
        self._set(where, seals_asked=(*before.seals_asked, length))

        def told(error: BlockStoreError | None) -> None:
            now = self._of(where)
            if error is not None:
                assert isinstance(error, REFUSALS), error
                self._set(where, seals_asked=before.seals_asked)
                return
            self._set(where, seal_told=length, told=length, ends=(*now.ends, length))
            self._tell_epoch(epoch)

        self.shell.seal(where, epoch, length, told)

    def delete(self, where: ChunkId, epoch: int) -> None:
        self._ask_epoch(epoch)
        was = self._of(where).delete_asked
        self._set(where, delete_asked=True)

        def told(error: BlockStoreError | None) -> None:
            if error is not None:
                assert isinstance(error, REFUSALS), error
                self._set(where, delete_asked=was)
                return
            self._set(where, delete_told=True)
            self._tell_epoch(epoch)

        self.shell.delete(where, epoch, told)

    def fence(self, epoch: int, *chunks: ChunkId) -> None:
        before = self.epoch_asked
        self._ask_epoch(epoch)

        def told(states: tuple[FragmentState, ...] | BlockStoreError) -> None:
            if isinstance(states, BlockStoreError):
                assert isinstance(states, StaleEpoch), states
                assert before > epoch
                return
            self._tell_epoch(epoch)
            for state in states:
                now = self._of(state.chunk)
                assert state.length in now.ends
                self._set(state.chunk, told=max(now.told, state.length))

        self.shell.fence(VOLUME, epoch, chunks, told)

    def read(self, where: ChunkId) -> None:
        """Whatever is durable by now."""
        states = self.shell.states((where,))
        length = states[0].length if states else 0
        if not length:
            return

        def told(data: memoryview | BlockStoreError) -> None:
            if isinstance(data, BlockStoreError):
                assert isinstance(data, NotFound), data
                assert self._of(where).delete_asked
                return
            assert data == stream(where)[:length]
            now = self._of(where)
            if now.seal_told is None and not now.seals_asked:
                self._set(where, told=max(now.told, length))

        self.shell.reads.submit_read(where, 0, length, told)

    def _of(self, where: ChunkId) -> ChunkFacts:
        return self.chunks.get(where, ChunkFacts())

    def _set(self, where: ChunkId, **changes: object) -> None:
        self.chunks[where] = replace(self._of(where), **changes)  # type: ignore[arg-type]  # names are fields

    def _ask_epoch(self, epoch: int) -> None:
        self.epoch_asked = max(self.epoch_asked, epoch)

    def _tell_epoch(self, epoch: int) -> None:
        self.epoch_told = max(self.epoch_told, epoch)


def _no_event(code: str, text: str) -> None:
    raise AssertionError(f"{code}: {text}")


def _two_appends(story: NodeStory) -> None:
    story.append(A, 7)
    story.append(A, 600)


def _two_reads(story: NodeStory) -> None:
    story.read(A)
    story.read(B)


OPERATIONS: dict[str, Callable[[NodeStory], None]] = {
    "append": lambda story: story.append(A, 100),
    "append-twice": _two_appends,
    "append-over-the-grid": lambda story: story.append(A, 14 * KiB),
    "append-under-2": lambda story: story.append(A, 900, epoch=2),
    "create": lambda story: story.append(D, 300),
    "create-empty": lambda story: story.append(E, 0),
    "create-under-2": lambda story: story.append(F, 1000),
    "seal": lambda story: story.seal(A, max(story.chunks[A].ends), 1),
    "seal-lower-under-2": lambda story: story.seal(A, 100, 2),
    "delete": lambda story: story.delete(A, 1),
    "delete-sealed-under-2": lambda story: story.delete(B, 2),
    "fence-2": lambda story: story.fence(2, A, B),
    "fence-3": lambda story: story.fence(3, A, D),
    "read": _two_reads,
}


class NodeSubject:
    name = "node"
    operations = tuple(OPERATIONS)
    starts = ("few-slots", "many-slots")
    """With many, slots that become free are removed, and the file of fences is almost full."""

    def small_files(self) -> AbstractContextManager[None]:
        """A file of fences must be filled sometimes."""
        return small_files(log_bytes=8 * KiB, fence_bytes=8 * KiB, n_fences=N_FENCE_RECORDS)

    def begin(self, start: str) -> tuple[WatchedDisk, NodeStory]:
        state, facts = _start(start)
        disk = WatchedDisk(state)
        return disk, NodeStory(disk, facts)

    def is_worth(self, start: str, operations: Sequence[str]) -> bool:
        """The slots matter when one becomes free, the file of fences when two more facts come to it."""
        return any("delete" in name for name in operations) or (
            sum("under" in name or "fence" in name for name in operations) > 1
        )

    def recover(self, disk: WatchedDisk, facts: NodeFacts) -> NodeFacts:
        shell, found = _recovered(disk, facts)
        shell.close()
        return found

    def go_on(self, disk: WatchedDisk, facts: NodeFacts) -> NodeFacts:
        """Every open fragment takes more; a new one can be made; a fence goes up."""
        story = NodeStory(disk, facts)
        for where, known in facts.chunks:
            if not (known.is_gone or known.seals_asked or known.delete_told):
                story.append(where, 50, epoch=max(where.epoch, facts.epoch_told))
        story.append(chunk(20, epoch=facts.epoch_told), 40)
        story.append(chunk(21, epoch=facts.epoch_told), 40)
        disk.settle()
        story.fence(facts.epoch_told + 1, *(where for where, _ in facts.chunks))
        disk.settle()
        for known in story.chunks.values():
            assert known.is_gone or known.seals_asked or known.delete_told or known.told == max(known.ends)
        assert story.epoch_told == facts.epoch_told + 1
        story.shell.close()
        return story.facts()


@cache
def _start(start: str) -> tuple[DiskState, NodeFacts]:
    disk = WatchedDisk()
    format_disk(disk, DISK, CLUSTER)
    story = NodeStory(disk, NodeFacts(()))
    others = [chunk(number) for number in range(10, 17)] if start == "many-slots" else []
    for where in (A, B, C, *others):
        story.append(where, 100)
        story.append(where, 5000)
    disk.settle()
    story.append(A, 20 * KiB)
    disk.settle()
    story.append(A, 1)
    story.seal(B, 5100, 1)
    for where in (*others, C):
        disk.settle()
        story.delete(where, 1)
    disk.settle()
    story.shell.close()
    facts = story.facts()
    return disk.freeze(), NodeFacts(tuple((where, _settled(known)) for where, known in facts.chunks))


def _settled(known: ChunkFacts) -> ChunkFacts:
    return replace(known, ends=(100, known.told) if known.told > 100 else known.ends)


# --- judging


def _recovered(disk: WatchedDisk, facts: NodeFacts) -> tuple[DiskShell, NodeFacts]:
    chunks = dict(facts.chunks)
    events = list[tuple[str, str]]()
    shell = DiskShell(disk, DISK, CLUSTER, lambda code, text: events.append((code, text)))
    shell.recover()
    early = shell._early_events or []
    states, is_complete = shell.list_fragments(None, 100)
    assert is_complete
    assert not shell.suspect
    for code, text in (*events, *early):
        assert code == "fragment-doubtful", text
        assert any(max(known.ends, default=0) > known.told for known in chunks.values()), text
    found = {state.chunk: state for state in states}
    n_free = sum(map(len, shell._slots.slots._free.values()))
    assert len(disk.names("fragments")) == len(found) + n_free, "a slot is neither used nor free"
    assert len(found) == len(states)
    for where in found:
        assert where in chunks, f"{where} appeared from nowhere"
    after = {where: _judged(shell, disk, where, known, found.get(where)) for where, known in chunks.items()}
    epoch = shell.highest_epoch(VOLUME)
    assert facts.epoch_told <= epoch <= facts.epoch_asked, f"epoch {epoch}"
    assert all(epoch >= where.epoch for where in found)
    refused = list[object]()
    shell.append(chunk(99, epoch - 1), epoch - 1, 0, memoryview(b""), 0, SPEC, refused.append)
    assert isinstance(refused[0], StaleEpoch)
    return shell, NodeFacts(tuple(sorted(after.items())), epoch, epoch)


def _judged(
    shell: DiskShell, disk: WatchedDisk, where: ChunkId, known: ChunkFacts, state: FragmentState | None
) -> ChunkFacts:
    """What is told of the chunk from now on."""
    if known.delete_told:
        assert state is None, f"{where} was deleted"
        late = list[object]()
        shell.append(where, where.epoch, 0, memoryview(b"late"), crc32c(b"late"), SPEC, late.append)
        assert late, f"{where} is created again"
        assert isinstance(late[0], (FragmentSealed, StaleEpoch))
        return known
    if state is None:
        assert known.told < 0 or known.delete_asked or known.is_gone, f"{where} is lost"
        return ChunkFacts(is_gone=True, delete_asked=known.delete_asked)
    assert not known.is_gone, f"{where} came back"
    if state.sealed:
        assert state.length in known.seals_asked, f"{where} is sealed at {state.length}"
        assert known.seal_told in (None, state.length), f"{where} is sealed at {state.length}"
    else:
        assert known.seal_told is None, f"{where} is not sealed any more"
        assert state.length in known.ends, f"{where} has {state.length} bytes"
        assert state.length >= known.told, f"{where} has {state.length} bytes of {known.told}"
    if state.length:
        data = list[memoryview | BlockStoreError]()
        shell.reads.submit_read(where, 0, state.length, data.append)
        disk.settle()
        assert not isinstance(data[0], BlockStoreError), data[0]
        assert data[0] == stream(where)[: state.length], f"{where} has other bytes"
    seals = (state.length,) if state.sealed else ()
    return ChunkFacts(
        (state.length,), state.length, seals, state.length if state.sealed else None, known.delete_asked
    )
