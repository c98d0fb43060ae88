"""The cluster that is hurt: plain processes on loopback, or hosts with links and disks of their own."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from blockstore.daemon.local_cluster import LocalCluster, LocalNode
from blockstore.errors import Unavailable
from blockstore.ids import NodeId
from chaos.disks import SmallDisk
from chaos.lab import PORT, Lab, address


class Site:
    """`with Site(directory, 6, ...) as site`: its daemons run; leaving ends all that was made."""

    def __init__(self, directory: Path, n_nodes: int, *, plain: bool, with_hosts: bool) -> None:
        self._directory, self._n_nodes, self._plain = directory, n_nodes, plain
        self._with_hosts = with_hosts
        self._stack = ExitStack()
        self.lab: Lab | None = None
        self.disks: dict[NodeId, SmallDisk] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if self._with_hosts:
                self.cluster = self._make_hosts(stack)
            else:
                self.cluster = stack.enter_context(
                    LocalCluster.create(
                        self._directory, self._n_nodes, security="plain" if self._plain else "tls"
                    )
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def nodes(self) -> list[LocalNode]:
        return self.cluster.nodes

    def _make_hosts(self, stack: ExitStack) -> LocalCluster:
        directory = self._directory.resolve()
        directory.mkdir(parents=True)
        self.lab = stack.enter_context(Lab(self._n_nodes))
        cluster = LocalCluster(directory, "tls", [])
        disks: list[SmallDisk] = []
        for host in self.lab.hosts:
            disk = SmallDisk(directory / f"node-{host}.image", directory / f"node-{host}")
            disk.make()
            stack.callback(disk.unmount)
            disks.append(disk)
        stack.enter_context(cluster)  # stopped before the disks go
        for host, disk in zip(self.lab.hosts, disks, strict=True):
            node = self._make_node(cluster, host, disk)
            self.disks[node.node] = disk
            node.spawn()
            if host == 1:
                node.wait_ready()  # others join through it
        for node in cluster.nodes:
            node.wait_ready()
        return cluster

    def _make_node(self, cluster: LocalCluster, host: int, disk: SmallDisk) -> LocalNode:
        """By the command, on the host itself: only there can it listen on its address."""
        assert self.lab is not None
        listen = f"{address(host)}:{PORT}"
        wrapper = self.lab.wrapper(host)
        assert cluster.credentials is not None
        words = ["init", str(disk.path), "--name", "chaos", "--credentials-out", str(cluster.credentials)]
        if host > 1:
            store = f"tcp://{cluster.nodes[0].address}"
            words = ["join", str(disk.path), "--store", store, "--credentials", str(cluster.credentials)]
        command = [*wrapper, sys.executable, "-m", "blockstore_cli.main", "cluster", *words]
        done = subprocess.run(
            [*command, "--listen", listen, "--zone", f"zone-{host}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Unavailable(f"Host {host} could not be made a node: {done.stderr.strip()}")
        made = LocalNode(NodeId(host), disk.path, listen, wrapper)
        cluster.nodes.append(made)
        return made


def host_of(node: NodeId) -> int:
    """Nodes join in the order of the hosts, and ids are given in the order of joining."""
    return int(node)
