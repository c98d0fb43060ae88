"""Who leads: this member's term and vote, what it believes of a leader, and when it asks for votes itself.

Sources: Raft paper, sections 5.2 and 5.4.1; Ongaro's dissertation, 9.6 (pre-vote), 6.4.1 and 4.2.3 (refusing
to vote while a leader is heard).

- A member that heard a leader within ELECTION_SECONDS_MIN refuses (pre-)votes, as does one that started
  within that time, for it may have heard one before: the leader's lease depends on it. So a member that was
  cut off and returns does not depose a leader that serves the others.
- A pre-vote asked for in a term that is over is answered with ours, whether or not we would grant it: members
  with a higher term, and those with a longer log, would otherwise wait for each other for ever.
- Any node is asked that the candidate believes to be a voter. One that does not know yet that it became a
  voter must answer, or a group of three that lost one could not elect (dissertation, section 4.2.2).
- A leader may resign, and names an heir, which stands at once (dissertation, 3.10). Its votes say so, and are
  given although a leader was heard a moment ago: whoever is heard leads in the term that was resigned or in
  an earlier one, and the lease of each of them is over.
- A member in doubt (`raft.py`) neither votes nor stands.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum

from blockstore.codec.raft_file import HardState
from blockstore.codec.raft_messages import NOBODY, PreVote, PreVoteAnswer, RaftMessage, Vote, VoteAnswer
from blockstore.config import ELECTION_SECONDS_MAX, ELECTION_SECONDS_MIN
from blockstore.consensus.log_view import LogView
from blockstore.consensus.membership import Membership
from blockstore.consensus.quorum import is_quorum
from blockstore.ids import NodeId

Emit = Callable[[NodeId, RaftMessage], None]


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Voting:
    def __init__(
        self,
        me: NodeId,
        hard_state: HardState,
        log: LogView,
        membership: Membership,
        emit: Emit,
        emit_at_once: Emit,
        rng: random.Random,
        now: float,
    ) -> None:
        """`emit` holds a message until our term and vote are durable; `emit_at_once` is for pre-votes, which
        promise nothing."""
        self.term, self.vote, self.doubt = hard_state.term, hard_state.vote, hard_state.doubt
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.election_at = 0.0  # when we ask for votes, unless we hear a leader before
        self._trust_until = now + ELECTION_SECONDS_MIN
        self._ballot: set[NodeId] = set()
        self._me, self._log, self._membership, self._rng = me, log, membership, rng
        self._emit, self._emit_at_once = emit, emit_at_once
        self.delay_election(now)

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.doubt)

    def hears_leader(self, now: float) -> bool:
        return self.role is Role.LEADER or now < self._trust_until

    def delay_election(self, now: float) -> None:
        self.election_at = now + self._rng.uniform(ELECTION_SECONDS_MIN, ELECTION_SECONDS_MAX)

    def follow(self, term: int, leader: NodeId, now: float) -> None:
        """Be a follower in `term`, of `leader` if one is known."""
        if term > self.term:
            self.term, self.vote = term, NOBODY
        self.role, self.leader = Role.FOLLOWER, leader
        self.delay_election(now)

    def hear(self, term: int, leader: NodeId, now: float) -> None:
        """`leader` leads in `term`, which is not below ours."""
        self.follow(term, leader, now)
        self._trust_until = now + ELECTION_SECONDS_MIN

    # --- asking: each says whether we are elected

    def canvass(self, now: float) -> bool:
        """Our leader is silent: ask who would vote for us, without disturbing anyone."""
        self.delay_election(now)
        self.leader = NOBODY
        if self.doubt or self._me not in self._membership.voters:
            return False
        self.role, self._ballot = Role.PRE_CANDIDATE, {self._me}
        if self._has_quorum():
            return self.stand(now)
        for node in self._others():
            self._emit_at_once(node, PreVote(self.term + 1, self._log.last_index, self._log.last_term))
        return False

    def stand(self, now: float, handover: bool = False) -> bool:
        """`handover`: the leader of our term has resigned."""
        self.delay_election(now)
        self.role, self.leader, self._ballot = Role.CANDIDATE, NOBODY, {self._me}
        self.term, self.vote = self.term + 1, self._me
        if self._has_quorum():
            return self._win()
        for node in self._others():
            self._emit(node, Vote(self.term, self._log.last_index, self._log.last_term, handover))
        return False

    def on_pre_vote_answer(self, sender: NodeId, answer: PreVoteAnswer, now: float) -> bool:
        if not answer.granted:
            if answer.term > self.term:
                self.follow(answer.term, NOBODY, now)
        elif self.role is Role.PRE_CANDIDATE and answer.term == self.term + 1:
            self._ballot.add(sender)
            return self._has_quorum() and self.stand(now)
        return False

    def on_vote_answer(self, sender: NodeId, answer: VoteAnswer, now: float) -> bool:
        if answer.term > self.term:
            self.follow(answer.term, NOBODY, now)
        elif self.role is Role.CANDIDATE and answer.granted and answer.term == self.term:
            self._ballot.add(sender)
            return self._has_quorum() and self._win()
        return False

    def _win(self) -> bool:
        self.role, self.leader = Role.LEADER, self._me
        return True

    def _has_quorum(self) -> bool:
        return is_quorum(self._ballot, self._membership.voters)

    def _others(self) -> list[NodeId]:
        return sorted(self._membership.voters - {self._me})

    # --- being asked

    def on_pre_vote(self, sender: NodeId, asked: PreVote, now: float) -> None:
        if self.doubt:
            return
        granted = asked.term > self.term and self._is_current(asked) and not self.hears_leader(now)
        self._emit_at_once(sender, PreVoteAnswer(asked.term if granted else self.term, granted))

    def on_vote(self, sender: NodeId, asked: Vote, now: float) -> None:
        lease_is_over = asked.handover and asked.term > self.term
        if self.doubt or (asked.term >= self.term and self.hears_leader(now) and not lease_is_over):
            return
        if asked.term > self.term:
            self.follow(asked.term, NOBODY, now)
        granted = asked.term == self.term and self.vote in (NOBODY, sender) and self._is_current(asked)
        if granted:
            self.vote = sender
            self.delay_election(now)
        self._emit(sender, VoteAnswer(self.term, granted))

    def _is_current(self, asked: PreVote | Vote) -> bool:
        """The asker's log is at least as up-to-date as ours (Raft paper, section 5.4.1)."""
        return (asked.last_term, asked.last_index) >= (self._log.last_term, self._log.last_index)
