"""`blockstore demo`: the tour. Real daemons, real files, a snapshot, a kill -9, and every byte checked.

What each object must hold is kept here as the SHA-256 of what was acknowledged, never asked of the store.
"""

from __future__ import annotations

import hashlib
import os
import random
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import trio

from blockstore import aio
from blockstore.daemon import setup
from blockstore.daemon.local_cluster import LocalCluster, LocalNode
from blockstore.errors import BlockStoreError, InvalidRequest
from blockstore.ids import MiB
from blockstore_cli.copying import in_flight, run
from blockstore_cli.dev import wait_until_settled
from blockstore_cli.output import answer, note, size
from blockstore_cli.settings import LocalCommand, example

POLICIES = {"copies": "replicated(3)", "coded": "ec(4,2)"}
SNAPSHOT = "before"

FILES_MIN, BYTES_MIN = 2_000, 30 * MiB
BYTES_MAX = 60 * MiB
"""Enough to be more than a toy, little enough to be written twice and read eight times in half a minute."""

FILE_BYTES_MAX = 4 * MiB
"""Leaves out the static library that some installations have, which alone would be most of the bytes."""

WRITING_SECONDS = 8.0
"""How long overwriting goes on; the daemon is killed a quarter in, so take-over happens under load."""

READ_BATCH = 64


@dataclass(slots=True)
class Phase:
    """One line of the report."""

    what: str
    objects: int
    bytes: int
    seconds: float

    def line(self) -> str:
        rate = f"{self.objects / self.seconds:,.0f} objects/s, {size(self.bytes / self.seconds)}/s"
        return f"{self.what:<46} {self.objects:>7,}  {size(self.bytes):>9}  {self.seconds:5.1f} s  {rate}"


@dataclass(slots=True)
class Report:
    phases: list[Phase] = field(default_factory=list)
    acknowledged_while_killed: int = 0
    refused: int = 0  # writes that came back with an error
    longest_gap_seconds: float = 0.0  # between two acknowledgements, the kill included
    wrong: list[str] = field(default_factory=list)  # objects that are missing or have other bytes
    killed_node: int = 0  # the owner of 'copies': its loss hurts most, all its writes go through it
    killed_led_control: bool = False
    sentence: str = ""
    facts: list[str] = field(default_factory=list)

    def add(self, phase: Phase) -> None:
        self.phases.append(phase)
        note(f"  {phase.what}: {phase.objects:,} in {phase.seconds:.1f} s")


@dataclass(slots=True)
class Expected:
    """What one bucket must hold: SHA-256 by name, for the head and for the snapshot."""

    head: dict[str, bytes] = field(default_factory=dict)
    snapshot: dict[str, bytes] = field(default_factory=dict)


@click.command(cls=LocalCommand, epilog=example("blockstore demo"))
@click.option("--nodes", "n_nodes", type=click.IntRange(6, 20), default=6, show_default=True)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), help="Keep the cluster here."
)
@click.option("--plain", is_flag=True, help="Without TLS and keys.")
@click.option("--seed", type=int, default=None, help="Chooses which files change and which daemon is killed.")
def demo(n_nodes: int, directory: Path | None, plain: bool, seed: int | None) -> None:
    """The tour: a local cluster, real files in, a snapshot, a daemon killed, everything verified."""
    began = time.monotonic()
    seed = random.randrange(1 << 31) if seed is None else seed
    files = _source_files()
    n_bytes = sum(len(content) for content in files.values())
    note(f"{len(files):,} files of Python's own library, {size(n_bytes)}; seed {seed}.")
    with ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockstore-demo-")))
        security: setup.Security = "plain" if plain else "tls"
        cluster = stack.enter_context(LocalCluster.create(directory, n_nodes, security=security))
        wait_until_settled(cluster)
        pids = ", ".join(str(node.pid) for node in cluster.nodes)
        note(f"{n_nodes} daemons run after {time.monotonic() - began:.1f} s (pids {pids}).")
        report = run(lambda: _tour(cluster, files, random.Random(seed)))
    facts = asdict(report) | {"nodes": n_nodes, "seed": seed, "seconds": round(time.monotonic() - began, 1)}
    answer(facts, "\n".join(_summary(report, facts)))
    click.get_current_context().exit(1 if report.wrong or report.refused else 0)


async def _tour(cluster: LocalCluster, files: dict[str, bytes], rng: random.Random) -> Report:
    report = Report()
    async with aio.connect(cluster.location, credentials=cluster.credentials) as store:
        buckets: dict[str, aio.Bucket] = {}
        expected: dict[str, Expected] = {}
        for name, policy in POLICIES.items():
            buckets[name] = await store.create_bucket(name, policy=policy)
            expected[name] = Expected()
            report.add(await _fill(buckets[name], policy, files, expected[name]))
        for name, bucket in buckets.items():
            await bucket.snapshot(SNAPSHOT)
            expected[name].snapshot = dict(expected[name].head)
        note(f"  snapshots {', '.join(f'{name}@{SNAPSHOT}' for name in buckets)} taken")

        status = await store.status()
        owner = next(volume.owner for volume in status.volumes if volume.name == "copies")
        report.killed_node = owner
        report.killed_led_control = owner == status.leader
        victim = next(node for node in cluster.nodes if node.node == owner)
        await _overwrite(buckets, expected, files, rng, victim, report)
        await _verify(buckets, expected, f"with node {victim.node} dead", report)

        await trio.to_thread.run_sync(victim.start)
        await trio.to_thread.run_sync(wait_until_settled, cluster)
        note(f"  node {victim.node} is back")
        await _verify(buckets, expected, f"with node {victim.node} back", report)
        status = await store.status()
        report.sentence, report.facts = status.sentence, [fact.what for fact in status.facts]
    return report


async def _fill(bucket: aio.Bucket, policy: str, files: dict[str, bytes], expected: Expected) -> Phase:
    began = time.monotonic()

    async def put(item: tuple[str, bytes]) -> None:
        name, content = item
        await bucket.put(name, content)
        expected.head[name] = hashlib.sha256(content).digest()

    await in_flight(files.items(), put)
    n_bytes = sum(len(content) for content in files.values())
    return Phase(f"put into {bucket.name}, {policy}", len(files), n_bytes, time.monotonic() - began)


@dataclass(slots=True)
class _Acknowledgements:
    """Counts them, and keeps the longest time without one."""

    last: float
    count: int = 0
    n_bytes: int = 0
    longest_gap: float = 0.0

    def add(self, n_bytes: int) -> None:
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap, now - self.last)
        self.last = now
        self.count += 1
        self.n_bytes += n_bytes


async def _overwrite(
    buckets: dict[str, aio.Bucket],
    expected: dict[str, Expected],
    files: dict[str, bytes],
    rng: random.Random,
    victim: LocalNode,
    report: Report,
) -> None:
    """Change objects of both buckets for a while, and kill a daemon meanwhile: writers wait, and no more."""
    began = time.monotonic()
    acknowledged = {name: _Acknowledgements(began) for name in buckets}
    names = sorted(files)
    rng.shuffle(names)

    async def write(bucket: aio.Bucket, mine: list[str], dice: random.Random) -> None:
        head, counted = expected[bucket.name].head, acknowledged[bucket.name]
        while time.monotonic() - began < WRITING_SECONDS:
            name = dice.choice(mine)  # no other writer has it, so what it must hold is never in doubt
            content = b"edited %d\n" % dice.randrange(1 << 30) + files[name]
            try:
                if name in head and dice.random() < 0.05:
                    await bucket.delete(name)
                    del head[name]
                    content = b""
                else:
                    await bucket.put(name, content)
                    head[name] = hashlib.sha256(content).digest()
            except BlockStoreError as error:
                report.refused += 1
                note(f"  a write was refused: {error}")
                return
            counted.add(len(content))

    async with trio.open_nursery() as nursery:
        for bucket in buckets.values():
            for index in range(8):
                dice = random.Random(rng.randrange(1 << 62))
                nursery.start_soon(write, bucket, names[index::8], dice)
        await trio.sleep(WRITING_SECONDS / 4)
        before = sum(counted.count for counted in acknowledged.values())
        victim.kill()
        leads = " and leader of control," if report.killed_led_control else ""
        note(f"  kill -9 of node {victim.node}, the owner of 'copies'{leads} while 16 writers go on")
    seconds = time.monotonic() - began
    n_writes = sum(counted.count for counted in acknowledged.values())
    report.acknowledged_while_killed = n_writes - before
    report.longest_gap_seconds = max(counted.longest_gap for counted in acknowledged.values())
    n_bytes = sum(counted.n_bytes for counted in acknowledged.values())
    report.add(Phase("overwritten and deleted, one daemon killed", n_writes, n_bytes, seconds))


async def _verify(
    buckets: dict[str, aio.Bucket], expected: dict[str, Expected], when: str, report: Report
) -> None:
    """Read head and snapshot of every bucket: exactly the expected names, each with the expected bytes."""
    for name, bucket in buckets.items():
        snapshot = await bucket.at(SNAPSHOT)
        for reader, wanted, what in (
            (bucket, expected[name].head, name),
            (snapshot, expected[name].snapshot, f"{name}@{SNAPSHOT}"),
        ):
            began = time.monotonic()
            listed = [entry.name async for entry in reader.list()]
            for stray in sorted(set(listed) ^ wanted.keys()):
                report.wrong.append(
                    f"{what}:{stray} is {'missing' if stray in wanted else 'there though deleted'}"
                )
            present = [entry for entry in listed if entry in wanted]
            n_bytes = await _check_contents(reader, what, present, wanted, report)
            phase = Phase(f"verified {what} {when}", len(present), n_bytes, time.monotonic() - began)
            report.add(phase)


async def _check_contents(
    reader: aio.Bucket | aio.Snapshot,
    what: str,
    names: list[str],
    wanted: dict[str, bytes],
    report: Report,
) -> int:
    n_bytes = 0

    async def check(batch: list[str]) -> None:
        nonlocal n_bytes
        for name, content in zip(batch, await reader.read_many(batch), strict=True):
            n_bytes += len(content)
            if hashlib.sha256(content).digest() != wanted[name]:
                report.wrong.append(f"{what}:{name} has other bytes than were acknowledged")

    await in_flight(
        (names[start : start + READ_BATCH] for start in range(0, len(names), READ_BATCH)), check, 4
    )
    return n_bytes


def _source_files() -> dict[str, bytes]:
    """Python's own library by name, read once: what is put, and what everything is compared with later."""
    files: dict[str, bytes] = {}
    n_bytes = 0
    for label, root in (("stdlib", "stdlib"), ("packages", "purelib")):
        folder = Path(sysconfig.get_path(root))
        for path in _regular_files(folder):
            content = path.read_bytes()
            if len(content) <= FILE_BYTES_MAX and n_bytes + len(content) <= BYTES_MAX:
                files[f"{label}/{path.relative_to(folder).as_posix()}"] = content
                n_bytes += len(content)
        if len(files) >= FILES_MIN and n_bytes >= BYTES_MIN:
            return files
    raise InvalidRequest(
        f"Python's library here has only {len(files):,} files, {size(n_bytes)}; the demo needs {FILES_MIN:,} "
        f"and {size(BYTES_MIN)}. Install the whole of Python's standard library."
    )


def _regular_files(folder: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in {"__pycache__", "site-packages"})
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and _is_text(str(path)):
                yield path


def _is_text(path: str) -> bool:
    return path.isprintable()


def _summary(report: Report, facts: dict[str, Any]) -> list[str]:
    checked = sum(phase.objects for phase in report.phases if phase.what.startswith("verified"))
    lines = ["", *(phase.line() for phase in report.phases), ""]
    lines.append(
        f"Node {report.killed_node} was killed with kill -9 under 16 writers. After that, "
        f"{report.acknowledged_while_killed:,} writes were acknowledged and {report.refused} refused; "
        f"the longest pause between two acknowledgements was {report.longest_gap_seconds:.2f} s."
    )
    if report.wrong:
        lines.append(f"WRONG: {len(report.wrong):,} objects, the first: {'; '.join(report.wrong[:5])}")
    else:
        lines.append(f"All {checked:,} objects read back have the bytes that were acknowledged (SHA-256).")
    lines.append(f"Status: {report.sentence}")
    lines += [f"  - {fact}" for fact in report.facts]
    lines.append(f"{facts['seconds']} s in all.")
    return lines
