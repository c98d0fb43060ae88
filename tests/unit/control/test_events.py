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
    assert after.has_after(last.number)
    note, told = after.after(last.number).events
    assert (note.code, told) == ("events-missed", event)
    assert after.after(event.number).events == ()


def test_a_reader_that_comes_from_another_node_is_not_left_in_silence() -> None:
    here, there = EventLog(NodeId(1), started_wall=100.0), EventLog(NodeId(2), started_wall=200.0)
    seen = there.add(NodeId(2), 200.0, "x", "").number
    assert here.has_after(seen), "numbers of another node are higher, and mean nothing here"
    page = here.after(seen)
    assert [event.code for event in page.events] == ["events-missed"]
    event = here.add(NodeId(1), 201.0, "y", "")
    assert here.has_after(page.next)
    assert here.after(page.next).events == (event,)
    assert [event.code for event in there.after(event.number).events] == ["events-missed", "x"]


def test_an_event_has_a_bound() -> None:
    assert len(EventLog(NodeId(1), 0.0).add(NodeId(1), 0.0, "x", "a" * 10_000).text) == 500
