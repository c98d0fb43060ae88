"""What goes wrong, and when: at random, and aimed at the owner, the leader and the moment of a switch.

Each fault ends by itself after a while; `end_all` ends what is left. None of them goes beyond what the
store promises to survive: disks keep what they synced, rot stays on one disk, and clocks drift within their
bound."""

from __future__ import annotations

import random
from collections.abc import Callable

from blockstore.ids import ChunkId, NodeId
from blockstore.placement.policy import Policy
from tests.simulation.cores.network import Endpoint
from tests.simulation.cores.node import Node
from tests.simulation.cores.raft_control import RaftControl
from tests.simulation.cores.world import World

NODES_MAX = 6
P_MOMENT = {
    "takeover": 0.06, "fenced": 0.04, "recorded": 0.4, "serving": 0.1, "switch": 0.1, "checkpoint": 0.15,
    "moving": 0.5, "packing": 0.05,
}  # fmt: skip
"""How often a moment is chosen. The rarest and most delicate most often: the end of a journal is recorded,
and no journal says so yet; a volume is being taken from a node that comes back just then."""


class Faults:
    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.counts: dict[str, int] = {}
        self.is_over = False
        self._rotting: tuple[Node, int] | None = None
        self._kinds = [kind for kind in world.settings.faults if not kind.startswith("moment-")]
        self._moments = [kind for kind in world.settings.faults if kind.startswith("moment-")]
        if not self._kinds:
            self._kinds = ["crash-owner"]
        world.disk_failed_hook = self._on_disk_failed
        world.moment_hook = self._on_moment

    # --- choosing

    def inject(self) -> None:
        """One fault of this seed's kinds, if one of them is possible now."""
        for _ in range(4):
            kind = self.rng.choice(self._kinds)
            if self._do(kind):
                self._count(kind)
                return

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.world.n_faults += 1

    def _on_moment(self, what: str, node: Node) -> None:
        if self.is_over or self.rng.random() >= P_MOMENT[what] or not (self._moments or what == "moving"):
            return
        kind = "moment-back" if what == "moving" else self.rng.choice(self._moments)
        delay = self.rng.choice((0.0, 0.0, 0.001, 0.005, 0.03)) if what != "moving" else 0.0

        def strike() -> None:
            if self.is_over or not node.is_up:
                return
            if kind == "moment-back":
                self._bring_back(node)
            elif kind == "moment-crash":
                self._crash(node)
            elif kind == "moment-pause":
                self._pause(node)
            else:
                self._isolate(node, self._others(node))
            self._count(kind)

        self.world.schedule.after(delay, strike)

    def _do(self, kind: str) -> bool:
        """Whether it was done."""
        world = self.world
        up = world.up()
        match kind:
            case "crash":
                return self._to(up, self._crash)
            case "crash-all":
                for node in up:
                    self._crash(node)
                return bool(up)
            case "crash-owner":
                return self._to(world.owners(), self._crash)
            case "crash-leader" | "forget-leases":
                if world.register is not None:
                    world.say("control", "another leads, who knows of no lease")
                    world.register.forget()
                    return True
                return self._to([node for node in (world.leader(),) if node], self._crash)
            case "crash-member":
                return self._to(world.journal_members(), self._crash)
            case "pause":
                return self._to(up, self._pause)
            case "pause-owner":
                return self._to(world.owners(), self._pause)
            case "pause-leader":
                return self._to([node for node in (world.leader(),) if node], self._pause)
            case "isolate-owner":
                return self._to(world.owners(), lambda node: self._isolate(node, self._others(node)))
            case "isolate-leader":
                leaders = [node for node in (world.leader(),) if node]
                return self._to(leaders, lambda node: self._isolate(node, self._others(node)))
            case "slow-node":
                return self._to(up, self._slow_node)
            case "slow-disk":
                return self._to(up, self._slow_disk)
            case "sync-error":
                return self._to(up, self._sync_error)
            case "disk-full":
                return self._to(up, self._fill)
            case "rot":
                return self._rot()
            case "join":
                return self._join()
            case "client-crash" | "client-pause":
                return self._client(kind)
            case _:
                return self._network(kind)

    def _to(self, nodes: list[Node], do: Callable[[Node], None]) -> bool:
        if not nodes:
            return False
        do(self.rng.choice(nodes))
        return True

    def _later(self, what: Callable[[], None], shortest: float = 0.05, longest: float = 1.2) -> None:
        self.world.schedule.after(self.rng.uniform(shortest, longest), what)

    # --- nodes

    def _crash(self, node: Node) -> None:
        if node.is_up:
            power = self.rng.random() < 0.6
            node.crash(power=power, silent=power and self.rng.random() < self.world.settings.p_silent)

            def restart() -> None:
                if not node.is_up:
                    node.start()

            self._later(restart)

    def _pause(self, node: Endpoint) -> None:
        if node.is_up and not node.is_paused:
            self.world.say(node.name, "pauses")
            node.pause()
            life = node.life

            def resume() -> None:
                if node.life == life and node.is_paused:
                    self.world.say(node.name, "goes on")
                    node.resume()

            self._later(resume, 0.02, 2.0)

    def _bring_back(self, node: Node) -> None:
        """The one who is being replaced is there again: just now it must get no lease."""
        node.say("is back")
        self.world.network.heal([link for link in self.world.network.cut if node.name in link])
        if node.is_paused:
            node.resume()

    def _slow_node(self, node: Node) -> None:
        node.slowness = self.rng.choice((5.0, 30.0))
        self._later(lambda: setattr(node, "slowness", 1.0))

    def _slow_disk(self, node: Node) -> None:
        disk = self.rng.choice(list(node.disks.values()))
        disk.slowness = self.rng.choice((20.0, 300.0))
        self._later(lambda: setattr(disk, "slowness", 1.0))

    def _sync_error(self, node: Node) -> None:
        node.say("a sync is about to fail")
        self.rng.choice(list(node.disks.values())).syncs_to_fail += 1

    def _on_disk_failed(self, node: Node) -> None:
        """Somebody hears of it, looks at the disk, and starts the process again."""

        def restart() -> None:
            if node.is_up and any(shell.suspect for shell in node.shells.values()):
                self._crash(node)

        self._later(restart, 0.3, 2.0)

    def _fill(self, node: Node) -> None:
        node.say("its disks are full")
        for disk in node.disks.values():
            disk.is_full = True
        self._later(lambda: self._empty(node))

    def _empty(self, node: Node) -> None:
        for disk in node.disks.values():
            disk.is_full = False

    def _rot(self) -> bool:
        """On one disk of the world alone, and where no chunk is ever opened on a single disk."""
        world = self.world
        if any(Policy.parse(policy).journal_policy().min_write < 2 for policy in world.settings.policies):
            return False
        if self._rotting is None:
            node = self.rng.choice(list(world.nodes.values()))
            self._rotting = (node, self.rng.choice(list(node.disks)))
        node, disk_id = self._rotting
        disk = node.disks[disk_id]  # type: ignore[index]  # its own
        world.has_rot = True
        found = disk.rot()
        if found is None:
            return False
        node.say("a bit flips in {}", found)
        for shell_id, shell in node.shells.items():
            if shell_id == disk_id:
                slot = int(found.split("/")[1][:8])
                for chunk, fragment in shell._fragments.items():
                    if fragment.slot == slot:
                        world.witness.on_rot(shell_id, ChunkId(*chunk))
        return True

    def _join(self) -> bool:
        world = self.world
        leader = world.leader()
        if leader is None or leader.is_paused or len(world.nodes) >= NODES_MAX:
            return False
        control = leader.control
        assert isinstance(control, RaftControl)
        number = control.views.next_id("node")
        if NodeId(number) in world.nodes:
            return False

        def joined(outcome: object) -> None:
            record = control.views.node(NodeId(number))
            if isinstance(outcome, int) and record is not None and NodeId(number) not in world.nodes:
                disks = tuple(disk.disk for disk in control.views.disks_of(NodeId(number)))
                world.say(f"node {number}", "joins")
                world.join(NodeId(number), disks, control.raft.snapshot())

        control.commit_here(world.join_transaction(control.views, number), joined)
        return True

    # --- clients

    def _client(self, kind: str) -> bool:
        client = self.rng.choice(self.world.clients)
        if not client.is_up or client.is_paused:
            return False
        if kind == "client-pause":
            self._pause(client)
        else:
            client.say("crashes, and begins anew")
            client.crash()
            client.start()
        return True

    # --- links

    def _others(self, node: Node) -> list[str]:
        """The other nodes; in one case of three the clients as well."""
        names = [other.name for other in self.world.nodes.values() if other is not node]
        if self.world.register is not None:
            names.append(self.world.register.name)
        if self.rng.random() < 0.33:
            names += [client.name for client in self.world.clients]
        return names

    def _isolate(self, node: Node, others: list[str]) -> None:
        node.say("is cut off from {}", ", ".join(others))
        links = [(node.name, other) for other in others] + [(other, node.name) for other in others]
        self._cut(links)

    def _cut(self, links: list[tuple[str, str]]) -> None:
        network = self.world.network
        network.cut |= set(links)

        def heal() -> None:
            self.world.say("network", f"{len(links)} links come back")
            network.heal(links)

        self._later(heal, 0.1, 2.5)

    def _network(self, kind: str) -> bool:
        world, rng = self.world, self.rng
        names = [node.name for node in world.nodes.values()] + [client.name for client in world.clients]
        one, other = rng.choice(list(world.nodes.values())).name, rng.choice(names)
        if one == other:
            return False
        match kind:
            case "cut":
                world.say("network", f"nothing goes between {one} and {other}")
                self._cut([(one, other), (other, one)])
            case "one-way":
                link = rng.choice([(one, other), (other, one)])
                world.say("network", f"nothing goes from {link[0]} to {link[1]}")
                self._cut([link])
            case "flap":
                world.say("network", f"the link between {one} and {other} flaps")
                self._flap(one, other, rng.randint(2, 5))
            case _:
                lanes = world.network.lanes_of(one)
                if not lanes:
                    return False
                lane = rng.choice(lanes)
                world.say("network", f"the lane from {lane.source.name} to {lane.target.name} breaks")
                world.network.break_lane(lane)
        return True

    def _flap(self, one: str, other: str, times: int) -> None:
        if times and not self.is_over:
            network = self.world.network
            links = [(one, other), (other, one)]
            if links[0] in network.cut:
                network.heal(links)
            else:
                network.cut |= set(links)
            self._later(lambda: self._flap(one, other, times - 1), 0.05, 0.5)
        else:
            self.world.network.heal([(one, other), (other, one)])

    # --- the end

    def end_all(self) -> None:
        """From now on nothing goes wrong any more."""
        self.is_over = True
        world = self.world
        world.say("world", "all faults end")
        weather = world.settings.weather
        weather.bus_loss = weather.very_late = weather.wild = 0.0
        world.network.heal()
        for node in world.nodes.values():
            node.slowness = 1.0
            for disk in node.disks.values():
                disk.slowness, disk.syncs_to_fail, disk.is_full = 1.0, 0, False
            if node.is_up and node.is_paused:
                node.resume()
            if node.is_up and any(shell.suspect for shell in node.shells.values()):
                node.crash()
            if not node.is_up:
                node.start()
        for client in world.clients:
            if client.is_paused:
                client.resume()
