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
"""A short stripe's unit is rounded up to this: what vector instructions like, and under 1 % of 128 KiB over
4."""

APPEND_BYTES_MAX = 4 * MiB
"""One append's payload. Larger values become several appends in flight."""

PIECE_BYTES = 16 * KiB
"""Grid of checksums in a fragment: reading 4 KiB costs reading 16, and the table is 0.2 % of the data."""

FRAGMENT_LOG_BYTES = 1 * MiB
"""Room for 32-byte piece records at a fragment's head: 32,768 appends, or all of 64 MiB in pieces eight
times."""

INLINE_BYTES_MAX = 128 * KiB
"""Values up to this ride in the journal record (DESIGN section 5)."""

# --- disks

DISK_RESERVE_BYTES_MIN = 64 * MiB
DISK_RESERVE_SHARE = 100
"""One part in so many of a disk, and at least the above, is kept from data, so that a full store can still
delete: for journals in VITAL_CHUNK_BYTES pieces, for checkpoints, and a quarter of it for control's log."""

VITAL_CHUNK_BYTES = 4 * MiB
"""A journal's or a run's chunk in a full store: any batch without values fits, and 40,000 deletes."""

DISK_QUEUED_BYTES_MAX = 64 * MiB
"""Appends taken and not yet on one disk; beyond it the answer is Busy. A tenth of a second of a fast disk."""

DISK_QUEUED_APPENDS_MAX = 4_096
"""The same in appends: small ones cost memory too."""

DISK_QUEUED_READS_MAX = 1_024
"""Reads waiting for one disk's threads."""

# --- wire

FRAME_HEADER_BYTES_MAX = 1 * MiB
"""A page of 1,000 listed keys of 255 bytes with metadata fits; nothing needs more."""

FRAME_PAYLOAD_BYTES_MAX = 8 * MiB
"""Twice the largest append: a read_many answer may carry 64 values of 128 KiB."""

HANDSHAKE_SECONDS_MAX = 1.0
"""A connection that is silent for so long before it has said who it is, is closed: 300 silent ones must not
hurt."""

OPENING_SECONDS_MAX = 3.0
"""And this is the most that one may take which goes on saying something. Longer than an attempt: dozens begun
at once on a busy machine finish late, and begun anew they would finish never."""

CONNECT_SECONDS_MAX = 1.0
"""Until TCP has reached the host: one that does not answer is given up before the attempt is
(ATTEMPT_SECONDS). What comes then has OPENING_SECONDS_MAX."""

RECONNECT_SECONDS_MIN = 0.1
"""After a failed connect, what is sent meanwhile fails at once: callers turn to another node sooner."""

FRAME_STALL_SECONDS_MAX = 1.0
"""A frame begun brings at least FRAME_BYTES_PER_STALL in this time, or its connection is closed."""

FRAME_BYTES_PER_STALL = 4 * KiB
"""One byte a second would hold a buffer for months; the slowest link that we serve brings this in 1/30 s."""

SEND_STALL_SECONDS_MAX = 3.0
"""A peer that has taken none of what waits for it is closed: it never reads, or its machine is gone."""

LANE_SWEEP_SECONDS = 0.05
"""How late a call may learn that its deadline has passed. One sweep serves all calls, so they need no
timers."""

FAREWELL_SECONDS_MAX = 0.5
"""How long a refused peer may take to read why."""

RECEIVED_BYTES_PER_CONNECTION_MAX = 64 * MiB
"""Payloads of unanswered requests of one connection; beyond it the server stops reading from it."""

ANSWERED_BYTES_PER_CONNECTION_MAX = 16 * MiB
"""Unsent answers at which the server stops reading requests: two of the largest fit, and a memory stays
flat."""

BUFFER_POOL_BYTES_MAX = 128 * MiB
"""Idle receive buffers kept for the next payload: touching fresh memory costs 2.3 us for each 4 KiB page."""

CONNECTIONS_MAX = 1_024
"""Per daemon; half of the usual 1,024 descriptors would be too few for 50 nodes and their clients' workers,
so the daemon raises its descriptor limit at start."""

UNAUTHENTICATED_CONNECTIONS_MAX = 128
"""Of these, those still shaking hands; the oldest is dropped for a new one."""

QUEUED_BYTES_PER_CONNECTION_MAX = 64 * MiB
"""What a lane holds unsent. Past it requests fail with Busy, and so do the payloads of answers."""

CALLS_PER_CONNECTION_MAX = 1_024
"""Requests in flight on one connection; the next is answered Busy."""

BUS_PACK_BYTES_MAX = 1 * MiB
"""What one message on the bus may be with all packed into it: Raft sends less at once, snapshots use
lanes."""

BUS_PACKS_QUEUED_MAX = 32
"""Per peer and direction. A peer so far behind is better served by newer ones: what does not fit is
dropped."""

# --- time, in seconds

HEARTBEAT_SECONDS = 0.12
ELECTION_SECONDS_MIN = 0.5
"""Four heartbeats: a pause of a busy two-core machine is not yet an election."""
ELECTION_SECONDS_MAX = 0.9

NODE_LEASE_SECONDS = 0.8
"""What a heartbeat's answer grants. The holder counts it from when it asked, the granter from when it
answered."""

CLOCK_DRIFT_MAX = 0.01
"""Monotonic clocks of two machines differ in rate by no more; leases are shortened by it on the holder's
side."""

MEMBER_LATE_SECONDS = 1.0
"""A member that has not acknowledged an append by then is left behind: seal and switch (DESIGN section 5)."""

ATTEMPT_SECONDS = 1.5
"""One attempt of a client at one node; then it asks anew who serves."""

OPERATION_SECONDS = 30.0
"""A client's whole operation, retries included, when the caller gives no timeout."""

HEDGE_SECONDS_MIN = 0.01
"""A read is asked of a second member after the observed p95, but not before this: less is noise of one
machine."""

SESSION_IDLE_SECONDS = 120.0
"""A client session not heard of for so long loses its grants; its de-duplication entries go with it."""

assert ANSWERED_BYTES_PER_CONNECTION_MAX >= 2 * FRAME_PAYLOAD_BYTES_MAX
assert ANSWERED_BYTES_PER_CONNECTION_MAX < QUEUED_BYTES_PER_CONNECTION_MAX
assert NODE_LEASE_SECONDS > 4 * HEARTBEAT_SECONDS, "two lost heartbeats must not cost the lease"
assert ELECTION_SECONDS_MIN > 4 * HEARTBEAT_SECONDS
assert APPEND_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX
assert PIECE_BYTES * 2 <= SHARD_UNIT_BYTES <= APPEND_BYTES_MAX
assert (CHUNK_BYTES_MAX // PIECE_BYTES) * 32 < FRAGMENT_LOG_BYTES

# --- volumes

JOURNAL_BATCH_BYTES_MAX = 1 * MiB
"""One journal append. Larger batches do not raise the rate here and lengthen the wait of the first in
them."""

JOURNAL_BATCHES_IN_FLIGHT = 4
"""Appends of the journal under way at once; more only deepens the queue of the same disks."""

OWNER_QUEUE_BYTES_MAX = 64 * MiB
"""Values waiting for the journal at one owner; beyond it the answer is Busy."""

VALUE_CACHE_BYTES = 128 * MiB
"""An owner's cache of inline values, oldest out first."""

RESTORE_KEYS_MAX = 1_000
"""Keys that one record restores, all or none: some 10 ms to apply."""

RESTORE_KEY_BYTES_MAX = 512 * KiB
"""Their names together, half of what a frame's header may have."""

BATCH_KEYS_MAX = 1_000
"""Changes that one record makes, all or none: some 10 ms to apply."""

BATCH_BYTES_MAX = 768 * KiB
"""Of values, names and metadata of such a record: it fits one journal append, and its request a frame's
header."""

CHECKPOINT_JOURNAL_BYTES = 256 * MiB
"""Journal written since the last checkpoint that starts a new one: replaying it takes about a second."""

CHECKPOINT_JOURNAL_RECORDS = 300_000
"""The same in records: small ones take their time too."""

SESSION_RESULTS_MAX = 1_024
"""Requests of one client session under way at an owner; more are answered Busy."""

SESSION_CHUNKS_OPEN_MAX = 1_024
"""Chunks granted to one client session and not finished: it uses four, and loses a few more by accidents."""

SESSION_UNSETTLED_MAX = 65_536
"""Results that a session has not settled: that one request of thousands is slow is fine, never settling is
not."""

SESSIONS_MAX = 10_000
"""Client sessions an owner remembers; the longest unheard goes first."""

# --- control

CONTROL_REQUESTS_REMEMBERED = 4_096
"""Applied requests recognised when they come again: minutes of a busy cluster, and 100 KB of its snapshot."""

CONTROL_KEY_BYTES_MAX = 256
CONTROL_KEYS_MAX = 1_024
CONTROL_CALLS_MAX = 256
"""Requests to control under way or waiting at one node; the next is answered Busy."""

CHANGES_REMEMBERED = 1_024
"""Revisions whose keys a watch can look back at; one that is further behind is told that anything may have
changed."""

EVENTS_REMEMBERED = 1_000
"""Events that a node still has for a late reader."""

EVENT_TEXT_CHARS_MAX = 500

DISK_NEARLY_FULL = 0.85
"""Of a disk's capacity: from here on status asks for more disks, while there is time to add them."""

VOTER_DEAD_SECONDS = 600.0
"""A voter silent for so long is replaced, if another node lives: longer than a reboot, shorter than a
night."""

VOTER_LAG_ENTRIES_MAX = 1_000
"""A learner this close to the leader's log may become a voter: it will have the rest within a moment."""

GROUPS_PER_DISK = 20
"""A lost disk's data is rebuilt from, and new chunks spread over, so many groups' other members."""

GROUP_MEMBERS_MAX = 12_000
"""Of all groups of one policy together: 3 bytes each and one to a group, so a table fits into one command
of the log. Up to 600 disks each have their GROUPS_PER_DISK."""

# --- consensus

RAFT_COMMAND_BYTES_MAX = 56 * KiB
"""One command. It travels in one message of the bus, and those end at 64 KiB."""

RAFT_APPEND_BYTES_MAX = 60 * KiB
"""Entries of one Append, with what each takes besides its payload."""

RAFT_APPENDS_IN_FLIGHT = 16
"""Sent to one member and not acknowledged: under 1 MiB, which it writes in a few milliseconds."""

RAFT_UNCOMMITTED_MAX = 4_096
"""Entries that wait for a majority; then proposals are answered Busy."""

RAFT_READS_MAX = 4_096
"""Reads that wait at the leader for a heartbeat round; one more is not heard, and asks again."""

RAFT_SEGMENT_BYTES = 4 * MiB
"""One file of the log: read whole in milliseconds, and a thousand appends of one block."""

RAFT_BATCH_BYTES_MAX = 1 * MiB
"""Entries written with one sync."""

RAFT_SNAPSHOT_ENTRIES = 10_000
RAFT_SNAPSHOT_BYTES = 16 * MiB
"""Applied since the last snapshot: one of the two starts the next."""

RAFT_TRAILING_ENTRIES = 1_000
"""Kept below a snapshot, so that a member that was away for a moment needs no snapshot."""

assert RAFT_COMMAND_BYTES_MAX + 64 <= RAFT_APPEND_BYTES_MAX <= 64 * KiB - 1 * KiB
assert RAFT_APPEND_BYTES_MAX < RAFT_BATCH_BYTES_MAX <= RAFT_SEGMENT_BYTES // 2
