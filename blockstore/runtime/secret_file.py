"""Files that hold secrets: written so that only their owner can read them, refused when others can.

The mode is checked on the open descriptor, not on the name, so that the file checked is the file read.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile

from blockstore.errors import InvalidRequest, PermissionDenied
from blockstore.ids import MiB

SECRET_FILE_BYTES_MAX = 1 * MiB
"""A bundle is about 3 KiB; a larger file is something else, and is not read into memory."""


def read_secret_file(path: str, what: str) -> bytes:
    """The content of `path`, which is called `what` in errors: InvalidRequest or PermissionDenied."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not make us wait
    except FileNotFoundError as error:
        raise InvalidRequest(f"There is no {what} {path!r}.") from error
    except PermissionError as error:
        raise PermissionDenied(f"The {what} {path!r} may not be read by this user.") from error
    except OSError as error:
        raise InvalidRequest(f"The {what} {path!r} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidRequest(f"{path!r} cannot be the name of a {what}.") from error  # a zero byte in it
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise InvalidRequest(f"The {what} {path!r} is not a file.")
        if mode & 0o077:
            raise PermissionDenied(
                f"The {what} {path!r} holds a private key and others can use it; "
                f"run: chmod 600 {shlex.quote(path)}"
            )
        with open(fd, "rb", closefd=False) as file:
            content = file.read(SECRET_FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(content) > SECRET_FILE_BYTES_MAX:
        raise InvalidRequest(f"The {what} {path!r} is too large to be one.")
    return content


def write_secret_file(path: str, content: bytes, what: str) -> None:
    """Put `content` at `path`, mode 0600, whole or not at all, durable when this returns."""
    directory_name, name = os.path.split(path)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory_name or ".")  # mode 0600
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        directory = os.open(directory_name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise InvalidRequest(f"The {what} {path!r} cannot be written: {error.strerror}.") from error
