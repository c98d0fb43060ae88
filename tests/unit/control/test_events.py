from __future__ import annotations

from blockstore.control.events import EventLog
from blockstore.ids import NodeId


def test_a_reader_gets_what_it_has_not_seen() -> None:
    log = EventLog(NodeId(1), started_wall=1.0)
    assert log.after(0).events == ()
    first = log.add(NodeId(2), 5.0, "node-up", "Node 2 answers.")
    second = log.add(NodeId(1), 6.0, "leader", "Node 1 leads.")
    assert log.after(0).events == (first, second)
    page = log.after(first.number)
    assert page.events == (second,)
    assert page.next == second.number
    assert not log.has_after(page.next)
    assert log.after(0, events_max=1).next == first.number


def test_a_reader_that_fell_behind_is_told_how_many_it_missed() -> None:
    log = EventLog(NodeId(1), started_wall=1.0, events_max=3)
    numbers = [log.add(NodeId(1), 0.0, "x", str(index)).number for index in range(10)]
    late = log.after(numbers[2])
    assert late.events[0].code == "events-missed"
    assert late.events[0].text.startswith("4 earlier events")
    assert [event.text for event in late.events[1:]] == ["7", "8", "9"]
    assert log.after(0).events[0].text.startswith("7 earlier events")
    assert [event.text for event in log.after(numbers[6]).events] == ["7", "8", "9"]


def test_a_reader_from_before_a_restart_is_not_ahead() -> None:
    before = EventLog(NodeId(1), started_wall=100.0)
    last = [before.add(NodeId(1), 0.0, "x", "") for _ in range(50)][-1]
    after = EventLog(NodeId(1), started_wall=101.0)
    event = after.add(NodeId(1), 0.0, "x", "")
    assert after.after(last.number).events == (event,)


def test_an_event_has_a_bound() -> None:
    assert len(EventLog(NodeId(1), 0.0).add(NodeId(1), 0.0, "x", "a" * 10_000).text) == 500
