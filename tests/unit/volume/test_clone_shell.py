"""Making clones, letting go of what none needs, and becoming independent, on a node in this process: over
restarts at each step."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from blockstore import aio
from blockstore.codec.messages import Ok, SnapshotClone, VolumeCall
from blockstore.codec.run_file import ANCHOR_OPEN, Anchor
from blockstore.errors import BlockStoreError, NotFound
from blockstore.ids import KiB, VolumeId
from blockstore.volume import clone_shell, flatten_shell, owner_shell
from blockstore.volume.checkpoint_shell import Checkpointer
from blockstore.volume.clone_shell import CloneShell
from blockstore.volume.flatten_shell import FlattenShell
from blockstore.volume.packing_shell import Packer
from tests.node_harness import VOLUME, Running, running, until

LARGE = random.Random(1).randbytes(300 * KiB)
CLONE = VolumeId(2)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_shell, "CHECKPOINT_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(owner_shell, "TIDY_SECONDS", 0.02)
    monkeypatch.setattr(owner_shell, "PACK_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(clone_shell, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(flatten_shell, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(flatten_shell, "RETRY_SECONDS", 0.02)


async def filled(one: Running) -> aio.Bucket:
    bucket = await one.store.create_bucket("parent")
    for number in range(20):
        await bucket.put(f"small {number:02d}", b"%d" % number)
    await bucket.put("large", LARGE)
    await bucket.snapshot("s")
    return bucket


async def is_what_it_was(bucket: aio.Bucket) -> bool:
    names = [entry.name async for entry in bucket.list()]
    values = await bucket.read_many(names)
    return dict(zip(names, values, strict=True)) == {
        "large": LARGE,
        **{f"small {number:02d}": b"%d" % number for number in range(20)},
    }


def anchors(one: Running) -> tuple[Anchor, ...]:
    """Of the parent, as its owner has them; none while it takes over."""
    owned = one.node.host._owned.get(VOLUME)
    if owned is None or owned.owner is None or not owned.owner._serving:
        return ()
    return tuple(owned.owner._state.anchors.values())


async def until_named(one: Running, name: str) -> None:
    await until(lambda: one.node.control.views.volume_by_name(name) is not None)


async def never(*_: object) -> NoReturn:
    """In place of a step: as if the process ended before it."""
    await trio.sleep_forever()
    raise AssertionError


async def test_an_anchor_stays_for_as_long_as_its_clone_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, looked, n_looks = Checkpointer.write_base, CloneShell._look, 0

    async def look(self: CloneShell) -> None:
        nonlocal n_looks
        await looked(self)
        n_looks += 1

    async def slowly(self: Checkpointer, anchor: Anchor, work: Callable[[], Awaitable[None]]) -> bytes:
        root = await original(self, anchor, work)
        until_looks = n_looks + 5
        await until(lambda: n_looks > until_looks)
        return root

    monkeypatch.setattr(CloneShell, "_look", look)
    monkeypatch.setattr(Checkpointer, "write_base", slowly)
    async with running(tmp_path) as one:
        bucket = await filled(one)
        clone = await bucket.clone("s", "clone")
        assert [anchor.clone for anchor in anchors(one)] == ["clone"]
        assert await is_what_it_was(clone)


@pytest.mark.parametrize("step", ["write_base", "_commit"])
async def test_an_owner_that_fell_before_control_had_the_clone_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer if step == "write_base" else CloneShell, step, never)
        async with running(tmp_path) as one:
            bucket = await filled(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bucket.clone, "s", "clone")
                await until(lambda: len(anchors(one)) == 1)
                nursery.cancel_scope.cancel()
    async with running(tmp_path) as one:
        bucket = await one.store.bucket("parent")
        await bucket.get("large")  # it has taken over
        await until(lambda: anchors(one) == ())
        with pytest.raises(NotFound):
            await one.store.bucket("clone")
        assert await is_what_it_was(await bucket.clone("s", "clone"))


async def test_a_clone_that_its_maker_could_not_tell_of_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner falls between the transaction and the record; the client sends the same request again."""

    async def fall(self: CloneShell, call: VolumeCall, op: SnapshotClone) -> None:
        await self._make(call.request, op, trio.current_time() + 10.0)
        await never()

    op = SnapshotClone("s", "clone")
    with monkeypatch.context() as patched:
        patched.setattr(CloneShell, "_serve", fall)
        patched.setattr(CloneShell, "_look", never)
        async with running(tmp_path) as one:
            await filled(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.ask, op)
                await until_named(one, "clone")
                nursery.cancel_scope.cancel()
            assert [anchor.until for anchor in anchors(one)] == [ANCHOR_OPEN]
    for _ in range(2):
        async with running(tmp_path) as one:
            bucket = await one.store.bucket("parent")
            await bucket.get("large")
            assert (await one.ask(op)).message == Ok()
            await until(lambda: [anchor.until > 0 for anchor in anchors(one)] == [True])
            assert await is_what_it_was(await one.store.bucket("clone"))
            assert len(one.node.control.views.clones()) == 1


async def test_what_a_clone_needs_is_there_after_restarts_and_then_given_back(tmp_path: Path) -> None:
    async with running(tmp_path) as one:
        bucket = await filled(one)
        await bucket.clone("s", "clone")
        await one.store.delete_bucket("parent")
    async with running(tmp_path) as one:
        clone = await one.store.bucket("clone")
        assert await is_what_it_was(clone)
        await until(lambda: not one.node.control.views.clones())
        await until(lambda: all(not disk.chunks_of(VOLUME) for disk in one.node.disks.values()))
        assert await is_what_it_was(clone)
    async with running(tmp_path) as one:
        assert await is_what_it_was(await one.store.bucket("clone"))


STEPS: list[tuple[type, str]] = [
    (Packer, "_commit_moves"),
    (Packer, "is_empty"),
    (Checkpointer, "merge"),
    (FlattenShell, "_end"),
]


@pytest.mark.parametrize(("kind", "step"), STEPS, ids=lambda value: getattr(value, "__name__", value))
async def test_becoming_independent_goes_on_after_a_restart_at_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, step: str
) -> None:
    reached = trio.Event()

    async def stop(*_: object) -> NoReturn:
        reached.set()
        await trio.sleep_forever()
        raise AssertionError

    async with running(tmp_path) as one:
        bucket = await filled(one)
        clone = await bucket.clone("s", "clone")
        with monkeypatch.context() as patched:
            patched.setattr(kind, step, stop)
            await clone.put("small 00", b"other")
            await clone.put("small 00", b"0")
            await clone.flatten()
            await reached.wait()
            if step == "merge":  # it is asked for all the time
                await until(lambda: not foreign_chunks(one))
    async with running(tmp_path) as one:
        clone = await one.store.bucket("clone")
        await until(lambda: not one.node.control.views.clones())
        assert (await clone.facts())["foreign_runs"] == 0
        await one.store.delete_bucket("parent")
        await until(lambda: all(not disk.chunks_of(VOLUME) for disk in one.node.disks.values()))
        assert await is_what_it_was(clone)


def foreign_chunks(one: Running) -> int:
    owner = one.node.host._owned[CLONE].owner
    return 1 if owner is None or not owner._serving else len(owner._state.chunks.foreign)


def foreign_runs(one: Running) -> int:
    owner = one.node.host._owned[CLONE].owner
    return 1 if owner is None or not owner._serving else owner._checkpointer.n_foreign_runs


async def test_what_a_restore_brings_back_meanwhile_is_copied_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is restored from what is foreign still, after the pass has seen that the key is not."""
    original = Packer.is_empty
    restored = False

    async with running(tmp_path) as one:
        bucket = await filled(one)
        clone = await bucket.clone("s", "clone")
        await clone.snapshot("t")

        async def behind(self: Packer, chunks: frozenset[object]) -> bool:
            nonlocal restored
            if not restored:
                restored = True
                owner = one.node.host._owned[CLONE].owner
                assert owner is not None
                owner._state.n_foreign_restored += 1  # one that the pass has not seen
                return True
            return await original(self, chunks)  # type: ignore[arg-type]

        monkeypatch.setattr(Packer, "is_empty", behind)
        n_passes = 0
        emptied = Packer.empty

        async def empty(self: Packer, chunks: frozenset[object]) -> int:
            nonlocal n_passes
            n_passes += 1
            return await emptied(self, chunks)  # type: ignore[arg-type]

        monkeypatch.setattr(Packer, "empty", empty)
        await clone.flatten()
        await until(lambda: not one.node.control.views.clones())
        assert n_passes == 2


async def test_a_clone_of_a_parent_that_becomes_independent_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it depends on is compared when it is made: else it would name a base that nobody keeps, or lack
    one."""
    original, original_end = CloneShell._commit, FlattenShell._end
    refused: list[BlockStoreError] = []
    may_end = trio.Event()

    async def end(self: FlattenShell) -> None:
        if may_end.is_set():
            await original_end(self)

    monkeypatch.setattr(FlattenShell, "_end", end)

    async with running(tmp_path) as one:
        bucket = await filled(one)
        clone = await bucket.clone("s", "clone")
        await clone.snapshot("t")
        await clone.flatten()
        await until(lambda: not foreign_chunks(one) and not foreign_runs(one))

        async def late(self: CloneShell, *arguments: object) -> None:
            if not refused:
                may_end.set()
                await until(lambda: not one.node.control.views.clone(CLONE))
            try:
                await original(self, *arguments)  # type: ignore[arg-type]
            except BlockStoreError as error:
                refused.append(error)
                raise

        monkeypatch.setattr(CloneShell, "_commit", late)
        second = await clone.clone("t", "second")
        assert [type(error).__name__ for error in refused] == ["Busy"]
        assert await is_what_it_was(second)
        (record,) = one.node.control.views.clones()
        assert [base.volume for base in record.bases] == [CLONE]
