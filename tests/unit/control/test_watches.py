from __future__ import annotations

from blockstore.control.watches import Watches


def test_a_change_wakes_those_whose_prefix_it_touches_once() -> None:
    watches = Watches()
    watches.add("volume/", "volumes")
    watches.add("", "all")
    watches.add("node/", "nodes")
    assert set(watches.on_change(1, ("volume/1", "counter/volume"))) == {"volumes", "all"}
    assert watches.on_change(2, ("volume/1",)) == ()
    assert watches.on_change(3, ("node/1",)) == ("nodes",)


def test_a_watch_far_behind_is_told_that_anything_may_have_changed() -> None:
    watches = Watches(changes_max=2)
    for revision in (1, 2, 3, 4):
        watches.on_change(revision, ("a",))
    assert watches.has_changed("b", 1)
    assert not watches.has_changed("b", 2)


def test_a_snapshot_wakes_everybody() -> None:
    watches = Watches()
    watches.on_change(1, ("a",))
    watches.add("z", 1)
    watches.add("", 2)
    watches.remove(2)
    assert watches.on_snapshot(9) == (1,)
    assert watches.has_changed("z", 8)
    assert not watches.has_changed("z", 9)
