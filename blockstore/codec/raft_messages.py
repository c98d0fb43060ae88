"""What Raft's members tell each other, and the entries of its log.

Each message is a frozen MessagePack array `[tag, term, …]`, encoded to the bytes that a `RaftEnvelope`
carries over the bus: it may be lost, doubled, delayed and reordered, and fits in 64 KiB. Tags are never
reused; fields are only ever added at the end, with a default. Names follow Ongaro's dissertation, figure 3.1,
where it has one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from blockstore.codec.malformed import MALFORMED
from blockstore.errors import ProtocolViolation
from blockstore.ids import NodeId

NOBODY = NodeId(0)
"""No node has this id: no leader known, no vote given."""

NOOP: Literal[0] = 0
"""Written by a new leader, so that it has an entry of its own term to commit (dissertation, section 6.4)."""
COMMAND: Literal[1] = 1
"""For the state machine above."""
MEMBERS: Literal[2] = 2
"""The members from here on: `encode_members`."""

ENTRY_OVERHEAD_BYTES = 32
"""What an entry takes on the wire besides its payload, at most: four small integers and a length."""


class _Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False, gc=False):
    """The common form."""


class Entry(_Value, frozen=True):
    """One position of the log. `(index, term)` names its content for ever (the Log Matching Property)."""

    index: int
    term: int
    kind: Literal[0, 1, 2]
    payload: bytes = b""


class Members(_Value, frozen=True):
    """Who has a vote, and who only receives the log; both sorted, without a common node."""

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()


class PreVote(_Value, frozen=True, tag=1):
    """Would you vote for me in `term`? Changes nothing at the receiver (dissertation, section 9.6)."""

    term: int
    last_index: int
    last_term: int


class PreVoteAnswer(_Value, frozen=True, tag=2):
    """`term` is the one asked about when granted, else the answerer's own."""

    term: int
    granted: bool


class Vote(_Value, frozen=True, tag=3):
    """`handover`: the leader of the term before resigned, so nobody need wait out its lease."""

    term: int
    last_index: int
    last_term: int
    handover: bool = False


class VoteAnswer(_Value, frozen=True, tag=4):
    term: int
    granted: bool


class Append(_Value, frozen=True, tag=5):
    """Leader to member: entries after `(prev_index, prev_term)`, or none: a heartbeat, or news of `commit`.

    `round` counts the leader's heartbeat rounds; its answer says that the sender led at the time. With 0 and
    no entries no answer is wanted. `healing` repeats the member's doubt, and `heal_index` is the entry that
    ends it."""

    term: int
    round: int
    prev_index: int
    prev_term: int
    commit: int
    entries: tuple[Entry, ...] = ()
    healing: int = 0
    heal_index: int = 0


class AppendAnswer(_Value, frozen=True, tag=6):
    """The member's log equals the leader's up to `match`, durably. `doubt`: it lost something; do not count
    it."""

    term: int
    round: int
    match: int
    doubt: int = 0


class AppendRefused(_Value, frozen=True, tag=7):
    """`prev_index` is not in the member's log as the leader has it, or the leader's term is over.

    No entry above `hint_index`, and none of a term above `hint_term`, can be the last that both have."""

    term: int
    round: int
    prev_index: int
    hint_index: int
    hint_term: int
    doubt: int = 0


class SnapshotOffer(_Value, frozen=True, tag=8):
    """The entries that the member needs are compacted: fetch a snapshot of at least `index` over a lane."""

    term: int
    round: int
    index: int


class ReadAsk(_Value, frozen=True, tag=9):
    """What is the lowest index at which a read begun now is linearizable? `number` is the asker's, drawn at
    random."""

    term: int
    number: int


class ReadAnswer(_Value, frozen=True, tag=10):
    term: int
    number: int
    index: int


class StandNow(_Value, frozen=True, tag=11):
    """From the leader of `term`, which has just resigned: stand, without waiting for an election's time."""

    term: int


RaftMessage = (
    PreVote
    | PreVoteAnswer
    | Vote
    | VoteAnswer
    | Append
    | AppendAnswer
    | AppendRefused
    | SnapshotOffer
    | ReadAsk
    | ReadAnswer
    | StandNow
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[RaftMessage] = msgspec.msgpack.Decoder(RaftMessage)
_members_decoder = msgspec.msgpack.Decoder(Members)


def encode_message(message: RaftMessage) -> bytes:
    return _encoder.encode(message)


def decode_message(body: bytes) -> RaftMessage:
    """Raises ProtocolViolation for anything that is not a whole, well-formed message."""
    try:
        message = _decoder.decode(body)
    except MALFORMED as error:
        raise ProtocolViolation(f"A Raft message could not be decoded: {error}.") from error
    if message.term < 0:
        raise ProtocolViolation("A Raft message has a negative term.")
    if isinstance(message, Append):
        _check_entries(message)
    return message


def _check_entries(message: Append) -> None:
    index, term = message.prev_index, message.prev_term
    if index < 0 or term < 0 or message.commit < 0:
        raise ProtocolViolation("An Append has a negative index.")
    for entry in message.entries:
        if entry.index != index + 1 or not term <= entry.term <= message.term:
            found, before = (entry.index, entry.term), (index, term)
            raise ProtocolViolation(f"An Append of term {message.term} has entry {found} after {before}.")
        index, term = entry.index, entry.term
        if entry.kind == MEMBERS:
            decode_members(entry.payload)


def encode_members(members: Members) -> bytes:
    return _encoder.encode(members)


def decode_members(payload: bytes) -> Members:
    """Raises ProtocolViolation unless it is a possible membership."""
    try:
        members = _members_decoder.decode(payload)
    except MALFORMED as error:
        raise ProtocolViolation(f"A membership entry could not be decoded: {error}.") from error
    everybody = members.voters + members.learners
    if not members.voters or len(set(everybody)) != len(everybody) or min(everybody) <= NOBODY:
        raise ProtocolViolation(f"No possible membership: {members}.")
    return members
