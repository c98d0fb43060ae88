"""What a majority of the voters has: the arithmetic that every safety argument of Raft leans on.

Any two majorities of one set meet, and so do majorities of two sets that differ by one member (Ongaro's
dissertation, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from blockstore.ids import NodeId

Value = TypeVar("Value", int, float)


def quorum_size(n_voters: int) -> int:
    return n_voters // 2 + 1


def is_quorum(of: Iterable[NodeId], voters: frozenset[NodeId]) -> bool:
    return len(voters.intersection(of)) >= quorum_size(len(voters))


def reached_by_quorum(voters: Iterable[NodeId], value_of: Callable[[NodeId], Value]) -> Value:
    """The highest value that a majority has reached."""
    ranked = sorted((value_of(node) for node in voters), reverse=True)
    return ranked[len(ranked) // 2]  # len // 2 + 1 of them are at least this
