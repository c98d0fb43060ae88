"""What clients asked for and were told, and whether that can be true.

Pure. Every object has one writer, which asks for numbered versions one after the other (a deletion is a
version too), so at any time the object may show exactly: the last version that was acknowledged or seen by a
reader, or a later one that was asked for and not acknowledged (its answer may have been lost). For such
registers this is linearizability, checked in linear time: a read that began after version v was acknowledged
or shown must not show an older one, and none may show what was never asked for. A snapshot shows of each
object one version, between what was sure when it was asked for and what was possible when it was there, and
always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

HEAD_BYTES = 48
Bounds = dict[str, tuple[int, int]]
"""For each object the lowest and the highest version that a snapshot may have."""


@dataclass(slots=True)
class Register:
    """One object's versions, 1, 2, …; version 0 is "there is none yet"."""

    asked: int = 0
    acknowledged: int = 0
    seen: int = 0
    """The highest that a reader was shown."""
    sizes: dict[int, int | None] = field(default_factory=lambda: {0: None})
    """Of each version; None where there is no object."""

    @property
    def floor(self) -> int:
        return max(self.acknowledged, self.seen)

    def absences(self, floor: int, ceiling: int) -> list[int]:
        return [version for version in range(floor, ceiling + 1) if self.sizes[version] is None]


@dataclass(slots=True)
class History:
    """Of one bucket."""

    seed: int
    registers: dict[str, Register] = field(default_factory=dict[str, Register])
    violations: list[str] = field(default_factory=list[str])
    n_writes: int = 0
    n_reads: int = 0
    n_bytes: int = 0
    _frozen: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """What a snapshot was seen to have of an object."""

    # --- writing

    def ask(self, name: str, size: int) -> tuple[int, bytes]:
        """The next version of the object, and its bytes."""
        version = self._ask(name, size)
        return version, content(self.seed, name, version, size)

    def ask_deletion(self, name: str) -> int:
        return self._ask(name, None)

    def is_there(self, name: str) -> bool:
        """For its writer, who knows: whether the last version is acknowledged and no deletion."""
        register = self.registers.get(name, Register())
        return register.acknowledged == register.asked and register.sizes[register.asked] is not None

    def acknowledge(self, name: str, version: int) -> None:
        register = self.registers[name]
        register.acknowledged = max(register.acknowledged, version)
        self.n_writes += 1
        self.n_bytes += register.sizes[version] or 0

    def fail(self, name: str, version: int, error: str) -> None:
        """An error reached the application; what was asked may or may not have happened."""
        self.violations.append(f"writing version {version} of {name} failed: {error}")

    # --- reading

    def floor(self, name: str) -> int:
        """Before a read begins: the version that it must at least show."""
        return self.registers.get(name, Register()).floor

    def check(self, name: str, floor: int, data: bytes | None) -> None:
        """A read that began at `floor` ended now and gave this; None: there is no such object."""
        register = self.registers.get(name, Register())
        shown = self._version(name, register, floor, register.asked, data, name)
        if shown is not None:
            register.seen = max(register.seen, shown)

    def bounds_before(self) -> dict[str, int]:
        """When a snapshot is asked for."""
        return {name: register.floor for name, register in self.registers.items()}

    def bounds(self, before: dict[str, int]) -> Bounds:
        """When it is there."""
        return {name: (before.get(name, 0), register.asked) for name, register in self.registers.items()}

    def check_snapshot(self, snapshot: str, name: str, bounds: Bounds, data: bytes | None) -> None:
        floor, ceiling = bounds.get(name, (0, 0))
        register, place = self.registers.get(name, Register()), f"{name}@{snapshot}"
        shown = self._version(name, register, floor, ceiling, data, place)
        if shown is None:
            return
        before = self._frozen.setdefault((snapshot, name), shown)
        if shown != before:
            self.violations.append(f"{place} changed from version {before} to {shown}")

    def check_listing(self, names: Collection[str]) -> None:
        """All names of the bucket, listed while nobody wrote."""
        listed = set(names)
        self.violations += [
            f"{name} is listed; nobody wrote it" for name in sorted(listed - self.registers.keys())
        ]
        for name, register in sorted(self.registers.items()):
            possible = {register.sizes[v] is not None for v in range(register.floor, register.asked + 1)}
            if (name in listed) not in possible:
                self.violations.append(f"{name} is {'' if name in listed else 'not '}listed")

    def _ask(self, name: str, size: int | None) -> int:
        register = self.registers.setdefault(name, Register())
        register.asked += 1
        register.sizes[register.asked] = size
        return register.asked

    def _version(
        self, name: str, register: Register, floor: int, ceiling: int, data: bytes | None, place: str
    ) -> int | None:
        """Which version these bytes are; None after a violation. Of several absences the first: the read
        shows it or a later one."""
        self.n_reads += 1
        if data is None:
            absences = register.absences(floor, ceiling)
            if not absences:
                self.violations.append(
                    f"{place} is missing; only versions {floor} to {ceiling} were possible"
                )
                return None
            return absences[0]
        version = version_of(self.seed, name, data)
        if version is None:
            self.violations.append(f"{place} shows {len(data)} bytes that nobody wrote there")
        elif data != content(self.seed, name, version, register.sizes.get(version) or HEAD_BYTES):
            self.violations.append(f"{place} shows version {version} with wrong bytes")
        elif not floor <= version <= ceiling:
            self.violations.append(
                f"{place} shows version {version}; only {floor} to {ceiling} were possible"
            )
        else:
            return version
        return None


def content(seed: int, name: str, version: int, size: int) -> bytes:
    """Bytes that no other version of any object has: a head that says which it is, and a pattern from its
    digest."""
    digest = hashlib.sha256(f"{seed} {name} {version}".encode()).digest()
    head = f"{version:016d}".encode() + digest
    assert len(head) == HEAD_BYTES <= size
    return (head + digest * ((size - HEAD_BYTES) // len(digest) + 1))[:size]


def version_of(seed: int, name: str, data: bytes) -> int | None:
    """Which version the bytes say they are, if their head is one of this object."""
    text = data[:16]
    if len(data) < HEAD_BYTES or not text.isdigit():
        return None
    digest = hashlib.sha256(f"{seed} {name} {int(text)}".encode()).digest()
    return int(text) if data[16:HEAD_BYTES] == digest else None
