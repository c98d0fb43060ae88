"""Results are remembered until their session says that it has them."""

from __future__ import annotations

from blockstore.codec.messages import Written
from blockstore.config import SESSIONS_MAX
from blockstore.ids import RequestId, SessionId
from blockstore.volume.sessions import Sessions

CLIENT = SessionId(9)


def request(number: int, session: int = CLIENT) -> RequestId:
    return RequestId(SessionId(session), number)


def test_a_result_is_found_again_until_it_is_settled() -> None:
    sessions = Sessions()
    sessions.remember(request(1), 1, 5, Written(5))
    sessions.remember(request(2), 1, 6, Written(6))
    assert sessions.find(request(1)) == Written(5)
    assert not sessions.is_settled(request(1))
    sessions.remember(request(3), 3, 7, Written(7))
    assert sessions.find(request(1)) is None
    assert sessions.is_settled(request(1))
    assert sessions.is_settled(request(2))
    assert sessions.find(request(3)) == Written(7)
    assert sessions.n_results(CLIENT) == 1


def test_an_older_word_about_what_is_settled_changes_nothing() -> None:
    sessions = Sessions()
    sessions.remember(request(5), 5, 1, Written(1))
    sessions.remember(request(6), 2, 2, Written(2))
    assert sessions.is_settled(request(4))
    assert sessions.find(request(5)) == Written(1)


def test_sessions_do_not_see_each_others_results() -> None:
    sessions = Sessions()
    sessions.remember(request(1), 1, 1, Written(1))
    assert sessions.find(request(1, 8)) is None
    assert not sessions.is_settled(request(0, 8))
    assert sessions.n_results(SessionId(8)) == 0


def test_the_session_longest_unheard_is_forgotten_first() -> None:
    sessions = Sessions()
    for session in range(SESSIONS_MAX):
        sessions.remember(request(1, session), 0, session + 1, Written(1))
    sessions.remember(request(2, 0), 0, 1, Written(2))
    sessions.remember(request(1, SESSIONS_MAX), 0, 1, Written(1))
    assert len(sessions) == SESSIONS_MAX
    assert sessions.find(request(1, 0)) is not None
    assert sessions.find(request(1, 1)) is None


def test_sessions_read_back_with_their_order() -> None:
    sessions = Sessions()
    for session in (3, 1, 2):
        sessions.remember(request(1, session), 1, session, Written(session))
    sessions.remember(request(2, 3), 2, 9, Written(9))
    again = Sessions()
    again.load(sessions.to_stored())
    assert again.to_stored() == sessions.to_stored()
    assert [stored.session for stored in again.to_stored()] == [1, 2, 3]
    assert again.is_settled(request(1, 3))
    assert again.find(request(2, 3)) == Written(9)
