"""What one file of a simulated disk holds: what is stored, what is only cached, and what a power cut makes of
it.

A write goes to the cache and is dirty until a sync stores it. When the power fails each sector of 512 bytes
keeps a prefix of the dirty writes to it, chosen by chance for each alone: so a write of several sectors is
torn anywhere between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

SECTOR_BYTES = 512
PAGE_BYTES = 4096


@dataclass(slots=True)
class Content:
    """One file: pages that are stored, and writes that are only cached. A page not there is zeros."""

    size: int
    stored: dict[int, bytearray] = field(default_factory=dict[int, bytearray])
    cached: dict[int, bytearray] = field(default_factory=dict[int, bytearray])
    dirty: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    named: bool = False  # its directory entry is durable
    replaces: Content | None = None  # what the name meant before, and may mean again until `named`
    unreadable: set[int] = field(default_factory=set[int])  # sectors, until they are written again

    def write(self, offset: int, data: bytes) -> None:
        self.dirty.append((offset, data))
        put(self.cached, offset, data)
        if self.unreadable:
            self.unreadable.difference_update(sectors(offset, len(data)))

    def write_elsewhere(self, offset: int, data: bytes) -> None:
        """The disk says that it stored this here, and did not."""
        put(self.cached, offset, data)

    def is_readable(self, offset: int, length: int) -> bool:
        return not self.unreadable or self.unreadable.isdisjoint(sectors(offset, length))

    def sync(self) -> None:
        for offset, data in self.dirty:
            put(self.stored, offset, data)
        self.dirty.clear()

    def lose(self, rng: Random) -> None:
        """Store of each dirty sector a prefix of its writes; all, none or some of it everywhere."""
        mood = rng.choice(("none", "some", "some", "all"))
        history = dict[int, list[tuple[int, bytes]]]()
        for offset, data in self.dirty:
            for sector in sectors(offset, len(data)):
                start = max(offset, sector * SECTOR_BYTES)
                end = min(offset + len(data), (sector + 1) * SECTOR_BYTES)
                history.setdefault(sector, []).append((start, data[start - offset : end - offset]))
        for writes in history.values():
            n = {"none": 0, "some": rng.randint(0, len(writes)), "all": len(writes)}[mood]
            for start, data in writes[:n]:
                put(self.stored, start, data)
        self.dirty.clear()

    def forget_cache(self) -> None:
        self.dirty.clear()
        self.cached = {page: bytearray(content) for page, content in self.stored.items()}


def sectors(offset: int, length: int) -> range:
    """Those that these bytes lie in."""
    return range(offset // SECTOR_BYTES, -(-(offset + length) // SECTOR_BYTES))


def put(pages: dict[int, bytearray], offset: int, data: bytes) -> None:
    at = 0
    while at < len(data):
        page, inside = divmod(offset + at, PAGE_BYTES)
        n = min(PAGE_BYTES - inside, len(data) - at)
        content = pages.get(page)
        if content is None:
            content = pages[page] = bytearray(PAGE_BYTES)
        content[inside : inside + n] = data[at : at + n]
        at += n


def get(pages: dict[int, bytearray], offset: int, into: memoryview) -> None:
    if len(into) > len(pages) * PAGE_BYTES:
        into[:] = bytes(len(into))
        for page, present in pages.items():  # sparse: look at what there is
            start, end = max(page * PAGE_BYTES, offset), min((page + 1) * PAGE_BYTES, offset + len(into))
            if start < end:
                into[start - offset : end - offset] = present[start % PAGE_BYTES :][: end - start]
        return
    at = 0
    while at < len(into):
        page, inside = divmod(offset + at, PAGE_BYTES)
        n = min(PAGE_BYTES - inside, len(into) - at)
        content = pages.get(page)
        into[at : at + n] = bytes(n) if content is None else content[inside : inside + n]
        at += n
