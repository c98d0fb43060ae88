"""A bucket whose map does not fit its owner's memory, against a dictionary: most look-ups need a block,
runs are written and merged all the time, values are packed, snapshots come and go, the store is opened anew.

Real files; the limits are those of a very small owner.
"""

from __future__ import annotations

import logging
import os
import random
from functools import partial
from pathlib import Path

import pytest

import blockstore
from blockstore.errors import NotFound, PreconditionFailed
from blockstore.volume import checkpoint_shell, compaction, owner_shell, packing
from blockstore.volume import state as volume_state
from blockstore.volume.sorted_run import BlockCache
from blockstore.volume.versioned_map import VersionedMap

N_OPENED = 3
N_OPERATIONS = 900
N_KEYS = 2_000
SNAPSHOTS_MAX = 5

Model = dict[str, bytes]


@pytest.fixture(autouse=True)
def small_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume_state, "VersionedMap", lambda: VersionedMap(40, BlockCache(100_000)))
    few = partial(compaction.n_to_merge, small=100, per_size=2)
    monkeypatch.setattr(checkpoint_shell, "n_to_merge", few)
    monkeypatch.setattr(owner_shell, "CHECKPOINT_JOURNAL_RECORDS", 150)
    for name in ("CHECKPOINT_LOOK_SECONDS", "TIDY_SECONDS", "PACK_LOOK_SECONDS"):
        monkeypatch.setattr(owner_shell, name, 0.05)
    for name in ("LEFT_BEHIND_BYTES_MIN", "GAIN_BYTES_MIN"):
        monkeypatch.setattr(packing, name, 1_000)


@pytest.mark.parametrize("policy", ["replicated(3)", "ec(2,1)"])
def test_a_map_larger_than_its_owners_memory_is_right(
    policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blockstore.volume")
    rng = random.Random(policy)
    directories = [tmp_path / str(number) for number in range(3)]
    model: Model = {}
    snapshots: dict[str, Model] = {}
    for opened in range(N_OPENED):
        with blockstore.open(directories) as store:
            bucket = store.bucket("b") if opened else store.create_bucket("b", policy=policy)
            check(bucket, model, rng)
            for number in range(N_OPERATIONS):
                change(bucket, model, rng)
                if number % 100 == 0:
                    take_or_delete_snapshot(bucket, model, snapshots, rng)
            check(bucket, model, rng)
            for name, then in snapshots.items():
                check(bucket.at(name), then, rng)
                changed = {one.name for one in bucket.diff(name)}
                assert changed == {key for key in then | model if then.get(key) != model.get(key)}
            assert bucket.facts()["keys"] == len(model)
    told = [record.getMessage().split(" ")[0] for record in caplog.records]
    assert told.count("merged") > N_OPENED, "hardly any runs were merged"
    assert "packed" in told or policy == "replicated(3)", "nothing was packed"


def change(bucket: blockstore.Bucket, model: Model, rng: random.Random) -> None:
    # Long enough that no two are alike: a diff tells what was written anew, whatever the bytes.
    name, value = f"{rng.randrange(N_KEYS):05}", os.urandom(rng.choice((8, 30, 300, 3_000)))
    drawn = rng.random()
    if drawn < 0.7:
        bucket.put(name, value)
        model[name] = value
    elif drawn < 0.85:
        if name in model:
            bucket.delete(name)
            del model[name]
        else:
            with pytest.raises(NotFound):
                bucket.delete(name)
    elif drawn < 0.95:
        if name in model:
            assert bucket.get(name) == model[name]
            with pytest.raises(PreconditionFailed):
                bucket.put(name, value, if_absent=True)
        else:
            bucket.put(name, value, if_absent=True)
            model[name] = value
    else:
        values = {f"{number:05}": os.urandom(50) for number in rng.sample(range(N_KEYS), 20)}
        with bucket.batch() as batch:
            for one, content in values.items():
                batch.put(one, content)
        model |= values


def take_or_delete_snapshot(
    bucket: blockstore.Bucket, model: Model, snapshots: dict[str, Model], rng: random.Random
) -> None:
    if len(snapshots) == SNAPSHOTS_MAX:
        name = rng.choice(sorted(snapshots))
        bucket.delete_snapshot(name)
        del snapshots[name]
    name = f"s{rng.getrandbits(32)}"
    bucket.snapshot(name)
    snapshots[name] = dict(model)


def check(view: blockstore.Bucket | blockstore.Snapshot, model: Model, rng: random.Random) -> None:
    assert [entry.name for entry in view.list()] == sorted(model)
    names = rng.sample(sorted(model), min(300, len(model)))
    assert view.read_many(names) == [model[name] for name in names]
