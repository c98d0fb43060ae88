"""Each sentence of the papers that we rely on, and the failures that others had.

"Paper" is Ongaro & Ousterhout's extended version; "dissertation" is Ongaro's.
"""

from __future__ import annotations

import pytest

from blockstore.codec.raft_file import HardState
from blockstore.codec.raft_messages import (
    NOBODY,
    NOOP,
    Append,
    AppendAnswer,
    AppendRefused,
    Members,
    PreVote,
    PreVoteAnswer,
    ReadAnswer,
    SnapshotOffer,
    StandNow,
    Vote,
    VoteAnswer,
)
from blockstore.config import (
    CLOCK_DRIFT_MAX,
    ELECTION_SECONDS_MAX,
    ELECTION_SECONDS_MIN,
    HEARTBEAT_SECONDS,
    RAFT_UNCOMMITTED_MAX,
)
from blockstore.consensus.raft import Raft
from blockstore.consensus.voting import Role
from blockstore.errors import Busy, InvalidRequest, NotLeader, ProtocolViolation
from blockstore.ids import NodeId
from tests.unit.consensus.raft_group import A, B, C, D, E, Group, entries

# --- elections (paper 5.2, 5.4.1)


def test_a_member_alone_leads_without_waiting() -> None:
    group = Group(A)
    group.act(A, group.cores[A].start(0.0))
    assert group.cores[A].role is Role.LEADER
    assert group.applied[A] == [1]  # its no-op


def test_a_follower_that_hears_nothing_is_elected_and_writes_a_no_op() -> None:
    group = Group(A, B, C)
    leader = group.elect(A)
    assert leader.role is Role.LEADER
    assert leader.log.entry(1).kind == NOOP
    assert [group.cores[node].leader for node in (A, B, C)] == [A, A, A]
    assert [group.applied[node] for node in (A, B, C)] == [[1], [1], [1]]


def test_each_server_votes_for_at_most_one_candidate_in_a_term_first_come() -> None:
    group = Group(A, B, C)
    group.receive(C, A, Vote(5, 0, 0))
    group.receive(C, B, Vote(5, 0, 0))
    group.receive(C, A, Vote(5, 0, 0))  # its answer was lost
    granted = [
        (to, answer.granted) for to, answer in group.sent(VoteAnswer, C) if isinstance(answer, VoteAnswer)
    ]
    assert granted == [(A, True), (B, False), (A, True)]


def test_a_vote_survives_a_restart() -> None:
    group = Group(A, B, C)
    group.receive(C, A, Vote(5, 0, 0))
    group.restart(C)
    group.now += 1
    group.wire.clear()
    group.receive(C, B, Vote(5, 0, 0))
    assert group.sent(VoteAnswer, C) == [(B, VoteAnswer(5, False))]


def test_a_vote_is_not_sent_before_it_is_durable() -> None:
    group = Group(A, B, C)
    group.slow[C] = []
    group.receive(C, A, Vote(5, 0, 0))
    assert group.wire == []
    group.sync(C)
    assert group.sent(VoteAnswer, C) == [(A, VoteAnswer(5, True))]


def test_nor_is_one_that_a_later_term_has_overtaken() -> None:
    group = Group(A, B, C)
    group.slow[C] = []
    group.receive(C, A, Vote(5, 0, 0))
    group.receive(C, B, Vote(6, 0, 0))
    group.sync(C)
    assert group.sent(VoteAnswer, C) == [(B, VoteAnswer(6, True))]


def test_a_candidate_asks_for_votes_once_its_own_is_durable() -> None:
    group = Group(A, B, C)
    group.slow[A] = []
    group.now += 2
    group.tick(A)
    group.receive(A, B, PreVoteAnswer(1, True))
    assert group.cores[A].role is Role.CANDIDATE
    assert group.sent(Vote, A) == []
    group.sync(A)
    assert [to for to, _ in group.sent(Vote, A)] == [B, C]


@pytest.mark.parametrize(
    ("asked", "granted"),
    [((2, 2), False), ((3, 2), False), ((2, 3), False), ((3, 3), True), ((4, 3), True), ((1, 4), True)],
)
def test_a_voter_denies_its_vote_if_its_own_log_is_more_up_to_date(
    asked: tuple[int, int], granted: bool
) -> None:
    group = Group(A, B, C, logs={C: (1, 2, 3)})
    group.receive(C, A, PreVote(7, *asked))
    group.receive(C, A, Vote(7, *asked))
    assert [
        message.granted for _, message in group.sent(PreVoteAnswer, C) if isinstance(message, PreVoteAnswer)
    ] == [granted]
    assert group.sent(VoteAnswer, C) == [(A, VoteAnswer(7, granted))]


def test_a_candidate_that_hears_a_leader_of_its_term_follows() -> None:
    group = Group(A, B, C)
    group.cut = {B, C}
    group.now += 2
    group.tick(A)
    group.receive(A, B, PreVoteAnswer(1, True))
    assert group.cores[A].role is Role.CANDIDATE
    group.receive(A, B, Append(1, 1, 0, 0, 0))
    assert (group.cores[A].role, group.cores[A].leader) == (Role.FOLLOWER, B)


def test_if_a_server_hears_of_a_higher_term_it_becomes_a_follower_of_it() -> None:
    group = Group(A, B, C)
    leader = group.elect(A)
    group.receive(A, B, AppendRefused(9, 1, 0, 0, 0))
    assert (leader.role, leader.term) == (Role.FOLLOWER, 9)
    assert group.hard[A].term == 9


def test_a_request_of_an_old_term_is_refused_with_the_new_one() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.elect(B)
    group.wire.clear()
    group.receive(C, A, Append(1, 7, 1, 1, 1))
    assert group.sent(AppendRefused, C) == [(A, AppendRefused(2, 7, 1, 0, 0))]


def test_election_timers_are_drawn_at_random() -> None:
    group = Group(A, B, C, D, E)
    due = {core.next_tick for core in group.cores.values()}
    assert len(due) == 5
    assert all(ELECTION_SECONDS_MIN <= when <= ELECTION_SECONDS_MAX for when in due)


# --- the log (paper 5.3, 5.4)


def test_a_follower_that_lacks_the_entry_before_refuses() -> None:
    group = Group(A, B, C, logs={B: (1, 1)})
    group.receive(B, A, Append(3, 1, 5, 3, 0))
    assert group.sent(AppendRefused, B) == [(A, AppendRefused(3, 1, 5, 2, 1))]
    assert group.terms(B) == (1, 1)


def test_a_conflicting_entry_is_deleted_with_all_that_follow_it() -> None:
    group = Group(A, B, C, logs={B: (1, 1, 2, 2, 2)})
    new = entries(1, 1, 2, 3)[3:]
    group.receive(B, A, Append(3, 1, 3, 2, 0, new))
    assert group.terms(B) == (1, 1, 2, 3)


def test_a_late_append_deletes_nothing_that_agrees() -> None:
    group = Group(A, B, C, logs={B: (1, 1, 1, 1)})
    group.receive(B, A, Append(1, 1, 1, 1, 0, entries(1, 1)[1:]))
    assert group.terms(B) == (1, 1, 1, 1)
    assert group.sent(AppendAnswer, B) == [(A, AppendAnswer(1, 1, 2))]  # it is not known that the rest agrees


@pytest.mark.parametrize(
    "follower",
    [
        (1, 1, 1, 4, 4, 5, 5, 6, 6),  # figure 7: a
        (1, 1, 1, 4),  # b
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),  # c
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),  # d
        (1, 1, 1, 4, 4, 4, 4),  # e
        (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),  # f
    ],
)
def test_the_leader_brings_the_logs_of_figure_7_to_its_own(follower: tuple[int, ...]) -> None:
    leader = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    group = Group(A, B, C, logs={A: leader, B: follower, C: leader})
    for node in (A, B, C):
        group.cores[node].voting.term = 7
    group.elect(A)
    group.propose(A, b"x")
    group.deliver()
    assert group.terms(A) == (*leader, 8, 8)
    assert group.terms(B) == group.terms(C) == group.terms(A)


def test_backing_up_skips_whole_terms() -> None:
    group = Group(A, B, C, logs={A: (1, *[5] * 100), B: (1, *[2] * 30, *[3] * 30, *[4] * 30)})
    group.elect(A)
    group.cut = {C}
    group.wire.clear()
    core = group.cores[A]
    assert core.leading is not None
    assert core.leading.progress[B].match == 102


def test_an_entry_is_committed_when_a_majority_has_it_durably() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.slow = {B: [], C: []}
    group.propose(A, b"x")
    group.deliver()
    assert core.commit_index == 1
    group.sync(B)
    group.deliver()
    assert core.commit_index == 2
    assert group.applied[A] == [1, 2]


def test_the_leader_itself_counts_only_what_is_on_its_disk() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.slow = {A: []}
    group.cut = {C}
    group.propose(A, b"x")
    group.deliver()
    assert core.commit_index == 1
    group.sync(A)
    assert core.commit_index == 2


def test_an_entry_replaced_while_it_was_written_is_not_acknowledged() -> None:
    group = Group(A, B, C)
    group.slow = {C: []}
    group.receive(C, A, Append(1, 1, 0, 0, 0, entries(1, 1)))
    group.receive(C, B, Append(2, 1, 0, 0, 0, entries(2, 2)))
    first, second = group.slow[C]
    core = group.cores[C]
    assert core.persisted(first.hard_state, first.persist[-1], group.now).send == ()
    ready = core.persisted(second.hard_state, second.persist[-1], group.now)
    assert ready.send == ((B, AppendAnswer(2, 1, 2)),)


def test_a_follower_acknowledges_only_what_is_on_its_disk() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.slow = {C: []}
    group.propose(A, b"x")
    group.deliver()
    group.wire.clear()
    group.receive(C, A, Append(1, 9, 2, 1, 1))  # a heartbeat is answered all the same
    assert group.wire == [(C, A, AppendAnswer(1, 9, 1))]
    group.wire.clear()
    group.sync(C)
    assert group.sent(AppendAnswer, C)[-1] == (A, AppendAnswer(1, group.cores[A].term, 2))


def test_only_entries_of_its_own_term_are_committed_by_counting() -> None:
    """Figure 8: S1 leads again in term 4 and replicates its entry of term 2 to a majority; it may be lost."""
    group = Group(A, B, C, D, E, logs={A: (1, 2), B: (1, 2), C: (1,), D: (1,), E: (1, 3)})
    core = group.cores[A]
    core.voting.term = 3
    group.slow = {A: []}
    group.now += 2
    group.tick(A)
    for node in (B, C, D):
        group.receive(A, node, PreVoteAnswer(4, True))
    for node in (B, C, D):
        group.receive(A, node, VoteAnswer(4, True))
    for node in (B, C, D):
        group.receive(A, node, AppendAnswer(4, 1, 2))
    assert core.commit_index == 0
    group.sync(A)
    for node in (B, C):
        group.receive(A, node, AppendAnswer(4, 1, 3))
    assert core.commit_index == 3


def test_followers_learn_at_once_what_is_committed() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.propose(A, b"x")
    group.deliver()
    assert group.applied == {A: [1, 2], B: [1, 2], C: [1, 2]}


def test_lost_entries_are_found_by_the_next_heartbeat() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.cut = {B}
    group.propose(A, b"x", b"y")
    group.deliver()
    group.cut = set()
    group.pass_time(2 * HEARTBEAT_SECONDS)
    assert group.applied[B] == [1, 2, 3]
    assert core.leading is not None
    assert core.leading.progress[B].match == 3


def test_doubled_and_reordered_messages_change_nothing() -> None:
    group = Group(A, B, C)
    group.elect(A)
    for n in range(10):
        group.propose(A, b"%d" % n)
    group.wire = [*reversed(group.wire), *group.wire, *reversed(group.wire)]
    group.deliver()
    group.pass_time(0.3)
    assert group.applied[A] == group.applied[B] == group.applied[C] == list(range(1, 12))


def test_a_message_that_would_replace_a_committed_entry_is_refused_and_changes_nothing() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.propose(A, b"x")
    group.deliver()
    before = (group.terms(B), group.cores[B].term)
    with pytest.raises(ProtocolViolation):
        group.receive(B, C, Append(8, 1, 1, 1, 1, entries(1, 8)[1:]))
    assert (group.terms(B), group.cores[B].term) == before


def test_two_leaders_of_one_term_are_refused() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    with pytest.raises(ProtocolViolation):
        group.receive(A, B, Append(core.term, 1, 0, 0, 0))
    assert core.role is Role.LEADER


def test_proposals_are_bounded_and_only_for_the_leader() -> None:
    group = Group(A, B, C)
    with pytest.raises(NotLeader):
        group.propose(B, b"x")
    group.elect(A)
    group.cut = {B, C}
    with pytest.raises(Busy):
        group.propose(A, *[b"x"] * (RAFT_UNCOMMITTED_MAX + 1))


# --- pre-vote, check-quorum, leases (dissertation 6.2, 6.4.1, 9.6); killers 18, 19, 20


def test_a_member_that_was_cut_off_does_not_depose_the_leader_when_it_returns() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.cut = {C}
    group.pass_time(10)
    assert group.cores[C].term == core.term  # a pre-vote changes nothing
    group.cut = set()
    group.pass_time(2)
    assert core.role is Role.LEADER
    assert group.cores[C].leader == A


def test_a_member_that_hears_its_leader_ignores_a_higher_term() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.receive(B, C, Vote(50, 99, 50))
    group.receive(A, C, Vote(50, 99, 50))
    assert (core.term, group.cores[B].term) == (1, 1)
    assert core.role is Role.LEADER


def test_a_leader_that_resigns_is_followed_at_once_by_the_best_of_the_others() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.deaf = {B}
    group.propose(A, b"x")
    group.deliver()
    group.deaf = set()
    before = group.now
    group.act(A, group.cores[A].resign(group.now))
    assert (group.cores[A].role, group.cores[A].lease_until) == (Role.FOLLOWER, 0.0)
    group.deliver()
    assert group.now == before  # nobody waited for an election's time, though all heard a leader just now
    assert group.cores[C].role is Role.LEADER
    assert [group.cores[node].leader for node in (A, B, C)] == [C, C, C]
    assert group.terms(B) == (1, 1, 2)  # what was committed is there


def test_word_of_a_resignation_means_nothing_when_its_term_is_over_or_another_leads() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.receive(B, C, StandNow(1))  # not from the leader it knows
    group.receive(B, A, StandNow(0))
    group.receive(A, C, StandNow(1))
    assert [group.cores[node].term for node in (A, B, C)] == [1, 1, 1]
    group.elect(B)
    group.receive(C, A, StandNow(1))
    assert [group.cores[node].leader for node in (A, B, C)] == [B, B, B]


def test_only_a_vote_for_a_later_term_may_disregard_a_leader_that_is_heard() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.receive(B, C, Vote(1, 1, 1, handover=True))
    assert group.cores[B].leader == A
    group.receive(B, C, Vote(2, 1, 1, handover=True))
    assert group.cores[B].term == 2


def test_one_that_hears_no_other_voter_does_not_resign() -> None:
    alone = Group(A)
    alone.act(A, alone.cores[A].start(0.0))
    alone.act(A, alone.cores[A].resign(alone.now))
    assert alone.cores[A].role is Role.LEADER
    group = Group(A, B, C)
    core = group.elect(A)
    group.now += ELECTION_SECONDS_MAX
    group.act(A, core.resign(group.now))
    assert core.role is Role.LEADER
    group.act(B, group.cores[B].resign(group.now))  # a follower has nothing to resign
    assert group.cores[B].leader == A


def test_a_member_in_doubt_does_not_stand_when_its_leader_resigns() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.restart(C, HardState(1, doubt=7))
    group.receive(C, A, StandNow(1))
    assert group.cores[C].role is Role.FOLLOWER


def test_so_does_one_that_started_a_moment_ago() -> None:
    """It may have heard a leader in its life before, which counts on it."""
    group = Group(A, B, C)
    group.elect(A)
    group.restart(B)
    group.wire.clear()
    group.receive(B, C, PreVote(2, 9, 1))
    group.receive(B, C, Vote(2, 9, 1))
    assert group.sent(PreVoteAnswer, B) == [(C, PreVoteAnswer(1, False))]
    assert group.sent(VoteAnswer, B) == []
    group.now += ELECTION_SECONDS_MIN
    group.receive(B, C, Vote(2, 9, 1))
    assert group.sent(VoteAnswer, B) == [(C, VoteAnswer(2, True))]


def test_a_leader_without_a_majority_steps_down_after_an_election_timeout() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.cut = {B, C}
    group.pass_time(ELECTION_SECONDS_MAX - 0.1)
    assert core.role is Role.LEADER
    group.pass_time(0.3)
    assert core.leading is None
    assert core.resigned_silent == (1, 2)
    assert core.lease_until == 0


def test_a_leader_that_was_paused_asks_again_before_it_steps_down() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.now += 5
    group.tick(A)
    assert core.role is Role.LEADER
    assert core.lease_until < group.now
    group.deliver()
    assert core.lease_until > group.now


def test_a_leader_that_sends_but_hears_nothing_makes_way() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.deaf = {A}
    group.pass_time(5)
    assert core.leading is None
    assert {group.cores[B].leader, group.cores[C].leader} <= {B, C}
    assert group.cores[B].leader == group.cores[C].leader


def test_a_member_that_sends_but_hears_nothing_disturbs_nobody() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.deaf = {C}
    group.pass_time(10)
    assert core.role is Role.LEADER
    assert core.term == 1


def test_one_broken_link_leaves_the_leader_in_place() -> None:
    """B and C cannot reach each other, nor C the leader A: elections without end elsewhere (Cloudflare,
    2020)."""
    group = Group(A, B, C)
    core = group.elect(A)
    for _ in range(100):
        group.now += 0.05
        group.tick()
        for _ in range(20):
            group.wire = [(s, t, m) for s, t, m in group.wire if {s, t} != {A, C}]
            group.deliver(1)
    assert core.role is Role.LEADER
    assert core.term == 1


def test_a_short_log_with_a_high_term_does_not_block_the_others() -> None:
    """Pre-vote with check-quorum left others without any leader (etcd 8501, TiKV 3270)."""
    group = Group(A, B, C, logs={A: (1, 1, 1), B: (1, 1, 1), C: (1,)})
    group.cores[C].voting.term = 9
    group.cut = {B}
    group.pass_time(10)
    assert group.cores[A].role is Role.LEADER
    assert group.cores[A].term > 9
    assert group.cores[C].leader == A


def test_a_member_with_a_higher_term_is_taken_in_with_one_election() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.cores[C].voting.term = 5
    group.pass_time(5)
    leaders = {core.leader for core in group.cores.values()}
    assert len(leaders) == 1
    assert next(iter(leaders)) != NOBODY
    terms = {core.term for core in group.cores.values()}
    group.pass_time(10)
    assert {core.term for core in group.cores.values()} == terms


def test_the_lease_begins_when_the_round_was_sent_and_is_shortened_by_the_drift() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    sent = group.now = group.now + HEARTBEAT_SECONDS
    group.tick(A)
    group.now += 0.05
    group.deliver()
    assert core.lease_until == pytest.approx(sent + ELECTION_SECONDS_MIN * (1 - CLOCK_DRIFT_MAX))


def test_no_lease_from_a_minority() -> None:
    group = Group(A, B, C, D, E)
    core = group.elect(A)
    until = core.lease_until
    group.cut = {C, D, E}
    group.pass_time(0.3)
    assert core.lease_until <= until


# --- reads (dissertation 6.4)


def test_a_read_waits_for_a_round_begun_after_it() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.now += HEARTBEAT_SECONDS
    group.tick(A)  # a round, under way
    group.act(A, core.read([7], group.now))
    assert core.leading is not None
    under_way = core.leading.rounds.last
    assert [message.round for _, message in group.sent(Append, A) if isinstance(message, Append)] == [
        under_way
    ] * 2
    group.deliver(2)
    assert group.reads[A] == {}  # that round's answers do not prove it
    group.deliver()
    assert group.reads[A] == {7: 1}


def elected_without_commit(group: Group) -> Raft:
    """A has the votes, but nobody has acknowledged its no-op."""
    group.now += 2
    group.tick(A)
    for node in (B, C):
        group.receive(A, node, PreVoteAnswer(1, True))
    for node in (B, C):
        group.receive(A, node, VoteAnswer(1, True))
    assert group.cores[A].role is Role.LEADER
    assert group.cores[A].commit_index == 0
    return group.cores[A]


def test_a_new_leader_answers_no_read_before_an_entry_of_its_term_is_committed() -> None:
    group = Group(A, B, C)
    core = elected_without_commit(group)
    group.act(A, core.read([7], group.now))
    group.receive(A, B, AppendAnswer(1, 99, 0))
    assert group.reads[A] == {}
    group.receive(A, B, AppendAnswer(1, 99, 1))
    group.receive(A, B, AppendAnswer(1, 99, 1))  # and a round after that
    assert group.reads[A] == {7: 1}


def test_a_follower_asks_the_leader_again_until_it_answers() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.act(B, group.cores[B].read([7], group.now))
    group.wire.clear()  # lost
    group.pass_time(3 * HEARTBEAT_SECONDS)
    assert group.reads[B] == {7: 1}
    group.receive(B, A, ReadAnswer(1, 7, 99))  # late, and double
    assert group.reads[B] == {7: 1}


def test_a_cut_off_leader_serves_no_read() -> None:
    group = Group(A, B, C)
    old = group.elect(A)
    group.cut = {A}
    group.act(A, old.read([7], group.now))
    group.pass_time(5)
    new = next(node for node in (B, C) if group.cores[node].role is Role.LEADER)
    group.propose(new, b"x")
    group.deliver()
    assert group.reads[A] == {}
    group.cut = set()
    group.pass_time(1)
    assert group.reads[A][7] >= group.cores[new].commit_index


# --- members (dissertation 4; killers 21, 22)


def change(group: Group, leader: NodeId, voters: set[NodeId], learners: set[NodeId]) -> None:
    group.act(leader, group.cores[leader].change_members(frozenset(voters), frozenset(learners), group.now))
    group.deliver()


def join(group: Group, leader: NodeId, node: NodeId) -> None:
    membership = group.cores[leader].membership
    group.members = Members(tuple(sorted(membership.voters)), (*sorted(membership.learners), node))
    group.add(node, HardState())
    change(group, leader, set(membership.voters), {*membership.learners, node})
    group.pass_time(0.3)


def test_a_learner_receives_the_log_and_is_not_counted() -> None:
    group = Group(A, B)
    core = group.elect(A)
    join(group, A, C)
    assert group.applied[C] == group.applied[A]
    group.cut = {B}
    group.propose(A, b"x")
    group.deliver()
    assert core.commit_index == 2
    group.cut = {A, B}
    group.pass_time(5)
    assert group.cores[C].role is Role.FOLLOWER  # it does not stand


def test_a_learner_that_caught_up_becomes_a_voter() -> None:
    group = Group(A)
    group.act(A, group.cores[A].start(group.now))
    join(group, A, B)
    change(group, A, {A, B}, set())
    assert group.cores[B].membership.voters == {A, B}
    group.cut = {B}
    group.propose(A, b"x")
    group.deliver()
    assert group.cores[A].commit_index == 3


def test_one_that_is_not_a_learner_or_lags_does_not() -> None:
    group = Group(A)
    group.act(A, group.cores[A].start(group.now))
    with pytest.raises(InvalidRequest):
        change(group, A, {A, B}, set())
    join(group, A, B)
    group.cut = {B}
    group.pass_time(1)
    with pytest.raises(Busy):
        change(group, A, {A, B}, set())


def test_voters_come_and_go_one_at_a_time() -> None:
    group = Group(A, B, C)
    group.elect(A)
    for voters in ({A}, {A, D}, set[NodeId](), {B, C, D}):
        with pytest.raises(InvalidRequest):
            change(group, A, voters, set())
    with pytest.raises(InvalidRequest):
        change(group, A, {A, B}, {B})


def test_a_change_waits_until_the_one_before_is_committed() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.cut = {B, C}
    group.act(A, group.cores[A].change_members(frozenset({A, B}), frozenset(), group.now))
    with pytest.raises(Busy):
        change(group, A, {A, B}, {C})


def test_a_new_leader_changes_no_members_before_it_committed_an_entry_of_its_term() -> None:
    group = Group(A, B, C, D)
    elected_without_commit(group)
    with pytest.raises(Busy):
        change(group, A, {A, B, C}, set())


def test_a_change_cut_away_with_its_entry_is_not_in_force_any_more() -> None:
    group = Group(A, B, C)
    group.elect(A)
    group.cut = {B, C}
    change(group, A, {A, B}, set())
    assert group.cores[A].membership.voters == {A, B}
    group.cut = {A}
    group.pass_time(5)
    group.cut = set()
    group.pass_time(2)
    assert group.cores[A].membership.voters == {A, B, C}


def test_a_leader_that_removes_itself_is_not_counted_and_steps_down_when_it_is_committed() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.cut = {C}
    change(group, A, {B, C}, set())
    assert core.commit_index == 1  # A and B have it; but A does not count
    assert core.leading is not None
    group.cut = set()
    group.pass_time(0.3)
    assert core.leading is None
    group.pass_time(3)
    assert {group.cores[B].leader, group.cores[C].leader} <= {B, C}
    assert core.leading is None


def test_the_last_but_one_may_remove_itself() -> None:
    group = Group(A, B)
    group.elect(A)
    change(group, A, {B}, set())
    group.pass_time(3)
    assert group.cores[B].role is Role.LEADER
    group.propose(B, b"x")
    assert group.cores[B].commit_index == group.cores[B].log.last_index


def test_a_dead_voter_is_removed_from_a_pair() -> None:
    """Not by counting it: the new membership decides (dissertation 4.1)."""
    group = Group(A, B)
    group.elect(A)
    group.cut = {B}
    change(group, A, {A}, set())
    group.propose(A, b"x")
    assert group.cores[A].commit_index == 3


def test_a_removed_member_disturbs_nobody() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.cut = {C}
    change(group, A, {A, B}, set())
    group.cut = set()
    group.pass_time(10)  # it never learned
    assert core.role is Role.LEADER
    assert core.term == 1


def test_a_removed_member_usually_learns_it() -> None:
    group = Group(A, B, C)
    group.elect(A)
    change(group, A, {A, B}, set())
    assert group.cores[C].membership.voters == {A, B}


def test_one_that_does_not_know_that_it_became_a_voter_votes() -> None:
    """Dissertation 4.2.2: otherwise B could not be elected after A is lost, though two of three are up."""
    group = Group(A, B)
    group.elect(A)
    join(group, A, C)
    group.cut = {C}
    change(group, A, {A, B, C}, set())
    assert group.cores[B].membership.voters == {A, B, C}
    assert group.cores[C].membership.voters == {A, B}
    group.cut = {A}
    group.pass_time(5)
    assert group.cores[B].role is Role.LEADER
    assert group.cores[C].membership.voters == {A, B, C}


# --- snapshots (paper 7)


def test_a_member_that_needs_compacted_entries_is_offered_a_snapshot() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.cut = {C}
    for n in range(20):
        group.propose(A, b"%d" % n)
        group.deliver()
    core.compact(15)
    group.cut = set()
    group.pass_time(0.3)
    assert group.fetches[C] == (A, 15)
    behind = group.cores[C]
    assert behind.wants_snapshot(21, 1)
    ready, kept = behind.snapshot_saved(21, 1, Members((A, B, C)), group.now)
    group.act(C, ready)
    assert not kept
    group.propose(A, b"x")
    group.pass_time(0.3)
    assert behind.commit_index == 22
    assert group.applied[C][-1] == 22


def test_a_snapshot_that_describes_a_prefix_keeps_what_follows() -> None:
    group = Group(A, B, C, logs={C: (1, 1, 1, 1)})
    core = group.cores[C]
    ready, kept = core.snapshot_saved(2, 1, Members((A, B)), group.now)
    assert kept
    assert len(ready.commit) == 0
    assert (core.log.base_index, core.log.last_index) == (2, 4)
    assert core.membership.voters == {A, B}
    assert not core.wants_snapshot(2, 1)


def test_a_follower_with_a_snapshot_takes_appends_that_begin_below_it() -> None:
    group = Group(A, B, C, logs={C: (1, 1, 1, 1)})
    group.cores[C].snapshot_saved(3, 1, Members((A, B, C)), group.now)
    group.receive(C, A, Append(1, 1, 1, 1, 5, entries(1, 1, 1, 1, 1)[1:]))
    assert group.cores[C].log.last_index == 5
    assert group.sent(AppendAnswer, C)[-1] == (A, AppendAnswer(1, 1, 5))
    group.receive(C, A, Append(1, 1, 0, 0, 5, entries(1)))
    assert group.cores[C].log.last_index == 5


def test_an_old_leader_s_snapshot_offer_is_refused() -> None:
    group = Group(A, B, C)
    group.cores[C].voting.term = 4
    group.receive(C, A, SnapshotOffer(3, 1, 10))
    assert C not in group.fetches


# --- doubt: this node may have forgotten a promise


def doubtful(group: Group, node: NodeId, n_entries: int, term: int = 1) -> None:
    group.restart(node, HardState(term, NOBODY, doubt=77), n_entries)


def test_a_member_in_doubt_neither_votes_nor_stands() -> None:
    group = Group(A, B, C)
    group.elect(A)
    doubtful(group, C, 0)
    group.now += 2
    group.wire.clear()
    group.receive(C, B, PreVote(5, 9, 4))
    group.receive(C, B, Vote(5, 9, 4))
    group.tick(C)
    assert group.sent(PreVoteAnswer, C) == group.sent(VoteAnswer, C) == group.sent(PreVote, C) == []
    group.cut = {A}
    group.pass_time(10)
    assert all(group.cores[node].role is not Role.LEADER for node in (B, C))


def test_a_member_in_doubt_is_not_counted() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.propose(A, b"x")
    group.deliver()
    doubtful(group, C, 1)
    group.cut = {B}
    group.pass_time(0.3)
    group.propose(A, b"y")
    group.deliver()
    assert group.cores[C].log.persisted == core.log.last_index
    assert core.commit_index == 2
    assert group.cores[C].doubt
    group.pass_time(1.5)
    assert core.leading is None  # nor is its answer a sign of a majority


def test_it_is_healed_once_an_entry_newer_than_its_doubt_is_committed_without_it() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.propose(A, b"x")
    group.deliver()
    doubtful(group, C, 0)
    group.pass_time(1)
    assert group.cores[C].doubt == 0
    assert group.hard[C].doubt == 0
    assert core.log.last_index == 3  # that entry
    assert group.cores[C].log.last_index == 3
    group.cut = {B}
    group.propose(A, b"y")
    group.deliver()
    assert core.commit_index == 4  # it counts again


def test_its_word_that_it_is_sound_waits_for_the_disk() -> None:
    group = Group(A, B, C)
    doubtful(group, C, 0)
    group.receive(C, A, Append(1, 1, 0, 0, 1, entries(1)))
    group.wire.clear()
    group.slow = {C: []}
    group.receive(C, A, Append(1, 2, 1, 1, 1, healing=77, heal_index=1))
    assert group.wire == []
    group.sync(C)
    assert group.wire == [(C, A, AppendAnswer(1, 2, 1, doubt=0))]


def test_an_answer_from_before_the_damage_is_not_taken_for_the_cure() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    group.propose(A, b"x")
    group.wire = [(s, t, m) for s, t, m in group.wire if t == C]
    group.deliver(1)
    late = [(s, t, m) for s, t, m in group.wire if s == C]
    assert [m.match for _, _, m in late if isinstance(m, AppendAnswer)] == [2]
    group.wire.clear()
    group.cut = {B}
    doubtful(group, C, 0)
    group.receive(A, C, AppendRefused(1, 1, 2, 0, 0, 77))
    group.wire = late
    group.deliver(1)
    assert core.commit_index == 1
    assert core.leading is not None
    assert core.leading.progress[C].doubt == 77


def test_late_word_of_a_doubt_that_is_over_does_no_harm() -> None:
    group = Group(A, B, C)
    core = group.elect(A)
    doubtful(group, C, 0)
    group.pass_time(1)
    group.receive(A, C, AppendAnswer(1, 1, 1, 77))
    group.pass_time(1)
    assert core.leading is not None
    assert core.leading.progress[C].doubt == 0
    assert core.leading.progress[C].match == core.log.last_index


def test_healing_for_an_earlier_doubt_does_not_heal_a_later_one() -> None:
    group = Group(A, B, C)
    group.elect(A)
    doubtful(group, C, 0)
    group.receive(C, A, Append(1, 1, 0, 0, 1, entries(1), healing=76, heal_index=1))
    group.receive(C, A, Append(1, 2, 1, 1, 1, healing=76, heal_index=1))
    assert group.cores[C].doubt == 77
    group.receive(C, A, Append(1, 2, 1, 1, 1, healing=77, heal_index=2))
    assert group.cores[C].doubt == 77  # not committed yet
    group.receive(C, A, Append(1, 2, 1, 1, 1, healing=77, heal_index=1))
    assert group.cores[C].doubt == 0
