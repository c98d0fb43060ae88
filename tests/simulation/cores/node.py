"""A node: disks that outlive it, and in each run its fragments, its part in control and the volumes that it
owns."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from blockstore.chunk.chunk_shell import NodeTable
from blockstore.codec.control_record import VolumeRecord, encode_record
from blockstore.codec.messages import Compare, VolumeCall
from blockstore.config import OPERATION_SECONDS
from blockstore.control.assignment import Move
from blockstore.control.views import volume_key
from blockstore.errors import BlockStoreError, InvalidRequest, NotFound, NotOwner
from blockstore.ids import DiskId, NodeId, RequestId, SessionId, VolumeId
from blockstore.node.disk_shell import DiskShell, format_disk
from blockstore.node.local_fragments import LocalFragments
from blockstore.node.server_shell import FragmentServer
from blockstore.runtime.interfaces import Peer
from blockstore.volume.hosting import Hosting
from tests.simulation.cores.control import DiskFacts, NodeControl, address_of
from tests.simulation.cores.model_disk import ModelDisk
from tests.simulation.cores.network import Endpoint, Incoming, Network, SimCaller
from tests.simulation.cores.owner import OwnerRun
from tests.simulation.cores.tasks import Promise, Task

if TYPE_CHECKING:
    from tests.simulation.cores.world import World

RESTART_SECONDS = 0.2
CLUSTER = "sim"


class Node(Endpoint):
    control: NodeControl

    def __init__(self, world: World, me: NodeId, disk_ids: tuple[DiskId, ...], rng: random.Random) -> None:
        super().__init__(f"node {me}", world.schedule, rng, world.settings.drift)
        self.world, self.me = world, me
        self.network: Network = world.network
        self.address = address_of(me)
        self.peer = Peer("node", str(me), "node")
        self.disks: dict[DiskId, ModelDisk] = {}
        for disk_id in disk_ids:
            disk = self.disks[disk_id] = ModelDisk(
                random.Random(rng.getrandbits(64)), world.settings.sync_seconds
            )
            format_disk(disk, disk_id, CLUSTER)
        self.shells: dict[DiskId, DiskShell] = {}
        self.server: FragmentServer | None = None
        self.runs: dict[VolumeId, OwnerRun] = {}
        self._follows = 0

    def holds(self, volume: VolumeId) -> bool:
        """Whether it would answer a read of the volume at this moment."""
        if not self.is_up:
            return False
        run = self.runs.get(volume)
        return run is not None and run.is_serving and self.control.lease_valid(self.now())

    def say(self, text: str, *values: object) -> None:
        if self.world.trace is not None:
            self.world.say(self.name, text.format(*values))

    # --- a run begins and ends

    def start(self) -> None:
        assert not self.is_up
        self.life += 1
        self.is_up = True
        self.world.on_start(self)
        self.say("starts")
        rng = self.rng
        self.caller = SimCaller(self.network, self)
        self.table = NodeTable()
        self._table_of: object = None
        self.shells = {}
        self.runs = {}
        for disk_id, disk in self.disks.items():
            disk.worker = self
            shell = DiskShell(disk, disk_id, CLUSTER, self._on_disk_event)
            shell.recover()
            shell.start()
            shell.make_spares()
            self.shells[disk_id] = shell
        self.control = self.world.make_control(self)
        self.server = FragmentServer(self.shells, self, lambda: self.control.views.cluster().grant_key)
        self._hosting = Hosting(self.me)
        self._owning: dict[VolumeId, Task] = {}
        self._session = SessionId(rng.getrandbits(62))
        self._n_claims = 0
        self._owns = False
        self.control.start()
        self.begin(self._own_volumes())
        self._follow()

    def crash(self, *, power: bool = True, silent: bool = False) -> None:
        """Power fails, or only the process is killed. `silent`: nobody says that its connections are gone."""
        self.say("loses power" if power else "is killed")
        self.control.stop()
        super().crash()
        for disk in self.disks.values():
            disk.crash(power=power)
        self.runs = {}
        self.network.on_crash(self, silent=silent)

    async def sleep_until(self, when: float) -> None:
        await self.sleep(when - self.now())

    def _on_disk_event(self, code: str, text: str) -> None:
        self.say("{}: {}", code, text)
        self.world.on_disk_event(self, code)

    # --- what comes in

    def receive(self, call: Incoming) -> None:
        assert self.server is not None
        if self.server.handle(call):
            return
        message = call.message
        if isinstance(message, VolumeCall):
            run = self.runs.get(message.volume)
            if run is not None:
                run.handle(call, message)
                return
            record = self.control.views.volume(message.volume)
            if record is None:
                raise NotFound(f"volume {message.volume}")
            raise NotOwner(message.volume, record.owner, record.epoch)
        if not self.control.handle(call):
            raise InvalidRequest(f"{message} is not for a node")

    def hear(self, sender: Any, message: Any) -> None:
        self.control.hear(sender, message)

    # --- what an owner asks of its node (`volume.world.World`)

    def own_disks(self) -> frozenset[DiskId]:
        return frozenset(self.disks)

    def live_disks(self) -> frozenset[DiskId]:
        return self.control.live_disks()

    def suspect_disks(self) -> frozenset[DiskId]:
        return self.control.told_disks()[0]

    def full_disks(self) -> frozenset[DiskId]:
        return self.control.told_disks()[1]

    def disk_facts(self) -> DiskFacts:
        """What it tells of its disks. The shell of one calls it full when it has no chunk of 64 MiB left, of
        which nobody opens one here."""
        suspect = tuple(disk for disk, shell in self.shells.items() if shell.suspect)
        return suspect, tuple(disk for disk, model in self.disks.items() if model.is_full)

    @property
    def local(self) -> LocalFragments:
        return LocalFragments(self.shells)

    # --- control

    def on_moved(self, moves: tuple[Move, ...]) -> None:
        for move in moves:
            self.say("gives volume {} to node {} in place of {}", move.volume, move.new_owner, move.old_owner)

    def on_volumes_changed(self) -> None:
        if self._owns:
            self._reconcile()

    def update_table(self) -> None:
        view = self.control.view("")
        if view.nodes is not self._table_of:
            self._table_of = view.nodes
            self.table.update(view)

    def _follow(self) -> None:
        """Who lives changes with time."""
        if self.control.revision:
            self.update_table()
        self.after(0.2, self._follow)

    # --- volumes

    async def _own_volumes(self) -> None:
        await self.control.announced
        self._owns = True
        self._reconcile()

    def _reconcile(self) -> None:
        ended, begun = self._hosting.reconcile(self.control.views.volumes_of(self.me))
        for volume in ended:
            task = self._owning.pop(volume, None)
            if task is not None:
                self.schedule.soon(self.end, task)
            self._end_run(volume)
            self.schedule.soon(self._end_run, volume)  # which the task may begin before it ends
        for volume in begun:
            self._owning[volume] = self.begin(self._own(volume))

    def _end_run(self, volume: VolumeId) -> None:
        run = self.runs.pop(volume, None)
        if run is not None:
            run.end("another was named")

    async def _own(self, volume: VolumeId) -> None:
        while True:
            try:
                record = await self._claim(volume)
            except BlockStoreError as error:
                self.say("volume {} was not claimed: {}", volume, error)
            else:
                if record is None:
                    break
                await self._run(record)
            await self.sleep(RESTART_SECONDS)
        self._hosting.forget(volume)
        self._owning.pop(volume, None)

    async def _claim(self, volume: VolumeId) -> VolumeRecord | None:
        key, views = volume_key(volume), self.control.views
        revision = views.modified(key)
        claimed = self._hosting.claim(views.volume(volume))
        if claimed is None:
            return None
        self._n_claims += 1
        await self.control.transact(
            (Compare(key, revision),),
            ((key, encode_record(claimed)),),
            request=RequestId(self._session, self._n_claims),
            deadline=self.now() + OPERATION_SECONDS,
        )
        self.say("claims volume {} under epoch {}", volume, claimed.epoch)
        return claimed

    async def _run(self, record: VolumeRecord) -> None:
        self.world.witness.on_claimed(record.volume, record.epoch, self)
        run = self.runs[record.volume] = OwnerRun(self, record)
        ended = Promise[None]()
        run.on_ended = ended
        self.world.on_moment("takeover", self)
        run.start()
        await ended

    def on_owner_ended(self, run: OwnerRun) -> None:
        if self.runs.get(run.record.volume) is run:
            del self.runs[run.record.volume]
        if run.on_ended is not None:
            run.on_ended.keep(None)
