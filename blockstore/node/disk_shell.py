"""One disk of a node: appends, fences, seals and deletes on its fragments.

Carries out what `fragment.py` decides, with `fragment_reads.py`, `fence_shell.py`, `slots_shell.py` and
`recovery_shell.py` for the rest. Everything but `recover` happens in the trio thread, in callbacks of the
disk: there is nothing to lock, and no request costs a task. `on_done` may be called before the method
returns.

Unreadable headers. A slot whose two header copies are both damaged holds a chunk that we cannot name. It is
left as it is; `list_fragments` says that it is not complete, and a fence answers for chunks it does not
find "length 0, doubtful" rather than nothing, for "not there" would read as "never had a byte".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from blockstore import config
from blockstore.codec.fence_file import Fact, Kind
from blockstore.codec.fragment_file import Header, encode_header
from blockstore.codec.messages import FragmentSpec, FragmentState
from blockstore.codec.superblock import NAME, Superblock, decode_superblock, encode_superblock
from blockstore.errors import (
    AlreadyExists,
    BlockStoreError,
    Busy,
    Corrupt,
    DiskFailed,
    FragmentSealed,
    InvalidRequest,
    NoSpace,
    NotAStore,
    NotFound,
    OffsetMismatch,
)
from blockstore.ids import ChunkId, DiskId, VolumeId
from blockstore.node.fence_shell import FenceShell, OnDone, format_fences
from blockstore.node.fragment import Fragment, Pending, Waiter
from blockstore.node.fragment_reads import FragmentReads
from blockstore.node.recovery_shell import recover_slot
from blockstore.node.slots_shell import FOLDER, SlotShell, file_name
from blockstore.runtime.interfaces import Disk, Write

OnEvent = Callable[[str, str], None]
OnStates = Callable[[tuple[FragmentState, ...] | BlockStoreError], None]


class Append(NamedTuple):
    """An append that waits for its chunk's slot."""

    chunk: ChunkId
    epoch: int
    offset: int
    data: memoryview
    crc: int
    create: FragmentSpec | None
    on_done: Waiter
    vital: bool


@dataclass(frozen=True, slots=True)
class DiskFacts:
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    n_fragments: int
    suspect: bool
    is_full: bool  # it takes no new chunks of the usual size
    n_damaged: int  # fragments of which something cannot be read, and slots that cannot be told


def format_disk(disk: Disk, disk_id: DiskId, cluster: str) -> None:
    """Make `disk` an empty one of `cluster`. Blocking. Raises AlreadyExists when it is one already."""
    if disk.read_file(NAME) is not None or disk.names(FOLDER):
        raise AlreadyExists(f"store in {disk.path}")
    format_fences(disk, disk_id)
    # Last: a directory with a superblock is a whole disk.
    disk.replace_file(NAME, encode_superblock(Superblock(disk_id, cluster)))


def read_superblock(disk: Disk) -> Superblock | None:
    """Whose disk this is; None when it was never formatted. Blocking. Raises Corrupt, UnknownFormat."""
    block = disk.read_file(NAME)
    return None if block is None else decode_superblock(block, disk.path)


@asynccontextmanager
async def open_disk_shell(
    disk: Disk, disk_id: DiskId, cluster: str, on_event: OnEvent
) -> AsyncGenerator[DiskShell]:
    """The recovered disk, at work. Raises NotAStore, UnknownFormat, Corrupt, DiskFailed."""
    shell = DiskShell(disk, disk_id, cluster, on_event)
    await disk.offload(shell.recover)
    shell.start()
    try:
        yield shell
    finally:
        shell.close()


class DiskShell:
    def __init__(self, disk: Disk, disk_id: DiskId, cluster: str, on_event: OnEvent) -> None:
        """`on_event(code, text)` hears what an operator should know."""
        self.disk_id = disk_id
        self.suspect = False
        self._disk = disk
        self._cluster = cluster
        self._on_event = on_event
        self._early_events: list[tuple[str, str]] | None = []
        self._fence_shell = FenceShell(disk, disk_id, self._on_error)
        self._fences = self._fence_shell.fences
        self._slots = SlotShell(disk, disk_id, self._on_error)
        self._fragments: dict[ChunkId, Fragment] = {}
        self._open: dict[ChunkId, Fragment] = {}  # those not sealed
        self._deleting: dict[ChunkId, list[Callable[[], None]]] = {}  # under way, and repeated meanwhile
        self._opening: dict[ChunkId, list[Append]] = {}  # those that wait for a slot
        self.reads = FragmentReads(disk_id, self._fragments, self._slots, self._on_error, self._tell)
        self._n_unreadable = 0
        self._used_bytes = 0
        self._queued_bytes = 0
        self._n_queued = 0

    # --- start and end

    def recover(self) -> None:
        """Read what there is. Blocking; the disk is not otherwise in use.

        All of it is durable before anything of it is believed: after a killed process the page cache still
        shows a seal or a free slot that no disk has, and what was told of it must not change when the power
        fails next.
        """
        block = read_superblock(self._disk)
        if block is None:
            raise NotAStore(self._disk.path, "it was never formatted")
        if block.cluster != self._cluster:
            raise NotAStore(
                self._disk.path, f"the disk belongs to cluster {block.cluster}, not {self._cluster}"
            )
        if block.disk != self.disk_id:
            raise NotAStore(self._disk.path, f"it is disk {block.disk}, not {self.disk_id}")
        try:
            self._disk.sync_all()
        except BlockStoreError as error:
            self._on_error(error)
        fences_sound = self._fence_shell.recover()
        for name in self._disk.names(FOLDER):
            if name.isdigit():
                self._recover_slot(int(name))
            else:
                self._disk.remove(f"{FOLDER}/{name}")  # a slot that was being made
        for chunk in self._fragments:
            self._fences.raise_to(chunk.volume, chunk.epoch)
        if not fences_sound:
            self._tell("fences-damaged", "a fence may be lost; open fragments take no more appends")
            for fragment in self._open.values():
                fragment.damaged = True
        self._fence_shell.rewrite()
        reserve = self.facts().capacity_bytes // config.DISK_RESERVE_SHARE
        self._slots.reserve_bytes = max(config.DISK_RESERVE_BYTES_MIN, reserve)

    def _recover_slot(self, slot: int) -> None:
        self._slots.slots.saw(slot)
        try:
            found = recover_slot(self._disk, self.disk_id, slot, self._fences.is_tombstoned, self._tell)
            if isinstance(found, Fragment):
                if found.chunk in self._fragments:
                    raise Corrupt(f"Slot {slot}", f"a second fragment of {found.chunk}")
                self._add(found)
                if found.damaged:
                    self.reads.damaged.add(found.chunk)
            elif found is not None and self._slots.slots.put(found) is not None:
                self._disk.remove(file_name(slot))  # one too many, and power failed before it was removed
        except (Corrupt, DiskFailed) as error:
            self._n_unreadable += 1
            self.suspect = self.suspect or isinstance(error, DiskFailed)
            self._tell("slot-unreadable", str(error))

    def start(self) -> None:
        """Tell what recovery found."""
        events, self._early_events = self._early_events or [], None
        for code, text in events:
            self._tell(code, text)

    def make_spares(self) -> None:
        """Make slots for the first chunks ahead of them. Not at once: a node that cannot start shall leave
        its disks as they are."""
        self._slots.start()

    def close(self) -> None:
        """Wait for what is under way, and let go of every file."""
        self._slots.close()
        self._fence_shell.close()

    def _tell(self, code: str, text: str) -> None:
        if self._early_events is not None:
            self._early_events.append((code, text))  # recovery runs in another thread
        else:
            self._on_event(code, f"disk {self.disk_id}: {text}")

    def _on_error(self, error: BlockStoreError) -> None:
        if isinstance(error, Busy):
            self._tell("out-of-descriptors", str(error))
            return
        if not isinstance(error, NoSpace):
            self.suspect = True
        self._tell("disk-failed", str(error))

    def _add(self, fragment: Fragment) -> None:
        self._fragments[fragment.chunk] = fragment
        if not fragment.sealed:
            self._open[fragment.chunk] = fragment
        self._used_bytes += fragment.header.slot_bytes

    def _forget(self, fragment: Fragment) -> None:
        del self._fragments[fragment.chunk]
        self._open.pop(fragment.chunk, None)
        self.reads.forget(fragment.chunk)

    # --- what there is

    def states(self, chunks: Iterable[ChunkId]) -> tuple[FragmentState, ...]:
        """Of those `chunks` that are here, as far as that can be said."""
        found = list[FragmentState]()
        for chunk in chunks:
            fragment = self._fragments.get(chunk)
            if fragment is not None:
                found.append(self._state(fragment))
            elif self._n_unreadable and not self._fences.is_tombstoned(chunk):
                found.append(FragmentState(self.disk_id, chunk, 0, False, True))
        return tuple(found)

    def chunks_of(self, volume: VolumeId) -> list[ChunkId]:
        """Those of the volume that have a fragment here."""
        return sorted(chunk for chunk in self._fragments if chunk.volume == volume)

    def list_fragments(self, after: ChunkId | None, limit: int) -> tuple[tuple[FragmentState, ...], bool]:
        """A page of states in order of chunk id, and whether it ends a complete inventory."""
        chunks = sorted(self._fragments if after is None else (c for c in self._fragments if c > after))
        page = chunks[: max(1, limit)]
        states = tuple(self._state(self._fragments[chunk]) for chunk in page)
        return states, len(page) == len(chunks) and self._n_unreadable == 0

    def facts(self) -> DiskFacts:
        free = self._disk.free_bytes() + self._slots.slots.free_bytes
        used = self._used_bytes
        n_damaged = len(self.reads.damaged) + self._n_unreadable
        n, is_full = len(self._fragments), self._slots.is_full
        return DiskFacts(used + free, used, free, n, self.suspect, is_full, n_damaged)

    def _state(self, fragment: Fragment) -> FragmentState:
        return FragmentState(
            self.disk_id, fragment.chunk, fragment.durable, fragment.sealed, fragment.doubtful
        )

    # --- appending

    def append(
        self,
        chunk: ChunkId,
        epoch: int,
        offset: int,
        data: memoryview,
        crc: int,
        create: FragmentSpec | None,
        on_done: Waiter,
        vital: bool = False,
    ) -> None:
        """`on_done(length)` once the bytes, and all before them, are on the disk; `data` is ours until then.
        `vital`: a full disk, too, should make this fragment, for without it nothing can be deleted."""
        try:
            self._check(chunk, epoch)
            if (
                self._queued_bytes > config.DISK_QUEUED_BYTES_MAX
                or self._n_queued >= config.DISK_QUEUED_APPENDS_MAX
            ):
                raise Busy(f"the queue of disk {self.disk_id}")
            fragment = self._fragments.get(chunk)
            if fragment is None:
                self._create(Append(chunk, epoch, offset, data, crc, create, on_done, vital))
                return
            if fragment.index is None:
                again = partial(self.append, chunk, epoch, offset, data, crc, create, on_done, vital)
                self.reads.load_index(fragment, again, on_done)
                return
            file = self._slots.file(fragment.slot)  # first: then what fails here has changed nothing
            pending = fragment.append(offset, data, crc)
        except BlockStoreError as error:
            on_done(error)
            return
        if epoch > chunk.epoch:
            self._fence_shell.see(chunk, epoch)
            on_done = partial(self._after_fence, chunk, epoch, on_done)
        if pending is None:
            on_done(fragment.durable)
            return
        pending.waiters.append(on_done)
        writes = pending.writes
        if writes:
            pending.writes = ()
            self._queued_bytes += len(data)
            self._n_queued += 1
            file.submit(writes, partial(self._on_written, fragment, pending))

    def _check(self, chunk: ChunkId, epoch: int) -> None:
        if chunk.volume < 0 or chunk.epoch < 0 or chunk.number < 0:
            raise InvalidRequest(f"there is no chunk {chunk}")
        self._fences.check(chunk.volume, epoch)
        if self._fence_shell.failed is not None:
            raise self._fence_shell.failed

    def _on_written(self, fragment: Fragment, pending: Pending, error: BlockStoreError | None) -> None:
        self._queued_bytes -= pending.end - pending.offset
        self._n_queued -= 1
        if error is not None:
            self._fail(fragment, error)
            return
        fragment.on_durable(pending)
        end = pending.end
        for waiter in pending.waiters:
            waiter(end)
        if fragment.when_idle:
            self._run_idle(fragment)

    def _run_idle(self, fragment: Fragment) -> None:
        """Call who waits for the end of what is under way, until one of them begins something again."""
        while fragment.when_idle and not fragment.pending and not fragment.rewriting:
            fragment.when_idle.popleft()()

    def _fail(self, fragment: Fragment, error: BlockStoreError) -> None:
        """An I/O error is final for the handle (DESIGN invariant 6); what was under way has failed with
        it."""
        if fragment.failed is not None:
            return
        under_way = fragment.on_failed(error)
        self._slots.drop(fragment.slot)
        self._on_error(error)
        for pending in under_way:
            for waiter in pending.waiters:
                waiter(error)
        self._run_idle(fragment)

    def _after_fence(
        self, chunk: ChunkId, epoch: int, on_done: Waiter, outcome: int | BlockStoreError
    ) -> None:
        """Tell of a success under a higher epoch than the chunk's own only when that epoch is remembered."""
        if isinstance(outcome, BlockStoreError):
            on_done(outcome)
        else:
            shell = self._fence_shell
            shell.after(chunk.volume, epoch, lambda: on_done(shell.failed or outcome))

    # --- creating

    def _create(self, append: Append) -> None:
        chunk, spec = append.chunk, append.create
        waiting = self._opening.get(chunk)
        if waiting is not None:
            self._wait_for_slot(waiting, append)
            return
        if self._fences.is_buried(chunk):
            raise FragmentSealed(0)  # it was deleted: nothing is ever added to it
        if spec is None:
            raise NotFound(f"fragment of {chunk} on disk {self.disk_id}")
        if append.offset != 0:
            raise OffsetMismatch(0)
        if append.epoch != chunk.epoch:
            raise InvalidRequest(f"chunk {chunk} can only be created under its own epoch, not {append.epoch}")
        if not 0 < spec.capacity <= config.CHUNK_BYTES_MAX:
            raise InvalidRequest(f"a fragment of {spec.capacity} bytes cannot be made")
        if not (1 <= spec.k <= 255 and 0 <= spec.m <= 255 and 0 <= spec.shard_index < spec.k + spec.m):
            raise InvalidRequest(f"{spec.shard_index} of {spec.k}+{spec.m} is no shard")
        self._wait_for_slot(self._opening.setdefault(chunk, []), append)
        self._slots.take(spec.capacity, append.vital, partial(self._on_slot, append, spec))

    def _wait_for_slot(self, waiting: list[Append], append: Append) -> None:
        waiting.append(append)
        self._queued_bytes += len(append.data)
        self._n_queued += 1

    def _on_slot(self, first: Append, spec: FragmentSpec, outcome: Header | BlockStoreError) -> None:
        appends = self._opening.pop(first.chunk)
        self._n_queued -= len(appends)
        self._queued_bytes -= sum(len(append.data) for append in appends)
        if isinstance(outcome, BlockStoreError):
            for append in appends:
                append.on_done(outcome)
            return
        if self._fences.is_buried(first.chunk):
            self._slots.free(outcome)  # deleted, or fenced, while it waited
        else:
            self._create_in(outcome, appends.pop(0), spec)
        for append in appends:
            self.append(*append)

    def _create_in(self, free: Header, append: Append, spec: FragmentSpec) -> None:
        fragment = Fragment.create(append.chunk, spec, free)
        self._add(fragment)
        self.append(*append)
        if not fragment.header_written:  # the first append was refused, so nothing has begun
            self._forget(fragment)
            self._used_bytes -= free.slot_bytes
            self._slots.free(free)
        else:
            self._fence_shell.see(append.chunk, append.epoch)

    # --- fences

    def highest_epoch(self, volume: VolumeId) -> int:
        return self._fences.highest(volume)

    def all_highest(self) -> dict[VolumeId, int]:
        return self._fences.all_highest()

    def adopt_fences(self, highest: dict[VolumeId, int]) -> None:
        """What the node's other disks remember: refused here too."""
        for volume, epoch in highest.items():
            self._fences.raise_to(volume, epoch)

    def fence(self, volume: VolumeId, epoch: int, chunks: Iterable[ChunkId], on_done: OnStates) -> None:
        """Refuse lower epochs from this moment; `on_done` with the states of `chunks` once that is durable
        and what was under way for the volume has ended, so that no later answer can contradict them."""
        shell = self._fence_shell
        try:
            self._fences.check(volume, epoch)
            if volume < 0:
                raise InvalidRequest(f"there is no volume {volume}")
        except BlockStoreError as error:
            on_done(error)
            return
        self._fences.raise_to(volume, epoch)
        asked = tuple(chunks)
        left = 1

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                on_done(shell.failed or self.states(asked))

        for fragment in self._open.values():
            if fragment.chunk.volume == volume and fragment.is_busy:
                left += 1
                fragment.when_idle.append(one_done)
        if shell.failed is None and self._fences.is_durable(volume, epoch):
            one_done()
        else:  # a file of facts that failed says so at once; what is under way is waited for all the same
            shell.remember((Fact(Kind.FENCE, volume, epoch),), lambda _: one_done())

    # --- sealing and deleting

    def seal(self, chunk: ChunkId, epoch: int, length: int, on_done: OnDone) -> None:
        """Fix the length for ever; `on_done(None)` when that is durable. Waits for what is under way, takes
        no more."""
        try:
            self._check(chunk, epoch)
            fragment = self._fragments.get(chunk)
            if fragment is None:
                raise NotFound(f"fragment of {chunk} on disk {self.disk_id}")
            if fragment.begin_seal(length):
                fragment.when_idle.append(partial(self.seal, chunk, epoch, length, on_done))
                return
        except BlockStoreError as error:
            on_done(error)
            return
        self._fence_shell.see(chunk, epoch)
        if fragment.pending:
            fragment.when_idle.appendleft(partial(self._seal_now, fragment, epoch, length, on_done))
        else:
            self._seal_now(fragment, epoch, length, on_done)

    def _seal_now(self, fragment: Fragment, epoch: int, length: int, on_done: OnDone) -> None:
        def written(error: BlockStoreError | None) -> None:
            if error is not None:
                on_done(error)
                self._fail(fragment, error)
                return
            fragment.on_sealed()
            self._open.pop(fragment.chunk, None)
            if fragment.index is not None:
                self.reads.keep_index(fragment)
            self._done_after_fence(fragment.chunk, epoch, on_done)
            self._run_idle(fragment)

        try:
            file = self._slots.file(fragment.slot)
            writes = fragment.seal(length)
        except BlockStoreError as error:
            fragment.sealing = None
            on_done(error)
            return
        if writes is None:
            self._done_after_fence(fragment.chunk, epoch, on_done)
        else:
            file.submit(writes, written)

    def delete(self, chunk: ChunkId, epoch: int, on_done: OnDone) -> None:
        """Free the chunk's slot, for ever; `on_done(None)` when that is durable. Nothing there is fine
        too."""
        fragment = self._fragments.get(chunk)
        try:
            self._check(chunk, epoch)
            if fragment is not None and fragment.failed is not None:
                raise fragment.failed
        except BlockStoreError as error:
            on_done(error)
            return
        again = self._deleting.get(chunk)
        if again is not None:  # it is not here any more, but that is not durable yet
            again.append(partial(self.delete, chunk, epoch, on_done))
            return
        self._deleting[chunk] = []
        self._fence_shell.see(chunk, epoch)
        left = 1 + (fragment is not None)
        failed: BlockStoreError | None = None

        def one_done(error: BlockStoreError | None) -> None:
            nonlocal left, failed
            failed = failed or error
            left -= 1
            if left == 0:
                repeated = self._deleting.pop(chunk)
                if failed is not None:
                    if fragment is not None and (fragment.failed is not None or isinstance(failed, Busy)):
                        self._fragments[chunk] = fragment  # still here, for all that we know
                    on_done(failed)
                else:
                    self._done_after_fence(chunk, epoch, on_done)
                for repeat in repeated:
                    repeat()

        if fragment is not None:
            self._forget(fragment)
            if fragment.is_busy:
                fragment.when_idle.append(partial(self._free, fragment, one_done))
            else:
                self._free(fragment, one_done)
        if chunk.epoch >= self._fences.highest(chunk.volume):
            self._fence_shell.remember(self._fences.bury(chunk), one_done)
        else:
            one_done(None)

    def _free(self, fragment: Fragment, on_done: OnDone) -> None:
        """The slot's header says that it is free; then it is."""
        if fragment.failed is not None:
            on_done(fragment.failed)
            return
        try:
            file = self._slots.file(fragment.slot)
        except BlockStoreError as error:
            if not isinstance(error, Busy):
                self._fail(fragment, error)
            on_done(error)
            return
        free = fragment.free()

        def written(error: BlockStoreError | None) -> None:
            if error is not None:
                self._fail(fragment, error)
            else:
                self._used_bytes -= free.slot_bytes
                self._slots.free(free)
            on_done(error)

        file.submit((Write(0, (encode_header(free),)),), written)

    def _done_after_fence(self, chunk: ChunkId, epoch: int, on_done: OnDone) -> None:
        if epoch > chunk.epoch:
            shell = self._fence_shell
            shell.after(chunk.volume, epoch, lambda: on_done(shell.failed))
        else:
            on_done(None)
