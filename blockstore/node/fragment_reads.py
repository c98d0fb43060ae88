"""Reading the fragments of one disk: verified bytes, at once if the system has them at hand.

Nothing unverified leaves (DESIGN invariant 5). What is found damaged is told once, and stays where it is: a
reader takes the bytes from another member. In the trio thread, in callbacks of the disk; `on_done` may be
called before the method returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from blockstore import config
from blockstore.codec.fragment_file import DATA_START, LOG_START, RECORD_BYTES
from blockstore.errors import BlockStoreError, Busy, Corrupt, NotFound
from blockstore.ids import ChunkId, DiskId
from blockstore.node.fence_shell import OnDone
from blockstore.node.fragment import Fragment, Span
from blockstore.node.recovery import scan_log
from blockstore.node.slots_shell import SlotShell

TakeBuffer = Callable[[int], memoryview]
OnRead = Callable[[memoryview | BlockStoreError], None]

INDEXES_MAX = 1_024
"""Piece indexes of sealed fragments kept: up to 32 KiB each, 32 MiB in all."""


def fresh_buffer(length: int) -> memoryview:
    return memoryview(bytearray(length))


class FragmentReads:
    def __init__(
        self,
        disk_id: DiskId,
        fragments: Mapping[ChunkId, Fragment],
        slots: SlotShell,
        on_error: Callable[[BlockStoreError], None],
        tell: Callable[[str, str], None],
    ) -> None:
        """`fragments`: those of the disk, as they come and go. `tell(code, text)` hears of damage."""
        self.damaged: set[ChunkId] = set()  # found by reading; a restart looks at open fragments only
        self.n_queued = 0  # reads that wait for a thread of the disk
        self._disk_id, self._fragments, self._slots = disk_id, fragments, slots
        self._on_error, self._tell = on_error, tell
        self._indexes: OrderedDict[ChunkId, Fragment] = OrderedDict()  # sealed ones that have theirs loaded

    def forget(self, chunk: ChunkId) -> None:
        """It is not on the disk any more."""
        self.damaged.discard(chunk)
        self._indexes.pop(chunk, None)

    def read_now(
        self, chunk: ChunkId, offset: int, length: int, take: TakeBuffer = fresh_buffer
    ) -> memoryview | None:
        """The verified bytes, in a buffer that `take` gives, if that takes no waiting; None: use
        `submit_read`. Raises what is wrong."""
        fragment = self._fragments.get(chunk)
        if fragment is None:
            raise NotFound(f"fragment of {chunk} on disk {self._disk_id}")
        if fragment.index is None:
            return None
        if fragment.sealed:
            self._indexes.move_to_end(chunk)
        span = fragment.find(offset, length)
        start = span.start
        data = take(span.end - start)
        if not self._slots.file(fragment.slot).read_now(DATA_START + start, data):
            return None
        self._verify(fragment, span, data)
        return _part(data, offset - start, length)

    def submit_read(self, chunk: ChunkId, offset: int, length: int, on_done: OnRead) -> None:
        """The verified bytes, or what is wrong."""
        try:
            fragment = self._fragments.get(chunk)
            if fragment is None:
                raise NotFound(f"fragment of {chunk} on disk {self._disk_id}")
            if fragment.index is None:
                again = partial(self.submit_read, chunk, offset, length, on_done)
                self.load_index(fragment, again, on_done)
                return
            span = fragment.find(offset, length)
        except BlockStoreError as error:
            on_done(error)
            return
        data = memoryview(bytearray(span.end - span.start))

        def filled(error: BlockStoreError | None) -> None:
            if error is None:
                try:
                    self._verify(fragment, span, data)
                except Corrupt as found:
                    error = found
            on_done(error or _part(data, offset - span.start, length))

        self._read(fragment, DATA_START + span.start, data, filled)

    def _read(self, fragment: Fragment, offset: int, into: memoryview, then: OnDone) -> None:
        """Fill `into` from the fragment's file, in a thread."""

        def filled(error: BlockStoreError | None) -> None:
            self.n_queued -= 1
            if self._fragments.get(fragment.chunk) is not fragment:
                # Deleted meanwhile: another chunk may have written there already.
                error = NotFound(f"fragment of {fragment.chunk} on disk {self._disk_id}")
            elif error is not None:
                self._on_error(error)
            then(error)

        if self.n_queued >= config.DISK_QUEUED_READS_MAX:
            then(Busy(f"the read queue of disk {self._disk_id}"))
            return
        try:
            file = self._slots.file(fragment.slot)
        except BlockStoreError as error:
            then(error)
            return
        self.n_queued += 1
        file.submit_read(offset, into, filled)

    def _verify(self, fragment: Fragment, span: Span, data: memoryview) -> None:
        try:
            fragment.verify(span, data)
        except Corrupt as error:
            self._quarantine(fragment, str(error))
            raise

    def _quarantine(self, fragment: Fragment, text: str) -> None:
        self.damaged.add(fragment.chunk)
        if not fragment.damaged:
            fragment.damaged = True
            self._tell("fragment-damaged", text)

    def load_index(
        self, fragment: Fragment, then: Callable[[], None], on_error: Callable[[BlockStoreError], None]
    ) -> None:
        """A sealed fragment's index, from its records."""
        log = memoryview(bytearray(fragment.header.n_records * RECORD_BYTES))

        def filled(error: BlockStoreError | None) -> None:
            if error is not None:
                on_error(error)
                return
            if fragment.index is None:
                fragment.index = scan_log(fragment.header, log).index
                if fragment.index.bad:
                    self._quarantine(fragment, f"records of {fragment.chunk} are lost: {fragment.index.bad}")
                self.keep_index(fragment)
            then()

        self._read(fragment, LOG_START, log, filled)

    def keep_index(self, fragment: Fragment) -> None:
        """Of sealed fragments, only the indexes last used are kept."""
        self._indexes[fragment.chunk] = fragment
        if len(self._indexes) > INDEXES_MAX:
            _, oldest = self._indexes.popitem(last=False)
            oldest.index = None


def _part(data: memoryview, start: int, length: int) -> memoryview:
    """Those bytes; copied out of many more, which would stay in memory for as long as the answer waits."""
    part = data[start : start + length]
    return memoryview(bytes(part)) if 2 * length < data.nbytes else part
