"""The slot files of a disk: made ahead, opened when needed, removed when too many. Carries out `slots.py`.

No slot is made from the last `reserve_bytes` of the file system, but for whom needs one to give space back
(`vital`): a delete is a record in a journal. A quarter is not even theirs, for control's log lies there too.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial

from blockstore.codec.fragment_file import Header, State, encode_header, file_bytes
from blockstore.config import CHUNK_BYTES_MAX
from blockstore.errors import BlockStoreError, Busy, DiskFailed, NoSpace
from blockstore.ids import DiskId
from blockstore.node.slots import Slots, slot_bytes_for
from blockstore.runtime.interfaces import Disk, File, Write

FOLDER = "fragments"
FILES_OPEN_MAX = 512
"""Descriptors of one disk: a node of eight disks stays within 4,096."""

OnSlot = Callable[[Header | BlockStoreError], None]


def file_name(slot: int) -> str:
    return f"{FOLDER}/{slot:08d}"


class SlotShell:
    def __init__(self, disk: Disk, disk_id: DiskId, on_error: Callable[[BlockStoreError], None]) -> None:
        self.slots = Slots()
        self._disk = disk
        self._disk_id = disk_id
        self._on_error = on_error
        self.reserve_bytes = 0
        self._waiting: dict[int, deque[tuple[OnSlot, bool]]] = {}  # and whether it is vital
        self._n_removing = 0
        self._files: OrderedDict[int, File] = OrderedDict()
        self._closed = False

    def start(self) -> None:
        self._make(CHUNK_BYTES_MAX)

    def close(self) -> None:
        """Wait for what is under way; nothing is opened or made any more."""
        self._closed = True
        for file in self._files.values():
            file.close()
        self._files.clear()

    def file(self, slot: int) -> File:
        """Open, and kept open as long as it is among the last FILES_OPEN_MAX asked for."""
        files = self._files
        file = files.get(slot)
        if file is not None:
            files.move_to_end(slot)
            return file
        if self._closed:
            raise DiskFailed(self._disk.path, "it is being closed")
        try:
            file = self._disk.open(file_name(slot))
        except Busy:  # no descriptor is left: give up some of ours
            if not self._close_half():
                raise
            file = self._disk.open(file_name(slot))
        files[slot] = file
        if len(files) > FILES_OPEN_MAX:
            _, oldest = files.popitem(last=False)
            oldest.close()
        return file

    def _close_half(self) -> bool:
        """Close those not used for longest; False if there are none."""
        n = (len(self._files) + 1) // 2
        for _ in range(n):
            _, oldest = self._files.popitem(last=False)
            oldest.close()
        return n > 0

    def drop(self, slot: int) -> None:
        """Close the handle; an error on it is final."""
        file = self._files.pop(slot, None)
        if file is not None:
            file.close()

    @property
    def is_full(self) -> bool:
        """No chunk of the usual size can be opened here, but for vital ones."""
        size = CHUNK_BYTES_MAX
        return not self.slots.has_free(size) and self._room(False) < file_bytes(size)

    def take(self, capacity: int, vital: bool, on_slot: OnSlot) -> None:
        """`on_slot` is called, now or later, with the header of a free slot, or with NoSpace or
        DiskFailed."""
        size = slot_bytes_for(capacity)
        free = self.slots.take(size)
        if free is not None:
            on_slot(free)
        else:
            self._waiting.setdefault(size, deque()).append((on_slot, vital))
        self._make(size)

    def free(self, header: Header) -> None:
        """The slot is free, durably so."""
        waiting = self._waiting.get(header.slot_bytes)
        if waiting:
            on_slot, _ = waiting.popleft()
            on_slot(header)
            return
        unneeded = self.slots.put(header)
        if unneeded is not None:
            self._remove(unneeded)

    def _make(self, size: int) -> None:
        if self._closed:
            return
        waiting = self._waiting.get(size, ())
        refused = False
        for _ in range(self.slots.to_make(size, len(waiting))):
            if self._room(any(vital for _, vital in waiting)) < 0:  # those to make count as made
                refused = True
                self.slots.made(size)
                continue
            slot = self.slots.number()
            self._disk.submit_open(file_name(slot), file_bytes(size), partial(self._on_file, slot, size))
        if refused:
            self._on_refused(size, NoSpace(self._disk.path))

    def _room(self, vital: bool) -> int:
        reserve = self.reserve_bytes // 4 if vital else self.reserve_bytes
        return self._disk.free_bytes() - self.slots.making_bytes - reserve

    def _on_file(self, slot: int, size: int, outcome: File | BlockStoreError) -> None:
        if isinstance(outcome, BlockStoreError):
            self.slots.made(size)
            if isinstance(outcome, Busy) and self._close_half():
                self._make(size)
            else:
                self._on_refused(size, outcome)
            return
        if self._closed:
            outcome.close()  # the next start finds a slot that was never used
            return
        # Durable before the slot is used: so its size and its tenancy are known after any crash.
        header = Header(State.FREE, 1, self._disk_id, slot, 0, size)
        outcome.submit((Write(0, (encode_header(header),)),), partial(self._on_made, header, outcome))

    def _on_made(self, header: Header, file: File, error: BlockStoreError | None) -> None:
        file.close()
        self.slots.made(header.slot_bytes)
        if error is None:
            self.free(header)
        else:
            self._on_refused(header.slot_bytes, error)

    def _on_refused(self, size: int, error: BlockStoreError) -> None:
        """No new slot can be made. Who waits for one gets the space of free ones of other sizes, or the
        error."""
        if not isinstance(error, NoSpace):
            self._on_error(error)
        waiting = self._waiting.get(size)
        if not waiting:
            return
        if isinstance(error, NoSpace):
            unneeded = self.slots.take_any()
            if unneeded is not None:
                self._remove(unneeded)
            if self._n_removing:
                return  # then it is tried again
        while waiting:
            on_slot, _ = waiting.popleft()
            on_slot(error)

    def _remove(self, header: Header) -> None:
        self.drop(header.slot)
        self._n_removing += 1
        self._disk.submit_remove(file_name(header.slot), self._on_removed)

    def _on_removed(self, error: BlockStoreError | None) -> None:
        self._n_removing -= 1
        if error is not None:
            self._on_error(error)
        for size, waiting in list(self._waiting.items()):
            if waiting:
                self._make(size)
