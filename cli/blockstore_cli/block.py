"""`blockstore block …`: virtual disks: make, fill, read, snapshot, compare and delete them.

A device has one writer. `write`, `discard` and `resize` take it over: whoever wrote to it until then is
refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

import blockstore
from blockstore.api.value_source import open_file
from blockstore.errors import InvalidRequest, NotFound, of_path
from blockstore.ids import MiB
from blockstore_cli.address import parse_place
from blockstore_cli.flattening import clone_facts, flatten
from blockstore_cli.output import answer, confirm, facts_table, size, table, when
from blockstore_cli.settings import Noun, example, settings
from blockstore_cli.tree import regular_file

PIECE_BYTES = 4 * MiB
"""Read or written at once: four whole spans, where the range allows it."""

UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}


class Bytes(click.ParamType[int]):
    """`4096`, `512M`, `10GiB`: units are powers of 1,024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):  # a default
            return value
        text = str(value).strip().upper().removesuffix("B").removesuffix("I")
        unit = UNITS.get(text[-1:], 0)
        digits = text[:-1] if unit else text
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            self.fail(f"{value!r} is no number of bytes; write it like 4096, 512M or 10GiB.", param, ctx)
        n_bytes: int = int(digits) << 10 * unit
        return n_bytes


BYTES = Bytes()


@click.group(cls=Noun)
def block() -> None:
    """Block devices: virtual disks that take the space of what was written to them."""


@block.command("create", epilog=example("blockstore block create vm1 20G --policy 'replicated(3)'"))
@click.argument("name")
@click.argument("n_bytes", metavar="SIZE", type=BYTES)
@click.option("--policy", default="", help="replicated(N) or ec(K,M); left out, the store's default.")
def create(name: str, n_bytes: int, policy: str) -> None:
    """Make a device of SIZE bytes, up to 64T; with --store at a new directory, the store in it."""
    with settings().open(create=True) as store:
        made = store.create_block_device(name, n_bytes, policy=policy or None)
        answer(
            {"name": made.name, "size_bytes": made.size, "policy": made.policy},
            f"Block device {made.name} is there, {size(made.size)}, {made.policy}.",
        )


@block.command("list", epilog=example("blockstore block list"))
def list_devices() -> None:
    """List the block devices."""
    with settings().open() as store:
        found = [(one, _size_of(store, one.name)) for one in store.block_devices()]
    text = table(
        ("DEVICE", "SIZE", "POLICY", "CLONE OF"),
        [
            (one.name, size(n_bytes) if n_bytes else "unfinished", one.policy, one.clone_of)
            for one, n_bytes in found
        ],
        right="SIZE",
    )
    facts = [
        {"name": one.name, "size_bytes": n_bytes, "policy": one.policy, "clone_of": one.clone_of}
        for one, n_bytes in found
    ]
    answer({"devices": facts}, text or "No block devices; make one with `blockstore block create NAME SIZE`.")


@block.command("show", epilog=example("blockstore block show vm1"))
@click.argument("name")
def show(name: str) -> None:
    """Say how large a device is, what it takes, and where it is served."""
    with settings().open() as store:
        found = store.block_device(name)
        facts = {
            "name": found.name,
            "policy": found.policy,
            **clone_facts(found, store.block_devices),
            **found.facts(),
        }
        snapshots = [one.name for one in found.snapshots()]
    answer({**facts, "snapshots": snapshots}, facts_table(facts, snapshots))


@block.command("resize", epilog=example("blockstore block resize vm1 40G"))
@click.argument("name")
@click.argument("n_bytes", metavar="SIZE", type=BYTES)
@click.option("--yes", is_flag=True, help="Do not ask before cutting off data.")
def resize(name: str, n_bytes: int, yes: bool) -> None:
    """Make a device larger, or smaller: what is cut off is gone, save for snapshots."""
    with settings().open() as store:
        former = store.block_device(name).size
        if not n_bytes:
            raise InvalidRequest(
                f"A device has one byte at least; `blockstore block delete {name}` deletes it."
            )
        if n_bytes < former:
            confirm(f"Cut block device {name!r} from {size(former)} to {size(n_bytes)}", yes)
        store.block_device(name, writable=True).resize(n_bytes)
    answer({"name": name, "size_bytes": n_bytes}, f"Block device {name} has {size(n_bytes)} now.")


@block.command("flatten", epilog=example("blockstore block flatten vm2"))
@click.argument("name")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
def flatten_device(name: str, no_wait: bool) -> None:
    """Make a clone independent of the device that it was made of: it copies what it has in common with it.

    It begins by itself when that device is deleted. Interrupted, it goes on in the background.
    """
    with settings().open() as store:
        flatten(store.block_device(name), store.block_devices, "Block device", wait=not no_wait)


@block.command("delete", epilog=example("blockstore block delete vm1 --yes"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(name: str, yes: bool) -> None:
    """Delete a device and every snapshot of it."""
    with settings().open() as store:
        if name not in [one.name for one in store.block_devices()]:
            store.block_device(name)  # which says so before anybody is asked
        confirm(f"Delete block device {name!r} with all its snapshots", yes)
        store.delete_block_device(name)
    answer({"deleted": name}, f"Block device {name} is deleted.")


@block.command("read", epilog=example("blockstore block read vm1@monday disk.img"))
@click.argument("source", metavar="DEVICE[@SNAPSHOT]")
@click.argument("target", metavar="[FILE|-]", default="-")
@click.option("--offset", type=BYTES, default=0, help="First byte wanted.")
@click.option("--length", type=BYTES, help="How many; left out, up to the end.")
def read(source: str, target: str, offset: int, length: int | None) -> None:
    """Write a device's bytes to a file, or to standard output. Where they are zeros the file has holes."""
    name, snapshot = _parse_device(source)
    with settings().open() as store:
        device = store.block_device(name)
        found = device.at(snapshot) if snapshot else device
        n_bytes = max(0, found.size - offset) if length is None else length
        _check_range(source, offset, n_bytes, found.size)
        pieces = _pieces(found, offset, n_bytes)
        if target == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        _fill(Path(target), pieces, n_bytes)
    answer({"name": name, "file": target, "bytes": n_bytes}, f"{target} is written, {size(n_bytes)}.")


@block.command("write", epilog=example("blockstore block write vm1 disk.img"))
@click.argument("name", metavar="DEVICE")
@click.argument("source", metavar="FILE|-")
@click.option("--offset", type=BYTES, default=0, help="Where the first byte goes.")
def write(name: str, source: str, offset: int) -> None:
    """Write a file, or standard input, to a device. When it returns, all is durable."""
    path = None if source == "-" else Path(source)
    if path is not None:
        regular_file(path)
    with settings().open() as store:
        store.block_device(name)  # before its writer is turned away
        n_bytes = path.stat().st_size if path is not None else 0
        device = store.block_device(name, writable=True)
        if offset + n_bytes > device.size:
            raise InvalidRequest(
                f"{n_bytes:,} bytes at offset {offset:,} do not fit into {name}, which has {device.size:,}."
            )
        if path is None:
            n_bytes = _copy_in(device, sys.stdin.buffer, offset)
        else:
            with open_file(path) as file:
                n_bytes = _copy_in(device, file, offset)
    answer({"name": name, "offset": offset, "bytes": n_bytes}, f"{size(n_bytes)} are written to {name}.")


@block.command("discard", epilog=example("blockstore block discard vm1 --offset 1G --length 512M --yes"))
@click.argument("name", metavar="DEVICE")
@click.option("--offset", type=BYTES, required=True, help="First byte.")
@click.option("--length", type=BYTES, required=True, help="How many.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(name: str, offset: int, length: int, yes: bool) -> None:
    """Give back what a range takes; it reads as zeros afterwards."""
    with settings().open() as store:
        _check_range(name, offset, length, store.block_device(name).size)
        confirm(f"Discard {size(length)} of {name!r} at offset {offset:,}", yes)
        store.block_device(name, writable=True).discard(offset, length)
    answer({"name": name, "offset": offset, "bytes": length}, f"{size(length)} of {name} are discarded.")


@block.command(
    "diff", epilog=example("blockstore block diff vm1@monday", "blockstore block diff vm1@monday vm1@friday")
)
@click.argument("since", metavar="DEVICE@SNAPSHOT")
@click.argument("until", metavar="[DEVICE@SNAPSHOT]", default="")
def diff(since: str, until: str) -> None:
    """Name the ranges written and zeroed since a snapshot, up to another or up to now."""
    name, old = _parse_device(since)
    other, new = _parse_device(until) if until else (name, None)
    if not old or (until and not new):
        raise InvalidRequest("A diff begins at a snapshot: DEVICE@SNAPSHOT, and a second one or none.")
    if other != name:
        raise InvalidRequest(f"A diff is within one device; {name} and {other} are two.")
    totals = {"written": 0, "zeroed": 0}
    with settings().open() as store:
        for change in store.block_device(name).diff(old, new):
            totals[change.kind] += change.length
            answer(
                {"change": change.kind, "offset": change.offset, "length": change.length},
                f"{change.kind:8}{change.offset:>20,}{change.length:>20,}",
            )
    answer(
        {"written_bytes": totals["written"], "zeroed_bytes": totals["zeroed"]},
        f"{size(totals['written'])} written, {size(totals['zeroed'])} zeroed.",
    )


@block.group("snapshot", cls=Noun)
def snapshot_group() -> None:
    """Snapshots of a device: instant, whatever its size; read one as DEVICE@SNAPSHOT."""


@snapshot_group.command("create", epilog=example("blockstore block snapshot create vm1 monday"))
@click.argument("device")
@click.argument("name")
def snapshot_create(device: str, name: str) -> None:
    """Name the present moment of DEVICE: every write acknowledged before is in it."""
    with settings().open() as store:
        made = store.block_device(device).snapshot(name)
    answer({"device": device, **_snapshot_facts(made)}, f"Snapshot {device}@{name} is taken.")


@snapshot_group.command("together", epilog=example("blockstore block snapshot together monday vm1 vm2"))
@click.argument("name")
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
def snapshot_together(name: str, devices: tuple[str, ...]) -> None:
    """Take snapshot NAME of several devices, all of one instant. Their writers wait for some milliseconds."""
    with settings().open() as store:
        made = store.snapshot_block_devices(devices, name)
    facts = [{"device": one.device, **_snapshot_facts(one)} for one in made]
    places = ", ".join(f"{one.device}@{name}" for one in made)
    answer({"snapshots": facts}, f"{places}: taken, of one instant.")


@snapshot_group.command("list", epilog=example("blockstore block snapshot list vm1"))
@click.argument("device")
def snapshot_list(device: str) -> None:
    """List the snapshots of DEVICE, oldest first."""
    with settings().open() as store:
        found = store.block_device(device).snapshots()
    text = table(
        ("SNAPSHOT", "TAKEN", "SIZE"),
        [(one.name, when(one.created), size(one.size)) for one in found],
        right="SIZE",
    )
    facts = {"device": device, "snapshots": [_snapshot_facts(one) for one in found]}
    answer(facts, text or f"Block device {device} has no snapshots.")


@snapshot_group.command("delete", epilog=example("blockstore block snapshot delete vm1 monday --yes"))
@click.argument("device")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def snapshot_delete(device: str, name: str, yes: bool) -> None:
    """Forget a snapshot; what only it held becomes garbage."""
    with settings().open() as store:
        found = store.block_device(device)
        if name not in [one.name for one in found.snapshots()]:
            raise NotFound(f"snapshot {name!r} of block device {device!r}")
        confirm(f"Delete snapshot {device}@{name}, and what only it holds", yes)
        found.delete_snapshot(name)
    answer({"device": device, "deleted": name}, f"Snapshot {device}@{name} is deleted.")


def _size_of(store: blockstore.Store, name: str) -> int:
    """0 for a device whose making was not finished."""
    try:
        return store.block_device(name).size
    except InvalidRequest:
        return 0


def _snapshot_facts(one: blockstore.DeviceSnapshot) -> dict[str, str | int | float]:
    return {"name": one.name, "sequence": one.sequence, "created": one.created, "size_bytes": one.size}


def _parse_device(text: str) -> tuple[str, str]:
    """`DEVICE[@SNAPSHOT]`."""
    place = parse_place(text)
    if place.name:
        raise InvalidRequest(f"{text!r} names an object; write DEVICE or DEVICE@SNAPSHOT.")
    return place.bucket, place.snapshot


def _check_range(what: str, offset: int, n_bytes: int, n_bytes_there: int) -> None:
    """Before a file is overwritten, or anybody is asked."""
    if offset > n_bytes_there:
        raise InvalidRequest(
            f"Offset {offset:,} lies past the end of {what}, which has {n_bytes_there:,} bytes."
        )
    if offset + n_bytes > n_bytes_there:
        raise InvalidRequest(
            f"{what} has {n_bytes_there:,} bytes; there are no {n_bytes:,} bytes at offset {offset:,}."
        )


def _pieces(
    source: blockstore.BlockDevice | blockstore.DeviceSnapshot, offset: int, n_bytes: int
) -> Iterator[bytes]:
    """The range, cut where spans are."""
    end = offset + n_bytes
    while offset < end:
        length = min(PIECE_BYTES - offset % PIECE_BYTES, end - offset)
        yield source.read(offset, length)
        offset += length


def _copy_in(device: blockstore.BlockDevice, file: BinaryIO, offset: int) -> int:
    start = offset
    while piece := file.read(PIECE_BYTES - offset % PIECE_BYTES):
        device.write(offset, piece)
        offset += len(piece)
    return offset - start


def _fill(path: Path, pieces: Iterator[bytes], n_bytes: int) -> None:
    """Where there is a file, it is overwritten."""
    try:
        with path.open("wb") as file:
            for piece in pieces:
                if piece.count(0) == len(piece):
                    file.seek(len(piece), 1)
                else:
                    file.write(piece)
            file.truncate(n_bytes)
    except OSError as error:
        raise of_path(error, str(path)) from error
