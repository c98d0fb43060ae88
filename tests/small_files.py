"""A node's files, as small as a test needs: those that it reads whole when it starts are mostly zeros, and
reading zeros takes most of its start."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from unittest.mock import patch

from blockstore.codec.fence_file import HEADER_BYTES, RECORD_BYTES
from blockstore.node import fence_shell, recovery_shell


@contextmanager
def small_files(*, log_bytes: int, fence_bytes: int, n_fences: int | None = None) -> Generator[None]:
    """Of a fragment's log only so much is read; a file of fences is so large, and full with `n_fences`."""
    if n_fences is None:
        n_fences = (fence_bytes - HEADER_BYTES) // RECORD_BYTES
    with (
        patch.object(fence_shell, "FILE_BYTES", fence_bytes),
        patch.object(fence_shell, "RECORDS_MAX", n_fences),
        patch.object(recovery_shell, "FRAGMENT_LOG_BYTES", log_bytes),
    ):
        yield
