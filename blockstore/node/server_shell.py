"""Answers the fragment messages of `codec/messages.py` for the disks of one node.

`handle` runs in the trio thread and never waits: what must wait is answered from a callback. A fence is one
for the whole node: it is told when at least one disk remembers it durably, and a disk that cannot (its file
of fences failed) takes no writes any more; at the next start each disk adopts what the others remember.

Nodes are believed what epoch they act under: they own volumes. A client is not: it appends to chunks that an
owner granted to it, as its token shows, under the chunk's own epoch. So whatever a client sends, it never
raises a volume's fence, and never touches a journal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from blockstore import config
from blockstore.codec.checksum import crc32c
from blockstore.codec.grant import is_granted
from blockstore.codec.messages import (
    Appended,
    AppendFragment,
    DeleteFragment,
    Failed,
    Fence,
    Fenced,
    FragmentData,
    FragmentList,
    FragmentRange,
    FragmentState,
    ListFragments,
    Ok,
    ReadFragments,
    SealFragment,
)
from blockstore.errors import BlockStoreError, InvalidRequest, NotFound, PermissionDenied, StaleEpoch, to_wire
from blockstore.ids import DiskId, KiB, VolumeId
from blockstore.node.disk_shell import DiskShell
from blockstore.node.fragment_reads import fresh_buffer
from blockstore.runtime.buffers import BufferPool
from blockstore.runtime.interfaces import Clock, IncomingCall, Payload, Peer
from blockstore.runtime.roles import check_role

RANGES_MAX = 4_096
"""Ranges of one read: each may cost an answer of some bytes, and the whole answer one frame."""

POOLED_BYTES_MIN = 64 * KiB
"""What a read needs from here on comes from kept buffers: below, making one costs less than keeping it."""

_ROLES: dict[type[Any], tuple[str, ...]] = {
    AppendFragment: ("node", "admin", "write"),
    ReadFragments: ("node", "admin", "write", "read"),
    Fence: ("node",),
    SealFragment: ("node",),
    DeleteFragment: ("node",),
    ListFragments: ("node", "admin"),
}


class FragmentServer:
    def __init__(
        self,
        disks: Mapping[DiskId, DiskShell],
        clock: Clock,
        grant_key: Callable[[], bytes] = lambda: b"",
    ) -> None:
        self.disks = disks
        self._clock = clock
        self._grant_key = grant_key
        self._pool = BufferPool()
        self._answer: dict[type[Any], Callable[[IncomingCall, Any], None]] = {
            AppendFragment: self._append,
            ReadFragments: self._read,
            Fence: self._fence,
            SealFragment: self._seal,
            DeleteFragment: self._delete,
            ListFragments: self._list,
        }
        highest = dict[VolumeId, int]()
        for disk in disks.values():
            for volume, epoch in disk.all_highest().items():
                highest[volume] = max(epoch, highest.get(volume, 0))
        for disk in disks.values():
            disk.adopt_fences(highest)

    def handle(self, call: IncomingCall) -> bool:
        """Whether the message is one of ours; then it is or will be answered."""
        message: object = call.message
        kind = type(message)
        answer = self._answer.get(kind)
        if answer is None:
            return False
        try:
            check_role(call.peer, kind.__name__, _ROLES[kind])
        except PermissionDenied as error:
            call.payload.release()
            call.fail(error)
            return True
        if kind is not AppendFragment:
            call.payload.release()
        answer(call, message)
        return True

    def _append(self, call: IncomingCall, message: AppendFragment) -> None:
        disk = self.disks.get(message.disk)
        if disk is None:
            call.payload.release()
            call.fail(_no_disk(message.disk))
            return
        payload = call.payload
        if len(payload) > config.APPEND_BYTES_MAX:
            payload.release()
            call.fail(InvalidRequest(f"an append takes {config.APPEND_BYTES_MAX} bytes at most"))
            return
        if call.peer.role != "node" and not self._is_granted(call.peer, message):
            payload.release()
            who, what = str(call.peer).capitalize(), f"chunk {message.chunk} in epoch {message.epoch}"
            call.fail(PermissionDenied(f"{who} was not granted {what}."))
            return

        def done(outcome: int | BlockStoreError) -> None:
            payload.release()
            if isinstance(outcome, int):
                call.answer(Appended(outcome))
            else:
                call.fail(outcome)

        spec = message.create
        vital = spec is not None and spec.capacity <= config.VITAL_CHUNK_BYTES and call.peer.role == "node"
        disk.append(
            message.chunk, message.epoch, message.offset, payload.view, message.crc, spec, done, vital
        )

    def _is_granted(self, peer: Peer, message: AppendFragment) -> bool:
        chunk = message.chunk
        return message.epoch == chunk.epoch and is_granted(
            self._grant_key(), chunk, peer.fingerprint, message.grant
        )

    def _read(self, call: IncomingCall, message: ReadFragments) -> None:
        ranges = message.ranges
        if len(ranges) == 1 and self._read_small(call, ranges[0]):
            return
        if (
            len(ranges) > RANGES_MAX
            or sum(max(0, each.length) for each in ranges) > config.FRAME_PAYLOAD_BYTES_MAX
        ):
            call.fail(InvalidRequest("that is more than one answer may carry"))
            return
        buffers = _Buffers(self._pool)
        found: list[memoryview | BlockStoreError | None] = []
        waiting = list[int]()
        for position, each in enumerate(ranges):
            disk = self.disks.get(each.disk)
            try:
                if disk is None:
                    raise _no_disk(each.disk)
                data = disk.reads.read_now(each.chunk, each.offset, each.length, buffers.take)
            except BlockStoreError as error:
                found.append(error)
                continue
            if data is None:
                waiting.append(position)
            found.append(data)
        if not waiting:
            _answer_read(call, found, buffers)
            return
        left = len(waiting)

        def one_done(position: int, outcome: memoryview | BlockStoreError) -> None:
            nonlocal left
            found[position] = outcome
            left -= 1
            if left == 0:
                _answer_read(call, found, buffers)

        for position in waiting:
            each = ranges[position]
            self.disks[each.disk].reads.submit_read(
                each.chunk, each.offset, each.length, partial(one_done, position)
            )

    def _read_small(self, call: IncomingCall, one: FragmentRange) -> bool:
        """Answer a small read at once, if it can be; what most requests are."""
        disk = self.disks.get(one.disk)
        if disk is None or one.length > POOLED_BYTES_MIN:
            return False
        try:
            data = disk.reads.read_now(one.chunk, one.offset, one.length)
        except BlockStoreError as error:
            call.answer(FragmentData((0,), {0: Failed(*to_wire(error))}))
            return True
        if data is None:
            return False
        call.answer(FragmentData((crc32c(data),)), (data,))
        return True

    def _fence(self, call: IncomingCall, message: Fence) -> None:
        highest = max((disk.highest_epoch(message.volume) for disk in self.disks.values()), default=0)
        if message.epoch < highest:
            call.fail(StaleEpoch(message.volume, message.epoch, highest))
            return
        states = list[FragmentState]()
        left, n_told = len(self.disks), 0
        failed: BlockStoreError | None = None

        def one_done(disk: DiskShell, outcome: tuple[FragmentState, ...] | BlockStoreError) -> None:
            nonlocal left, n_told, failed
            left -= 1
            if isinstance(outcome, BlockStoreError):
                failed = outcome
                states.extend(disk.states(message.chunks))  # it takes no writes: they cannot change
            else:
                n_told += 1
                states.extend(outcome)
            if left == 0:
                if n_told or failed is None:
                    call.answer(Fenced(tuple(states)))
                else:
                    call.fail(failed)

        if not self.disks:
            call.answer(Fenced(()))
        for disk in self.disks.values():
            disk.fence(message.volume, message.epoch, message.chunks, partial(one_done, disk))

    def _seal(self, call: IncomingCall, message: SealFragment) -> None:
        disk = self.disks.get(message.disk)
        if disk is None:
            call.fail(_no_disk(message.disk))
        else:
            disk.seal(message.chunk, message.epoch, message.length, partial(_answer_ok, call))

    def _delete(self, call: IncomingCall, message: DeleteFragment) -> None:
        disk = self.disks.get(message.disk)
        if disk is None:
            call.fail(_no_disk(message.disk))
        else:
            disk.delete(message.chunk, message.epoch, partial(_answer_ok, call))

    def _list(self, call: IncomingCall, message: ListFragments) -> None:
        disk = self.disks.get(message.disk)
        if disk is None:
            call.fail(_no_disk(message.disk))
            return
        states, complete = disk.list_fragments(message.after, min(message.limit, 10_000))
        call.answer(FragmentList(states, complete))


def _answer_ok(call: IncomingCall, error: BlockStoreError | None) -> None:
    if error is None:
        call.answer(Ok())
    else:
        call.fail(error)


class _Buffers:
    """What the ranges of one answer are read into: kept buffers for large ones, given back when it is
    sent."""

    __slots__ = ("_pool", "_taken")

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._taken: list[Payload] = []

    def take(self, length: int) -> memoryview:
        if length < POOLED_BYTES_MIN:
            return fresh_buffer(length)
        payload = self._pool.take(length)
        self._taken.append(payload)
        return payload.view

    def give_back(self) -> None:
        for payload in self._taken:
            payload.release()


def _answer_read(
    call: IncomingCall, found: list[memoryview | BlockStoreError | None], buffers: _Buffers
) -> None:
    crcs = list[int]()
    failed = dict[int, Failed]()
    payload = list[memoryview]()
    for position, outcome in enumerate(found):
        if isinstance(outcome, memoryview):
            crcs.append(crc32c(outcome))
            payload.append(outcome)
        else:
            assert outcome is not None
            crcs.append(0)
            failed[position] = Failed(*to_wire(outcome))
    call.answer(FragmentData(tuple(crcs), failed), payload, buffers.give_back)


def _no_disk(disk: DiskId) -> NotFound:
    return NotFound(f"disk {disk} on this node")
