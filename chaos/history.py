"""What clients asked for and were told, and whether that can be true.

Pure. Every object has one writer, which writes numbered versions one after the other, so at any time the
object may show exactly: the last acknowledged version, or a later one that was asked for and not
acknowledged (its answer may have been lost). A version may also be that the object is deleted. For such
registers this is linearizability, checked in linear time: a read that began after version v was acknowledged
must not show an older one, and none may show what was never asked for. Objects with many writers are in
`linearizability.py`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

HEAD_BYTES = 48
GONE = -1
"""The size of a version that deletes the object."""


@dataclass(slots=True)
class Register:
    """One object's versions, 1, 2, …; version 0 is "there is none"."""

    asked: int = 0
    acknowledged: int = 0
    sizes: dict[int, int] = field(default_factory=dict[int, int])


@dataclass(slots=True)
class History:
    """Of one bucket."""

    seed: int
    registers: dict[str, Register] = field(default_factory=dict[str, Register])
    violations: list[str] = field(default_factory=list[str])
    n_writes: int = 0
    n_reads: int = 0
    n_bytes: int = 0

    def ask(self, name: str, size: int) -> tuple[int, bytes]:
        """The next version of the object, and its bytes."""
        version = self._next(name, size)
        return version, content(self.seed, name, version, size)

    def ask_to_delete(self, name: str) -> int:
        """The next version of the object, which is that there is none."""
        return self._next(name, GONE)

    def _next(self, name: str, size: int) -> int:
        register = self.registers.setdefault(name, Register())
        register.asked += 1
        register.sizes[register.asked] = size
        return register.asked

    def may_be_missing(self, name: str) -> bool:
        """Whether a read that begins and ends now may find nothing."""
        register = self.registers.get(name, Register())
        return _may_be_missing(register, register.acknowledged, register.asked)

    def acknowledge(self, name: str, version: int) -> None:
        register = self.registers[name]
        register.acknowledged = max(register.acknowledged, version)
        self.n_writes += 1
        self.n_bytes += max(0, register.sizes[version])

    def fail(self, name: str, version: int, error: str) -> None:
        """An error reached the application; what was asked may or may not have happened."""
        self.violations.append(f"writing version {version} of {name} failed: {error}")

    def floor(self, name: str) -> int:
        """Before a read begins: the version that it must at least show."""
        register = self.registers.get(name)
        return 0 if register is None else register.acknowledged

    def check(self, name: str, floor: int, data: bytes | None, ceiling: int | None = None) -> None:
        """A read that began at `floor` ended now and gave this; with `ceiling`, of a snapshot taken by
        then."""
        self.n_reads += 1
        register = self.registers.get(name, Register())
        highest = register.asked if ceiling is None else ceiling
        if data is None:
            if not _may_be_missing(register, floor, highest):
                self.violations.append(f"{name} is missing; version {floor} was acknowledged")
            return
        version = version_of(self.seed, name, data)
        if version is None:
            self.violations.append(f"{name} shows {len(data)} bytes that nobody wrote there")
        elif len(data) != register.sizes.get(version) or data != content(self.seed, name, version, len(data)):
            self.violations.append(f"{name} shows version {version} with wrong bytes")
        elif not floor <= version <= highest:
            self.violations.append(f"{name} shows version {version}; only {floor} to {highest} were possible")


def _may_be_missing(register: Register, floor: int, highest: int) -> bool:
    return floor == 0 or any(
        register.sizes[version] == GONE for version in range(floor, highest + 1) if version in register.sizes
    )


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
