"""Was this request applied already, and what was its answer?

A client's session numbers its requests and says with each one below which number everything is settled,
that is, answered and never to be sent again. Until then the result of each applied request is kept, in the
journal's order, so that a retry after a lost answer or a change of owner is answered alike and applied once
(DESIGN invariant 10)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from blockstore.codec.run_file import Result, StoredSession
from blockstore.config import SESSIONS_MAX
from blockstore.ids import RequestId, SessionId


@dataclass(slots=True)
class _Session:
    settled: int = 0
    last_sequence: int = 0
    results: dict[int, Result] = field(default_factory=dict[int, Result])


class Sessions:
    def __init__(self) -> None:
        self._sessions: OrderedDict[SessionId, _Session] = OrderedDict()

    def find(self, request: RequestId) -> Result | None:
        """The remembered result, None if the request was not applied."""
        session = self._sessions.get(request.session)
        return None if session is None else session.results.get(request.number)

    def is_settled(self, request: RequestId) -> bool:
        """The client said that it will not send this again: a late duplicate, to be dropped."""
        session = self._sessions.get(request.session)
        return session is not None and request.number < session.settled

    def remember(self, request: RequestId, settled: int, sequence: int, result: Result) -> None:
        session = self._sessions.get(request.session)
        if session is None:
            session = self._sessions[request.session] = _Session()
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        else:
            self._sessions.move_to_end(request.session)
        session.last_sequence = sequence
        session.results[request.number] = result
        if settled > session.settled:
            for number in [number for number in session.results if number < settled]:
                del session.results[number]
            session.settled = settled

    def n_results(self, session: SessionId) -> int:
        found = self._sessions.get(session)
        return 0 if found is None else len(found.results)

    def __len__(self) -> int:
        return len(self._sessions)

    def to_stored(self) -> tuple[StoredSession, ...]:
        return tuple(
            StoredSession(key, session.settled, session.last_sequence, dict(session.results))
            for key, session in self._sessions.items()
        )

    def load(self, stored: Iterable[StoredSession]) -> None:
        for item in stored:
            self._sessions[item.session] = _Session(item.settled, item.last_sequence, dict(item.results))
