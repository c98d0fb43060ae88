"""`blockstore put`, `get`, `ls`, `rm` and `cp`: objects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

import blockstore
from blockstore.errors import InvalidRequest, NotFound
from blockstore_cli import copying
from blockstore_cli.address import Place, is_place, parse_head, parse_place
from blockstore_cli.history import object_facts
from blockstore_cli.output import Progress, answer, confirm, note, say, shown, size, when
from blockstore_cli.settings import Command, example, settings
from blockstore_cli.tree import (
    Refused,
    TargetTree,
    as_folder,
    plan_uploads,
    refuse,
    regular_file,
    why_no_path,
)

PIECE_BYTES = copying.PIECE_BYTES
POSITION_MAX = 2**62


@click.command(cls=Command, epilog=example("blockstore put report.pdf docs:2026/report.pdf"))
@click.argument("source", metavar="FILE|-")
@click.argument("target", metavar="BUCKET:NAME")
@click.option("--if-absent", is_flag=True, help="Only if there is no such object yet.")
@click.option("--if-etag", metavar="ETAG", help="Only if this is still its present version.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Metadata; may be given again.")
def put(source: str, target: str, if_absent: bool, if_etag: str | None, meta: tuple[str, ...]) -> None:
    """Store a file, or standard input, as an object. When it returns, the object is durable."""
    place = parse_head(target)
    if not place.name:
        place = Place(place.bucket, Path(source).name if source != "-" else "")
    if not place.name:
        raise InvalidRequest(f"{target!r} names no object; write {place.bucket}:NAME.")
    if source != "-":
        regular_file(Path(source))
    with settings().open() as store:
        bucket = store.bucket(place.bucket)
        info = bucket.put(
            place.name,
            sys.stdin.buffer if source == "-" else Path(source),
            metadata=_metadata(meta),
            if_absent=if_absent,
            if_etag=if_etag,
        )
    answer(object_facts(info), f"{shown(str(place))} is stored, {size(info.size)}.")


@click.command(cls=Command, epilog=example("blockstore get docs@before-cleaning:2026/report.pdf report.pdf"))
@click.argument("source", metavar="BUCKET[@SNAPSHOT]:NAME")
@click.argument("target", metavar="[FILE|DIRECTORY|-]", default="-")
@click.option("--start", type=click.IntRange(0, POSITION_MAX), default=0, help="First byte wanted.")
@click.option("--end", type=click.IntRange(0, POSITION_MAX), help="The byte after the last one wanted.")
def get(source: str, target: str, start: int, end: int | None) -> None:
    """Write an object to a file, or to standard output. A file appears when it is whole, not before.

    Folders on the way to it are made. What --end says beyond the object's end is left out.
    """
    place = parse_place(source, name_needed=True)
    if end is not None and end < start:
        raise InvalidRequest(f"--end {end} lies before --start {start}.")
    with settings().open() as store, _reading(store, place).open(place.name) as content:
        if start > content.info.size:
            raise InvalidRequest(
                f"--start {start} lies past the end of {shown(str(place))}: it has {content.info.size} bytes."
            )
        pieces = _pieces(content, start, end)
        if target == "-":
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        path = _target_file(target, place)
        n_bytes = 0
        with TargetTree(path.parent) as tree, tree.create((path.name,)) as file:
            for piece in pieces:
                file.write(piece)
                n_bytes += len(piece)
            file.finish()
    answer({"name": place.name, "file": str(path), "bytes": n_bytes}, f"{path} is written, {size(n_bytes)}.")


@click.command(
    cls=Command, epilog=example("blockstore ls photos:2026/", "blockstore ls -r photos@before-cleaning")
)
@click.argument("target", metavar="[BUCKET[@SNAPSHOT][:PREFIX]]", default="")
@click.option("-l", "--long", "in_full", is_flag=True, help="With size, time and etag.")
@click.option("-r", "--recursive", is_flag=True, help="Every name, instead of one folder.")
def ls(target: str, in_full: bool, recursive: bool) -> None:
    """List objects whose names begin with PREFIX, a folder at a time; without an argument, the buckets."""
    with settings().open() as store:
        if not target:
            names = [one.name for one in store.buckets()]
            answer({"buckets": names}, "\n".join(names))
            return
        place = parse_place(target)
        as_json = settings().json
        for entry in _reading(store, place).list(prefix=place.name, delimiter=None if recursive else "/"):
            if isinstance(entry, blockstore.CommonPrefix):
                answer(
                    {"prefix": entry.name}, _long("-", "-", "", entry.name) if in_full else shown(entry.name)
                )
            elif as_json:
                answer(object_facts(entry))
            elif in_full:
                say(_long(size(entry.size), when(entry.modified), entry.etag, entry.name))
            else:
                say(shown(entry.name))


@click.command(
    cls=Command, epilog=example("blockstore rm photos:2026/cat.jpg", "blockstore rm -r photos:2026/ --yes")
)
@click.argument("targets", metavar="BUCKET:NAME…", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Everything below BUCKET:PREFIX.")
@click.option("--yes", is_flag=True, help="With -r: do not ask.")
def rm(targets: tuple[str, ...], recursive: bool, yes: bool) -> None:
    """Delete objects. Snapshots that were taken before keep them."""
    places = [parse_head(target) for target in targets]
    if recursive:
        n_deleted = sum(_remove_below(place, yes) for place in places)
    else:
        n_deleted = _remove_named(places)
    answer({"deleted": n_deleted}, f"{n_deleted:,} deleted.")


def _remove_named(places: list[Place]) -> int:
    for place in places:
        if not place.name:
            raise InvalidRequest(f"{place} is a whole bucket; name an object, or say -r.")
    missing: list[Place] = []
    with settings().open() as store:
        buckets = {name: store.bucket(name) for name in dict.fromkeys(place.bucket for place in places)}
        for place in places:
            try:
                buckets[place.bucket].delete(place.name)
            except NotFound:
                missing.append(place)
    if missing:
        words = f"object {missing[0].name!r} in bucket {missing[0].bucket!r}"
        if len(missing) > 1:
            words += f" (and {len(missing) - 1:,} more of those named)"
        if len(places) > len(missing):
            words += f"; the other {len(places) - len(missing):,} were deleted"
        raise NotFound(words)
    return len(places)


def _remove_below(place: Place, yes: bool) -> int:
    with settings().open() as store:
        names = [entry.name for entry in store.bucket(place.bucket).list(prefix=as_folder(place.name))]
    if not names:
        raise NotFound(f"object below {str(place)!r}")
    confirm(f"Delete {len(names):,} objects below {str(place)!r}", yes)
    copying.run(partial(copying.remove, settings(), place, names))
    return len(names)


@click.command(
    cls=Command,
    epilog=example("blockstore cp -r ./pictures photos:2026", "blockstore cp -r photos:2026 ./copy"),
)
@click.argument("source")
@click.argument("target")
@click.option("-r", "--recursive", is_flag=True, help="A directory, or everything below BUCKET:PREFIX.")
@click.option(
    "--skip", is_flag=True, help="Leave out what cannot be copied, and say so, instead of refusing."
)
def cp(source: str, target: str, recursive: bool, skip: bool) -> None:
    """Copy a file or a tree into a bucket, or out of one (from a snapshot too), with many transfers at once.

    May be interrupted and repeated. Copying out writes below TARGET and nowhere else, whatever the names.
    """
    if is_place(source) == is_place(target):
        raise InvalidRequest("cp copies between files and a bucket: exactly one of the two is BUCKET:NAME.")
    if not recursive:
        context = click.get_current_context()
        if is_place(source):
            context.invoke(get, source=source, target=target, start=0, end=None)
        else:
            context.invoke(put, source=source, target=target, if_absent=False, if_etag=None, meta=())
    elif is_place(target):
        _copy_in(Path(source), parse_head(target), skip)
    else:
        _copy_out(parse_place(source), Path(target), skip)


def _copy_in(directory: Path, place: Place, skip: bool) -> None:
    if not directory.is_dir():
        if directory.exists():
            raise InvalidRequest(f"{directory} is not a directory; leave -r out to copy a file.")
        raise InvalidRequest(f"{directory} does not exist.")
    uploads, refused = plan_uploads(directory, place.name)
    _heed(refused, len(uploads), skip)
    chosen = settings()
    progress = copying.run(lambda: copying.upload(chosen, place, uploads))
    _report(progress, refused)


def _copy_out(place: Place, target: Path, skip: bool) -> None:
    chosen = settings()
    downloads, refused = copying.run(lambda: copying.list_downloads(chosen, place))
    if not downloads and not refused:
        raise NotFound(f"object below {str(place)!r}")
    _heed(refused, len(downloads), skip)
    progress = copying.run(lambda: copying.download(chosen, place, downloads, target))
    _report(progress, refused)


def _heed(refused: Refused, n_copied: int, skip: bool) -> None:
    if refused and not skip:
        raise refuse(refused, n_copied)
    for name, reason in refused:
        note(f"left out: {shown(name)}: {reason}")


def _report(progress: Progress, refused: Refused) -> None:
    facts = {
        "objects": progress.items,
        "bytes": progress.bytes,
        "seconds": round(progress.seconds(), 3),
        "left_out": [{"name": name, "reason": reason} for name, reason in refused],
    }
    left_out = f"; {len(refused):,} left out" if refused else ""
    answer(facts, f"Copied {progress.summary()}{left_out}.")


def _reading(store: blockstore.Store, place: Place) -> blockstore.Bucket | blockstore.Snapshot:
    bucket = store.bucket(place.bucket)
    return bucket.at(place.snapshot) if place.snapshot else bucket


def _target_file(target: str, place: Place) -> Path:
    """Where `get` writes: in a directory under the object's last name, if a file can have that."""
    path = Path(target)
    if not path.is_dir() and not target.endswith("/"):
        return path
    last = place.name.rpartition("/")[2]
    why = why_no_path((last,))
    if why:
        raise InvalidRequest(f"{shown(place.name)!r} gives no file name ({why}); write one after {target}.")
    return path / last


def _pieces(content: blockstore.ObjectReader, start: int, end: int | None) -> Iterator[bytes]:
    """The bytes from `start` up to `end`, or to where the object ends."""
    content.seek(start)
    while end is None or start < end:
        piece = content.read(PIECE_BYTES if end is None else min(PIECE_BYTES, end - start))
        if not piece:
            return
        start += len(piece)
        yield piece


def _long(n_bytes: str, modified: str, etag: str, name: str) -> str:
    return f"{n_bytes:>9}  {modified:<19}  {etag:<22}  {shown(name)}"


def _metadata(pairs: tuple[str, ...]) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise InvalidRequest(f"--meta {pair!r} is not KEY=VALUE.")
        if key in found:
            raise InvalidRequest(f"--meta {key} is given twice; an object has one value for it.")
        found[key] = value
    return found or None
