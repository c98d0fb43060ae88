"""What a leader does in its term: replicate, count, answer reads, and notice that it leads no more.

Lives exactly as long as one leadership. A member that says it lost part of its state (`doubt`) gets the log
but is counted nowhere; how it is healed is argued in `raft.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from blockstore.codec.raft_messages import (
    NOBODY,
    Append,
    AppendAnswer,
    AppendRefused,
    RaftMessage,
    SnapshotOffer,
)
from blockstore.config import ELECTION_SECONDS_MAX, ELECTION_SECONDS_MIN, HEARTBEAT_SECONDS, RAFT_READS_MAX
from blockstore.consensus.log_view import LogView
from blockstore.consensus.membership import Membership
from blockstore.consensus.progress import Mode, Progress
from blockstore.consensus.quorum import reached_by_quorum
from blockstore.consensus.rounds import Reads, Rounds
from blockstore.errors import ProtocolViolation
from blockstore.ids import NodeId

SILENT_ROUNDS_MIN = 4
"""Unanswered rounds before a leader gives up, besides the time: a leader that was itself paused for a second
finds its members' answers in its queue, and must not resign before it has asked again and read them."""

CAUGHT_UP_ENTRIES = 100
"""A learner this close behind becomes a voter without commits waiting for it noticeably."""

Emit = Callable[[NodeId, RaftMessage], None]


class Leadership:
    def __init__(
        self, me: NodeId, term: int, commit: int, log: LogView, membership: Membership, emit: Emit, now: float
    ) -> None:
        self.term = term
        self.commit = commit  # kept by Raft
        self.next_beat = now
        self.rounds = Rounds()
        self.first_index = log.last_index + 1  # of the no-op that begins this term
        self.progress: dict[NodeId, Progress] = {}
        self._me, self._log, self._membership, self._emit = me, log, membership, emit
        self._reads = Reads()
        self._early_reads: dict[tuple[NodeId, int], None] = {}  # until an entry of this term is committed
        self.welcome_members(now)

    # --- members

    def welcome_members(self, now: float) -> None:
        for node in sorted(self._membership.everybody - self.progress.keys() - {self._me}):
            self.progress[node] = Progress(self._log.last_index, now)

    def dismiss_members(self) -> None:
        """Called when a membership is committed: until then those removed get the log, and so learn."""
        for node in self.progress.keys() - self._membership.everybody:
            del self.progress[node]

    # --- sending

    def beat(self, now: float) -> None:
        """Begin a round: tell every member that we lead, and find what it lacks."""
        self.next_beat = now + HEARTBEAT_SECONDS
        self.rounds.begin(now)
        for node, progress in self.progress.items():
            self._probe(node, progress)
        self._count_rounds(now)

    def replicate(self) -> None:
        for node, progress in self.progress.items():
            self._feed(node, progress)

    def announce_commit(self) -> None:
        """Followers apply now, not at the next heartbeat. Lost, it is told again by that."""
        for node, progress in self.progress.items():
            if progress.mode is Mode.STREAM and progress.match >= self._log.base_index:
                self._append(node, progress, 0, progress.match)

    def _probe(self, node: NodeId, progress: Progress) -> None:
        if progress.next <= self._log.base_index:
            progress.mode = Mode.OFFER
        if progress.mode is Mode.OFFER:
            self._emit(node, SnapshotOffer(self.term, self.rounds.last, self._log.base_index))
        else:
            self._append(node, progress, self.rounds.last, progress.next - 1)

    def _append(self, node: NodeId, progress: Progress, round: int, prev_index: int) -> None:
        prev_term = self._log.term_at(prev_index)
        assert prev_term is not None
        healing, heal_index = progress.doubt, progress.heal_index
        self._emit(
            node, Append(self.term, round, prev_index, prev_term, self.commit, (), healing, heal_index)
        )

    def _feed(self, node: NodeId, progress: Progress) -> None:
        while entries := progress.next_entries(self._log):
            prev_index = entries[0].index - 1
            prev_term = self._log.term_at(prev_index)
            assert prev_term is not None
            healing, heal_index = progress.doubt, progress.heal_index
            round = self.rounds.last
            self._emit(
                node,
                Append(self.term, round, prev_index, prev_term, self.commit, entries, healing, heal_index),
            )

    # --- answers

    def on_doubt(self, node: NodeId, doubt: int) -> bool:
        """True: this doubt is new, so an entry must be appended, whose presence will prove it healed."""
        progress = self.progress.get(node)
        if progress is None or progress.doubt == doubt:
            return False
        progress.on_doubt(doubt, self._log.last_index + 1)
        return True

    def on_answer(self, node: NodeId, answer: AppendAnswer, now: float) -> None:
        progress = self.progress.get(node)
        if progress is None:
            return
        if answer.match > self._log.last_index:
            raise ProtocolViolation(
                f"Node {node} has entry {answer.match}; the last is {self._log.last_index}."
            )
        if progress.doubt and not answer.doubt:
            if answer.match < progress.heal_index:
                # From before it lost what it names, so it is not believed; or it is healed, and word of its
                # doubt was late: then it needs the entry that shows so.
                progress.on_unproven(answer.match, self._log)
                self._feed(node, progress)
                return
            progress.doubt = 0
        progress.on_match(answer.match, self._log)
        self._heard(progress, answer.round, now)
        self._feed(node, progress)

    def on_refused(self, node: NodeId, refused: AppendRefused, now: float) -> None:
        progress = self.progress.get(node)
        if progress is None:
            return
        self._heard(progress, refused.round, now)
        common, _ = self._log.last_common(refused.hint_index, refused.hint_term)
        if progress.on_refused(refused.prev_index, common):
            self._probe(node, progress)

    def _heard(self, progress: Progress, round: int, now: float) -> None:
        progress.heard = now
        progress.round = max(progress.round, min(round, self.rounds.last))
        self._count_rounds(now)

    # --- counting

    def committed_by_quorum(self) -> int:
        """The highest index held by a majority, if it is of this term (Raft paper, figure 8); else 0."""
        index = reached_by_quorum(self._membership.voters, self._match_of)
        return index if self._log.term_at(index) == self.term else 0

    def _match_of(self, node: NodeId) -> int:
        if node == self._me:
            return self._log.persisted
        progress = self.progress.get(node)
        return 0 if progress is None or progress.doubt else progress.match

    def _round_of(self, node: NodeId) -> int:
        if node == self._me:
            return self.rounds.last
        progress = self.progress.get(node)
        return 0 if progress is None or progress.doubt else progress.round

    def _count_rounds(self, now: float) -> None:
        self.rounds.on_answered(reached_by_quorum(self._membership.voters, self._round_of))
        if self._reads.last_round > self.rounds.last and self.rounds.answered == self.rounds.last:
            self.beat(now)  # those that came while a round was under way

    def heard_quorum_at(self, now: float) -> float:
        """When a majority had last answered."""

        def heard(node: NodeId) -> float:
            if node == self._me:
                return now
            progress = self.progress.get(node)
            return 0.0 if progress is None or progress.doubt else progress.heard

        return reached_by_quorum(self._membership.voters, heard)

    def n_heard(self, now: float) -> int:
        """Voters heard within an election's time, this one included."""
        since = now - ELECTION_SECONDS_MAX
        return sum(
            node == self._me or (node in self.progress and self.progress[node].heard >= since)
            for node in self._membership.voters
        )

    def is_silent(self, now: float) -> bool:
        """No majority answers: another may have been elected, and we must not pretend (section 6.2)."""
        late = now - self.heard_quorum_at(now) > ELECTION_SECONDS_MAX
        return late and self.rounds.unanswered >= SILENT_ROUNDS_MIN

    def heir(self, now: float) -> NodeId:
        """Of the voters heard lately, the one that has most of the log; NOBODY if there is none."""
        heard = [
            (progress.match, node)
            for node, progress in self.progress.items()
            if node in self._membership.voters
            and not progress.doubt
            and now - progress.heard <= ELECTION_SECONDS_MIN
        ]
        return max(heard)[1] if heard else NOBODY

    def is_caught_up(self, node: NodeId, now: float) -> bool:
        """Fit to become a voter: sound, answering, and behind by no more than it gets in a moment."""
        progress = self.progress.get(node)
        if progress is None or progress.doubt or now - progress.heard > 3 * HEARTBEAT_SECONDS:
            return False
        return progress.mode is Mode.STREAM and self.commit - progress.match <= CAUGHT_UP_ENTRIES

    # --- reads

    def read(self, who: NodeId, number: int, now: float) -> None:
        if len(self._reads) + len(self._early_reads) >= RAFT_READS_MAX:
            return  # it asks again
        if self.commit < self.first_index:
            # Before an entry of its own term is committed a leader does not know what is (section 6.4).
            self._early_reads[who, number] = None
            return
        under_way = self.rounds.answered < self.rounds.last
        self._reads.add(self.rounds.last + 1, who, number, self.commit)
        if not under_way:
            self.beat(now)

    def take_reads(self, now: float) -> list[tuple[NodeId, int, int]]:
        """`(who, number, index)`: the reads that have become safe."""
        if self._early_reads and self.commit >= self.first_index:
            early, self._early_reads = list(self._early_reads), {}
            for who, number in early:
                self.read(who, number, now)
        return self._reads.take(self.rounds.answered)
