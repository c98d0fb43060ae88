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
    turns = Turns(Bell)
    first, second, third = turns.enter(0, 10), turns.enter(5, 15), turns.enter(20, 30)
    assert first.is_running
    assert third.is_running
    assert not second.is_running
    behind = turns.enter(14, 16)
    assert not behind.is_running  # it would overtake one that it overlaps
    turns.leave(first, in_doubt=False)
    assert rang(second)
    assert second.is_running
    assert not behind.is_running
    turns.leave(second, in_doubt=False)
    assert behind.is_running


def test_so_many_are_under_way_at_once() -> None:
    turns = Turns(Bell, 2)
    first, second, third = (turns.enter(10 * index, 10 * index + 1) for index in range(3))
    assert first.is_running
    assert second.is_running
    assert not third.is_running
    turns.leave(second, in_doubt=False)
    assert third.is_running


def test_nobody_begins_while_there_is_a_doubt() -> None:
    turns = Turns(Bell)
    failed, other = turns.enter(0, 10), turns.enter(50, 60)
    waiting = turns.enter(0, 5)
    assert turns.is_certain
    turns.leave(failed, in_doubt=True)
    assert waiting.settles
    late = turns.enter(100, 110)
    turns.leave(other, in_doubt=False)
    assert not waiting.is_running
    assert not late.is_running
    turns.leave(waiting, in_doubt=True)  # it could not settle it
    assert late.settles
    assert not turns.is_certain
    turns.settled(late)
    assert turns.is_certain
    assert late.is_running


def test_a_doubt_that_arises_while_another_is_settled_is_settled_as_well() -> None:
    turns = Turns(Bell)
    failed, other = turns.enter(0, 10), turns.enter(50, 60)
    turns.leave(failed, in_doubt=True)
    assert not turns.is_certain
    waiting = turns.enter(0, 5)
    turns.leave(other, in_doubt=True)
    turns.settled(waiting)
    assert waiting.settles
    assert not turns.is_certain
    turns.settled(waiting)
    assert waiting.is_running


def test_all_are_woken_when_the_device_is_lost() -> None:
    turns = Turns(Bell)
    turns.enter(0, 1)
    waiting = turns.enter(0, 1)
    turns.lose()
    assert rang(waiting)
    assert turns.is_ready(waiting)


@pytest.mark.parametrize("seed", range(20))
def test_no_two_overlap_and_all_get_their_turn(seed: int) -> None:
    rng = random.Random(seed)
    turns = Turns(Bell, 5)
    open_turns: list[Turn] = []
    n_done = 0
    for _ in range(400):
        if rng.random() < 0.5 and len(open_turns) < 40:
            start = rng.randrange(100)
            open_turns.append(turns.enter(start, start + rng.randrange(12)))
        running = [turn for turn in open_turns if turn.is_running]
        assert not any(a.overlaps(b) for a in running for b in running if a is not b)
        assert len(running) <= 5
        for turn in open_turns:
            if turn.settles:
                turns.settled(turn)
                break
        else:
            if running and rng.random() < 0.5:
                turn = rng.choice(running)
                open_turns.remove(turn)
                turns.leave(turn, in_doubt=rng.random() < 0.2)
                n_done += 1
    while open_turns:
        turn = next(turn for turn in open_turns if turn.is_running or turn.settles)
        if turn.settles:
            turns.settled(turn)
        else:
            open_turns.remove(turn)
            turns.leave(turn, in_doubt=False)
        n_done += 1
    assert n_done > 50


def share() -> Share:
    return Share((), (), Bell())


def test_small_writes_join_the_turn_that_waits() -> None:
    turns = Turns(Bell)
    running = [turns.join([index], 4, share()) for index in range(SHARED_TURNS_MAX)]
    assert all(is_new and turn.is_running for turn, is_new in running)
    first, is_new = turns.join([100], 4, share())
    assert is_new
    assert not first.is_running
    assert turns.join([101, 102], 4, share()) == (first, False)
    assert turns.join([103, 104], 4, share()) != (first, False)  # no room
    turns.leave(running[0][0], in_doubt=False)
    assert first.is_running
    assert len(first.shares) == 2
    late, is_new = turns.join([105], 4, share())
    assert late is not first
    assert is_new is False  # it joined the one that found no room


def test_writes_of_the_same_block_do_not_share_a_turn() -> None:
    turns = Turns(Bell)
    first, _ = turns.join([0, 4096], 10, share())
    second, is_new = turns.join([4096], 10, share())
    assert is_new
    assert not second.is_running
    third, is_new = turns.join([4096], 10, share())
    assert is_new
    around = turns.enter(0, 8192)
    beside = turns.enter(8192, 9000)
    assert beside.is_running
    assert not around.is_running
    turns.leave(first, in_doubt=False)
    assert second.is_running
    turns.leave(second, in_doubt=False)
    assert third.is_running
    turns.leave(third, in_doubt=False)
    assert around.is_running


def test_a_shared_turn_that_is_given_up_is_joined_no_more() -> None:
    turns = Turns(Bell)
    blocker = turns.enter(0, 100)
    first, _ = turns.join([0], 10, share())
    assert not first.is_running
    turns.leave(first, in_doubt=True)
    second, is_new = turns.join([1], 10, share())
    assert is_new
    turns.leave(blocker, in_doubt=False)
    assert second.is_running
