"""At what length a chunk ends when its writer is gone.

Pure. Everything acknowledged is on every member of the write set (DESIGN invariant 1), so one sound answer is
enough, and the smallest among those that answered is safe: none of them lacks a byte below it. What lies
above may be missing somewhere and was acknowledged to nobody."""

from __future__ import annotations

from collections.abc import Iterable

from blockstore.codec.messages import FragmentState


def seal_length(states: Iterable[FragmentState]) -> int:
    """The length to seal at, from the answers of fenced members (one or more).

    A member without the fragment answers with length 0: it has acknowledged nothing. (A disk that lost its
    fragments is no longer that disk: its superblock says so, and it does not answer.)

    - Sealed before: that length is final (invariant 3). If an earlier take-over died before its length was
    known and another sealed elsewhere, the lengths may differ; both hold all that was acknowledged, and every
    sealed member has the smaller. - Otherwise the smallest of the sound ones. - If every answer is doubtful
    (a tail was cut at a bad checksum, so it may once have been longer), the longest: it lost least."""
    answers = list(states)
    assert answers, "somebody answered"
    sealed = [state for state in answers if state.sealed]
    sound = [state for state in sealed or answers if not state.doubtful]
    if sound:
        return min(state.length for state in sound)
    return max(state.length for state in sealed or answers)
