"""Reads one slot after a restart: carries out `recovery.py`. Blocking, before anything else uses the disk.

Everything was synced before (`DiskShell.recover`), in one call: thousands of syncs take minutes. An open
fragment's file is synced once more by itself, for the error is told to whoever syncs the file, and then its
cache is dropped: after a write that failed, it may show bytes that no disk will ever have.
"""

from __future__ import annotations

from collections.abc import Callable

from blockstore.codec.fragment_file import (
    DATA_START,
    HEADER_BYTES,
    LOG_START,
    RECORD_BYTES,
    Header,
    State,
    decode_header,
    encode_header,
)
from blockstore.config import FRAGMENT_LOG_BYTES
from blockstore.errors import Corrupt
from blockstore.ids import ChunkId, DiskId
from blockstore.node.fragment import Fragment
from blockstore.node.recovery import judge, scan_log
from blockstore.node.slots_shell import file_name
from blockstore.runtime.interfaces import Disk, File, Write


def recover_slot(
    disk: Disk,
    disk_id: DiskId,
    slot: int,
    is_deleted: Callable[[ChunkId], bool],
    tell: Callable[[str, str], None],
) -> Fragment | Header | None:
    """The fragment in a slot, or the header of a free one; None when it was never used, and is removed now.

    Raises Corrupt when the slot cannot be told, DiskFailed, UnknownFormat.
    """
    file = disk.open(file_name(slot))
    try:
        blocks = bytearray(HEADER_BYTES)
        file.read(0, memoryview(blocks))
        header = decode_header(blocks, disk_id, slot)
        if header is None:
            if any(blocks) or not _is_unused(file):
                raise Corrupt(f"Slot {slot}", "both copies of its header")
            disk.remove(file_name(slot))  # power failed while it was made
            return None
        if header.state is State.FREE:
            return header
        if is_deleted(header.chunk):
            free = Fragment(header).free()  # power failed between the tombstone and the header
            file.write((Write(0, (encode_header(free),)),))
            return free
        if header.state is State.OPEN:
            return _recover_open(header, file, tell)
        return Fragment(header)
    finally:
        file.close()


def _is_unused(file: File) -> bool:
    log = bytearray(HEADER_BYTES)
    file.read(LOG_START, memoryview(log))
    return not any(log)


def _recover_open(header: Header, file: File, tell: Callable[[str, str], None]) -> Fragment:
    file.write(())
    file.forget_cached()
    log = bytearray(FRAGMENT_LOG_BYTES)
    file.read(LOG_START, memoryview(log))
    scan = scan_log(header, log)
    start, end = scan.tail
    tail = memoryview(bytearray(end - start))
    file.read(DATA_START + start, tail)
    verdict = judge(header, scan, tail)
    fragment = Fragment.recovered(header, scan.index, verdict)
    writes = list[Write]()
    if fragment.damaged:
        tell("fragment-damaged", f"records of {header.chunk} are lost: {scan.index.bad}")
    elif verdict.blank_until > verdict.n_records:
        blank = bytes((verdict.blank_until - verdict.n_records) * RECORD_BYTES)
        writes.append(Write(LOG_START + verdict.n_records * RECORD_BYTES, (blank,)))
    if verdict.doubtful and not header.doubtful:
        writes.append(Write(0, (fragment.mark_doubtful(),)))
        tell("fragment-doubtful", f"{header.chunk} was cut to {verdict.length} bytes at a bad checksum")
    if writes:
        file.write(writes)
    return fragment
