from __future__ import annotations

import pytest

from blockstore.codec.control_record import Transaction
from blockstore.codec.messages import Compare
from blockstore.control.state import ControlState, check_transaction
from blockstore.errors import InvalidRequest, TransactionConflict
from blockstore.ids import RequestId, SessionId


def request(number: int) -> RequestId:
    return RequestId(SessionId(1), number)


def put(number: int, key: str, value: bytes, *compares: Compare) -> Transaction:
    return Transaction(request(number), compares, ((key, value),))


def test_a_transaction_raises_the_revision_by_one_and_names_its_keys() -> None:
    state = ControlState()
    applied = state.apply(Transaction(request(1), (), (("a", b"1"), ("b", b"2"))))
    assert (applied.revision, applied.changed) == (1, ("a", "b"))
    assert state.apply(Transaction(request(2), (), (), ("a",))).revision == 2
    assert state.find("a") is None
    assert state.modified("b") == 1


def test_nothing_happens_when_a_compare_fails() -> None:
    state = ControlState()
    state.apply(put(1, "a", b"1"))
    before = state.to_snapshot()
    with pytest.raises(TransactionConflict, match="a changed"):
        state.apply(put(2, "a", b"2", Compare("a", 0)))
    assert state.to_snapshot() == before
    state.apply(put(2, "a", b"2", Compare("a", 1)))  # the same request, built anew
    assert state.revision == 2


def test_a_request_is_applied_once_even_after_its_key_moved_on() -> None:
    state = ControlState()
    first = put(1, "a", b"1", Compare("a", 0))
    assert state.apply(first).revision == 1
    state.apply(put(2, "a", b"2"))
    again = state.apply(first)
    assert (again.revision, again.changed) == (1, ())
    assert state.revision == 2


def test_requests_are_remembered_across_a_snapshot_and_up_to_a_bound() -> None:
    state = ControlState(requests_max=2)
    for number in (1, 2, 3):
        state.apply(put(number, "a", b"%d" % number))
    other = ControlState(requests_max=2)
    other.restore(state.to_snapshot())
    assert other.find_request(request(1)) is None
    assert other.find_request(request(2)) == 2
    assert other.apply(put(3, "a", b"again")).revision == 3
    assert other.to_snapshot() == state.to_snapshot()


def test_a_transaction_that_only_compares_tells_the_revision() -> None:
    state = ControlState()
    state.apply(put(1, "a", b"1"))
    assert state.apply(Transaction(request(2), (Compare("a", 1),), ())).revision == 1


def test_a_prefix_is_read_in_key_order() -> None:
    state = ControlState()
    state.apply(Transaction(request(1), (), (("n/2", b""), ("m", b""), ("n/10", b""), ("o", b""))))
    assert [key for key, _ in state.prefixed("n/")] == ["n/10", "n/2"]


@pytest.mark.parametrize(
    ("transaction", "why"),
    [
        (Transaction(request(1), (), (("a", b""), ("a", b""))), "twice"),
        (Transaction(request(1), (), (("a", b""),), ("a",)), "twice"),
        (Transaction(request(1), (), (("", b""),)), "1 to 256 bytes"),
        (Transaction(request(1), (), (("k" * 257, b""),)), "1 to 256 bytes"),
        (Transaction(request(1), (), (("a", bytes(1 << 20)),)), "at most"),
        (Transaction(request(1), tuple(Compare(str(i), 0) for i in range(1100)), ()), "at most"),
    ],
)
def test_what_must_not_enter_the_log_is_refused(transaction: Transaction, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        check_transaction(transaction)
