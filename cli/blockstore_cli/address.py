"""How objects are named on the command line: `BUCKET[@SNAPSHOT]:NAME`, and what is a path instead.

A bucket's and a snapshot's name hold neither `:`, `@` nor `/`, so the first `:` ends them. An argument with
a `/` before its first `:`, or without any `:`, is a path; a file `a:b` in the working directory is `./a:b`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from blockstore.errors import InvalidRequest
from blockstore_cli.output import shown

_NO_UTF_8 = re.compile("[\udc80-\udcff]")
"""How Python carries bytes that are none."""


@dataclass(frozen=True, slots=True)
class Place:
    """A name, or a prefix of names, in a bucket: as it is now, or as of a snapshot."""

    bucket: str
    name: str = ""
    snapshot: str = ""

    def __str__(self) -> str:
        at = f"@{self.snapshot}" if self.snapshot else ""
        return f"{self.bucket}{at}:{self.name}"


def parse_place(text: str, *, name_needed: bool = False) -> Place:
    """`BUCKET[@SNAPSHOT][:NAME]`; InvalidRequest says what is missing."""
    if _NO_UTF_8.search(text):
        raise InvalidRequest(f"'{shown(text)}' is not UTF-8, and names of objects are.")
    head, _, name = text.partition(":")
    bucket, at, snapshot = head.partition("@")
    if not bucket or (at and not snapshot):
        raise InvalidRequest(f"{text!r} names no object; write BUCKET:NAME or BUCKET@SNAPSHOT:NAME.")
    if name_needed and not name:
        raise InvalidRequest(f"{text!r} names no object; write {head}:NAME.")
    return Place(bucket, name, snapshot)


def is_place(text: str) -> bool:
    """Whether `cp` should look for it in the store rather than among the files."""
    head, colon, _ = text.partition(":")
    return bool(colon) and "/" not in head


def parse_head(text: str, *, name_needed: bool = False) -> Place:
    """A place in the bucket as it is now, to be written to: a snapshot never changes."""
    place = parse_place(text, name_needed=name_needed)
    if place.snapshot:
        raise InvalidRequest(f"{text!r} is in a snapshot, which never changes; leave @{place.snapshot} out.")
    return place
