"""One member of a Raft group: it joins voting, leading and following into one machine.

Pure: events and `now` in, a `Ready` out. What a leader does is in `leading.py`. Sources: Ongaro & Ousterhout,
"In Search of an Understandable Consensus Algorithm (Extended Version)"; Ongaro's dissertation for pre-vote
(9.6), leases and reads (6.4), membership (4).

What keeps it safe, besides the paper's rules:

- Nothing leaves this node under a term or vote that is not on its disk: such messages are held until it is.
  (Pre-votes promise nothing and are not held.) What a follower acknowledges is on its disk.
- Doubt. A node whose vote record or log was damaged may have forgotten a promise. It draws a random number,
  `doubt`, and until healed neither votes nor stands nor is counted. A leader that hears of the doubt appends
  an entry E. The node is healed once this leader tells it that E is committed, counted without it, and it
  holds the log up to E durably. By then (a) every entry that was committed with the help of what it forgot is
  in its log again, for those who elected the leader had forgotten nothing when they voted; (b) a majority
  without it has acknowledged E in this term, so no candidate to which it gave a vote it forgot can still win
  with it: one of that majority would have to vote for a log without E. E is newer than all that the node
  acknowledged before the damage, so the leader cannot take an answer from then for the cure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from blockstore.codec.raft_file import HardState
from blockstore.codec.raft_messages import (
    COMMAND,
    MEMBERS,
    NOBODY,
    NOOP,
    Append,
    AppendAnswer,
    AppendRefused,
    Entry,
    Members,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    ReadAnswer,
    ReadAsk,
    SnapshotOffer,
    StandNow,
    Vote,
    VoteAnswer,
    encode_members,
)
from blockstore.config import (
    HEARTBEAT_SECONDS,
    RAFT_UNCOMMITTED_MAX,
)
from blockstore.consensus.leading import Leadership
from blockstore.consensus.log_view import LogView
from blockstore.consensus.membership import Membership
from blockstore.consensus.quorum import quorum_size
from blockstore.consensus.voting import Role, Voting
from blockstore.errors import Busy, NotLeader, ProtocolViolation
from blockstore.ids import NodeId


@dataclass(frozen=True, slots=True)
class Ready:
    """Work the shell now owes us. First `hard_state`, then `persist` become durable, in the order of the
    Readys, and `Raft.persisted` is told; everything else may be done at once."""

    send: tuple[tuple[NodeId, RaftMessage], ...] = ()
    hard_state: HardState | None = None
    persist: tuple[Entry, ...] = ()  # each voids what the log has from its index on
    commit: range = range(0)  # indices that may now be applied: committed, and durable here
    reads: tuple[tuple[int, int], ...] = ()  # (number, index): serve the read once `index` is applied
    fetch_snapshot: tuple[NodeId, int] | None = None  # from whom, of at least which index


class Raft:
    def __init__(
        self,
        me: NodeId,
        hard_state: HardState,
        log: LogView,
        membership: Membership,
        commit: int,
        rng: random.Random,
        now: float,
    ) -> None:
        """As loaded from the disk; `commit` is the last index of the snapshot that was installed."""
        self.me, self.log, self.membership = me, log, membership
        self.commit_index = commit
        self.voting = Voting(me, hard_state, log, membership, self._emit, self._emit_at_once, rng, now)
        self.leading: Leadership | None = None  # exactly while our role is LEADER
        self.resigned_silent: tuple[int, int] | None = None  # (heard, needed), when a majority fell silent
        self._durable = hard_state
        self._released = commit  # told to the shell as safe to apply
        self._term = hard_state.term  # that `_matched` and `_owed_round` belong to
        self._matched = commit  # our log equals the leader's of this term up to here
        self._owed_round = -1  # answer this round when what came with it is durable; -1: nothing owed
        self._own_reads: dict[int, float] = {}  # number -> when to ask (again)
        self._send: list[tuple[NodeId, RaftMessage]] = []
        self._held: list[tuple[NodeId, RaftMessage]] = []  # until our term and vote are durable
        self._told = hard_state  # the last one given to the shell
        self._persist: list[Entry] = []
        self._reads: list[tuple[int, int]] = []
        self._fetch: tuple[NodeId, int] | None = None

    @property
    def term(self) -> int:
        return self.voting.term

    @property
    def role(self) -> Role:
        return self.voting.role

    @property
    def leader(self) -> NodeId:
        return self.voting.leader

    @property
    def doubt(self) -> int:
        return self.voting.doubt

    # --- events

    def start(self, now: float) -> Ready:
        """The only voter has nobody to wait for."""
        if self.membership.is_alone(self.me) and not self.doubt:
            self._settle(self.voting.stand(now), now)
        return self._ready(now)

    def tick(self, now: float) -> Ready:
        if self.leading is not None:
            if self.leading.is_silent(now):
                n_voters = len(self.membership.voters)
                self.resigned_silent = (self.leading.n_heard(now), quorum_size(n_voters))
                self._follow(self.term, NOBODY, now)
            elif now >= self.leading.next_beat:
                self.leading.beat(now)
        elif now >= self.voting.election_at:
            self._settle(self.voting.canvass(now), now)
        self._ask_reads(now)
        return self._ready(now)

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do, unless something else happens before."""
        due = self.leading.next_beat if self.leading is not None else self.voting.election_at
        return min(due, min(self._own_reads.values())) if self._own_reads and self.leading is None else due

    def receive(self, sender: NodeId, message: RaftMessage, now: float) -> Ready:
        """Raises ProtocolViolation, and then nothing has changed."""
        match message:
            case PreVote():
                self.voting.on_pre_vote(sender, message, now)
            case PreVoteAnswer():
                self._settle(self.voting.on_pre_vote_answer(sender, message, now), now)
            case Vote():
                self.voting.on_vote(sender, message, now)
                self._settle(False, now)
            case VoteAnswer():
                self._settle(self.voting.on_vote_answer(sender, message, now), now)
            case Append():
                self._on_append(sender, message, now)
            case SnapshotOffer():
                self._on_snapshot_offer(sender, message, now)
            case AppendAnswer() | AppendRefused():
                self._on_append_answer(sender, message, now)
            case ReadAsk():
                if self.leading is not None and sender in self.membership.everybody:
                    self.leading.read(sender, message.number, now)
            case ReadAnswer():
                self._on_read(message.number, message.index)
            case StandNow():
                self._on_stand_now(sender, message, now)
        return self._ready(now)

    def propose(self, commands: Sequence[bytes], now: float) -> Ready:
        """Their entries are `Ready.persist`, in order. Raises NotLeader or Busy; then none was taken."""
        leading = self._require_leading()
        if self.log.last_index - self.commit_index + len(commands) > RAFT_UNCOMMITTED_MAX:
            raise Busy("control's log")
        index = self.log.last_index
        self._add([Entry(index + n, self.term, COMMAND, command) for n, command in enumerate(commands, 1)])
        leading.replicate()
        return self._ready(now)

    def change_members(self, voters: frozenset[NodeId], learners: frozenset[NodeId], now: float) -> Ready:
        """One entry in `Ready.persist`. Raises NotLeader, InvalidRequest, or Busy: not now."""
        leading = self._require_leading()
        own_term_committed = self.commit_index >= leading.first_index
        members = self.membership.check_change(voters, learners, self.commit_index, own_term_committed)
        for node in voters - self.membership.voters:
            if node != self.me and not leading.is_caught_up(node, now):
                raise Busy(f"node {node}, which has not caught up with control's log")
        self._add([Entry(self.log.last_index + 1, self.term, MEMBERS, encode_members(members))])
        leading.welcome_members(now)
        leading.replicate()
        leading.beat(now)
        return self._ready(now)

    def resign(self, now: float) -> Ready:
        """Lead no more, and let the best of the others stand at once. Nothing happens when we do not lead, or
        no other voter is heard. What was proposed and is not committed may get lost, as with any leader's
        end."""
        if self.leading is not None and (heir := self.leading.heir(now)) != NOBODY:
            self._follow(self.term, NOBODY, now)
            self._emit(heir, StandNow(self.term))
        return self._ready(now)

    def read(self, numbers: Sequence[int], now: float) -> Ready:
        """Begin linearizable reads. Their numbers, never used by any process before, come back in `reads`."""
        for number in numbers:
            self._own_reads[number] = now
            if self.leading is not None:
                self.leading.read(self.me, number, now)
        self._ask_reads(now)
        return self._ready(now)

    def forget_read(self, number: int) -> None:
        self._own_reads.pop(number, None)

    def persisted(self, hard_state: HardState | None, last: Entry | None, now: float) -> Ready:
        """The shell has made these durable, `last` with all entries that were to be written before it."""
        if hard_state is not None:
            self._durable = hard_state
        before = self.log.persisted
        if last is not None:
            self.log.on_persisted(last.index, last.term)
        if self._durable == self.voting.hard_state:
            held, self._held = self._held, []
            self._send += [(to, message) for to, message in held if message.term == self.term]
        if self.log.persisted > before and self._owed_round >= 0 and self.leader not in (NOBODY, self.me):
            self._answer_leader(self._owed_round)
        return self._ready(now)

    def wants_snapshot(self, index: int, term: int) -> bool:
        return index > self.commit_index and term <= self.term

    def snapshot_saved(self, index: int, term: int, members: Members, now: float) -> tuple[Ready, bool]:
        """A snapshot that we want is durable, and nothing is being written. The bool: whether what the log
        holds above it stays; otherwise the log on the disk must be begun anew before anything else is
        written."""
        assert self.wants_snapshot(index, term)
        kept = self.log.restore(index, term)
        if kept:
            self.membership.restore(index, members)
        else:
            self.membership.start_over(index, members)
        self.commit_index = self._released = index
        self._matched = max(self._matched, index)  # it was committed, so our leader has it
        if self.leader not in (NOBODY, self.me):
            self._answer_leader(0)
        return self._ready(now), kept

    def compact(self, index: int) -> None:
        """A snapshot up to at least `index` is durable; the entries below are not needed here any more."""
        self.log.compact(index)
        self.membership.forget_below(index)

    @property
    def lease_until(self) -> float:
        """Until then nobody else leads; 0 when we do not."""
        return self.leading.rounds.lease_until if self.leading is not None else 0.0

    # --- roles

    def _settle(self, elected: bool, now: float) -> None:
        """Voting may have changed our term or our role."""
        if self.voting.term != self._term:
            self._term = self.voting.term
            self._matched = self.commit_index
            self._owed_round = -1
        if self.voting.role is not Role.LEADER:
            self.leading = None
        elif elected:
            self._lead(now)

    def _lead(self, now: float) -> None:
        self.resigned_silent = None
        self.leading = Leadership(
            self.me, self.term, self.commit_index, self.log, self.membership, self._emit, now
        )
        self._add([Entry(self.log.last_index + 1, self.term, NOOP)])
        self.leading.beat(now)
        for number in self._own_reads:
            self.leading.read(self.me, number, now)

    def _follow(self, term: int, leader: NodeId, now: float) -> None:
        self.voting.follow(term, leader, now)
        self._settle(False, now)

    def _on_stand_now(self, sender: NodeId, message: StandNow, now: float) -> None:
        """One that comes late, when its term is over, means nothing."""
        may_stand = not self.doubt and self.me in self.membership.voters and self.leading is None
        if may_stand and message.term == self.term and self.leader in (sender, NOBODY):
            self._settle(self.voting.stand(now, handover=True), now)

    def _require_leading(self) -> Leadership:
        if self.leading is None:
            raise NotLeader(self.leader)
        return self.leading

    # --- the log, as leader

    def _add(self, entries: list[Entry]) -> None:
        """To the log's end, in memory; `persist` makes them durable."""
        self.log.append(entries)
        self.membership.append(entries)
        self._persist += entries

    def _on_append_answer(self, sender: NodeId, answer: AppendAnswer | AppendRefused, now: float) -> None:
        if answer.term > self.term and sender in self.membership.everybody:
            self._follow(answer.term, NOBODY, now)
        if self.leading is None or answer.term != self.term:
            return
        if answer.doubt and self.leading.on_doubt(sender, answer.doubt):
            self._add([Entry(self.log.last_index + 1, self.term, NOOP)])
        if isinstance(answer, AppendAnswer):
            self.leading.on_answer(sender, answer, now)
        else:
            self.leading.on_refused(sender, answer, now)
        self.leading.replicate()

    def _count(self, now: float) -> None:
        """Commit what a majority holds."""
        leading = self.leading
        if leading is None or (index := leading.committed_by_quorum()) <= self.commit_index:
            return
        self.commit_index = leading.commit = index
        leading.announce_commit()
        if self.membership.index <= index:
            leading.dismiss_members()
            if self.me not in self.membership.voters:
                # We removed ourselves, and were not counted for it (dissertation, section 4.2.2).
                self._follow(self.term, NOBODY, now)

    # --- the log, as follower

    def _on_append(self, leader: NodeId, append: Append, now: float) -> None:
        if append.term < self.term:
            self._emit(leader, AppendRefused(self.term, append.round, append.prev_index, 0, 0, self.doubt))
            return
        if self.leading is not None and append.term == self.term:
            raise ProtocolViolation(f"Node {leader} leads in term {append.term}, as this node does.")
        prev_index, prev_term, entries = append.prev_index, append.prev_term, append.entries
        if prev_index < self.log.base_index:  # what our snapshot covers was committed, so it is the same
            covered = self.log.base_index - prev_index
            prev_index = min(self.log.base_index, prev_index + len(entries))
            prev_term, entries = self.log.base_term, entries[covered:]
        agree = prev_index < self.log.base_index or self.log.term_at(prev_index) == prev_term
        new = self._new_entries(entries) if agree else ()
        if new and new[0].index <= self.commit_index:
            raise ProtocolViolation(f"Node {leader} would replace entry {new[0].index}, which is committed.")
        self.voting.hear(append.term, leader, now)
        self._settle(False, now)
        if not agree:
            hint_index, hint_term = self.log.last_common(prev_index - 1, prev_term)
            refused = AppendRefused(
                self.term, append.round, append.prev_index, hint_index, hint_term, self.doubt
            )
            self._emit(leader, refused)
            return
        if new:
            if new[0].index <= self.log.last_index:
                self.log.truncate_from(new[0].index)
                self.membership.truncate_from(new[0].index)
            self._add(list(new))
        self._matched = max(self._matched, prev_index + len(entries))
        self.commit_index = max(self.commit_index, min(append.commit, self._matched))
        if append.healing and append.healing == self.doubt and self._is_healed_by(append.heal_index):
            self.voting.doubt = 0
        if new:
            self._owed_round = max(self._owed_round, append.round)
        elif append.round or append.entries:
            self._answer_leader(append.round)

    def _new_entries(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Those from the first on that our log has not, or has with another term."""
        for n, entry in enumerate(entries):
            if self.log.term_at(entry.index) != entry.term:
                return entries[n:]
        return ()

    def _is_healed_by(self, heal_index: int) -> bool:
        return min(self.commit_index, self.log.persisted, self._matched) >= heal_index

    def _on_snapshot_offer(self, leader: NodeId, offer: SnapshotOffer, now: float) -> None:
        if offer.term < self.term:
            self._emit(leader, AppendRefused(self.term, offer.round, 0, 0, 0, self.doubt))
            return
        if self.leading is not None and offer.term == self.term:
            raise ProtocolViolation(f"Node {leader} leads in term {offer.term}, as this node does.")
        self.voting.hear(offer.term, leader, now)
        self._settle(False, now)
        if offer.index > self.commit_index:
            self._fetch = (leader, offer.index)
        self._answer_leader(offer.round)

    def _answer_leader(self, round: int) -> None:
        """What of the leader's log is on our disk."""
        match = min(self._matched, self.log.persisted)
        self._emit(self.leader, AppendAnswer(self.term, round, match, self.doubt))
        if match == self._matched:
            self._owed_round = -1

    # --- reads

    def _ask_reads(self, now: float) -> None:
        if self.leading is not None:
            return
        for number, when in self._own_reads.items():
            if when <= now:
                self._own_reads[number] = now + HEARTBEAT_SECONDS  # lost, it is asked again
                if self.leader != NOBODY:
                    self._emit(self.leader, ReadAsk(self.term, number))

    def _on_read(self, number: int, index: int) -> None:
        if self._own_reads.pop(number, None) is not None:
            self._reads.append((number, index))

    # --- output

    def _emit(self, to: NodeId, message: RaftMessage) -> None:
        """What we say under our term and vote waits until both are durable."""
        (self._send if self._durable == self.voting.hard_state else self._held).append((to, message))

    def _emit_at_once(self, to: NodeId, message: RaftMessage) -> None:
        self._send.append((to, message))

    def _ready(self, now: float) -> Ready:
        self._count(now)
        if self.leading is not None:
            for who, number, index in self.leading.take_reads(now):
                if who == self.me:
                    self._on_read(number, index)
                else:
                    self._emit(who, ReadAnswer(self.term, number, index))
        start, self._released = (
            self._released,
            max(self._released, min(self.commit_index, self.log.persisted)),
        )
        hard_state = self.voting.hard_state
        ready = Ready(
            tuple(self._send),
            hard_state if hard_state != self._told else None,
            tuple(self._persist),
            range(start + 1, self._released + 1),
            tuple(self._reads),
            self._fetch,
        )
        self._told, self._fetch = hard_state, None
        self._send.clear()
        self._persist.clear()
        self._reads.clear()
        return ready
