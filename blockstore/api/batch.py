"""Several small puts and deletes of one bucket that become true together, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from blockstore.api.session import VolumeSession
from blockstore.api.value_source import as_buffer
from blockstore.codec.checksum import crc32c
from blockstore.codec.messages import ABSENT, ANY, Batch, KeyWrite, Written
from blockstore.config import BATCH_BYTES_MAX, BATCH_KEYS_MAX, INLINE_BYTES_MAX
from blockstore.errors import InvalidRequest, NotFound
from blockstore.kinds.bucket import ObjectInfo, encode_meta, etag_of, key_of, sequence_of_etag


class _Change(NamedTuple):
    key: bytes
    value: memoryview | None  # None: delete
    metadata: dict[str, str] | None
    expected: int


class BatchChanges:
    """What a batch shall do, collected. Nothing is sent before `commit`."""

    def __init__(self) -> None:
        self.changes: dict[str, _Change] = {}

    def put(
        self,
        name: str,
        data: bytes | bytearray | memoryview,
        *,
        metadata: dict[str, str] | None = None,
        if_absent: bool = False,
        if_etag: str | None = None,
    ) -> None:
        """Make `data`, of up to 128 KiB, the object called `name`; it must not change before the commit."""
        value = as_buffer(data)
        if value is None:
            raise InvalidRequest(f"A batch takes bytes, not {type(data).__name__}; put a file by itself.")
        if value.nbytes > INLINE_BYTES_MAX:
            raise InvalidRequest(
                f"A value of {value.nbytes:,} bytes is too large for a batch (at most {INLINE_BYTES_MAX:,}); "
                "put it by itself."
            )
        self._add(name, value, metadata, expected_version(if_absent, if_etag))

    def delete(self, name: str, *, if_etag: str | None = None) -> None:
        """Delete the object; the batch fails if there is none."""
        self._add(name, None, None, expected_version(False, if_etag))

    def _add(
        self, name: str, value: memoryview | None, metadata: dict[str, str] | None, expected: int
    ) -> None:
        key = key_of(name)
        if name in self.changes:
            raise InvalidRequest(f"The batch has a change of {name!r} already; a second one would hide it.")
        self.changes[name] = _Change(key, value, dict(metadata) if metadata else None, expected)


def expected_version(if_absent: bool, if_etag: str | None) -> int:
    """What a condition asks of the present version, as messages say it."""
    if if_etag is None:
        return ABSENT if if_absent else ANY
    if if_absent:
        raise InvalidRequest("if_absent and if_etag exclude each other.")
    return sequence_of_etag(if_etag)


async def commit(
    session: VolumeSession, wall: Callable[[], float], changes: BatchChanges, timeout: float
) -> list[ObjectInfo]:
    """Carry the batch out; what was put, in order. PreconditionFailed and NotFound name the object that stood
    in the way; then nothing was changed."""
    modified = wall()
    writes: list[KeyWrite] = []
    values: list[memoryview] = []
    for one in changes.changes.values():
        if one.value is None:
            writes.append(KeyWrite(one.key, None, 0, 0, one.expected))
        else:
            meta = encode_meta(one.metadata, modified)
            writes.append(KeyWrite(one.key, meta, one.value.nbytes, crc32c(one.value), one.expected))
            values.append(one.value)
    if not writes:
        return []
    _check_bounds(writes)
    try:
        sequence = await _send(session, Batch(tuple(writes)), values, timeout)
    except NotFound as error:
        words = str(error.fields[0])
        if not words.startswith("object "):
            raise
        raise NotFound(f"{words} in bucket {session.name!r}") from None
    infos = [
        ObjectInfo(name, write.size, etag_of(sequence, write.crc), modified, one.metadata or {}, sequence)
        for (name, one), write in zip(changes.changes.items(), writes, strict=True)
        if one.value is not None
    ]
    changes.changes.clear()
    return infos


async def _send(session: VolumeSession, op: Batch, values: Sequence[memoryview], timeout: float) -> int:
    written = await session.ask(op, Written, timeout, [value for value in values if value.nbytes])
    return written.sequence


def _check_bounds(writes: Sequence[KeyWrite]) -> None:
    n_bytes = sum(write.size + len(write.key) + len(write.meta or b"") for write in writes)
    if len(writes) > BATCH_KEYS_MAX or n_bytes > BATCH_BYTES_MAX:
        raise InvalidRequest(
            f"A batch has up to {BATCH_KEYS_MAX:,} changes and {BATCH_BYTES_MAX:,} bytes, names and metadata "
            f"included; this one has {len(writes):,} and {n_bytes:,}."
        )
