"""What may be asked of an owner."""

from __future__ import annotations

import pytest

from blockstore.codec.checksum import crc32c
from blockstore.codec.journal_record import (
    BatchRecord,
    DeleteRecord,
    JournalRecord,
    PutRecord,
    RestoreRecord,
    SnapshotRecord,
)
from blockstore.codec.messages import (
    ANY,
    Batch,
    Delete,
    Extent,
    KeyWrite,
    ListKeys,
    Lookup,
    LookupMany,
    Put,
    Restore,
    SnapshotCreate,
    VolumeCall,
)
from blockstore.config import BATCH_KEYS_MAX, INLINE_BYTES_MAX, RESTORE_KEYS_MAX
from blockstore.errors import Corrupt, InvalidRequest, NotFound
from blockstore.ids import ChunkId, RequestId, SessionId, VolumeId
from blockstore.volume.requests import (
    CONDITIONS_MAX,
    KEY_BYTES_MAX,
    LIST_LIMIT_MAX,
    LOOKUP_KEYS_MAX,
    META_BYTES_MAX,
    SNAPSHOT_NAME_MAX,
    check_read,
    clip,
    to_record,
)
from blockstore.volume.state import VolumeState

VOLUME = VolumeId(7)
CHUNK = ChunkId(VOLUME, 1, 1)
Change = Put | Delete | Batch | Restore | SnapshotCreate
FULL = b"v" * INLINE_BYTES_MAX
FULL_CRC = crc32c(FULL)


def ask(op: Change, payload: bytes = b"") -> tuple[JournalRecord, memoryview | None]:
    call = VolumeCall(VOLUME, 1, RequestId(SessionId(9), 3), 2, op)
    return to_record(call, memoryview(payload), 12.5)


def put(value: bytes = b"value", key: bytes = b"key", meta: bytes = b"") -> Put:
    return Put(key, meta, len(value), crc32c(value), (), ANY)


def test_a_small_value_rides_in_its_record() -> None:
    record, value = ask(put(), b"value")
    assert isinstance(record, PutRecord)
    assert record.inline
    assert value is not None
    assert bytes(value) == b"value"
    assert (record.request, record.settled) == (RequestId(SessionId(9), 3), 2)


def test_a_large_value_is_referred_to() -> None:
    extents = (Extent(CHUNK, 0, 10, 10, 0), Extent(CHUNK, 10, 5, 5, 0))
    record, value = ask(Put(b"key", b"", 15, 0, extents, ANY))
    assert isinstance(record, PutRecord)
    assert (record.inline, record.extents, value) == (False, extents, None)


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (put(key=b""), b"value"),
        (put(key=b"k" * (KEY_BYTES_MAX + 1)), b"value"),
        (put(meta=b"m" * (META_BYTES_MAX + 1)), b"value"),
        (put(), b"other length"),
        (put(b"v" * (INLINE_BYTES_MAX + 1)), b"v" * (INLINE_BYTES_MAX + 1)),
        (Put(b"key", b"", -1, 0, (), ANY), b""),
        (Put(b"key", b"", 10, 0, (Extent(CHUNK, 0, 9, 9, 0),), ANY), b""),
        (Put(b"key", b"", 9, 0, (Extent(CHUNK, 0, 9, 9, 0),), ANY), b"and bytes"),
        (Put(b"key", b"", 9, 0, (Extent(ChunkId(VolumeId(8), 1, 1), 0, 9, 9, 0),), ANY), b""),
        (Put(b"key", b"", 9, 0, (Extent(CHUNK, -1, 9, 9, 0),), ANY), b""),
        (Put(b"key", b"", 9, 0, (Extent(CHUNK, 0, 9, 0, 0),), ANY), b""),
        (Put(b"key", b"", 9, 0, (Extent(CHUNK, 0, 10, 9, 0), Extent(CHUNK, 0, -1, 9, 0)), ANY), b""),
        (Delete(b"", ANY), b""),
        (Batch(()), b""),
        (Batch((KeyWrite(b"", b"", 1, crc32c(b"v"), ANY),)), b"v"),
        (Batch((KeyWrite(b"k", b"m" * (META_BYTES_MAX + 1), 1, crc32c(b"v"), ANY),)), b"v"),
        (Batch((KeyWrite(b"k", b"", 1, crc32c(b"v"), ANY),)), b"vv"),
        (Batch((KeyWrite(b"k", None, 1, crc32c(b"v"), ANY),)), b"v"),
        (Batch((KeyWrite(b"k", b"", -1, 0, ANY),)), b""),
        (Batch((KeyWrite(b"k", None, 0, 0, ANY), KeyWrite(b"k", None, 0, 0, ANY))), b""),
        (Batch((KeyWrite(b"k", b"", 9, 0, ANY, (Extent(CHUNK, 0, 8, 8, 0),)),)), b""),
        (Batch((KeyWrite(b"k", None, 9, 0, ANY, (Extent(CHUNK, 0, 9, 9, 0),)),)), b""),
        (Batch((KeyWrite(b"k", b"", 9, 0, ANY, (Extent(CHUNK, 0, 9, 9, 0),)),)), b"and bytes"),
        (Batch((KeyWrite(b"k", None, 0, 0, ANY),), ((b"", 1),)), b""),
        (Batch((KeyWrite(b"k", None, 0, 0, ANY),), ((b"w", 1),) * (CONDITIONS_MAX + 1)), b""),
        (Batch(tuple(KeyWrite(b"%d" % i, None, 0, 0, ANY) for i in range(BATCH_KEYS_MAX + 1))), b""),
        (Batch(tuple(KeyWrite(b"%d" % i, b"", INLINE_BYTES_MAX, FULL_CRC, ANY) for i in range(7))), FULL * 7),
        (Restore((), 1), b""),
        (Restore((b"",), 1), b""),
        (Restore((b"k",), 1, (b"k" * (KEY_BYTES_MAX + 1),)), b""),
        (Restore((b"k", b"l"), 1, (b"k",)), b""),
        (Restore((b"k", b"k"), 1), b""),
        (Restore((b"k", b"l"), 1, (b"m", b"m")), b""),
        (Restore(tuple(b"%d" % index for index in range(RESTORE_KEYS_MAX + 1)), 1), b""),
        (SnapshotCreate(""), b""),
        (SnapshotCreate("a/b"), b""),
        (SnapshotCreate("a@b"), b""),
        (SnapshotCreate("a\nb"), b""),
        (SnapshotCreate("é" * (SNAPSHOT_NAME_MAX // 2 + 1)), b""),
    ],
)
def test_what_cannot_be_is_refused(op: Change, payload: bytes) -> None:
    with pytest.raises(InvalidRequest):
        ask(op, payload)


def test_a_value_that_changed_on_its_way_is_refused() -> None:
    with pytest.raises(Corrupt):
        ask(put(b"value"), b"vaIue")


def test_a_batch_becomes_its_record_if_its_values_are_what_was_sent() -> None:
    changes = (
        KeyWrite(b"k", b"m", 1, crc32c(b"v"), ANY),
        KeyWrite(b"l", None, 0, 0, ANY),
        KeyWrite(b"l2", b"", 9, 5, ANY, (Extent(CHUNK, 0, 9, 9, 5),)),
        KeyWrite(b"m", b"m", 2, crc32c(b"ww"), ANY),
    )
    record, value = ask(Batch(changes, ((b"w", 7),)), b"vww")
    assert isinstance(record, BatchRecord)
    assert (record.changes, record.conditions, bytes(value or b"")) == (changes, ((b"w", 7),), b"vww")
    with pytest.raises(Corrupt):
        ask(Batch(changes), b"vwv")


def test_a_restore_becomes_its_record() -> None:
    record, value = ask(Restore((b"k", b"l"), 5, (b"l", b"k")))
    assert isinstance(record, RestoreRecord)
    assert (record.keys, record.at, record.targets, value) == ((b"k", b"l"), 5, (b"l", b"k"), None)


def test_a_snapshot_and_a_delete_become_their_records() -> None:
    record, _ = ask(SnapshotCreate("s" * SNAPSHOT_NAME_MAX))
    assert isinstance(record, SnapshotRecord)
    assert record.created == 12.5
    record, _ = ask(Delete(b"key", 7))
    assert isinstance(record, DeleteRecord)
    assert record.expected == 7


@pytest.mark.parametrize(
    "op",
    [
        LookupMany((b"k",) * (LOOKUP_KEYS_MAX + 1), 0, ()),
        LookupMany((b"k", b"l"), 0, ((0, 1),)),
        ListKeys(limit=0),
        ListKeys(limit=LIST_LIMIT_MAX + 1),
    ],
)
def test_reads_have_bounds(op: LookupMany | ListKeys) -> None:
    with pytest.raises(InvalidRequest):
        check_read(op, VolumeState(VOLUME))


def test_only_the_head_and_snapshots_can_be_read() -> None:
    with pytest.raises(NotFound, match="snapshot"):
        check_read(Lookup(b"k", 5, 0, -1, True), VolumeState(VOLUME))


@pytest.mark.parametrize(
    ("start", "end", "part"),
    [
        (0, -1, (0, 10)),
        (3, 5, (3, 5)),
        (3, 99, (3, 10)),
        (20, 30, (10, 10)),
        (20, -1, (10, 10)),
        (0, 0, (0, 0)),
    ],
)
def test_a_range_is_cut_to_what_the_value_has(start: int, end: int, part: tuple[int, int]) -> None:
    assert clip(start, end, 10) == part


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, -2)])
def test_what_is_no_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(InvalidRequest):
        clip(start, end, 10)
