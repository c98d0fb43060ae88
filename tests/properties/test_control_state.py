"""The control state against a dictionary that keeps all its versions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blockstore.codec.control_record import (
    Transaction,
    decode_command,
    decode_snapshot,
    encode_command,
    encode_snapshot,
)
from blockstore.codec.messages import Compare
from blockstore.control.state import ControlState
from blockstore.control.watches import Watches
from blockstore.errors import TransactionConflict
from blockstore.ids import RequestId, SessionId

KEYS = st.sampled_from(["a", "b", "b/1", "b/2", "c"])
TRANSACTIONS = st.builds(
    Transaction,
    st.builds(RequestId, st.just(SessionId(1)), st.integers(1, 12)),
    st.lists(st.builds(Compare, KEYS, st.integers(0, 6)), max_size=2).map(tuple),
    st.dictionaries(KEYS, st.binary(max_size=3), max_size=2).map(lambda puts: tuple(puts.items())),
    st.just(()),
) | st.builds(
    Transaction,
    st.builds(RequestId, st.just(SessionId(2)), st.integers(1, 12)),
    st.just(()),
    st.just(()),
    st.sets(KEYS, max_size=2).map(lambda keys: tuple(sorted(keys))),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(TRANSACTIONS, max_size=30), st.sampled_from(["", "a", "b", "b/"]))
def test_it_agrees_with_a_dictionary(transactions: list[Transaction], prefix: str) -> None:
    state, watches = ControlState(), Watches(changes_max=3)
    model: dict[str, tuple[bytes, int]] = {}
    done: dict[RequestId, int] = {}
    history: list[set[str]] = [set()]  # keys changed by each revision
    for transaction in transactions:
        copy = decode_command(encode_command(transaction))
        assert copy == transaction
        holds = all(model.get(key, (b"", 0))[1] == revision for key, revision in _pairs(transaction))
        try:
            applied = state.apply(copy)
        except TransactionConflict:
            assert not holds
            assert transaction.request not in done
            continue
        if transaction.request in done:
            assert applied.revision == done[transaction.request]
            continue
        assert holds
        if transaction.puts or transaction.deletes:
            history.append({key for key, _ in transaction.puts} | set(transaction.deletes))
            revision = len(history) - 1
            done[transaction.request] = revision
            model |= {key: (value, revision) for key, value in transaction.puts}
            for key in transaction.deletes:
                model.pop(key, None)
            watches.on_change(applied.revision, applied.changed)
        assert applied.revision == len(history) - 1
        for after in range(len(history)):
            changed = any(key.startswith(prefix) for keys in history[after + 1 :] for key in keys)
            assert watches.has_changed(prefix, after) or not changed  # a watch never misses a change
            if after >= state.revision - 3:
                assert watches.has_changed(prefix, after) == changed  # and does not invent recent ones
    found = [(key, item.value, item.modified) for key, item in state.prefixed(prefix)]
    assert found == [(key, *model[key]) for key in sorted(model) if key.startswith(prefix)]
    restored = ControlState()
    restored.restore(decode_snapshot(encode_snapshot(state.to_snapshot())))
    assert restored.to_snapshot() == state.to_snapshot()


def _pairs(transaction: Transaction) -> list[tuple[str, int]]:
    return [(compare.key, compare.revision) for compare in transaction.compares]
