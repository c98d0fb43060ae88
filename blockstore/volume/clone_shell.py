"""Makes clones of the volume that is owned here, and lets go of what no clone needs any more.

A clone is made in these steps; docs/design/volume.md says what a crash between two of them leaves:

1. An anchor, by a record of the journal: from then on no chunk is dropped.
2. A checkpoint, unless the last one does, so that runs show the map as of the snapshot; and a head for the
   clone, in a chunk of this volume.
3. One control transaction: the clone's name, its record with a root that points at that head, and what it
   depends on. It has the client's request as its own, so that it is applied once, whoever carries it out.
4. The anchor is fixed: it keeps what was opened before, and nothing that is opened after.

That control knows no clone that needs an anchor says that the anchor may go, if two things are sure: that
nobody is still making the clone, and that this node's copy of control is not behind. So this owner commits
something of its own first: then no transaction that relied on the volume's record before can succeed any
more, and the copy is as young as that. The first commit of an owner, its claim, says the same of all owners
before it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from blockstore.codec.journal_record import (
    AnchorFixedRecord,
    AnchorRecord,
    AnchorReleasedRecord,
    JournalRecord,
)
from blockstore.codec.messages import Failed, SnapshotClone, VolumeCall, Written
from blockstore.codec.run_file import ANCHOR_OPEN, Result
from blockstore.config import OPERATION_SECONDS
from blockstore.control import commands
from blockstore.control.views import clone_key
from blockstore.errors import BlockStoreError, Busy, TransactionConflict, Unavailable, from_wire
from blockstore.ids import RequestId
from blockstore.volume.checkpoint_shell import Checkpointer
from blockstore.volume.owner import OnResult, Owner
from blockstore.volume.record_shell import RecordShell, wait_for_news
from blockstore.volume.world import World

log = logging.getLogger("blockstore.volume")

WAITING_MAX = 64
"""Clones to be made, one after the other, each in a second at most: a minute's worth."""
LOOK_SECONDS = 2.0

Applied = Callable[[RequestId, JournalRecord], Awaitable[Result]]
"""What a record came to, once it is durable and applied."""


class CloneShell:
    def __init__(
        self,
        world: World,
        control_record: RecordShell,
        core: Owner,
        checkpointer: Checkpointer,
        checkpoint: Callable[[], Awaitable[None]],
        applied: Applied,
        wake: Callable[[], None],
    ) -> None:
        self._world, self._control_record, self._core = world, control_record, core
        self._checkpointer, self._checkpoint = checkpointer, checkpoint
        self._applied, self._wake = applied, wake
        self._volume, self._state = core.state.volume, core.state
        self._waiting: deque[tuple[VolumeCall, SnapshotClone]] = deque()
        self._due = trio.Event()
        self._making_since: int | None = None
        """While a clone is made: anchors that are younger than this sequence are its own."""

    def take(self, call: VolumeCall, op: SnapshotClone, on_result: OnResult) -> None:
        """A request that was not seen before. Raise Busy."""
        if len(self._waiting) >= WAITING_MAX:
            raise Busy("the volume's owner, which has many clones to make")
        self._core.expect(call.request, on_result)
        self._waiting.append((call, op))
        self._due.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._make_all)
            nursery.start_soon(self._look_after_anchors)

    # --- making

    async def _make_all(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            while self._waiting:
                await self._serve(*self._waiting.popleft())

    async def _serve(self, call: VolumeCall, op: SnapshotClone) -> None:
        began = self._world.clock.now()
        try:
            anchor = await self._make(call.request, op, began + OPERATION_SECONDS)
        except BlockStoreError as error:
            self._core.refuse((call.request,), error)
            return
        self._core.submit(call.request, AnchorFixedRecord(call.request, call.settled, anchor), None)
        self._wake()
        log.info(
            "cloned volume=%d anchor=%d seconds=%.3f", self._volume, anchor, self._world.clock.now() - began
        )

    async def _make(self, request: RequestId, op: SnapshotClone, deadline: float) -> int:
        """The number of the clone's anchor; 0 when it was made before, and needs none any more."""
        control = self._world.control
        await control.catch_up(deadline)
        if control.views.state.find_request(request) is not None:  # by an owner that could not say so
            return self._anchor_of(op.clone)
        commands.check_clone(control.views, parent=self._volume, name=op.clone)
        lineage = commands.lineage_of(control.views, self._volume)
        self._making_since = self._state.sequence
        try:
            own = self._core.journal.own_request()
            result = await self._applied(own, AnchorRecord(own, own.number, op.name, op.clone))
            if isinstance(result, Failed):
                raise from_wire(result.name, result.fields)
            assert isinstance(result, Written)
            anchor = result.sequence
            root = await self._checkpointer.write_base(self._state.anchors[anchor], self._checkpoint)
            await self._commit(request, op, anchor, lineage, root, deadline)
        finally:
            self._making_since = None
        return anchor

    async def _commit(
        self,
        request: RequestId,
        op: SnapshotClone,
        anchor: int,
        lineage: commands.Lineage,
        root: bytes,
        deadline: float,
    ) -> None:
        control, clock = self._world.control, self._world.clock
        while True:
            revision = control.revision
            planned = commands.create_clone(
                control.views,
                control.live_nodes(),
                parent=self._control_record.current(),
                lineage=lineage,
                snapshot=op.name,
                anchor=anchor,
                name=op.clone,
                root=root,
                created=clock.wall(),
                request=request,
            )
            try:
                await control.transact(planned.compares, planned.puts, request=request, deadline=deadline)
            except TransactionConflict:
                if control.views.modified(clone_key(self._volume)) != lineage.revision:
                    raise Busy("the volume, which has just become independent of others") from None
                if clock.now() >= deadline:
                    raise Unavailable("The volume changed all the time; clone it once more.") from None
                await wait_for_news(control, revision)
                continue
            control.event("volume-created", f"{op.clone!r} exists, a clone of {op.name!r}.")
            return

    def _anchor_of(self, clone: str) -> int:
        views = self._world.control.views
        volume = views.volume_by_name(clone)
        record = None if volume is None else views.clone(volume.volume)
        bases = () if record is None else record.bases
        return next((base.anchor for base in bases if base.volume == self._volume), 0)

    # --- what clones need

    async def _look_after_anchors(self) -> None:
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except BlockStoreError as error:
                log.info("anchors_not_released volume=%d why=%s", self._volume, error)

    async def _look(self) -> None:
        """Fix what a former owner left open, release what no clone needs."""
        since = self._making_since
        idle = [one for number, one in self._state.anchors.items() if since is None or number <= since]
        if not idle:
            return
        needed = self._world.control.views.anchors_of(self._volume)
        for one in idle:
            if one.anchor in needed and one.until == ANCHOR_OPEN:
                own = self._core.journal.own_request()
                await self._applied(own, AnchorFixedRecord(own, own.number, one.anchor))
        if all(one.anchor in needed for one in idle):
            return
        await self._control_record.change()
        needed = self._world.control.views.anchors_of(self._volume)
        for one in idle:
            if one.anchor not in needed:
                await self._applied(self._core.journal.own_request(), AnchorReleasedRecord(one.anchor))
                log.info("anchor_released volume=%d anchor=%d", self._volume, one.anchor)
