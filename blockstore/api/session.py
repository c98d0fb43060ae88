"""Values of one volume, put and read by a client: through the owner if they are small, past it if not.

Built on requests to the owner (`owner_session.py`), which retry; what nodes are asked for is retried here, by
looking up once more where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from blockstore import config
from blockstore.api.cluster import (
    Attempts,
    Backoff,
    ClusterSession,
    may_retry,
    unexpected,
)
from blockstore.api.many_values import Looked, Remote, batches, take_values, take_versions, waves
from blockstore.api.owner_session import OwnerSession
from blockstore.chunk.chunk_shell import ChunkReader, DataWriter, Want
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import (
    Entry,
    Extent,
    Found,
    FoundMany,
    Grant,
    Granted,
    KeyPage,
    ListKeys,
    Lookup,
    LookupMany,
    Placement,
    Put,
    Written,
)
from blockstore.errors import (
    BlockStoreError,
    Corrupt,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    ProtocolViolation,
    StaleEpoch,
    Unavailable,
)
from blockstore.ids import ChunkId, DiskId, MiB
from blockstore.runtime.interfaces import Answer, Buffer

TRANSFER_PIECE_BYTES = 16 * MiB
"""Large values move in pieces of this, each with the whole timeout anew: memory stays bounded, and a transfer
of any size goes on as long as it makes progress. Four full appends, so the members are kept busy."""

EXTENTS_MAX = 24_000
"""Of one value: 40 bytes each in a message, they fill a frame's header. 94 GiB in appends of 4 MiB."""

REWRITES_MAX = 3
"""How often the bytes of one large value are written anew because owners changed before it was committed."""


class Source(Protocol):
    """The bytes of a value to put, from memory or from a file."""

    async def read(self, n_bytes: int) -> Buffer:
        """The next `n_bytes`; fewer only at the end."""
        ...

    async def rewind(self) -> bool:
        """Start again from the first byte; False if that is not possible."""
        ...


class VolumeSession(OwnerSession):
    """The values of the volume called `name`."""

    def __init__(self, cluster: ClusterSession, name: str, kind: str = "bucket") -> None:
        super().__init__(cluster, name, kind)
        self._reader = ChunkReader(cluster.caller, cluster.nodes, cluster.rng)
        self._writer = self._new_writer()

    def _begin_anew(self) -> None:
        self._writer = self._new_writer()

    # --- writing values

    async def put_small(
        self, key: bytes, meta: bytes, value: Buffer, expected: int, timeout: float
    ) -> tuple[int, int]:
        """Put a value that rides in the journal; `(sequence, crc)` once it is durable."""
        crc = crc32c(value)
        op = Put(key, meta, memoryview(value).nbytes, crc, (), expected)
        answer = await self.call(op, (value,) if op.size else (), self._caller.now() + timeout)
        return _written(answer), crc

    async def put(
        self, key: bytes, meta: bytes, source: Source, expected: int, timeout: float
    ) -> tuple[int, int, int]:
        """Put what `source` yields: `(sequence, size, crc)`. `timeout` is for each piece, and for the
        commit."""
        for _ in range(REWRITES_MAX):
            first = await source.read(TRANSFER_PIECE_BYTES)
            size = memoryview(first).nbytes
            if size <= config.INLINE_BYTES_MAX:
                sequence, crc = await self.put_small(key, meta, first, expected, timeout)
                return sequence, size, crc
            extents, size, crc = await self._write_pieces(first, source, timeout)
            op = Put(key, meta, size, crc, tuple(extents), expected)
            try:
                answer = await self.call(op, (), self._caller.now() + timeout)
            except (
                StaleEpoch
            ) as error:  # the owner that granted the chunks is gone, and their ends were not found
                if not await source.rewind():
                    raise Unavailable(
                        "The owner changed while the value was being written, and its source cannot be "
                        "read again; put it once more."
                    ) from error
                continue
            return _written(answer), size, crc
        raise Unavailable(f"The owner changed {REWRITES_MAX} times while the value was being written.")

    async def write_extents(self, data: memoryview, piece_bytes: int, timeout: float) -> tuple[Extent, ...]:
        """Write `data` into granted chunks; none of its extents crosses a multiple of `piece_bytes`. It is
        there for whoever commits them through this session."""
        return await self._writer.write(data, self._caller.now() + timeout, piece_bytes)

    async def _write_pieces(
        self, piece: Buffer, source: Source, timeout: float
    ) -> tuple[list[Extent], int, int]:
        """Write `piece` and all that follows into granted chunks: `(extents, size, crc)`."""
        extents: list[Extent] = []
        size = crc = 0
        writer = self._writer
        while n_bytes := memoryview(piece).nbytes:
            extents += await writer.write(piece, self._caller.now() + timeout)
            if len(extents) > EXTENTS_MAX:
                raise InvalidRequest(f"The value is too large: {size:,} bytes took {EXTENTS_MAX:,} appends.")
            crc = crc32c(piece, crc)
            size += n_bytes
            piece = await source.read(TRANSFER_PIECE_BYTES) if n_bytes == TRANSFER_PIECE_BYTES else b""
        return extents, size, crc

    def _new_writer(self) -> DataWriter:
        return DataWriter(self._caller, self.cluster.nodes, self._grant, self.cluster.rng)

    async def _grant(
        self, finished: tuple[tuple[ChunkId, int], ...], avoid: tuple[DiskId, ...], deadline: float
    ) -> Granted:
        answer = await self.call(Grant(finished, avoid), (), deadline)
        answer.payload.release()
        if not isinstance(answer.message, Granted):
            raise unexpected(answer.message)
        return answer.message

    # --- reading values

    async def fetch_entry(self, key: bytes, at: int, timeout: float) -> Entry:
        """The version visible at sequence `at`, without its bytes. NotFound when there is none."""
        return (await self.ask(Lookup(key, at, 0, -1, False), Found, timeout)).entry

    async def fetch_page(self, op: ListKeys, timeout: float) -> KeyPage:
        """A page of a listing. NotFound when what it is to show is not there any more."""
        return await self.ask(op, KeyPage, timeout)

    async def fetch(self, key: bytes, at: int, start: int, end: int, timeout: float) -> tuple[Found, bytes]:
        """The bytes `[start, end)` of the version visible at `at`; `end` -1 is the value's end. What lies
        past it is left out. `timeout` is for each piece of a large value."""
        while True:
            found, data = await self.fetch_inline(key, at, start, end, timeout)
            if data is None:
                size = found.entry.size
                first, last = min(start, size), size if end < 0 else min(end, size)
                try:
                    data = await self.fetch_version(found, at, first, last, timeout)
                except PreconditionFailed:  # replaced while we read: read the new one
                    continue
            return found, data

    async def fetch_inline(
        self, key: bytes, at: int, start: int, end: int, timeout: float
    ) -> tuple[Found, bytes | None]:
        """The version, with its bytes `[start, end)` if the owner gave them along."""
        answer = await self.call(Lookup(key, at, start, end), (), self._caller.now() + timeout)
        found = answer.message
        if not isinstance(found, Found):
            raise unexpected(found)
        entry = found.entry
        if entry.inline < 0:
            answer.payload.release()
            return found, None
        data = bytes(answer.payload.view)
        answer.payload.release()
        size = entry.size
        n_wanted = max(0, (size if end < 0 or end > size else end) - start)
        if len(data) != n_wanted:
            raise ProtocolViolation(f"the owner answered with {len(data)} of {n_wanted} bytes")
        if n_wanted == size and crc32c(data) != entry.crc:
            raise Corrupt(f"The value of {key!r}", "it changed on its way from the owner")
        return found, data

    async def fetch_version(self, found: Found, at: int, start: int, end: int, timeout: float) -> bytes:
        """The bytes `[start, end)` of exactly this version, from the nodes. PreconditionFailed when it is not
        the current one any more and its chunks are gone."""
        entry = found.entry
        pieces: list[bytes] = []
        crc = 0
        for offset in range(start, end, TRANSFER_PIECE_BYTES):
            until = min(end, offset + TRANSFER_PIECE_BYTES)
            found, piece = await self._fetch_piece(found, at, offset, until, self._caller.now() + timeout)
            crc = crc32c(piece, crc)
            pieces.append(piece)
        if start == 0 and end == entry.size and crc != entry.crc:
            raise Corrupt(f"The value of {entry.key!r}", "its checksum is not the one it was put with")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _fetch_piece(
        self, found: Found, at: int, start: int, end: int, deadline: float
    ) -> tuple[Found, bytes]:
        """One piece, and where the version was found to be: its bytes may have moved since it was looked
        up."""
        entry = found.entry
        backoff = Backoff(self.cluster.rng)
        attempts = Attempts()
        while True:
            try:
                data = await self._reader.read(found.entry.extents, found.placements, start, end, deadline)
            except BlockStoreError as error:
                if not may_retry(error):
                    raise
                attempts.add("its nodes", error)
            else:
                return found, data
            left = deadline - self._caller.now()
            if left <= 0:
                raise Unavailable(
                    f"The value of {entry.key!r} could not be read in time: {attempts.sentence()}."
                )
            await self._caller.sleep(min(backoff.next(), left))
            await self._watch(deadline)
            again, inline = await self.fetch_inline(entry.key, at, start, end, left)
            if again.entry.sequence != entry.sequence:
                raise PreconditionFailed(f"Object {entry.key!r} was replaced while it was being read.")
            if inline is not None:
                return found, inline
            found = again

    # --- reading many

    async def fetch_many(
        self, keys: Sequence[bytes], ranges: Sequence[tuple[int, int]], at: int, timeout: float
    ) -> list[bytes | None]:
        """The values, or their `ranges` (none given, or one a key), in the order asked; None where there is
        no such key. `timeout` is for all lookups, and again for each `READ_MANY_BYTES_MAX` read from the
        nodes."""
        ops = [
            LookupMany(tuple(keys[start:end]), at, tuple(ranges[start:end])) for start, end in batches(keys)
        ]
        results: list[bytes | None] = []
        remote: list[Remote] = []
        for op, answer in zip(ops, await self._call_many(ops, self._caller.now() + timeout), strict=True):
            take_values(op, answer, results, remote)
            answer.payload.release()
        for wave in waves(remote):
            data = await self._fetch_wave(wave, at, timeout)
            for want, value in zip(wave, data, strict=True):
                results[want.index] = value
        return results

    async def look_up_many(
        self,
        keys: Sequence[bytes],
        ranges: Sequence[tuple[int, int]],
        at: int,
        timeout: float,
        n_at_once: int,
    ) -> list[Looked | None]:
        """The versions of keys, with the values that the owner gives along; None where there is no such key.
        Up to `n_at_once` keys are asked in one request, and are of one instant."""
        ops = [
            LookupMany(tuple(keys[start:end]), at, tuple(ranges[start:end]))
            for start, end in batches(keys, n_at_once)
        ]
        found: list[Looked | None] = []
        for op, answer in zip(ops, await self._call_many(ops, self._caller.now() + timeout), strict=True):
            found += take_versions(op, answer)
            answer.payload.release()
        return found

    async def look_up_places(self, keys: Sequence[bytes], at: int, timeout: float) -> list[Found | None]:
        """Where the versions of keys are, without their bytes and metadata; None where there is no such
        key."""
        ops = [LookupMany(tuple(keys[start:end]), at, (), False) for start, end in batches(keys)]
        places: list[Found | None] = []
        for op, answer in zip(ops, await self._call_many(ops, self._caller.now() + timeout), strict=True):
            found = answer.message
            answer.payload.release()
            if not isinstance(found, FoundMany) or len(found.entries) != len(op.keys):
                raise unexpected(found)
            places += [
                None if entry is None else Found(msgspec.structs.replace(entry, key=key), found.placements)
                for key, entry in zip(op.keys, found.entries, strict=True)
            ]
        return places

    async def read_remote(self, wanted: Sequence[Remote], timeout: float) -> list[bytes]:
        """The bytes of exactly these versions. Fails when they are not there any more: look them up again."""
        wants: list[Want] = [(want.entry.extents, want.placements, want.start, want.end) for want in wanted]
        data = await self.read_extents(wants, timeout)
        return [want.verified(value) for want, value in zip(wanted, data, strict=True)]

    async def try_extents(
        self,
        extents: Sequence[Extent],
        placements: Mapping[ChunkId, Placement],
        start: int,
        end: int,
        timeout: float,
    ) -> bytes | None:
        """Bytes [start, end) of what they make up, if one node has them all and gives them at once."""
        deadline = self._caller.now() + timeout
        return await self._reader.try_one(extents, placements, start, end, deadline)

    async def read_extents(self, wanted: Sequence[Want], timeout: float) -> list[bytes]:
        """What these extents have. Fails when it is not there any more: look up where it is now."""
        return await self._reader.read_many(wanted, self._caller.now() + timeout)

    async def _fetch_wave(self, wave: Sequence[Remote], at: int, timeout: float) -> list[bytes | None]:
        wants: list[Want] = [(want.entry.extents, want.placements, want.start, want.end) for want in wave]
        try:
            data = await self._reader.read_many(wants, self._caller.now() + timeout)
        except BlockStoreError as error:
            if not may_retry(error):
                raise
            return [await self._fetch_alone(want, at, timeout) for want in wave]
        return [want.verified(value) for want, value in zip(wave, data, strict=True)]

    async def _fetch_alone(self, want: Remote, at: int, timeout: float) -> bytes | None:
        """The slow way, with retries; a value that was replaced meanwhile comes as it is now: its own end,
        where the end was asked for."""
        try:
            entry = msgspec.structs.replace(want.entry, key=want.key)
            found = Found(entry, dict(want.placements))
            return await self.fetch_version(found, at, want.start, want.end, timeout)
        except PreconditionFailed:
            pass
        try:
            _, data = await self.fetch(want.key, at, *want.asked, timeout)
        except NotFound:
            if at:
                raise  # a snapshot does not change: it is gone
            return None
        return data


def _written(answer: Answer) -> int:
    written = answer.message
    if not isinstance(written, Written):
        raise unexpected(written)
    answer.payload.release()
    return written.sequence
