"""Clones against a plain model: whatever becomes of the others, of snapshots, chunks and owners, each
volume is what was put into it; and in the end what nobody needs is gone."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.properties.family import Volume, World

VOLUMES_MAX = 4
EVERY_KEY = (b"a", b"b", b"c")
KEYS = st.sampled_from(EVERY_KEY)
NAMES = st.sampled_from(["s", "t"])


class CloneMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.new_volume()
        self.n_values = 0

    def some(self, data: st.DataObject) -> Volume:
        return self.world.volumes[data.draw(st.sampled_from(sorted(self.world.volumes)))]

    def value(self) -> bytes:
        self.n_values += 1
        return b"value %d" % self.n_values

    @rule(data=st.data(), keys=st.lists(KEYS, min_size=1, max_size=3))
    def put(self, data: st.DataObject, keys: list[bytes]) -> None:
        volume = self.some(data)
        for key in keys:
            volume.put(key, self.value())

    @rule(data=st.data(), key=KEYS)
    def delete(self, data: st.DataObject, key: bytes) -> None:
        self.some(data).delete(key)

    @rule(data=st.data(), name=NAMES)
    def snapshot(self, data: st.DataObject, name: str) -> None:
        self.some(data).snapshot(name)

    @rule(data=st.data(), name=NAMES)
    def delete_snapshot(self, data: st.DataObject, name: str) -> None:
        self.some(data).delete_snapshot(name)

    @rule(data=st.data(), key=KEYS, other=KEYS)
    def restore(self, data: st.DataObject, key: bytes, other: bytes) -> None:
        volume = self.some(data)
        if volume.snapshots:
            volume.restore(key, data.draw(st.sampled_from(sorted(volume.snapshots))), other)

    # --- the background

    @rule()
    def tidy(self) -> None:
        for volume in self.world.volumes.values():
            volume.look_after_anchors()
            volume.purge()
            volume.drop()
        self.world.reclaim()

    @rule(data=st.data(), overwrite=st.booleans())
    def work_for_long(self, data: st.DataObject, overwrite: bool) -> None:
        """The usual course; step by step few histories would have a chunk that nothing but a clone needs."""
        volume = self.some(data)
        for key in EVERY_KEY if overwrite else ():
            volume.put(key, self.value())
        volume.open_journal()
        volume.checkpoint()
        volume.purge()
        volume.pack()
        volume.drop()

    @rule(data=st.data())
    def checkpoint(self, data: st.DataObject) -> None:
        volume = self.some(data)
        volume.open_journal()  # so that the former one can be left behind
        volume.checkpoint()

    @rule(data=st.data(), n=st.integers(2, 4))
    def merge(self, data: st.DataObject, n: int) -> None:
        self.some(data).merge(n)

    @rule(data=st.data())
    def pack(self, data: st.DataObject) -> None:
        self.some(data).pack()

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.some(data).load()

    # --- clones

    @precondition(lambda self: len(self.world.volumes) < VOLUMES_MAX)
    @rule(data=st.data(), name=NAMES)
    def clone(self, data: st.DataObject, name: str) -> None:
        """Of the newest, more often than of any: so there are clones of clones."""
        volume = self.world.volumes[max(self.world.volumes)] if data.draw(st.booleans()) else self.some(data)
        volume.snapshot(name)
        volume.begin_clone(name)
        assert volume.end_clone(max(volume.making)) is not None

    @precondition(lambda self: len(self.world.volumes) < VOLUMES_MAX)
    @rule(data=st.data(), name=NAMES, forgotten=st.booleans())
    def begin_clone(self, data: st.DataObject, name: str, forgotten: bool) -> None:
        volume = self.some(data)
        volume.snapshot(name)
        volume.begin_clone(name)
        if forgotten:  # and what it alone showed is replaced
            volume.delete_snapshot(name)
            for key in EVERY_KEY:
                volume.put(key, self.value())
            volume.purge()

    @precondition(lambda self: len(self.world.volumes) < VOLUMES_MAX)
    @rule(data=st.data())
    def end_clone(self, data: st.DataObject) -> None:
        """Of a clone that was begun: with what its snapshot saw, which may be gone by now."""
        for volume in [one for one in self.world.volumes.values() if one.making]:
            volume.end_clone(data.draw(st.sampled_from(sorted(volume.making))))

    @precondition(lambda self: len(self.world.volumes) > 1)
    @rule(data=st.data())
    def delete_volume(self, data: st.DataObject) -> None:
        self.world.delete(self.some(data).id)
        self.world.reclaim()

    @rule(data=st.data(), n_values=st.integers(1, 3))
    def flatten_some(self, data: st.DataObject, n_values: int) -> None:
        self.some(data).flatten_some(n_values)

    @rule(data=st.data())
    def flatten(self, data: st.DataObject) -> None:
        volume = self.some(data)
        if volume.flatten_some(1_000):
            volume.end_flatten()

    # --- what must hold

    @invariant()
    def each_is_what_was_put_into_it(self) -> None:
        for volume in self.world.volumes.values():
            volume.check()

    def teardown(self) -> None:
        """All become independent: then nothing is kept for anybody, and nothing of what was deleted."""
        for volume in self.world.volumes.values():
            volume.making.clear()
            volume.look_after_anchors()
            while self.world.clones.get(volume.id):
                if volume.flatten_some(1_000):
                    volume.end_flatten()
        for volume in self.world.volumes.values():
            volume.look_after_anchors()
            assert not volume.state.anchors
            assert not volume.state.chunks.foreign
            volume.load()
            volume.check()
        self.world.reclaim()
        assert {chunk.volume for chunk in self.world.chunks} == set(self.world.volumes)
        for volume in self.world.volumes.values():
            volume.open_journal()
            volume.checkpoint()
            volume.purge()
            volume.drop()
            volume.check()
            needed = volume.needed()
            for chunk in self.world.chunks:
                if chunk.volume == volume.id and chunk not in needed:
                    entry = volume.state.chunks.find(chunk)
                    assert entry is not None
                    assert entry.live_bytes > 0, f"chunk {chunk} is kept for nothing"


TestCloneMachine = CloneMachine.TestCase
TestCloneMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
