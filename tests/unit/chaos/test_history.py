"""The history of objects with one writer: what it accuses, and what it must not."""

from __future__ import annotations

from chaos.history import History, content, version_of


def history_of(*sizes: int | None) -> tuple[History, list[bytes]]:
    """Object "k" with these versions, all acknowledged; None: deleted."""
    history = History(7)
    values: list[bytes] = []
    for size in sizes:
        version, data = (history.ask_deletion("k"), b"") if size is None else history.ask("k", size)
        history.acknowledge("k", version)
        values.append(data)
    return history, values


def test_the_last_acknowledged_version_and_later_ones_are_fine() -> None:
    history, (_, second) = history_of(100, 200)
    _, third = history.ask("k", 300)
    for seen in (second, third):
        history.check("k", history.floor("k"), seen)
    assert history.violations == []


def test_an_older_version_is_not() -> None:
    history, (first, _) = history_of(100, 200)
    history.check("k", history.floor("k"), first)
    assert "only 2 to 2" in history.violations[0]


def test_a_version_that_was_seen_is_not_unseen() -> None:
    history, (first,) = history_of(100)
    _, second = history.ask("k", 200)
    history.check("k", history.floor("k"), second)
    history.check("k", history.floor("k"), first)
    assert len(history.violations) == 1


def test_a_read_that_began_earlier_may_show_what_was_there_then() -> None:
    history, (first, _) = history_of(100, 200)
    history.check("k", 1, first)
    assert history.violations == []


def test_missing_and_never_written_bytes_are_found() -> None:
    history, (first,) = history_of(100)
    history.check("k", 1, None)
    history.check("k", 1, b"x" * 100)
    history.check("k", 1, content(7, "other", 1, 100))
    history.check("k", 1, first[:-1])
    history.check("k", 1, first[:-1] + b"?")
    history.check("k", 1, content(7, "k", 2, 100))
    assert len(history.violations) == 6


def test_a_deleted_object_is_missing_and_does_not_rise_again() -> None:
    history, (first, _) = history_of(100, None)
    history.check("k", history.floor("k"), None)
    assert history.violations == []
    history.check("k", history.floor("k"), first)
    assert len(history.violations) == 1


def test_a_deletion_that_was_not_answered_may_have_happened() -> None:
    history, (first,) = history_of(100)
    history.ask_deletion("k")
    history.check("k", history.floor("k"), first)
    history.check("k", history.floor("k"), None)
    assert history.violations == []


def test_a_snapshot_shows_nothing_newer_and_never_changes() -> None:
    history, (first,) = history_of(100)
    before = history.bounds_before()
    _, second = history.ask("k", 200)
    bounds = history.bounds(before)
    history.ask("k", 300)
    history.check_snapshot("s", "k", bounds, content(7, "k", 3, 300))
    assert len(history.violations) == 1
    history.check_snapshot("s", "k", bounds, second)
    assert len(history.violations) == 1
    history.check_snapshot("s", "k", bounds, first)
    assert "changed" in history.violations[1]


def test_the_names_are_those_that_can_be_there() -> None:
    history, _ = history_of(100)
    history.ask("doubtful", 100)
    history.acknowledge("gone", history.ask_deletion("gone"))
    for names in ({"k"}, {"k", "doubtful"}):
        history.check_listing(names)
    assert history.violations == []
    history.check_listing({"k", "gone", "stranger"})
    history.check_listing(set())
    assert history.violations == [
        "stranger is listed; nobody wrote it",
        "gone is listed",
        "k is not listed",
    ]


def test_an_error_that_reached_the_application_is_a_violation_and_leaves_both_possible() -> None:
    history, (first,) = history_of(100)
    version, second = history.ask("k", 100)
    history.fail("k", version, "QuorumLost()")
    assert history.violations == ["writing version 2 of k failed: QuorumLost()"]
    history.check("k", history.floor("k"), first)
    history.check("k", history.floor("k"), second)
    assert len(history.violations) == 1
    assert not history.is_there("k")  # nobody knows, so its writer does not count on it


def test_bytes_say_which_version_they_are() -> None:
    assert version_of(7, "k", content(7, "k", 12, 5_000)) == 12
    assert version_of(7, "other", content(7, "k", 12, 5_000)) is None
    assert version_of(8, "k", content(7, "k", 12, 5_000)) is None
