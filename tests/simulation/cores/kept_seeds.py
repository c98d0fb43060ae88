"""Seeds that once failed, each with a sentence. They are run first, and stay.

A seed draws its world anew when settings change, so what each found is a test of its own as well, named here.
"""

from __future__ import annotations

TIMED: dict[int, str] = {
    12: "the end of a journal chunk, recorded in control by an owner that died before its journal said so,"
    " was sought anew by the next and found smaller: the chunk was sealed below it, and the volume was lost "
    "(tests/unit/volume/test_takeover.py: a_journal_chunk_ends_where_control_says)",
    38: "read_many gave a new value cut to the length of the one that it replaced meanwhile "
    "(tests/unit/api/test_bucket.py: gives_all_of_a_value_that_is_replaced_while_it_is_read)",
    82: "a data chunk was sealed at its members below a reference that waited in the journal: an"
    " acknowledged value was lost (now the end is told when it is durable: volume/owner.py, take_ended)",
    831: "a journal chunk of two members, one with a flipped bit, the other with an earlier end, could not be"
    " read in one piece, and no owner took the volume over again (now it is read by halves: "
    "tests/unit/chunk/test_with_nodes.py: what_no_member_has_whole_is_read_in_parts)",
}
WALKS: dict[int, str] = {
    3746: "the simulation's own mistake: a node that learned of its claim and of its successor at once served"
    " nevertheless, because its owner was begun by a task that was about to end",
}
