"""`blockstore bench`: buckets and a block device, beside the raw disk and loopback measured in the same run.

A cluster of its own is made, on loopback, and removed at the end. Every put is acknowledged after fdatasync
on its whole write set; gets find the page cache warm. One client process, a task for each request in flight.
Each scenario runs for a while, several times, and the rounds are interleaved, so that a bad minute of the
machine does not fall on one scenario alone; the table shows the median, and the range beside it.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import trio
from click.core import ParameterSource

from blockstore import aio
from blockstore.daemon import setup
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.errors import InvalidRequest, of_path
from blockstore.ids import KiB, MiB
from blockstore_cli import bench_device, raw_figures
from blockstore_cli.bench_objects import measure_objects, objects_text
from blockstore_cli.bench_space import measure_space, space_text
from blockstore_cli.copying import in_flight, run
from blockstore_cli.dev import wait_until_settled
from blockstore_cli.output import answer, note, table
from blockstore_cli.settings import LocalCommand, example

MB = 1_000_000

BUCKETS = {"replicated(3)": "replicated", "ec(4,2)": "coded"}

N_OBJECTS = {4 * MiB: 32, 128 * KiB: 512, 4 * KiB: 2_048}
"""What gets choose from: 128, 64 and 8 MiB for each policy, so the page cache holds all of it."""

SIZE_NAMES = {4 * MiB: "4 MiB", 1 * MiB: "1 MiB", 128 * KiB: "128 KiB", 4 * KiB: "4 KiB"}

READ_MANY_KEYS = 64

Operation = Literal["put", "get", "read_many", "device write", "device read"]


@dataclass(frozen=True, slots=True)
class Scenario:
    operation: Operation
    policy: str
    size: int
    n_in_flight: int
    security: setup.Security = "plain"

    @property
    def is_of_device(self) -> bool:
        return self.operation.startswith("device ")

    def __str__(self) -> str:
        return f"{self.operation} {SIZE_NAMES[self.size]} {self.policy} x{self.n_in_flight} {self.security}"


@dataclass(slots=True)
class Raw:
    """Bytes per second, one figure for each time it was measured."""

    disk: list[float] = field(default_factory=list)
    disk_direct: list[float] = field(default_factory=list)
    loopback: list[float] = field(default_factory=list)

    def measure_disk(self, directory: Path) -> None:
        self.disk.append(raw_figures.disk_write_bytes_per_second(directory))
        self.disk_direct.append(raw_figures.disk_write_bytes_per_second(directory, direct=True))

    def measure_loopback(self) -> None:
        """It forks, so not while other threads run."""
        self.loopback.append(raw_figures.loopback_bytes_per_second())


Request = Callable[[], Awaitable[int]]
"""How many objects it was for."""

Rates = dict[Scenario, list[float]]
"""Objects per second of every run."""


@click.command(
    cls=LocalCommand,
    epilog=example(
        "blockstore bench",
        "blockstore bench --only 'get 4 MiB' --json",
        "blockstore bench --objects 1000000",
        "blockstore bench --space 100000",
    ),
)
@click.option("--nodes", "n_nodes", type=click.IntRange(6, 20), default=6, show_default=True)
@click.option("--runs", type=click.IntRange(1, 20), default=3, show_default=True, help="Of every scenario.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=1.5, show_default=True, help="Of every run."
)
@click.option("--only", default="", metavar="TEXT", help="Scenarios with TEXT in their names ('put 4 KiB').")
@click.option("--objects", "n_objects", type=click.IntRange(1_000, 100_000_000), metavar="N",
              help="Put N objects of 1 KiB into one bucket instead, and kill its owner.")  # fmt: skip
@click.option("--space", "n_space", type=click.IntRange(1_000, 10_000_000), metavar="N",
              help="Put N objects of 100 KiB instead, and measure what they take.")  # fmt: skip
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), default=".",
              help="Where to make a folder for it; the working directory's disk if left out.")  # fmt: skip
def bench(
    n_nodes: int,
    runs: int,
    seconds: float,
    only: str,
    n_objects: int | None,
    n_space: int | None,
    directory: Path,
) -> None:
    """Measure the store on a cluster of its own, beside the machine's own figures."""
    if n_objects is not None:
        _check_alone("objects", "space")
        with _folder(directory) as folder:
            facts = measure_objects(n_objects, n_nodes, folder)
        answer(facts, objects_text(facts))
        click.get_current_context().exit(1 if facts["wrong"] else 0)
    if n_space is not None:
        _check_alone("space", "objects")
        with _folder(directory) as folder:
            facts = measure_space(n_space, n_nodes, seconds, folder)
        answer(facts, space_text(facts))
        return
    chosen = [scenario for scenario in scenarios() if only in str(scenario)]
    if not chosen:
        raise InvalidRequest(f"No scenario has {only!r} in its name; one is called {str(scenarios()[0])!r}.")
    raw = Raw()
    rates: Rates = {scenario: [] for scenario in chosen}
    with _folder(directory) as folder:
        raw.measure_loopback()
        security: setup.Security
        for security in ("plain", "tls"):
            mine = [scenario for scenario in chosen if scenario.security == security]
            if mine:
                note(f"{n_nodes} daemons, {security}")
                with LocalCluster.create(folder / security, n_nodes, security=security) as cluster:
                    wait_until_settled(cluster)
                    run(partial(_measure, cluster, mine, runs, seconds, rates, raw))
        raw.measure_loopback()
    facts = report(raw, rates, n_nodes, runs, seconds)
    answer(facts, text(facts))


def _check_alone(chosen: str, other: str) -> None:
    """It takes no other option but where, and of how many daemons."""
    context = click.get_current_context()
    parameters = {"runs": "runs", "only": "only", other: f"n_{other}"}
    if chosen == "objects":
        parameters["seconds"] = "seconds"
    for option, parameter in parameters.items():
        if context.get_parameter_source(parameter) not in (None, ParameterSource.DEFAULT):
            raise InvalidRequest(f"--{chosen} measures one thing, once; leave --{option} out.")


@contextmanager
def _folder(directory: Path) -> Generator[Path]:
    """A new one in `directory`, which is removed at the end."""
    if not directory.is_dir():
        raise InvalidRequest(f"{directory} is not a directory.")
    try:
        made = tempfile.TemporaryDirectory(prefix="blockstore-bench-", dir=directory)
    except OSError as error:
        raise of_path(error, str(directory)) from error
    with made as folder:
        yield Path(folder)


def scenarios() -> list[Scenario]:
    found: list[Scenario] = []
    for policy in BUCKETS:
        for size in N_OBJECTS:
            for n_in_flight in (1, 16):
                found.append(Scenario("put", policy, size, n_in_flight))
                found.append(Scenario("get", policy, size, n_in_flight))
        found.append(Scenario("put", policy, 4 * KiB, 64))
        for size in (128 * KiB, 4 * KiB):
            for n_in_flight in (1, 4):
                found.append(Scenario("read_many", policy, size, n_in_flight))
        for size, n_in_flight in ((4 * KiB, 1), (4 * KiB, 16), (4 * KiB, 64), (1 * MiB, 1), (1 * MiB, 16)):
            found.append(Scenario("device write", policy, size, n_in_flight))
            found.append(Scenario("device read", policy, size, n_in_flight))
        found.append(Scenario("put", policy, 4 * MiB, 16, "tls"))
        found.append(Scenario("get", policy, 4 * MiB, 16, "tls"))
    return found


async def _measure(
    cluster: LocalCluster, scenarios: list[Scenario], runs: int, seconds: float, rates: Rates, raw: Raw
) -> None:
    content = os.urandom(max(N_OBJECTS))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            aio.connect(cluster.location, credentials=cluster.credentials)
        )
        buckets: dict[str, aio.Bucket] = {}
        for policy in {scenario.policy for scenario in scenarios}:
            buckets[policy] = await store.create_bucket(BUCKETS[policy], policy=policy)
        filled = {(scenario.policy, scenario.size) for scenario in scenarios if not scenario.is_of_device}
        for policy, size in sorted(filled):
            await _fill(buckets[policy], size, content)
        devices: dict[str, aio.BlockDevice] = {}
        for policy in {scenario.policy for scenario in scenarios if scenario.is_of_device}:
            devices[policy] = await store.create_block_device(
                f"device-{BUCKETS[policy]}", bench_device.DEVICE_BYTES, policy=policy
            )
            await bench_device.fill(devices[policy], content)
        for round_number in range(runs):
            raw.measure_disk(cluster.directory)
            for scenario in scenarios:
                if scenario.is_of_device:
                    request = bench_device.request(
                        devices[scenario.policy], scenario.operation, content[: scenario.size]
                    )
                else:
                    request = _request(buckets[scenario.policy], scenario, content)
                rate = await _one_run(request, scenario.n_in_flight, seconds)
                rates[scenario].append(rate)
                note(f"  run {round_number + 1}: {scenario}: {_amount(scenario, rate)}")


async def _fill(bucket: aio.Bucket, size: int, content: bytes) -> None:
    async def put(number: int) -> None:
        await bucket.put(_name(size, number), content[:size])

    await in_flight(range(N_OBJECTS[size]), put)


def _request(bucket: aio.Bucket, scenario: Scenario, content: bytes) -> Request:
    chance = random.Random(0)
    size, n_objects = scenario.size, N_OBJECTS[scenario.size]
    value = content[:size]
    names = [_name(size, number) for number in range(n_objects)]

    async def put() -> int:
        await bucket.put(chance.choice(names), value)
        return 1

    async def get() -> int:
        assert len(await bucket.get(chance.choice(names))) == size
        return 1

    async def read_many() -> int:
        found = await bucket.read_many(chance.choices(names, k=READ_MANY_KEYS))
        assert len(found[0]) == size
        return READ_MANY_KEYS

    return {"put": put, "get": get, "read_many": read_many}[scenario.operation]


async def _one_run(request: Request, n_in_flight: int, seconds: float) -> float:
    """Objects per second: what was answered while the run lasted, by its own clock."""
    began = time.perf_counter()
    until = began + seconds
    n_done = 0
    last = began

    async def worker() -> None:
        nonlocal n_done, last
        while time.perf_counter() < until:
            n_objects_done = await request()  # not `n_done += await`: that would add to what was read before
            n_done += n_objects_done
            last = time.perf_counter()

    async with trio.open_nursery() as nursery:
        for _ in range(n_in_flight):
            nursery.start_soon(worker)
    return n_done / (last - began)


def _name(size: int, number: int) -> str:
    return f"{size}/{number:05d}"


# --- the report


def report(raw: Raw, rates: Rates, n_nodes: int, runs: int, seconds: float) -> dict[str, Any]:
    medians = {scenario: statistics.median(found) for scenario, found in rates.items()}
    disk = statistics.median(raw.disk)
    results: list[dict[str, Any]] = []
    for scenario, found in rates.items():
        target = _target(scenario, medians, disk)
        results.append(
            {
                "operation": scenario.operation,
                "policy": scenario.policy,
                "size_bytes": scenario.size,
                "in_flight": scenario.n_in_flight,
                "security": scenario.security,
                "per_second": round(medians[scenario], 1),
                "per_second_min": round(min(found), 1),
                "per_second_max": round(max(found), 1),
                "bytes_per_second": round(medians[scenario] * scenario.size),
                "target_per_second": round(target, 1) if target else None,
                "of_target": round(medians[scenario] / target, 2) if target else None,
            }
        )
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "trio": trio.__version__,
        },
        "nodes": n_nodes,
        "runs": runs,
        "seconds_per_run": seconds,
        "raw": {
            "disk_write_fdatasync_bytes_per_second": round(disk),
            "disk_write_fdatasync_direct_bytes_per_second": round(statistics.median(raw.disk_direct)),
            "loopback_tcp_bytes_per_second": round(statistics.median(raw.loopback)),
        },
        "results": results,
    }


def _target(scenario: Scenario, medians: dict[Scenario, float], disk: float) -> float | None:
    """Objects per second that this scenario is meant to reach on two cores; None: no goal was set."""
    replicated = scenario.policy == "replicated(3)"
    if scenario.security == "tls":
        plain = medians.get(
            Scenario(scenario.operation, scenario.policy, scenario.size, scenario.n_in_flight)
        )
        return plain / 3 if plain and scenario.operation == "get" else None
    match scenario.operation, scenario.size, scenario.n_in_flight:
        case "put", 4194304, 16:  # of the disk's own rate, which every copy and every parity shard shares
            return (0.6 * disk / 3 if replicated else 0.5 * disk / 1.5) / scenario.size
        case "get", 4194304, 16:
            return 1_000 * MB / scenario.size
        case "get", 131072, 16:
            return 6_000 if replicated else medians.get(Scenario("get", "replicated(3)", scenario.size, 16))
        case "get", 4096, 16:
            return 12_000
        case "read_many", 4096, 4:
            return 40_000
        case "put", 4096, 16:
            return 2_500
        case "put", 4096, 64:
            return 7_000
        case "device write", 4096, 1 | 16:
            return 500 if scenario.n_in_flight == 1 else 2_500
        case "device read", 4096, 1 | 16:
            return 3_000 if scenario.n_in_flight == 1 else 12_000
        case "device write", 1048576, 16:
            return 250 * MB / scenario.size
        case "device read", 1048576, 16:
            return 800 * MB / scenario.size
        case _:
            return None


def text(facts: dict[str, Any]) -> str:
    raw = facts["raw"]
    rows: list[tuple[str, ...]] = []
    for one in facts["results"]:
        scale = one["size_bytes"] / MB
        in_bytes = one["size_bytes"] >= MiB

        def shown(rate: float, scale: float = scale, in_bytes: bool = in_bytes) -> str:
            return f"{rate * scale:,.0f} MB/s" if in_bytes else f"{rate:,.0f}/s"

        target = one["target_per_second"]
        rows.append(
            (
                one["operation"],
                SIZE_NAMES[one["size_bytes"]],
                one["policy"],
                str(one["in_flight"]),
                one["security"],
                shown(one["per_second"]),
                f"{shown(one['per_second_min'])} - {shown(one['per_second_max'])}",
                shown(target) if target else "",
                f"{one['of_target']:.2f}" if target else "",
            )
        )
    header = ("WHAT", "SIZE", "POLICY", "IN FLIGHT", "LANES", "MEDIAN", "RANGE", "GOAL", "OF GOAL")
    disk, direct, loopback = (value / MB for value in raw.values())
    return (
        f"{table(header, rows, right='IN FLIGHT,MEDIAN,RANGE,GOAL,OF GOAL')}\n\n"
        f"This disk, 4 MiB writes into a preallocated file, fdatasync after each: {disk:,.0f} MB/s; "
        f"with O_DIRECT {direct:,.0f} MB/s. TCP over loopback: {loopback:,.0f} MB/s.\n"
        f"{facts['machine']['cpus']} cores, Python {facts['machine']['python']}, {facts['nodes']} daemons, "
        f"{facts['runs']} runs of {facts['seconds_per_run']} s each; gets from a warm page cache."
    )


def _amount(scenario: Scenario, rate: float) -> str:
    return f"{rate * scenario.size / MB:,.0f} MB/s" if scenario.size >= MiB else f"{rate:,.0f}/s"
