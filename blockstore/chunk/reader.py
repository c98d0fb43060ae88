"""How one range of one extent is read from its chunk's members: what to ask, and when it is complete.

Pure: the shell asks `next_asks`, carries the requests out, and tells `on_data` or `on_failed`. Nothing
unverified comes out (DESIGN invariant 5): a whole extent is checked against the checksum that its writer
computed, a part of one against the node's, which has checked the disk. A member that gave wrong bytes is out;
the others are asked.

A replica needs one member. A stripe needs the data shards that the range lies in; when one of them is lost or
late, the same bytes of any k shards give it back. What is at hand already counts for these, and so do the
zeros that pad a short stripe, so that a whole stripe with one shard lost costs one more read of one unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from blockstore.chunk.striping import Part, parts_of, used_bytes
from blockstore.codec.checksum import crc32c
from blockstore.codec.erasure import erasure_code
from blockstore.codec.messages import Extent, Placement
from blockstore.errors import BlockStoreError, Corrupt, QuorumLost
from blockstore.ids import DiskId

Buffer = bytes | bytearray | memoryview
Member = tuple[int, DiskId]
InOrder = Callable[[list[Member]], list[Member]]
"""Members, the best to ask at the front."""
IsSound = Callable[[DiskId], bool]


@dataclass(slots=True, eq=False)
class Ask:
    """A request to one member: bytes [start, end) of its part of the extent."""

    read: ExtentRead
    shard_index: int
    disk: DiskId
    start: int
    end: int

    @property
    def offset(self) -> int:
        """In the fragment."""
        return self.read.extent.offset + self.start


class ExtentRead:
    """Bytes [start, end) of an extent, not empty."""

    __slots__ = (
        "_open",
        "end",
        "errors",
        "extent",
        "is_whole",
        "members",
        "out",
        "placement",
        "result",
        "start",
    )

    def __init__(self, extent: Extent, placement: Placement, start: int, end: int) -> None:
        assert 0 <= start < end <= extent.length
        self.extent, self.placement = extent, placement
        self.start, self.end = start, end
        self.is_whole = start == 0 and end == extent.length
        self.members: list[Member] = [(index, disk) for index, disk in enumerate(placement.disks) if disk]
        self.result: list[Buffer] | None = None
        """The bytes, in pieces, once the read is complete."""
        self.errors: list[BlockStoreError] = []
        self.out: set[int] = set()
        """Members that failed, or gave wrong bytes."""
        self._open: list[Ask] = []

    def next_asks(self, is_late: bool, in_order: InOrder, is_sound: IsSound) -> list[Ask]:
        """What to ask now. `is_late`: what is under way takes too long, so ask others as well."""
        raise NotImplementedError

    def on_data(self, ask: Ask, data: memoryview, crc: int) -> None:
        """The member's answer, with its checksum. Wrong bytes count as a failure of the member."""
        self._open.remove(ask)
        if data.nbytes != ask.end - ask.start:
            why = f"{data.nbytes} bytes came, not {ask.end - ask.start}"
            self._fail(ask.shard_index, self._corrupt(ask.shard_index, why))
        elif self.result is None:
            self._accept(ask, data, crc)

    def on_failed(self, ask: Ask, error: BlockStoreError) -> None:
        self._open.remove(ask)
        self._fail(ask.shard_index, error)

    @property
    def is_stuck(self) -> bool:
        """Nothing is under way; if `next_asks` has nothing either, the read has failed."""
        return self.result is None and not self._open

    @property
    def may_be_in_parts(self) -> bool:
        """A member is damaged somewhere in the range; another may have just that, and not all of the rest."""
        return any(isinstance(error, Corrupt) for error in self.errors)

    def failure(self) -> BlockStoreError:
        """Why there is no result. QuorumLost if time may cure it."""
        what = f"Chunk {self.extent.chunk}"
        if self.errors and all(isinstance(error, Corrupt) for error in self.errors):
            return Corrupt(what, f"too few of its fragments are sound: {self.errors[-1]}")
        return QuorumLost(what, len(self.members) - len(self.out), self.placement.k)

    def _accept(self, ask: Ask, data: memoryview, crc: int) -> None:
        raise NotImplementedError

    def _fail(self, shard_index: int, error: BlockStoreError) -> None:
        self.errors.append(error)
        self.out.add(shard_index)

    def _ask(self, member: Member, start: int, end: int) -> Ask:
        ask = Ask(self, member[0], member[1], start, end)
        self._open.append(ask)
        return ask

    def _corrupt(self, shard_index: int, why: str) -> Corrupt:
        disk = self.placement.disks[shard_index]
        return Corrupt(f"Fragment {shard_index} of chunk {self.extent.chunk}", f"disk {disk}: {why}")


def extent_read(extent: Extent, placement: Placement, start: int, end: int) -> ExtentRead:
    kind = ReplicaRead if placement.k == 1 else StripeRead
    return kind(extent, placement, start, end)


class ReplicaRead(ExtentRead):
    __slots__ = ("_untried",)

    def __init__(self, extent: Extent, placement: Placement, start: int, end: int) -> None:
        super().__init__(extent, placement, start, end)
        self._untried = list(self.members)

    def next_asks(self, is_late: bool, in_order: InOrder, is_sound: IsSound) -> list[Ask]:
        if self.result is not None or not self._untried or (self._open and not is_late):
            return []
        member = in_order(self._untried)[0]
        self._untried.remove(member)
        return [self._ask(member, self.start, self.end)]

    def _accept(self, ask: Ask, data: memoryview, crc: int) -> None:
        if crc32c(data) == (self.extent.crc if self.is_whole else crc):
            self.result = [data]
        else:
            self._fail(ask.shard_index, self._corrupt(ask.shard_index, "wrong checksum"))


@dataclass(slots=True)
class _Held:
    """Bytes [start, end) of a shard's part."""

    start: int
    end: int
    data: memoryview
    crc: int  # that the node said


class StripeRead(ExtentRead):
    __slots__ = ("_code", "_disk_of", "_held", "_is_begun", "_is_searching", "_needed", "_window")

    def __init__(self, extent: Extent, placement: Placement, start: int, end: int) -> None:
        super().__init__(extent, placement, start, end)
        self._code = erasure_code(placement.k, placement.m)
        self._disk_of = dict(self.members)
        self._needed = parts_of(extent, start, end)
        self._held: dict[int, list[_Held]] = {}
        self._window: tuple[int, int] | None = None
        """What is read of k shards to rebuild lost ones; it only grows."""
        self._is_begun = False
        self._is_searching = False
        """The bytes are wrong though every node vouches for its own: find the one that lies."""

    def next_asks(self, is_late: bool, in_order: InOrder, is_sound: IsSound) -> list[Ask]:
        if self.result is not None:
            return []
        asks: list[Ask] = []
        if not self._is_begun:
            self._is_begun = True
            for shard, start, end in self._needed:
                disk = self._disk_of.get(shard)
                if disk is not None and is_sound(disk):
                    asks.append(self._ask((shard, disk), start, end))
        if self._is_searching:
            window = (0, self.extent.unit)
            asks = [self._ask(member, *window) for member in self._askable(window)]
            if self.is_stuck:
                self._search()
            return asks
        waited = () if is_late and not asks else self._open
        lost = [part for part in self._needed if not self._find(*part) and not _covers(waited, *part)]
        if not lost:
            return asks
        self._widen(lost)
        assert self._window is not None
        window = self._window
        coming = {ask.shard_index for ask in waited if _covers((ask,), ask.shard_index, *window)}
        n_short = self._code.k - len(coming | set(self._known(window)))
        if n_short > 0:
            candidates = in_order(self._askable(window))
            asks += [self._ask(member, *window) for member in candidates[:n_short]]
        elif not self._open:
            self._complete()
        return asks

    def _askable(self, window: tuple[int, int]) -> list[Member]:
        """Members that could still tell something new about the window."""
        known = set(self._known(window))
        return [
            (shard, disk)
            for shard, disk in self.members
            if shard not in self.out and shard not in known and not _covers(self._open, shard, *window)
        ]

    def _widen(self, lost: list[Part]) -> None:
        start, end = min(part.start for part in lost), max(part.end for part in lost)
        if self._window is not None:
            start, end = min(start, self._window[0]), max(end, self._window[1])
        self._window = (start, end)

    # --- what comes in

    def _accept(self, ask: Ask, data: memoryview, crc: int) -> None:
        if not self.is_whole and crc32c(data) != crc:  # a whole extent is checked once, when it is complete
            self._fail(ask.shard_index, self._corrupt(ask.shard_index, "wrong checksum on the way"))
            return
        self._held.setdefault(ask.shard_index, []).append(_Held(ask.start, ask.end, data, crc))
        if not self._is_searching:
            self._complete()
        elif not self._open:
            self._search()

    def _fail(self, shard_index: int, error: BlockStoreError) -> None:
        super()._fail(shard_index, error)
        self._held.pop(shard_index, None)

    def _complete(self) -> None:
        """Set the result if it is there and right."""
        while (result := self._assemble(self._window)) is not None:
            if not self.is_whole or _crc_of(result) == self.extent.crc:
                self.result = result
                return
            liars = [
                shard
                for shard, held in self._held.items()
                if any(crc32c(one.data) != one.crc for one in held)
            ]
            if not liars:
                self._is_searching = True
                return
            for shard in liars:
                self._fail(shard, self._corrupt(shard, "wrong checksum on the way"))

    def _search(self) -> None:
        """Leave out one shard after the other until the whole is right. With nothing to spare there is no
        telling who is wrong, and the read fails."""
        window = (0, self.extent.unit)
        known = self._known(window)
        for shard in known:
            result = self._assemble(window, without=shard)
            if result is not None and _crc_of(result) == self.extent.crc:
                self._fail(shard, self._corrupt(shard, "bytes that belong elsewhere"))
                self.result = result
                return
        for shard in known:
            self._fail(shard, self._corrupt(shard, "the stripe's checksum fails"))

    # --- what is there

    def _find(self, shard: int, start: int, end: int) -> memoryview | None:
        for held in self._held.get(shard, ()):
            if held.start <= start and end <= held.end:
                return held.data[start - held.start : end - held.start]
        return None

    def _known(self, window: tuple[int, int]) -> list[int]:
        """Shards whose bytes in the window are at hand, or are zeros."""
        start, end = window
        known: list[int] = []
        for shard in range(self._code.k + self._code.m):
            used = used_bytes(self.extent, shard) if shard < self._code.k else self.extent.unit
            if used <= start or self._find(shard, start, min(end, used)) is not None:
                known.append(shard)
        return known

    def _buffer(self, shard: int, window: tuple[int, int]) -> Buffer:
        """A known shard's bytes in the window."""
        start, end = window
        used = used_bytes(self.extent, shard) if shard < self._code.k else self.extent.unit
        found = self._find(shard, start, min(end, used)) if used > start else None
        if found is None:
            return bytes(end - start)
        return found if end <= used else bytes(found) + bytes(end - used)

    def _assemble(self, window: tuple[int, int] | None, without: int = -1) -> list[Buffer] | None:
        """The range, from what is held of it and, for the rest, from k shards over the window; None if not
        yet. The bytes of shard `without` are not used."""
        found = [None if part.shard_index == without else self._find(*part) for part in self._needed]
        lost = [part.shard_index for part, data in zip(self._needed, found, strict=True) if data is None]
        rebuilt: dict[int, memoryview] = {}
        if lost:
            if window is None or any(
                data is None and not (window[0] <= start and end <= window[1])
                for (_, start, end), data in zip(self._needed, found, strict=True)
            ):
                return None  # one of them is still waited for
            known = [shard for shard in self._known(window) if shard != without]
            if len(known) < self._code.k:
                return None
            chosen = {shard: self._buffer(shard, window) for shard in islice(known, self._code.k)}
            for shard, data in zip(lost, self._code.reconstruct(chosen, lost), strict=True):
                rebuilt[shard] = memoryview(data)
        origin = window[0] if window else 0
        return [
            rebuilt[shard][start - origin : end - origin] if data is None else data
            for (shard, start, end), data in zip(self._needed, found, strict=True)
        ]


def _covers(asks: list[Ask] | tuple[Ask, ...], shard: int, start: int, end: int) -> bool:
    return any(ask.shard_index == shard and ask.start <= start and end <= ask.end for ask in asks)


def _crc_of(pieces: list[Buffer]) -> int:
    total = 0
    for piece in pieces:
        total = crc32c(piece, total)
    return total
