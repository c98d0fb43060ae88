"""Numbers about a volume, for people and for `bucket show`."""

from __future__ import annotations

from blockstore.placement.policy import Policy
from blockstore.volume.owner import Owner
from blockstore.volume.state import VolumeState


def state_facts(state: VolumeState) -> dict[str, int]:
    runs = state.map.runs
    n_kept, kept_bytes = state.chunks.kept_for_clones()
    return {
        "snapshots": len(state.snapshots),
        "sessions": len(state.sessions),
        "map_keys_changed": state.map.n_changed,
        "map_runs": len(runs),
        "map_keys_in_runs": sum(run.info.n_keys for run in runs),
        "clones": len(state.anchors),
        "kept_for_clones_chunks": n_kept,
        "kept_for_clones_bytes": kept_bytes,
        "foreign_chunks": len(state.chunks.foreign),
        "foreign_runs": sum(run.info.as_of > 0 for run in runs),
        "chunks_under_protected": state.chunks.under_protected()[0],
        **state.chunks.totals(),
    }


def amplification(
    policy: Policy, owner: Owner, state: VolumeState, map_bytes: int, packed_bytes: int
) -> dict[str, int | float]:
    """`write_amplification`: bytes written to disks, with copies and parity, for each byte put since this
    owner began; values that wait to be packed are yet to be written once more. `space_amplification`: bytes
    on disks for each byte that the head or a snapshot sees; chunks that are still open are not counted."""
    copies = 1 + policy.journal_policy().m
    journal_bytes = owner.journal.written_bytes
    written = (journal_bytes + map_bytes) * copies
    written += (packed_bytes + owner.placed_bytes) * (policy.k + policy.m) // policy.k
    totals = state.chunks.totals()
    put, live = owner.put_bytes, totals["live_bytes"]
    return {
        "put_bytes": put,
        "journal_written_bytes": journal_bytes,
        "packed_bytes": packed_bytes,
        "map_written_bytes": map_bytes,
        "written_bytes": written,
        "write_amplification": round(written / put, 2) if put else 0.0,
        "space_amplification": round(totals["disk_bytes"] / live, 2) if live else 0.0,
    }
