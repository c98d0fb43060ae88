"""Seeds of whole clusters that once showed a bug, kept so that each stays fixed.

A seed means what it meant as long as nothing draws from chance differently; after a change to the faults or
the workload it is one seed more among many."""

from __future__ import annotations

KEPT: dict[int, str] = {
    1: "a node did not start again when a sector of its vote file could not be read",
}
"""And what went wrong in it."""
