"""Every state that a power failure may leave on the simulated disk.

A `DiskState` is a disk at one moment: what is stored, what is only cached, which names are not yet durable.
`losses` lists the states after the power fails then. By the rules of `runtime/sim/disk.py`: of each sector a
prefix of the writes that were not synced, independently of all others; a file whose directory entry is not
synced is there or not; one whose removal is not synced is gone or not; one that takes another's place does so
or not.

The bound. Sectors that hold the same bytes either way do not count. If at most LOSSES_MAX states are left,
they are all tried. If not, the sectors of one write that are neither its first nor its last, and that the
same writes touched, share a fate, and all combinations of these fates are tried (if those are still too
many: each whole write, all subsets); and, sector by sector, each alone survives, each alone is lost, and each
is where storing stopped, in ascending and in descending order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from random import Random

from blockstore.runtime.sim.disk import SimDisk
from blockstore.runtime.sim.disk_content import PAGE_BYTES, SECTOR_BYTES, Content, put

LOSSES_MAX = 512
"""States tried of one moment, before sectors begin to share their fate."""

Pages = tuple[tuple[int, bytes], ...]
"""Number and bytes of each page that is not all zeros, ascending."""

_BLANK = bytes(PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class FileState:
    size: int
    stored: Pages
    dirty: tuple[tuple[int, bytes], ...] = ()
    named: bool = True
    replaces: FileState | None = None


@dataclass(frozen=True, slots=True)
class DiskState:
    files: tuple[tuple[str, FileState], ...]
    removed: tuple[tuple[str, FileState], ...] = ()


class WatchedDisk(SimDisk):
    """Can be told to begin in a given state, and calls `on_step` before every step."""

    def __init__(self, state: DiskState | None = None, capacity_bytes: int = 1 << 40) -> None:
        super().__init__(Random(0), capacity_bytes=capacity_bytes)
        self.on_step: Callable[[], None] | None = None
        self._known: dict[int, bytes] = {}  # pages as last frozen: equal ones stay one object, hashed once
        for name, file in state.files if state is not None else ():
            self._files[name] = self._thawed(file)
        for name, file in state.removed if state is not None else ():
            self._removed[name] = self._thawed(file)

    def tick(self) -> None:
        if self.on_step is not None:
            self.on_step()
        super().tick()

    def _thawed(self, file: FileState) -> Content:
        content = Content(file.size, named=file.named)
        if file.replaces is not None:
            content.replaces = self._thawed(file.replaces)
        content.stored = {page: bytearray(bytes_) for page, bytes_ in file.stored}
        content.cached = {page: bytearray(bytes_) for page, bytes_ in file.stored}
        for page, bytes_ in file.stored:
            self._known[id(content.stored[page])] = bytes_
        for offset, data in file.dirty:
            content.write(offset, data)
        return content

    def freeze(self) -> DiskState:
        return DiskState(self._frozen(self._files), self._frozen(self._removed))

    def _frozen(self, contents: dict[str, Content]) -> tuple[tuple[str, FileState], ...]:
        return tuple((name, self._frozen_file(contents[name])) for name in sorted(contents))

    def _frozen_file(self, content: Content) -> FileState:
        pages = list[tuple[int, bytes]]()
        known = self._known
        for page in sorted(content.stored):
            present = content.stored[page]
            frozen = known.get(id(present))
            # The types differ, and yet they are equal when their bytes are.
            if frozen is None or present != frozen:  # pyright: ignore[reportUnnecessaryComparison]
                frozen = known[id(present)] = bytes(present)
            if frozen != _BLANK:
                pages.append((page, frozen))
        old = None if content.replaces is None else self._frozen_file(content.replaces)
        return FileState(content.size, tuple(pages), tuple(content.dirty), content.named, old)


@dataclass(frozen=True, slots=True)
class _Sector:
    """One sector of a file, and what it may hold: `versions[i]` after the first `i` writes that change it."""

    number: int
    versions: tuple[bytes, ...]
    writes: tuple[int, ...]  # that touched it
    is_edge: bool  # of a write


def losses(state: DiskState, bound: int = LOSSES_MAX) -> Iterator[DiskState]:
    """Each once; none of them has anything unsynced."""
    names = list[str]()
    choices = list[list[FileState | None]]()
    for name, file in state.files:
        options: list[FileState | None] = list(_file_losses(file, bound))
        if not file.named:
            options += [None] if file.replaces is None else _file_losses(file.replaces, bound)
        names.append(name)
        choices.append(options)
    present = dict(state.files)
    for name, file in state.removed:
        if name not in present:
            names.append(name)
            choices.append([None, *_file_losses(file, bound)])
    if prod(map(len, choices)) <= 4 * bound:
        combinations: Iterable[tuple[FileState | None, ...]] = product(*choices)
    else:
        combinations = _few(choices)
    for combination in combinations:
        files = [(name, file) for name, file in zip(names, combination, strict=True) if file is not None]
        yield DiskState(tuple(sorted(files, key=lambda item: item[0])))


def _few(choices: Sequence[Sequence[FileState | None]]) -> Iterator[tuple[FileState | None, ...]]:
    """Each file's losses with the others' least and with their greatest."""
    seen = set[tuple[FileState | None, ...]]()
    for end in (0, -1):
        others = tuple(options[end] for options in choices)
        for at, options in enumerate(choices):
            for option in options:
                combination = (*others[:at], option, *others[at + 1 :])
                if combination not in seen:
                    seen.add(combination)
                    yield combination


def _file_losses(file: FileState, bound: int) -> list[FileState]:
    """The first is with nothing stored, the last with everything."""
    if not file.dirty:
        return [FileState(file.size, file.stored)]
    sectors = _sectors(file)
    counts = [len(sector.versions) for sector in sectors]
    if prod(counts) <= bound:
        fates: Iterable[tuple[int, ...]] = product(*(range(count) for count in counts))
    else:
        fates = _canonical(sectors, bound)
    base = dict(file.stored)
    return [
        FileState(file.size, _with_sectors(base, sectors, fate))
        for fate in sorted(set(fates), key=lambda f: (sum(f), f))
    ]


def _with_sectors(base: dict[int, bytes], sectors: Sequence[_Sector], fate: Sequence[int]) -> Pages:
    pages: dict[int, bytes] = dict(base)
    changed = dict[int, bytearray]()
    for sector, version in zip(sectors, fate, strict=True):
        if version:
            page, inside = divmod(sector.number * SECTOR_BYTES, PAGE_BYTES)
            if page not in changed:
                changed[page] = bytearray(base.get(page, _BLANK))
            changed[page][inside : inside + SECTOR_BYTES] = sector.versions[version]
    for page, content in changed.items():
        pages[page] = bytes(content)
    return tuple((page, pages[page]) for page in sorted(pages) if pages[page] != _BLANK)


def _sectors(file: FileState) -> list[_Sector]:
    """Those whose content is not certain."""
    touched = set[int]()
    for offset, data in file.dirty:
        touched.update(range(offset // PAGE_BYTES, (offset + len(data) - 1) // PAGE_BYTES + 1))
    pages = {page: bytearray(content) for page, content in file.stored if page in touched}
    versions = dict[int, list[bytes]]()
    writes = dict[int, list[int]]()
    edges = set[int]()
    for n, (offset, data) in enumerate(file.dirty):
        first, last = offset // SECTOR_BYTES, (offset + len(data) - 1) // SECTOR_BYTES
        for number in range(first, last + 1):
            if number not in versions:
                versions[number] = [_sector_of(pages, number)]
                writes[number] = []
            writes[number].append(n)
        edges.update((first, last))
        put(pages, offset, data)
        for number in range(first, last + 1):
            content = _sector_of(pages, number)
            if content != versions[number][-1]:
                versions[number].append(content)
    return [
        _Sector(number, tuple(versions[number]), tuple(writes[number]), number in edges)
        for number in sorted(versions)
        if len(versions[number]) > 1
    ]


def _sector_of(pages: dict[int, bytearray], number: int) -> bytes:
    page, inside = divmod(number * SECTOR_BYTES, PAGE_BYTES)
    content = pages.get(page)
    return bytes(SECTOR_BYTES) if content is None else bytes(content[inside : inside + SECTOR_BYTES])


def _canonical(sectors: Sequence[_Sector], bound: int) -> Iterator[tuple[int, ...]]:
    most = tuple(len(sector.versions) - 1 for sector in sectors)
    none: tuple[int, ...] = (0,) * len(sectors)
    for at in range(len(sectors)):
        yield (*none[:at], most[at], *none[at + 1 :])
        yield (*most[:at], 0, *most[at + 1 :])
        yield most[:at] + none[at:]
        yield none[:at] + most[at:]
    yield most
    by_fate = dict[tuple[object, ...], list[int]]()
    for at, sector in enumerate(sectors):
        fate = (at,) if sector.is_edge else (sector.writes, len(sector.versions))
        by_fate.setdefault(fate, []).append(at)
    groups = list(by_fate.values())
    counts = [most[group[0]] + 1 for group in groups]
    if prod(counts) > bound:
        by_write = dict[tuple[object, ...], list[int]]()
        for at, sector in enumerate(sectors):
            by_write.setdefault((sector.writes, len(sector.versions)), []).append(at)
        groups = list(by_write.values())
        counts = [most[group[0]] + 1 for group in groups]
    if prod(counts) <= 4 * bound:
        for versions in product(*(range(count) for count in counts)):
            fates: list[int] = list(none)
            for group, version in zip(groups, versions, strict=True):
                for at in group:
                    fates[at] = version
            yield tuple(fates)
