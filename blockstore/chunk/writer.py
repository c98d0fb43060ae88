"""The writer's side of one open chunk: where the next append goes, and what is durable.

Pure. A chunk has one writer (DESIGN invariant 2). Appends to a fragment are applied in order, so a member
that has acknowledged length L has every byte below L on its disk, and what the whole write set has is the
smallest of its members' lengths. When a member fails the chunk is broken: its acknowledged length stands as
it is from that moment (the owner may be told it and seal the chunk there), and acknowledgements that come
later change nothing."""

from __future__ import annotations

from collections import deque

from blockstore.codec.fragment_file import RECORDS_MAX, n_pieces
from blockstore.codec.messages import FragmentSpec, Placement
from blockstore.config import MEMBER_LATE_SECONDS
from blockstore.errors import FragmentFull, ProtocolViolation
from blockstore.ids import ChunkId, DiskId


class ChunkWriter:
    """`capacity` is the number of bytes that one fragment may hold."""

    __slots__ = (
        "_acked", "_n_records", "_sent", "acknowledged", "broken", "capacity", "chunk", "epoch", "members",
        "placement", "reserved", "token",
    )  # fmt: skip

    def __init__(
        self, chunk: ChunkId, epoch: int, placement: Placement, capacity: int, token: bytes = b""
    ) -> None:
        self.chunk, self.epoch, self.placement, self.capacity = chunk, epoch, placement, capacity
        self.token = token
        self.members: list[tuple[int, DiskId]] = [
            (shard_index, disk) for shard_index, disk in enumerate(placement.disks) if disk
        ]
        """The write set: (shard_index, disk)."""
        assert self.members, "a chunk is opened on somebody"
        self.reserved = 0
        self.acknowledged = 0
        self.broken = False
        self._n_records = 0  # in each fragment's log, which small appends fill before its data is full
        self._acked: dict[int, int] = {shard_index: 0 for shard_index, _ in self.members}
        self._sent: deque[tuple[int, float]] = deque()  # (end, when) of what is not acknowledged, in order

    def reserve(self, fragment_bytes: int, now: float) -> int:
        """The offset of the next append to every member; it is sent at once. FragmentFull when it does not
        fit."""
        assert not self.broken
        assert fragment_bytes > 0
        offset = self.reserved
        n_records = self._n_records + n_pieces(offset, fragment_bytes)
        if offset + fragment_bytes > self.capacity or n_records > RECORDS_MAX:
            raise FragmentFull
        self._n_records = n_records
        self.reserved = offset + fragment_bytes
        self._sent.append((self.reserved, now))
        return offset

    def spec(self, shard_index: int, offset: int) -> FragmentSpec | None:
        """What rides on an append at `offset`: the first one creates the fragment."""
        if offset:
            return None
        return FragmentSpec(shard_index, self.placement.k, self.placement.m, self.capacity)

    def on_ack(self, shard_index: int, length: int) -> None:
        """A member has everything below `length`. Late, repeated and reordered ones are harmless."""
        acked = self._acked
        if length > self.reserved:
            raise ProtocolViolation(
                f"Chunk {self.chunk}: member {shard_index} acknowledged {length} of {self.reserved} bytes."
            )
        if self.broken or length <= acked[shard_index]:
            return
        acked[shard_index] = length
        self.acknowledged = acknowledged = min(acked.values())
        sent = self._sent
        while sent and sent[0][0] <= acknowledged:
            sent.popleft()

    def on_failure(self, shard_index: int) -> None:
        """A member failed, or was late: the chunk ends at what is acknowledged."""
        assert shard_index in self._acked
        self.broken = True

    def late(self, now: float, late_seconds: float = MEMBER_LATE_SECONDS) -> list[tuple[int, DiskId]]:
        """Members that owe an acknowledgement for longer than that."""
        if not self._sent or self.broken:
            return []
        end, when = self._sent[0]
        if now - when < late_seconds:
            return []
        return [(shard_index, disk) for shard_index, disk in self.members if self._acked[shard_index] < end]
