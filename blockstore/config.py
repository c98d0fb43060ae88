"""Every limit and time there is, with its unit and the reason for its size.

Relations between them are asserted at import; a test that needs another value passes it as an argument.
"""

from __future__ import annotations

from blockstore.ids import KiB, MiB

# --- chunks

CHUNK_BYTES_MAX = 64 * MiB
"""User bytes of a replicated chunk, or of all data shards of an erasure-coded one (DESIGN section 4)."""

SHARD_UNIT_BYTES = 1 * MiB
"""Shard unit of a full stripe: a 4 MiB object under ec(4,2) is one stripe, one append for each member."""

SHARD_ALIGN_BYTES = 64
"""A short stripe's unit is rounded up to this: what vector instructions like, and under 1 % of 128 KiB over 4."""

APPEND_BYTES_MAX = 4 * MiB
"""One append's payload. Larger values become several appends in flight."""

PIECE_BYTES = 16 * KiB
"""Grid of checksums in a fragment: reading 4 KiB costs reading 16, and the table is 0.2 % of the data."""

FRAGMENT_LOG_BYTES = 1 * MiB
"""Room for 32-byte piece records at a fragment's head: 32,768 appends, or all of 64 MiB in pieces eight times."""

INLINE_BYTES_MAX = 128 * KiB
"""Values up to this ride in the journal record (DESIGN section 5)."""

# --- wire

FRAME_HEADER_BYTES_MAX = 1 * MiB
"""A page of 1,000 listed keys of 255 bytes with metadata fits; nothing needs more."""

FRAME_PAYLOAD_BYTES_MAX = 8 * MiB
"""Twice the largest append: a read_many answer may carry 64 values of 128 KiB."""

HANDSHAKE_SECONDS_MAX = 1.0
"""A connection that has not said who it is by then is closed: 300 silent ones must not hurt."""

CONNECTIONS_MAX = 1_024
"""Per daemon; half of the usual 1,024 descriptors would be too few for 50 nodes and their clients' workers, so
the daemon raises its descriptor limit at start."""

UNAUTHENTICATED_CONNECTIONS_MAX = 128
"""Of these, those still shaking hands; the oldest is dropped for a new one."""

QUEUED_BYTES_PER_CONNECTION_MAX = 64 * MiB
"""What a lane holds unsent. A reader that never reads is closed when it would need more."""

CALLS_PER_CONNECTION_MAX = 1_024
"""Requests in flight on one connection; the next is answered Busy."""

# --- time, in seconds

HEARTBEAT_SECONDS = 0.1
ELECTION_SECONDS_MIN = 0.5
"""Five heartbeats: a pause of a busy two-core machine is not yet an election."""
ELECTION_SECONDS_MAX = 0.9

NODE_LEASE_SECONDS = 0.8
"""What a heartbeat's answer grants. The holder counts it from when it asked, the granter from when it answered."""

CLOCK_DRIFT_MAX = 0.01
"""Monotonic clocks of two machines differ in rate by no more; leases are shortened by it on the holder's side."""

MEMBER_LATE_SECONDS = 1.0
"""A member that has not acknowledged an append by then is left behind: seal and switch (DESIGN section 5)."""

ATTEMPT_SECONDS = 1.5
"""One attempt of a client at one node; then it asks anew who serves."""

OPERATION_SECONDS = 30.0
"""A client's whole operation, retries included, when the caller gives no timeout."""

HEDGE_SECONDS_MIN = 0.01
"""A read is asked of a second member after the observed p95, but not before this: less is noise of one machine."""

SESSION_IDLE_SECONDS = 120.0
"""A client session not heard of for so long loses its grants; its de-duplication entries go with it."""

assert NODE_LEASE_SECONDS > 4 * HEARTBEAT_SECONDS, "two lost heartbeats must not cost the lease"
assert ELECTION_SECONDS_MIN > 4 * HEARTBEAT_SECONDS
assert APPEND_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX
assert PIECE_BYTES * 2 <= SHARD_UNIT_BYTES <= APPEND_BYTES_MAX
assert (CHUNK_BYTES_MAX // PIECE_BYTES) * 32 < FRAGMENT_LOG_BYTES

# --- volumes

JOURNAL_BATCH_BYTES_MAX = 1 * MiB
"""One journal append. Larger batches do not raise the rate here and lengthen the wait of the first in them."""

JOURNAL_BATCHES_IN_FLIGHT = 4
"""Appends of the journal under way at once; more only deepens the queue of the same disks."""

OWNER_QUEUE_BYTES_MAX = 64 * MiB
"""Values waiting for the journal at one owner; beyond it the answer is Busy."""

VALUE_CACHE_BYTES = 128 * MiB
"""An owner's cache of inline values, oldest out first."""

CHECKPOINT_JOURNAL_BYTES = 256 * MiB
"""Journal written since the last checkpoint that starts a new one: replaying it takes about a second."""

SESSION_RESULTS_MAX = 1_024
"""Results remembered per client session for de-duplication; more in flight is answered Busy."""

SESSIONS_MAX = 10_000
"""Client sessions an owner remembers; the longest unheard goes first."""
