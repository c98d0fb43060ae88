"""Which writes may be under way together."""

from __future__ import annotations

import random

import pytest

from blockstore.kinds.turns import SHARED_TURNS_MAX, Share, Turn, Turns


class Bell:
    """Never waited for here."""

    def __init__(self) -> None:
        self.rang = False

    def set(self) -> None:
        self.rang = True

    async def wait(self) -> None:
        raise AssertionError("nobody waits")


def rang(turn: Turn) -> bool:
    assert isinstance(turn.wake, Bell)
    return turn.wake.rang


def test_what_overlaps_goes_one_after_the_other() -> None:
    turns = Turns(7, 4, Bell)
    first, second, third = turns.enter(0, 10), turns.enter(5, 15), turns.enter(20, 30)
    assert first.permit >= 0
    assert third.permit >= 0
    assert second.permit < 0
    behind = turns.enter(14, 16)
    assert behind.permit < 0  # it would overtake one that it overlaps
    turns.leave(first, in_doubt=False)
    assert rang(second)
    assert second.permit >= 0
    assert behind.permit < 0
    turns.leave(second, in_doubt=False)
    assert behind.permit >= 0


def test_there_are_so_many_permits() -> None:
    turns = Turns(7, 2, Bell)
    first, second, third = (turns.enter(10 * index, 10 * index + 1) for index in range(3))
    assert {first.permit, second.permit} == {0, 1}
    assert third.permit < 0
    turns.advance(second, 9)
    turns.leave(second, in_doubt=False)
    assert third.permit == second.permit
    assert turns.sequence(third) == 9
    assert turns.sequence(first) == 7


def test_nobody_begins_while_a_permit_is_in_doubt() -> None:
    turns = Turns(7, 4, Bell)
    failed, other = turns.enter(0, 10), turns.enter(50, 60)
    waiting = turns.enter(0, 5)
    failed.spans = [3]
    turns.leave(failed, in_doubt=True)
    assert waiting.doubt is not None
    assert (waiting.doubt.permit, waiting.doubt.spans) == (failed.permit, (3,))
    late = turns.enter(100, 110)
    turns.leave(other, in_doubt=False)
    assert waiting.permit < 0
    assert late.permit < 0
    turns.leave(waiting, in_doubt=True)  # it could not settle it
    assert late.doubt is not None
    turns.settled(late, 30)
    assert late.permit >= 0
    permits = {turns.enter(200 + index, 201 + index).permit for index in range(3)}
    assert failed.permit in permits | {late.permit}


def test_all_are_woken_when_the_device_is_lost() -> None:
    turns = Turns(7, 1, Bell)
    turns.enter(0, 1)
    waiting = turns.enter(0, 1)
    turns.lose()
    assert rang(waiting)
    assert turns.is_ready(waiting)


@pytest.mark.parametrize("seed", range(20))
def test_no_two_overlap_and_all_get_their_turn(seed: int) -> None:
    rng = random.Random(seed)
    turns = Turns(0, 5, Bell)
    open_turns: list[Turn] = []
    n_done = 0
    for _ in range(400):
        if rng.random() < 0.5 and len(open_turns) < 40:
            start = rng.randrange(100)
            open_turns.append(turns.enter(start, start + rng.randrange(12)))
        running = [turn for turn in open_turns if turn.permit >= 0]
        assert not any(a.overlaps(b) for a in running for b in running if a is not b)
        assert len({turn.permit for turn in running}) == len(running) <= 5
        for turn in open_turns:
            if turn.doubt is not None:
                turns.settled(turn, 1)
                break
        else:
            if running and rng.random() < 0.5:
                turn = rng.choice(running)
                open_turns.remove(turn)
                turns.leave(turn, in_doubt=rng.random() < 0.2)
                n_done += 1
    while open_turns:
        turn = next(turn for turn in open_turns if turn.permit >= 0 or turn.doubt is not None)
        if turn.doubt is not None:
            turns.settled(turn, 1)
        else:
            open_turns.remove(turn)
            turns.leave(turn, in_doubt=False)
        n_done += 1
    assert n_done > 50


def share() -> Share:
    return Share((), (), Bell())


def test_small_writes_join_the_turn_that_waits() -> None:
    turns = Turns(7, SHARED_TURNS_MAX + 5, Bell)
    running = [turns.join([index], 4, share()) for index in range(SHARED_TURNS_MAX)]
    assert all(is_new and turn.permit >= 0 for turn, is_new in running)
    first, is_new = turns.join([100], 4, share())
    assert is_new
    assert first.permit < 0
    assert turns.join([101, 102], 4, share()) == (first, False)
    assert turns.join([103, 104], 4, share()) != (first, False)  # no room
    turns.leave(running[0][0], in_doubt=False)
    assert first.permit >= 0
    assert len(first.shares) == 2
    late, is_new = turns.join([105], 4, share())
    assert late is not first
    assert is_new is False  # it joined the one that found no room


def test_writes_of_the_same_block_do_not_share_a_turn() -> None:
    turns = Turns(7, 20, Bell)
    first, _ = turns.join([0, 4096], 10, share())
    second, is_new = turns.join([4096], 10, share())
    assert is_new
    assert second.permit < 0
    third, is_new = turns.join([4096], 10, share())
    assert is_new
    around = turns.enter(0, 8192)
    beside = turns.enter(8192, 9000)
    assert beside.permit >= 0
    assert around.permit < 0
    turns.leave(first, in_doubt=False)
    assert second.permit >= 0
    turns.leave(second, in_doubt=False)
    assert third.permit >= 0
    turns.leave(third, in_doubt=False)
    assert around.permit >= 0


def test_a_shared_turn_that_is_given_up_is_joined_no_more() -> None:
    turns = Turns(7, 20, Bell)
    blocker = turns.enter(0, 100)
    first, _ = turns.join([0], 10, share())
    assert first.permit < 0
    turns.leave(first, in_doubt=True)
    second, is_new = turns.join([1], 10, share())
    assert is_new
    turns.leave(blocker, in_doubt=False)
    assert second.permit >= 0
