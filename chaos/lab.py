"""A room of real hosts on this machine: each node in a network namespace of its own, on one bridge.

Why namespaces and not a proxy in front of each port: a daemon's address in control is one for all peers and
its connections are TLS and CURVE, so a proxy cannot tell who dials; it would end each TCP connection itself,
and so hide what hurts in a real partition (no FIN, retransmissions with growing pauses, half-open
connections); and Unix sockets would go around it. In a namespace the daemon is a host: `host_id` differs,
so everybody uses TCP, and what is lost is packets.

A link from A to B is cut for one direction by telling A a hardware address for B that nobody has: packets
leave and vanish, silently, as with a broken switch port. It takes milliseconds, needs no packet filter in
the kernel, and hits established connections too. A link is slow by a token bucket (htb) for one destination.

The whole run lives in a mount and a network namespace of its own (`enter`): however it ends, by `kill -9`
too, the kernel takes interfaces, mounts and loop devices away with its last process. Needs root and the
usual tools; `why_not` says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

CLIENT = 0
"""The number of the host on which this program itself is."""

PORT = 7440
TOOLS = ("unshare", "nsenter", "ip", "tc", "mount", "umount", "mkfs.ext4")
INSIDE = "BLOCKSTORE_CHAOS_LAB"
FAST, SLOW = "10gbit", "1:2"
BURST = "1mb"
NOBODY = "02:00:00:00:ff:ff"

PROBE = """
set -e
mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip netns add probe
ip link add bridge0 type bridge && ip link add veth0 type veth peer name eth0 netns probe
ip netns exec probe tc qdisc add dev eth0 root handle 1: htb
truncate -s 16M "$1/image" && mkfs.ext4 -q "$1/image" && mkdir "$1/mounted"
mount -o loop "$1/image" "$1/mounted" && umount "$1/mounted"
"""


def why_not() -> str:
    """Why hosts and disks of their own cannot be had on this machine; "" when they can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs the commands {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as directory:
        probe = subprocess.run(
            [*_UNSHARE, "sh", "-c", PROBE, "probe", directory], capture_output=True, text=True, check=False
        )
    return "" if probe.returncode == 0 else f"this system does not allow it: {probe.stderr.strip()[-300:]}"


def is_inside() -> bool:
    return INSIDE in os.environ


def enter(arguments: Sequence[str]) -> None:
    """Become the same program, with these arguments, in namespaces of its own. The process stays the same."""
    assert not is_inside()
    command = [*_UNSHARE, sys.executable, "-m", "chaos", *arguments]
    os.execvpe(command[0], command, os.environ | {INSIDE: "1"})


_UNSHARE = ("unshare", "--mount", "--net", "--propagation", "private")


class Lab:
    """`with Lab(6) as lab`: hosts 1 to 6, and this program as host 0; every link is whole and fast."""

    def __init__(self, n_hosts: int) -> None:
        assert is_inside(), "enter comes first: what is made here must vanish with us"
        self.hosts = tuple(range(1, n_hosts + 1))
        self._cut: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        Path("/run/netns").mkdir(exist_ok=True)
        _run("mount", "-t", "tmpfs", "none", "/run/netns")
        _run("ip", "link", "set", "lo", "up")
        lines = [f"link add br0 address {_hardware(CLIENT)} type bridge", "link set br0 up"]
        lines.append(f"address add {address(CLIENT)}/24 dev br0")
        for host in self.hosts:
            name = _namespace(host)
            lines.append(f"netns add {name}")
            lines.append(
                f"link add veth{host} type veth peer name eth0 address {_hardware(host)} netns {name}"
            )
            lines.append(f"link set veth{host} master br0 up")
            lines.append(f"link set veth{host} type bridge_slave flood off")  # nobody's packets reach nobody
        _ip(CLIENT, lines)
        for host in self.hosts:
            _ip(host, [f"address add {address(host)}/24 dev eth0", "link set lo up", "link set eth0 up"])
        for host in (CLIENT, *self.hosts):
            _ip(host, [_neighbour(host, peer, _hardware(peer)) for peer in self.peers(host)])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """For a program that goes on; else the kernel does it."""
        for host in self.hosts:
            _run("ip", "netns", "delete", _namespace(host))
        _run("ip", "link", "delete", "br0")
        _run("umount", "/run/netns")

    def peers(self, host: int) -> list[int]:
        return [peer for peer in (CLIENT, *self.hosts) if peer != host]

    def wrapper(self, host: int) -> tuple[str, ...]:
        """In front of a command, to run it on the host."""
        return ("nsenter", f"--net=/run/netns/{_namespace(host)}", "--")

    def cut(self, links: Sequence[tuple[int, int]]) -> None:
        """From now on nothing that the first sends arrives at the second."""
        self._point(links, lambda receiver: NOBODY)
        self._cut.update(links)

    def heal(self, links: Sequence[tuple[int, int]]) -> None:
        self._point(links, _hardware)
        self._cut.difference_update(links)

    def slow(self, sender: int, receivers: Sequence[int], rate: str) -> None:
        """What the host sends to these leaves at this rate, all together, until `fast`."""
        device = _device(sender)
        commands = [
            f"qdisc add dev {device} root handle 1: htb default 1",
            f"class add dev {device} parent 1: classid 1:1 htb rate {FAST} burst {BURST} quantum 60000",
            f"class add dev {device} parent 1: classid {SLOW} htb rate {rate} quantum 60000",
        ]
        commands += [
            f"filter add dev {device} protocol ip parent 1: u32 match ip dst {address(peer)}/32 flowid {SLOW}"
            for peer in receivers
        ]
        _batch(("tc", *_in(sender), "-batch", "-"), commands)

    def fast(self, sender: int) -> None:
        _run("tc", *_in(sender), "qdisc", "delete", "dev", _device(sender), "root")

    def _point(self, links: Sequence[tuple[int, int]], hardware: Callable[[int], str]) -> None:
        for sender in sorted({sender for sender, _ in links}):
            _ip(
                sender,
                [
                    _neighbour(sender, receiver, hardware(receiver))
                    for one, receiver in links
                    if one == sender
                ],
            )


def address(host: int) -> str:
    return f"10.77.0.{host or 254}"


def _hardware(host: int) -> str:
    return f"02:00:00:00:00:{host:02x}"


def _namespace(host: int) -> str:
    return f"host-{host}"


def _device(host: int) -> str:
    return "eth0" if host else "br0"


def _in(host: int) -> tuple[str, ...]:
    return ("-netns", _namespace(host)) if host else ()


def _neighbour(host: int, peer: int, hardware: str) -> str:
    """Permanent: no address is ever asked for, so only `cut` decides who is reached."""
    return f"neighbour replace {address(peer)} lladdr {hardware} dev {_device(host)} nud permanent"


def _ip(host: int, lines: Sequence[str]) -> None:
    _batch(("ip", *_in(host), "-batch", "-"), lines)


def _batch(command: Sequence[str], lines: Sequence[str]) -> None:
    _run(*command, text="\n".join(lines) + "\n")


def _run(*command: str, text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
