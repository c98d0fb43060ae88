"""One hierarchy of errors, split by what the caller can do about it.

A message says what happened, to which object, and what to do next; numbers are fields as well as words.
Errors cross the wire as `(name, fields)`, never as text: `to_wire` and `from_wire`. Exit codes follow
sysexits.h. A field is a str, an int or a tuple of them.
"""

from __future__ import annotations

import errno
from typing import ClassVar

Field = str | int


class BlockStoreError(Exception):
    """The root. `retry` says whether the same request may simply be sent again."""

    exit_code: ClassVar[int] = 70  # EX_SOFTWARE
    next_step: ClassVar[str] = "Run `blockstore cluster status` and look at the daemons' logs."
    retry: ClassVar[bool] = False

    def __init__(self, *fields: Field) -> None:
        super().__init__(*fields)
        self.fields: tuple[Field, ...] = fields

    def __str__(self) -> str:
        return " ".join(str(field) for field in self.fields)


# --- fix the input


class InvalidRequest(BlockStoreError):
    """What was asked cannot be done by anyone. Fields: a sentence."""

    exit_code = 64  # EX_USAGE
    next_step = "Correct the request; `--help` shows the form."


class NotFound(BlockStoreError):
    """Fields: what is missing, as words (`bucket 'photos'`)."""

    exit_code = 66  # EX_NOINPUT
    next_step = (
        "Check the name: `blockstore ls`, or `list` after bucket, snapshot or node, shows what is there."
    )

    def __str__(self) -> str:
        return f"There is no {self.fields[0]}."


class AlreadyExists(BlockStoreError):
    """Fields: what exists, as words."""

    exit_code = 73  # EX_CANTCREAT
    next_step = "Choose another name, or use what is there; only making a bucket knows `exist_ok`."

    def __str__(self) -> str:
        return f"There is already a {self.fields[0]}."


class PermissionDenied(BlockStoreError):
    """Fields: a sentence that names who and what."""

    exit_code = 77  # EX_NOPERM
    next_step = "Use a credential with the needed role; `blockstore credential list` shows them."


class NoAccess(BlockStoreError):
    """This user may not use a file or directory. Fields: which, what the system said."""

    exit_code = 77
    next_step = "Let this user read and write there, or name another place."

    def __str__(self) -> str:
        return f"{self.fields[0]} cannot be used: {self.fields[1]}."


class PreconditionFailed(BlockStoreError):
    """`if_absent` or `if_etag` did not hold; nothing was changed. Fields: a sentence."""

    exit_code = 65  # EX_DATAERR
    next_step = "Read the object again and decide anew."


class TakenOver(BlockStoreError):
    """Somebody else opened the device for writing since, and is its writer now; nothing was changed. Fields:
    what was taken over, as words."""

    exit_code = 65
    next_step = "Find out who writes to it now; whoever opens it for writing again takes it back."

    def __str__(self) -> str:
        return f"{self.fields[0]} was taken over by another writer, so this one may not write to it any more."


class SnapshotHeld(BlockStoreError):
    """Somebody holds it against deletion; nothing was changed. Fields: what is held, as words."""

    exit_code = 65
    next_step = "Release it if it may go: `blockstore snapshot release BUCKET SNAPSHOT`."

    def __str__(self) -> str:
        return f"{self.fields[0]} is held, so it cannot be deleted."


class NotAStore(BlockStoreError):
    """Fields: the location, and why it is not a store."""

    exit_code = 66
    next_step = "Name the directory of a store, an empty one to make one in, or an address: tcp://host:7440."

    def __str__(self) -> str:
        return f"{self.fields[0]} is not a store: {self.fields[1]}."


class UnknownFormat(BlockStoreError):
    """Data of a version that this program does not know. Fields: what, found, newest known."""

    exit_code = 65
    next_step = "Open it with the release that wrote it, or a newer one; nothing was changed."

    def __str__(self) -> str:
        what, found, known = self.fields
        return f"{what} has format version {found}; this program knows versions up to {known}."


# --- try again


class Busy(BlockStoreError):
    """A bound was reached; nothing was done. Fields: what is full."""

    exit_code = 75  # EX_TEMPFAIL
    next_step = "Try again in a moment, with fewer requests in flight."
    retry = True

    def __str__(self) -> str:
        return f"Busy: {self.fields[0]}."


class Unavailable(BlockStoreError):
    """Somebody needed could not be reached in time. Nothing is lost; retry. Fields: a sentence."""

    exit_code = 75
    next_step = "Try again; `blockstore cluster status` shows who is missing."
    retry = True


class ConnectionLost(Unavailable):
    """The peer hung up or could not be reached; whether the request was carried out is not known."""


class DeadlineExceeded(Unavailable):
    """The time given ran out; whether the request was carried out is not known."""


class QuorumLost(BlockStoreError):
    """Too few members answered in time. Fields: what, answered, needed."""

    exit_code = 75
    next_step = "Bring nodes back, or see which are missing with `blockstore node list`."
    retry = True

    def __str__(self) -> str:
        what, answered, needed = self.fields
        return f"{what}: {answered} of {needed} required members answered."


# --- call the operator


class NoSpace(BlockStoreError):
    """Fields: where."""

    exit_code = 74  # EX_IOERR
    next_step = "Delete something (that always works) or add disks."

    def __str__(self) -> str:
        return f"No space left on {self.fields[0]}."


class Corrupt(BlockStoreError):
    """Stored bytes failed their checksum and were not returned. Fields: what, where."""

    exit_code = 74
    next_step = (
        "Other copies are used where there are any; keep the disk and look at `blockstore cluster status`."
    )

    def __str__(self) -> str:
        return f"{self.fields[0]} is damaged ({self.fields[1]})."


class DiskFailed(BlockStoreError):
    """An I/O error; the handle is closed and the disk is suspect. Fields: disk, what the system said."""

    exit_code = 74
    next_step = "Check the disk and the kernel log; the data is read from its other copies."

    def __str__(self) -> str:
        return f"Disk {self.fields[0]} failed: {self.fields[1]}."


class StoreLocked(BlockStoreError):
    """Another process has this directory open. Fields: directory, pid or 0."""

    exit_code = 75
    next_step = "Close the other process first, or connect to its cluster."

    def __str__(self) -> str:
        return f"{self.fields[0]} is in use by process {self.fields[1]}."


class AddressInUse(BlockStoreError):
    """Fields: the address."""

    exit_code = 69  # EX_UNAVAILABLE
    next_step = "Stop what listens there, or choose another port."

    def __str__(self) -> str:
        return f"{self.fields[0]} is already in use."


# --- between daemons and clients; a user sees these only in logs


class ProtocolViolation(BlockStoreError):
    """A peer sent what the protocol forbids. Fields: a sentence."""

    exit_code = 76  # EX_PROTOCOL
    next_step = "Check that both sides run the same release."


class NotOwner(BlockStoreError):
    """This node does not own the volume. Fields: volume, believed owner's node id or 0, its epoch."""

    retry = True

    def __str__(self) -> str:
        volume, owner, epoch = self.fields
        return f"Volume {volume} is owned by node {owner} in epoch {epoch}."


class NotLeader(BlockStoreError):
    """Fields: believed control leader's node id, or 0."""

    retry = True

    def __str__(self) -> str:
        return f"This node does not lead control; node {self.fields[0]} may."


class StaleEpoch(BlockStoreError):
    """Fenced: a later owner exists. Fields: volume, epoch carried, highest epoch seen."""

    def __str__(self) -> str:
        volume, carried, highest = self.fields
        return f"Volume {volume}: epoch {carried} was fenced by epoch {highest}."


class OffsetMismatch(BlockStoreError):
    """An append that does not continue the fragment. Fields: the fragment's length."""

    def __str__(self) -> str:
        return f"The fragment is {self.fields[0]} bytes long; the append does not continue it."


class FragmentSealed(BlockStoreError):
    """Fields: the sealed length."""

    def __str__(self) -> str:
        return f"The fragment is sealed at {self.fields[0]} bytes."


class FragmentFull(BlockStoreError):
    """No room for this append in the fragment; seal it and go on in another."""

    def __str__(self) -> str:
        return "The fragment is full."


class TransactionConflict(BlockStoreError):
    """A compared key had changed. Nothing was applied. Fields: the key."""

    retry = True

    def __str__(self) -> str:
        return f"Control: {self.fields[0]} changed meanwhile."


def _all_kinds(root: type[BlockStoreError]) -> dict[str, type[BlockStoreError]]:
    kinds = {root.__name__: root}
    for child in root.__subclasses__():
        kinds |= _all_kinds(child)
    return kinds


def kind_words(kind: str) -> str:
    """How errors call volumes of a kind."""
    return "block device" if kind == "block" else kind


def of_path(error: OSError, where: str) -> BlockStoreError:
    """What it means that a file or directory of ours cannot be made or opened; of data at work see
    `runtime/real_disk.py`."""
    path, why = str(error.filename or where), error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NoAccess(path, why)
    return InvalidRequest(f"{path} cannot be used: {why}.")


def to_wire(error: BlockStoreError) -> tuple[str, tuple[Field, ...]]:
    return type(error).__name__, error.fields


def from_wire(name: str, fields: tuple[Field, ...]) -> BlockStoreError:
    """The error again; one of a newer release arrives as its root, with its words."""
    kind = _all_kinds(BlockStoreError).get(name)
    if kind is None:
        return BlockStoreError(f"{name}:", *fields)
    error = kind(*fields)
    try:
        str(error)
    except (ValueError, IndexError, TypeError):
        return ProtocolViolation(f"a peer sent a malformed {name} error")
    return error
