"""What is done to a daemon, from the beginning of a fault to its end.

Each kind is a function that hurts, waits for `fault.hold` and heals; when it returns, the daemon runs again
and its links and disk are whole (rotten bits stay: there is no repair yet)."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from blockstore.daemon.local_cluster import LocalNode
from blockstore.errors import Unavailable
from chaos.cluster import Site, host_of
from chaos.lab import CLIENT, Lab
from chaos.rot import Flip, rot_file, rot_fragments
from chaos.schedule import Fault

FLAP_SECONDS = (0.1, 0.7)
SLOW_RATES = ("500kbit", "2mbit", "10mbit")
FLIPS = 12
LAST_WORDS = 2
"""Lines: an error and what to do next."""
UNMOUNT_SECONDS_MAX = 5.0


class Faults:
    """`violate` takes what must not be."""

    def __init__(self, site: Site, seed: int, violate: Callable[[str], None]) -> None:
        self._site, self._violate = site, violate
        self._rng = random.Random(f"{seed} faults")
        self.rotten: LocalNode | None = None
        """The node whose bits rot in this run, once they did."""
        self.n_flips = 0
        self.n_kills = 0
        """Processes that were ended by SIGKILL."""

    async def strike(self, fault: Fault, node: LocalNode) -> None:
        match fault.kind:
            case "kill":
                await self._kill(node)
                await trio.sleep(fault.hold)
                await self._start(node)
            case "restart":
                self._check_runs(node)
                await trio.to_thread.run_sync(node.stop)
                await trio.sleep(fault.hold)
                await self._start(node)
            case "freeze":
                node.freeze()
                await trio.sleep(fault.hold)
                node.thaw()
            case "cut":
                await self._cut(_both_ways(self._lab, node, fault.detail), fault.hold)
            case "oneway":
                await self._cut(_one_way(self._lab, node, fault.detail), fault.hold)
            case "flap":
                await self._flap(node, fault)
            case "slow":
                await self._slow(node, fault)
            case "full":
                await self._fill(node, fault)
            case "power":
                await self._cut_power([node], fault.hold)
            case "blackout":
                await self._cut_power(self._site.nodes, fault.hold)
            case "rot":
                self._rot(node)
                await trio.sleep(fault.hold)
            case "rotlog":
                await self._rot_log(node)

    async def start_the_fallen(self) -> None:
        """Whoever ended without our doing is a violation, and started again."""
        for node in self._site.nodes:
            self._check_runs(node)
            if not node.running:
                await self._start(node)

    async def kill_all(self) -> None:
        """And start them again: what they had in memory is gone."""
        for node in self._site.nodes:
            await self._kill(node)
        await self._start(*self._site.nodes)

    @property
    def _lab(self) -> Lab:
        assert self._site.lab is not None, "links are cut between hosts only"
        return self._site.lab

    async def _kill(self, node: LocalNode) -> None:
        self._check_runs(node)
        await trio.to_thread.run_sync(node.kill)
        self.n_kills += 1

    def _check_runs(self, node: LocalNode) -> None:
        """Until it is hurt."""
        if not node.running:
            self._violate(f"node {node.node} ended by itself: {_end(node)}")

    async def _start(self, *nodes: LocalNode) -> None:
        for node in nodes:
            node.spawn()
        for node in nodes:
            try:
                await trio.to_thread.run_sync(node.wait_ready)
            except Unavailable as error:
                self._violate(f"a daemon did not start: {error}")

    async def _cut(self, links: list[tuple[int, int]], seconds: float) -> None:
        await trio.to_thread.run_sync(self._lab.cut, links)
        await trio.sleep(seconds)
        await trio.to_thread.run_sync(self._lab.heal, links)

    async def _flap(self, node: LocalNode, fault: Fault) -> None:
        links = _both_ways(self._lab, node, fault.detail)
        until = trio.current_time() + fault.hold
        while trio.current_time() < until:
            await self._cut(links, self._rng.uniform(*FLAP_SECONDS))
            await trio.sleep(self._rng.uniform(*FLAP_SECONDS))

    async def _slow(self, node: LocalNode, fault: Fault) -> None:
        host = host_of(node.node)
        lab, rate = self._lab, SLOW_RATES[fault.detail % len(SLOW_RATES)]
        await trio.to_thread.run_sync(lab.slow, host, lab.peers(host), rate)
        await trio.sleep(fault.hold)
        await trio.to_thread.run_sync(lab.fast, host)

    async def _fill(self, node: LocalNode, fault: Fault) -> None:
        disk = self._site.disks[node.node]
        await trio.to_thread.run_sync(disk.fill)
        if fault.detail % 2:
            await self._kill(node)
            await self._start(node)
        await trio.sleep(fault.hold)
        await trio.to_thread.run_sync(disk.fill)  # what was deleted meanwhile
        await trio.sleep(fault.hold / 2)
        disk.empty()

    async def _cut_power(self, nodes: list[LocalNode], seconds: float) -> None:
        for node in nodes:
            self._check_runs(node)
            self._site.disks[node.node].cut_power()
        for node in nodes:
            await trio.to_thread.run_sync(node.kill)  # unless the disk's errors ended it first
            self.n_kills += 1
        await trio.sleep(seconds)
        for node in nodes:
            disk = self._site.disks[node.node]
            with trio.fail_after(UNMOUNT_SECONDS_MAX):
                while True:
                    try:
                        await trio.to_thread.run_sync(disk.unmount)
                        break
                    except OSError:  # the killed process's threads still close their files
                        await trio.sleep(0.05)
            await trio.to_thread.run_sync(disk.mount)
        await self._start(*nodes)

    def _rot(self, node: LocalNode) -> None:
        self.rotten = node
        flips: list[Flip] = []
        for disk in sorted(node.directory.glob("disk-*")):
            flips += rot_fragments(disk, self._rng, FLIPS)
        self.n_flips += len(flips)

    async def _rot_log(self, node: LocalNode) -> None:
        """With one damaged copy, and the others whole, it must serve again: from the others."""
        await self._kill(node)
        flips = rot_file(node.directory / "control", self._rng)
        self.n_flips += len(flips)
        node.spawn()
        try:
            await trio.to_thread.run_sync(node.wait_ready)
        except Unavailable as error:
            where = ", ".join(f"{flip.path.name} at {flip.offset}" for flip in flips)
            self._violate(f"a bit flipped in node {node.node}'s control log ({where}): {error}")
            for flip in flips:
                flip.undo()
            await self._start(node)


def _end(node: LocalNode) -> str:
    """What a daemon that ended said last."""
    return " ".join(node.log_tail().splitlines()[-LAST_WORDS:])


def _both_ways(lab: Lab, node: LocalNode, detail: int) -> list[tuple[int, int]]:
    host = host_of(node.node)
    links = [(host, peer) for peer in _others(lab, host, detail)]
    return links + [(peer, host) for host, peer in links]


def _one_way(lab: Lab, node: LocalNode, detail: int) -> list[tuple[int, int]]:
    """What the host sends is lost, or what it should hear."""
    host = host_of(node.node)
    links = [(host, peer) for peer in _others(lab, host, detail // 2)]
    return links if detail % 2 else [(peer, host) for host, peer in links]


def _others(lab: Lab, host: int, detail: int) -> list[int]:
    """Everybody, everybody but the client, or one node."""
    everybody = lab.peers(host)
    nodes = [peer for peer in everybody if peer != CLIENT]
    return [everybody, nodes, [nodes[detail // 3 % len(nodes)]]][detail % 3]
