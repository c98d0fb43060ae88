"""Who belongs to the group, as the log says it, and which changes of it are allowed.

A member acts on the latest membership in its log, committed or not, and goes back to the one before when that
entry is cut away (Ongaro's dissertation, section 4.1). One voter comes or goes at a time, a new change only
after the one before is committed, and only after the leader committed an entry of its own term (Ongaro,
raft-dev, 10 July 2015: without it two leaders' changes can have majorities that do not meet). A voter was a
caught-up learner first, so that it does not hold up commits.
"""

from __future__ import annotations

from collections.abc import Iterable

from blockstore.codec.raft_messages import MEMBERS, Entry, Members, decode_members
from blockstore.errors import Busy, InvalidRequest
from blockstore.ids import NodeId


class Membership:
    """The history of memberships from a snapshot on; the last is in force."""

    __slots__ = ("_history", "learners", "voters")

    def __init__(self, index: int, members: Members, entries: Iterable[Entry] = ()) -> None:
        self._history: list[tuple[int, Members]] = [(index, members)]
        self.voters: frozenset[NodeId] = frozenset(members.voters)
        self.learners: frozenset[NodeId] = frozenset(members.learners)
        self.append(entries)

    @property
    def everybody(self) -> frozenset[NodeId]:
        return self.voters | self.learners

    @property
    def index(self) -> int:
        """Of the entry (or snapshot) that put the present membership in force."""
        return self._history[-1][0]

    def is_alone(self, node: NodeId) -> bool:
        """The only voter: elected, and committing, without anybody's answer."""
        return self.voters == frozenset({node})

    def append(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.kind == MEMBERS and entry.index > self.index:
                self._history.append((entry.index, decode_members(entry.payload)))
                self._refresh()

    def truncate_from(self, index: int) -> None:
        while self._history[-1][0] >= index:
            assert len(self._history) > 1  # the oldest is a snapshot's, and committed
            self._history.pop()
        self._refresh()

    def at(self, index: int) -> Members:
        """In force after the entry at `index`, which is not below the last `forget_below`."""
        return next(members for since, members in reversed(self._history) if since <= index)

    def forget_below(self, index: int) -> None:
        while len(self._history) > 1 and self._history[1][0] <= index:
            del self._history[0]

    def restore(self, index: int, members: Members) -> None:
        """A snapshot took the place of the log up to `index`; changes after it, if the log kept any, stay."""
        later = [(since, changed) for since, changed in self._history if since > index]
        self._history = [(index, members), *later]
        self._refresh()

    def start_over(self, index: int, members: Members) -> None:
        """A snapshot took the place of the whole log."""
        self._history = [(index, members)]
        self._refresh()

    def _refresh(self) -> None:
        members = self._history[-1][1]
        self.voters, self.learners = frozenset(members.voters), frozenset(members.learners)

    def check_change(
        self, voters: frozenset[NodeId], learners: frozenset[NodeId], commit: int, own_term_committed: bool
    ) -> Members:
        """The new membership, or why it cannot be: InvalidRequest, or Busy if it may be later."""
        if not voters or voters & learners or min(voters | learners) <= 0:
            raise InvalidRequest("A membership needs a voter, and nobody is voter and learner at once.")
        if len(voters ^ self.voters) > 1:
            raise InvalidRequest("Only one voter may come or go at a time.")
        if not voters - self.voters <= self.learners:
            raise InvalidRequest(f"Node {min(voters - self.voters)} must be a learner before it is a voter.")
        if not own_term_committed:
            raise Busy("a new control leader, which has not committed anything yet")
        if self.index > commit:
            raise Busy("an earlier change of control's members, which is under way")
        return Members(tuple(sorted(voters)), tuple(sorted(learners)))
