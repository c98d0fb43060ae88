"""One disk of a node: its fragments, its fences, its slots.

Carries out what `fragment.py`, `fence.py`, `slots.py` and `recovery.py` decide. Everything but `recover`
happens in the trio thread, in callbacks of the disk; there is nothing to lock, no task, and what an append
costs is two dozen microseconds. `on_done` may be called before the method returns.

What a restart finds. Slots are examined one by one (`recover`): free ones go to the pool, sealed ones cost
one block, open ones their log and the bytes written last. Everything found is synced before it is believed:
after a killed process the page cache still shows writes that no disk has.

Unreadable headers. A slot whose two header copies are both damaged holds a chunk that we cannot name. It is
left as it is; `list` says that it is not complete, and a fence answers for chunks it does not find "length
0, doubtful" rather than nothing, for "not there" would read as "never had a byte".
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import trio

from blockstore import config
from blockstore.codec import fence_file, superblock
from blockstore.codec.fence_file import Fact, Kind
from blockstore.codec.fragment_file import (
    DATA_START,
    HEADER_BYTES,
    LOG_START,
    RECORD_BYTES,
    Header,
    State,
    decode_header,
    encode_header,
    file_bytes,
)
from blockstore.codec.messages import FragmentSpec, FragmentState
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
from blockstore.node.fence import Fences
from blockstore.node.fragment import Fragment, Pending, Span, Waiter
from blockstore.node.recovery import judge, scan_log
from blockstore.node.slots import Slots, slot_bytes_for
from blockstore.runtime.interfaces import Disk, File, Write

OnEvent = Callable[[str, str], None]
OnDone = Callable[[BlockStoreError | None], None]
OnStates = Callable[[tuple[FragmentState, ...] | BlockStoreError], None]
OnRead = Callable[[memoryview | BlockStoreError], None]

FOLDER = "fragments"
FILES_OPEN_MAX = 512
"""Descriptors of one disk: a node of eight disks stays within 4,096."""
INDEXES_MAX = 1_024
"""Piece indexes of sealed fragments kept: up to 32 KiB each, 32 MiB in all."""


class Append(NamedTuple):
    """An append that waits for its chunk's slot."""

    chunk: ChunkId
    epoch: int
    offset: int
    data: memoryview
    crc: int
    create: FragmentSpec | None
    on_done: Waiter


@dataclass(frozen=True, slots=True)
class DiskFacts:
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    n_fragments: int
    suspect: bool


def format_disk(disk: Disk, disk_id: DiskId, cluster: str) -> None:
    """Make `disk` an empty one of `cluster`. Blocking. Raises AlreadyExists when it is one already."""
    if disk.read_file(superblock.NAME) is not None or disk.names(FOLDER):
        raise AlreadyExists(f"store in {disk.path}")
    for name in fence_file.NAMES:
        disk.open(name, fence_file.FILE_BYTES).close()
    file = disk.open(fence_file.NAMES[0])
    file.write((Write(0, (fence_file.encode_header(disk_id, 1),)),))
    file.close()
    # Last: a directory with a superblock is a whole disk.
    disk.replace_file(superblock.NAME, superblock.encode_superblock(superblock.Superblock(disk_id, cluster)))


def read_superblock(disk: Disk) -> superblock.Superblock | None:
    """Whose disk this is; None when it was never formatted. Blocking. Raises Corrupt, UnknownFormat."""
    block = disk.read_file(superblock.NAME)
    return None if block is None else superblock.decode_superblock(block, disk.path)


@asynccontextmanager
async def open_disk_shell(
    disk: Disk, disk_id: DiskId, cluster: str, on_event: OnEvent
) -> AsyncGenerator[DiskShell]:
    """The recovered disk, at work. Raises NotAStore, UnknownFormat, Corrupt."""
    shell = DiskShell(disk, disk_id, cluster, on_event)
    await trio.to_thread.run_sync(shell.recover)
    shell.start()
    try:
        yield shell
    finally:
        shell.close()


class DiskShell:
    def __init__(self, disk: Disk, disk_id: DiskId, cluster: str, on_event: OnEvent) -> None:
        self.disk_id = disk_id
        self._disk = disk
        self._cluster = cluster
        self._on_event = on_event
        self._early_events: list[tuple[str, str]] | None = []
        self.suspect = False
        self._read_only: BlockStoreError | None = None  # the fences' file failed: nothing may be promised
        self._fragments: dict[ChunkId, Fragment] = {}
        self._open: dict[ChunkId, Fragment] = {}  # those not sealed
        self._n_unreadable = 0
        self._used_bytes = 0
        self._slots = Slots()
        self._slot_waiters: dict[int, deque[Callable[[Header | BlockStoreError], None]]] = {}
        self._opening: dict[ChunkId, list[Append]] = {}
        self._files: OrderedDict[int, File] = OrderedDict()
        self._indexes: OrderedDict[ChunkId, Fragment] = OrderedDict()
        self._queued_bytes = 0
        self._n_queued = 0
        self._n_reading = 0
        self._fences = Fences()
        self._fence_file: File | None = None
        self._fence_generation = 0
        self._n_facts = 0
        self._n_facts_durable = 0
        self._fence_waiters: list[tuple[VolumeId, int, Callable[[], None]]] = []

    # --- start and end

    def recover(self) -> None:
        """Read what there is. Blocking; the disk is not otherwise in use."""
        block = read_superblock(self._disk)
        if block is None:
            raise NotAStore(self._disk.path, "it was never formatted")
        if block.cluster != self._cluster:
            raise NotAStore(
                self._disk.path, f"the disk belongs to cluster {block.cluster}, not {self._cluster}"
            )
        if block.disk != self.disk_id:
            raise NotAStore(self._disk.path, f"it is disk {block.disk}, not {self.disk_id}")
        fences_sound = self._recover_fences()
        for name in self._disk.names(FOLDER):
            if name.isdigit():
                self._recover_slot(int(name))
            else:
                self._disk.remove(f"{FOLDER}/{name}")  # a slot that was being made
        for chunk in self._fragments:
            self._fences.raise_to(chunk.volume, chunk.epoch)
        if not fences_sound:
            self._tell(
                "fences-damaged",
                f"disk {self.disk_id}: a fence may be lost; open fragments take no more appends",
            )
            for fragment in self._open.values():
                fragment.damaged = True
        self._rewrite_fences()

    def start(self) -> None:
        """Tell what recovery found, and make spare slots."""
        events, self._early_events = self._early_events or [], None
        for code, text in events:
            self._on_event(code, text)
        self._make_slots(config.CHUNK_BYTES_MAX)

    def close(self) -> None:
        """Wait for what is under way, and let go of every file."""
        for file in (*self._files.values(), *((self._fence_file,) if self._fence_file else ())):
            file.close()
        self._files.clear()

    def _tell(self, code: str, text: str) -> None:
        if self._early_events is not None:
            self._early_events.append((code, text))
        else:
            self._on_event(code, text)

    def _recover_slot(self, slot: int) -> None:
        self._slots.saw(slot)
        name = _file_name(slot)
        file = self._disk.open(name)
        try:
            blocks = bytearray(HEADER_BYTES)
            file.read(0, memoryview(blocks))
            header = decode_header(blocks, self.disk_id, slot)
            if header is None:
                if self._is_unused(file, blocks):
                    self._disk.remove(name)
                    return
                raise Corrupt(f"Slot {slot}", "both copies of its header")
            if header.state is State.FREE:
                self._slots.put(header)
                return
            if self._fences.is_tombstoned(header.chunk):
                free = Fragment(header).free()  # power failed between the tombstone and the header
                file.write((Write(0, (encode_header(free),)),))
                self._slots.put(free)
                return
            if header.chunk in self._fragments:
                raise Corrupt(f"Slot {slot}", f"a second fragment of {header.chunk}")
            fragment = self._recover_open(header, file) if header.state is State.OPEN else Fragment(header)
            if fragment.sealed:
                file.write(())
            else:
                self._open[header.chunk] = fragment
            self._fragments[header.chunk] = fragment
            self._used_bytes += header.slot_bytes
        except (Corrupt, DiskFailed) as error:
            self._n_unreadable += 1
            self.suspect = self.suspect or isinstance(error, DiskFailed)
            self._tell("slot-unreadable", f"disk {self.disk_id}: {error}")
        finally:
            file.close()

    @staticmethod
    def _is_unused(file: File, blocks: bytearray) -> bool:
        """Whether a slot without a header was never used: power failed while it was made."""
        log = bytearray(HEADER_BYTES)
        file.read(LOG_START, memoryview(log))
        return not any(blocks) and not any(log)

    def _recover_open(self, header: Header, file: File) -> Fragment:
        log = bytearray(config.FRAGMENT_LOG_BYTES)
        file.read(LOG_START, memoryview(log))
        scan = scan_log(header, log)
        start, end = scan.tail
        tail = memoryview(bytearray(end - start))
        if end > start:
            file.read(DATA_START + start, tail)
        verdict = judge(header, scan, tail)
        fragment = Fragment.recovered(header, scan.index, verdict)
        writes = list[Write]()
        if not fragment.damaged and verdict.blank_until > verdict.n_records:
            n = verdict.blank_until - verdict.n_records
            writes.append(Write(LOG_START + verdict.n_records * RECORD_BYTES, (bytes(n * RECORD_BYTES),)))
        if verdict.doubtful and not header.doubtful:
            writes.append(Write(0, (fragment.mark_doubtful(),)))
            text = f"disk {self.disk_id}: {header.chunk} was cut to {verdict.length} bytes at a bad checksum"
            self._tell("fragment-doubtful", text)
        if fragment.damaged:
            self._tell(
                "fragment-damaged",
                f"disk {self.disk_id}: records of {header.chunk} are lost: {scan.index.bad}",
            )
        file.write(writes)
        return fragment

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
    ) -> None:
        """`on_done(length)` once the bytes, and all before them, are on the disk; `data` is ours until
        then."""
        try:
            fragment = self._fragments.get(chunk)
            self._fences.check(chunk.volume, epoch)
            if self._read_only is not None:
                raise self._read_only
            if (
                self._queued_bytes > config.DISK_QUEUED_BYTES_MAX
                or self._n_queued >= config.DISK_QUEUED_APPENDS_MAX
            ):
                raise Busy(f"the queue of disk {self.disk_id}")
            if fragment is None:
                self._open_fragment(Append(chunk, epoch, offset, data, crc, create, on_done))
                return
            if fragment.index is None:
                append = partial(self.append, chunk, epoch, offset, data, crc, create, on_done)
                self._load_index(fragment, append, on_done)
                return
            pending = fragment.append(offset, data, crc)
        except BlockStoreError as error:
            on_done(error)
            return
        if epoch > self._fences.highest(chunk.volume):
            self._see(chunk, epoch)
        if epoch > chunk.epoch:
            on_done = partial(self._tell_after_fence, chunk.volume, epoch, on_done)
        if pending is None:
            on_done(fragment.durable)
            return
        pending.waiters.append(on_done)
        writes = pending.writes
        if writes:
            pending.writes = ()
            self._queued_bytes += len(data)
            self._n_queued += 1
            self._file(fragment.slot).submit(writes, partial(self._on_written, fragment, pending))

    def _on_written(self, fragment: Fragment, pending: Pending, error: BlockStoreError | None) -> None:
        self._queued_bytes -= pending.end - pending.offset
        self._n_queued -= 1
        if error is not None:
            if fragment.failed is None:
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
        """An I/O error is final for the handle (DESIGN invariant 6)."""
        under_way = fragment.on_failed(error)
        file = self._files.pop(fragment.slot, None)
        if file is not None:
            file.close()
        self._suspect(error)
        for pending in under_way:
            for waiter in pending.waiters:
                waiter(error)
        fragment.sealing, fragment.rewriting = None, False
        self._run_idle(fragment)

    def _suspect(self, error: BlockStoreError) -> None:
        if not isinstance(error, NoSpace):
            self.suspect = True
        self._tell("disk-failed", f"disk {self.disk_id}: {error}")

    def _open_fragment(self, append: Append) -> None:
        chunk, spec = append.chunk, append.create
        waiting = self._opening.get(chunk)
        if waiting is not None:
            waiting.append(append)
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
        if (
            min(spec.k, spec.m + 1, spec.shard_index + 1) < 1
            or max(spec.k, spec.m, spec.shard_index) > 0xFFFF
        ):
            raise InvalidRequest(f"{spec.shard_index} of {spec.k}+{spec.m} is no shard")
        free = self._slots.take(spec.capacity)
        if free is not None:
            self._create_fragment(append, spec, free)
            self._make_slots(slot_bytes_for(spec.capacity))
            return
        self._opening[chunk] = [append]
        size = slot_bytes_for(spec.capacity)
        self._slot_waiters.setdefault(size, deque()).append(partial(self._on_slot, append, spec))
        self._make_slots(size)

    def _on_slot(self, first: Append, spec: FragmentSpec, outcome: Header | BlockStoreError) -> None:
        appends = self._opening.pop(first.chunk)
        if isinstance(outcome, Header):
            if self._fences.is_buried(first.chunk):
                self._free_slot(outcome)  # deleted, or fenced, while it waited
            else:
                self._create_fragment(first, spec, outcome)
                del appends[0]
            for append in appends:
                self.append(*append)
        else:
            for append in appends:
                append.on_done(outcome)

    def _create_fragment(self, append: Append, spec: FragmentSpec, free: Header) -> None:
        chunk = append.chunk
        fragment = Fragment.create(chunk, spec, free)
        self._fragments[chunk] = self._open[chunk] = fragment
        self._used_bytes += free.slot_bytes
        self.append(*append)
        if not fragment.header_written:  # the first append was refused, so nothing has begun
            del self._fragments[chunk], self._open[chunk]
            self._used_bytes -= free.slot_bytes
            self._free_slot(free)

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
        try:
            self._fences.check(volume, epoch)
            if self._read_only is not None:
                raise self._read_only
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
                on_done(self._read_only or self.states(asked))

        for fragment in self._open.values():
            if fragment.chunk.volume == volume and (fragment.pending or fragment.sealing is not None):
                left += 1
                fragment.when_idle.append(one_done)
        if self._fences.is_durable(volume, epoch):
            one_done()
        else:
            self._remember((Fact(Kind.FENCE, volume, epoch),), lambda _: one_done())

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

    def _state(self, fragment: Fragment) -> FragmentState:
        return FragmentState(
            self.disk_id, fragment.chunk, fragment.durable, fragment.sealed, fragment.doubtful
        )

    def _see(self, chunk: ChunkId, epoch: int) -> None:
        """A request carried a higher epoch. A chunk's own epoch is in its header; another one must be
        written down."""
        self._fences.raise_to(chunk.volume, epoch)
        if epoch > chunk.epoch:
            self._remember((Fact(Kind.FENCE, chunk.volume, epoch),), lambda _: None)

    def _tell_after_fence(
        self, volume: VolumeId, epoch: int, on_done: Waiter, outcome: int | BlockStoreError
    ) -> None:
        if isinstance(outcome, BlockStoreError) or self._fences.is_durable(volume, epoch):
            on_done(outcome)
        else:
            self._after_fence(volume, epoch, lambda: on_done(self._read_only or outcome))

    def _after_fence(self, volume: VolumeId, epoch: int, then: Callable[[], None]) -> None:
        if self._read_only is not None or self._fences.is_durable(volume, epoch):
            then()
        else:
            self._fence_waiters.append((volume, epoch, then))

    def _remember(self, facts: tuple[Fact, ...], on_done: OnDone) -> None:
        """Write facts down; their order with other writes does not matter."""
        if self._read_only is not None:
            on_done(self._read_only)
            return
        if self._n_facts + len(facts) > fence_file.RECORDS_MAX:
            try:
                self._rewrite_fences()  # a stall of two syncs, once in 32,000 facts
            except BlockStoreError as error:
                self._on_remembered((), 0, 0, on_done, error)
                return
        index, generation = self._n_facts, self._fence_generation
        self._n_facts += len(facts)
        records = fence_file.encode_facts(self.disk_id, generation, index, self._n_facts_durable, facts)
        assert self._fence_file is not None
        self._fence_file.submit(
            (Write(fence_file.record_offset(index), (records,)),),
            partial(self._on_remembered, facts, generation, self._n_facts, on_done),
        )

    def _on_remembered(
        self,
        facts: tuple[Fact, ...],
        generation: int,
        n_facts: int,
        on_done: OnDone,
        error: BlockStoreError | None,
    ) -> None:
        if error is not None:
            if self._read_only is None:
                self._read_only = error
                self._suspect(error)
        else:
            if generation == self._fence_generation:
                self._n_facts_durable = max(self._n_facts_durable, n_facts)
            for fact in facts:
                self._fences.on_durable(fact.volume, fact.epoch)
        on_done(error)
        waiting, self._fence_waiters = self._fence_waiters, []
        for volume, epoch, then in waiting:
            self._after_fence(volume, epoch, then)

    def _recover_fences(self) -> bool:
        """False when facts may be missing."""
        best: fence_file.FenceFile | None = None
        for name in fence_file.NAMES:
            content = self._disk.read_file(name)
            found = None if content is None else fence_file.decode_fence_file(content, self.disk_id)
            if found is not None and (best is None or found.generation > best.generation):
                best = found
        if best is None:
            return False
        self._fences.recall(best.facts)
        self._fence_generation = best.generation
        return not best.damaged

    def _rewrite_fences(self) -> None:
        """All facts into the other file, and that one into use. Blocking."""
        generation = self._fence_generation + 1
        facts = self._fences.facts()
        if len(facts) > fence_file.RECORDS_MAX:
            raise NoSpace(f"the fences of disk {self.disk_id}")
        file = self._disk.open(fence_file.NAMES[(generation - 1) % 2], fence_file.FILE_BYTES)
        records = fence_file.encode_facts(self.disk_id, generation, 0, len(facts), facts)
        file.write((Write(fence_file.record_offset(0), (records,)),) if facts else ())
        file.write((Write(0, (fence_file.encode_header(self.disk_id, generation),)),))
        if self._fence_file is not None:
            self._fence_file.close()
        self._fence_file, self._fence_generation = file, generation
        self._n_facts = self._n_facts_durable = len(facts)
        for fact in facts:
            self._fences.on_durable(fact.volume, fact.epoch)

    # --- sealing and deleting

    def seal(self, chunk: ChunkId, epoch: int, length: int, on_done: OnDone) -> None:
        """Fix the length for ever; `on_done(None)` when that is durable. Waits for what is under way, takes
        no more."""
        try:
            self._check_change(chunk, epoch)
            fragment = self._fragments.get(chunk)
            if fragment is None:
                raise NotFound(f"fragment of {chunk} on disk {self.disk_id}")
            if fragment.sealing is not None:
                if fragment.sealing != length:
                    raise FragmentSealed(fragment.sealing)
                fragment.when_idle.append(partial(self.seal, chunk, epoch, length, on_done))
                return
            if not fragment.sealed:
                if length > fragment.length or length < 0:
                    raise OffsetMismatch(fragment.length)
                if fragment.failed is not None:
                    raise fragment.failed
                fragment.sealing = length
        except BlockStoreError as error:
            on_done(error)
            return
        self._see_change(chunk, epoch)
        if fragment.pending:
            fragment.when_idle.appendleft(partial(self._seal_now, fragment, epoch, length, on_done))
        else:
            self._seal_now(fragment, epoch, length, on_done)

    def _seal_now(self, fragment: Fragment, epoch: int, length: int, on_done: OnDone) -> None:
        try:
            writes = fragment.seal(length)
        except BlockStoreError as error:
            fragment.sealing = None
            on_done(error)
            return
        if writes is None:
            self._after_fence_if_needed(fragment.chunk, epoch, on_done)
            return

        def written(error: BlockStoreError | None) -> None:
            if error is not None:
                on_done(error)
                self._fail(fragment, error)
                return
            fragment.rewriting = False
            fragment.on_sealed()
            self._open.pop(fragment.chunk, None)
            self._keep_index(fragment)
            self._after_fence_if_needed(fragment.chunk, epoch, on_done)
            self._run_idle(fragment)

        fragment.rewriting = True
        self._file(fragment.slot).submit(writes, written)

    def delete(self, chunk: ChunkId, epoch: int, on_done: OnDone) -> None:
        """Free the chunk's slot, for ever; `on_done(None)` when that is durable. Nothing there is fine
        too."""
        try:
            self._check_change(chunk, epoch)
            fragment = self._fragments.get(chunk)
            if fragment is not None and fragment.failed is not None:
                raise fragment.failed
        except BlockStoreError as error:
            on_done(error)
            return
        self._see_change(chunk, epoch)
        left = 1
        failed: BlockStoreError | None = None

        def one_done(error: BlockStoreError | None) -> None:
            nonlocal left, failed
            failed = failed or error
            left -= 1
            if left == 0:
                if failed is not None:
                    on_done(failed)
                else:
                    self._after_fence_if_needed(chunk, epoch, on_done)

        if chunk.epoch >= self._fences.highest(chunk.volume):
            left += 1
            self._remember(self._fences.bury(chunk), one_done)
        if fragment is None:
            one_done(None)
            return
        del self._fragments[chunk]
        self._open.pop(chunk, None)
        self._indexes.pop(chunk, None)
        if fragment.pending or fragment.sealing is not None:
            fragment.when_idle.append(partial(self._delete_now, fragment, one_done))
        else:
            self._delete_now(fragment, one_done)

    def _delete_now(self, fragment: Fragment, on_done: OnDone) -> None:
        if fragment.failed is not None:
            on_done(fragment.failed)
            return
        free = fragment.free()

        def written(error: BlockStoreError | None) -> None:
            if error is not None:
                self._fail(fragment, error)
            else:
                self._used_bytes -= free.slot_bytes
                self._free_slot(free)
            on_done(error)

        self._file(fragment.slot).submit((Write(0, (encode_header(free),)),), written)

    def _check_change(self, chunk: ChunkId, epoch: int) -> None:
        self._fences.check(chunk.volume, epoch)
        if self._read_only is not None:
            raise self._read_only

    def _see_change(self, chunk: ChunkId, epoch: int) -> None:
        if epoch > self._fences.highest(chunk.volume):
            self._see(chunk, epoch)

    def _after_fence_if_needed(self, chunk: ChunkId, epoch: int, on_done: OnDone) -> None:
        if epoch > chunk.epoch:
            self._after_fence(chunk.volume, epoch, lambda: on_done(self._read_only))
        else:
            on_done(None)

    # --- reading

    def read_now(self, chunk: ChunkId, offset: int, length: int) -> memoryview | None:
        """The verified bytes, if that takes no waiting; None: use `submit_read`. Raises what is wrong."""
        fragment = self._fragments.get(chunk)
        if fragment is None:
            raise NotFound(f"fragment of {chunk} on disk {self.disk_id}")
        if fragment.index is None:
            return None
        if fragment.sealed:
            self._indexes.move_to_end(chunk)
        span = fragment.find(offset, length)
        start = span.start
        data = memoryview(bytearray(span.end - start))
        if not self._file(fragment.slot).read_now(DATA_START + start, data):
            return None
        self._verify(fragment, span, data)
        return data[offset - start : offset - start + length]

    def submit_read(self, chunk: ChunkId, offset: int, length: int, on_done: OnRead) -> None:
        """The verified bytes, or what is wrong."""
        try:
            fragment = self._fragments.get(chunk)
            if fragment is None:
                raise NotFound(f"fragment of {chunk} on disk {self.disk_id}")
            if self._n_reading >= config.DISK_QUEUED_READS_MAX:
                raise Busy(f"the read queue of disk {self.disk_id}")
            if fragment.index is None:
                again = partial(self.submit_read, chunk, offset, length, on_done)
                self._load_index(fragment, again, on_done)
                return
            span = fragment.find(offset, length)
            file = self._file(fragment.slot)
        except BlockStoreError as error:
            on_done(error)
            return
        data = memoryview(bytearray(span.end - span.start))

        def filled(error: BlockStoreError | None) -> None:
            self._n_reading -= 1
            try:
                if self._fragments.get(chunk) is not fragment:
                    raise NotFound(f"fragment of {chunk} on disk {self.disk_id}")  # deleted meanwhile
                if error is not None:
                    self._suspect(error)
                    raise error
                self._verify(fragment, span, data)
            except BlockStoreError as found:
                on_done(found)
            else:
                on_done(data[offset - span.start : offset - span.start + length])

        self._n_reading += 1
        file.submit_read(DATA_START + span.start, data, filled)

    def _verify(self, fragment: Fragment, span: Span, data: memoryview) -> None:
        try:
            fragment.verify(span, data)
        except Corrupt as error:
            if not fragment.damaged:
                fragment.damaged = True
                self._tell("fragment-damaged", f"disk {self.disk_id}: {error}")
            raise

    def _load_index(
        self, fragment: Fragment, then: Callable[[], None], on_error: Callable[[BlockStoreError], None]
    ) -> None:
        """A sealed fragment's index, from its records."""
        log = memoryview(bytearray(fragment.header.n_records * RECORD_BYTES))

        def filled(error: BlockStoreError | None) -> None:
            self._n_reading -= 1
            if self._fragments.get(fragment.chunk) is not fragment:
                on_error(NotFound(f"fragment of {fragment.chunk} on disk {self.disk_id}"))
            elif error is not None:
                self._suspect(error)
                on_error(error)
            else:
                if fragment.index is None:
                    self._take_index(fragment, log)
                then()

        try:
            file = self._file(fragment.slot)
        except BlockStoreError as error:
            on_error(error)
            return
        self._n_reading += 1
        file.submit_read(LOG_START, log, filled)

    def _take_index(self, fragment: Fragment, log: memoryview) -> None:
        fragment.index = scan_log(fragment.header, log).index
        if fragment.index.bad and not fragment.damaged:
            fragment.damaged = True
            text = f"disk {self.disk_id}: records of {fragment.chunk} are lost: {fragment.index.bad}"
            self._tell("fragment-damaged", text)
        self._keep_index(fragment)

    def _keep_index(self, fragment: Fragment) -> None:
        """Of sealed fragments, only the indexes last loaded are kept."""
        self._indexes[fragment.chunk] = fragment
        if len(self._indexes) > INDEXES_MAX:
            _, oldest = self._indexes.popitem(last=False)
            oldest.index = None

    # --- what there is

    def list(self, after: ChunkId | None, limit: int) -> tuple[tuple[FragmentState, ...], bool]:
        """A page of states in order of chunk id, and whether it ends a complete inventory."""
        chunks = sorted(self._fragments if after is None else (c for c in self._fragments if c > after))
        page = chunks[: max(1, limit)]
        states = tuple(self._state(self._fragments[chunk]) for chunk in page)
        return states, len(page) == len(chunks) and self._n_unreadable == 0

    def facts(self) -> DiskFacts:
        free = self._disk.free_bytes() + self._slots.free_bytes
        used = self._used_bytes
        return DiskFacts(used + free, used, free, len(self._fragments), self.suspect)

    # --- slots and files

    def _make_slots(self, size: int) -> None:
        for _ in range(self._slots.to_make(size, len(self._slot_waiters.get(size, ())))):
            slot = self._slots.number()
            self._disk.submit_open(
                _file_name(slot), file_bytes(size), partial(self._on_file_made, slot, size)
            )

    def _on_file_made(self, slot: int, size: int, outcome: File | BlockStoreError) -> None:
        if isinstance(outcome, BlockStoreError):
            self._slots.made(size)
            self._on_slot_refused(size, outcome)
            return
        # Durable before the slot is used: so its size and its tenancy are known after any crash.
        header = Header(State.FREE, 1, self.disk_id, slot, 0, size)
        outcome.submit((Write(0, (encode_header(header),)),), partial(self._on_slot_made, header, outcome))

    def _on_slot_made(self, header: Header, file: File, error: BlockStoreError | None) -> None:
        file.close()
        self._slots.made(header.slot_bytes)
        if error is not None:
            self._suspect(error)
            self._on_slot_refused(header.slot_bytes, error)
        else:
            self._free_slot(header)

    def _on_slot_refused(self, size: int, error: BlockStoreError) -> None:
        """No new slot can be made. Who waits for one gets another that is free, or the space of others, or
        the error."""
        waiters = self._slot_waiters.get(size)
        if not waiters:
            return
        larger = self._slots.take_larger(size)
        if larger is not None:
            waiters.popleft()(larger)
            return
        unneeded = self._slots.take_any() if isinstance(error, NoSpace) else None
        if unneeded is not None:
            self._disk.submit_remove(_file_name(unneeded.slot), lambda _: self._make_slots(size))
            return
        while waiters:
            waiters.popleft()(error)

    def _free_slot(self, header: Header) -> None:
        waiters = self._slot_waiters.get(header.slot_bytes)
        if waiters:
            waiters.popleft()(header)
            return
        unneeded = self._slots.put(header)
        if unneeded is not None:
            file = self._files.pop(unneeded.slot, None)
            if file is not None:
                file.close()
            self._disk.submit_remove(_file_name(unneeded.slot), self._on_removed)

    def _on_removed(self, error: BlockStoreError | None) -> None:
        if error is not None:
            self._suspect(error)

    def _file(self, slot: int) -> File:
        files = self._files
        file = files.get(slot)
        if file is not None:
            files.move_to_end(slot)
            return file
        file = files[slot] = self._disk.open(_file_name(slot))
        if len(files) > FILES_OPEN_MAX:
            _, oldest = files.popitem(last=False)
            oldest.close()
        return file


def _file_name(slot: int) -> str:
    return f"{FOLDER}/{slot:08d}"
