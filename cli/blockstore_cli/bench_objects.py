"""`blockstore bench --objects N`: what becomes of the store when one bucket has very many objects.

Puts N objects of 1 KiB, in no order of their names, and compares the rates of the first (FEW of them, or a
tenth) and of the last tenth. After both: what random gets cost, a snapshot and its end, and listing a
prefix of 1,000, and finding 1,000 changes between two snapshots. Then the memory of the daemon that owns
the bucket; then that daemon is killed and started again, and the time counts until a get is answered, by
whoever owns the bucket by then: it has loaded the checkpoint and replayed the journal. At the end some
objects are read back and compared."""

from __future__ import annotations

import os
import random
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.ids import KiB, MiB
from blockstore_cli.bench_values import name_of, value_of
from blockstore_cli.copying import in_flight, run
from blockstore_cli.dev import wait_until_settled
from blockstore_cli.output import note

OBJECT_BYTES = 1 * KiB
PUTS_IN_FLIGHT = 64
FEW = 100_000
N_CHECKED = 1_000
N_GETS = 1_000
N_CHANGED = 1_000
N_LISTED = 1_000
LISTED = "listed/"
ANSWER_SECONDS_MAX = 120.0
TENTHS = 10


def measure_objects(n_objects: int, n_nodes: int, folder: Path) -> dict[str, Any]:
    """The facts that `bench --objects` prints."""
    with LocalCluster.create(folder / "objects", n_nodes, security="plain") as cluster:
        wait_until_settled(cluster)
        return run(partial(_measure, cluster, n_objects))


async def _measure(cluster: LocalCluster, n_objects: int) -> dict[str, Any]:
    content = os.urandom(MiB)
    async with aio.connect(cluster.location) as store:
        bucket = await store.create_bucket("objects", policy="replicated(3)")

        async def put_listed(number: int) -> None:
            await bucket.put(f"{LISTED}{number:04}", b"")

        await in_flight(range(N_LISTED), put_listed, PUTS_IN_FLIGHT)
        n_few = min(FEW, max(1, n_objects // TENTHS))
        rates = [await _fill(bucket, range(n_few), content)]
        few = await _look(bucket, n_few, content)
        for tenth in range(TENTHS):
            numbers = range(
                max(n_few, n_objects * tenth // TENTHS), max(n_few, n_objects * (tenth + 1) // TENTHS)
            )
            if numbers:
                rates.append(await _fill(bucket, numbers, content))
        many = await _look(bucket, n_objects, content)
        before = await bucket.facts()
        node = cluster.nodes[int(before["owner"]) - 1]
        rss_bytes = _rss_bytes(node.pid)
        note(f"  node {node.node} owns the bucket, {rss_bytes / MiB:,.0f} MiB; it is killed")
        killed = time.perf_counter()
        node.kill()
        node.spawn()
        middle = n_objects // 2
        first_answer = await bucket.get(name_of(middle), timeout=ANSWER_SECONDS_MAX)
        answered = time.perf_counter() - killed
        await trio.to_thread.run_sync(node.wait_ready)
        after = await bucket.facts()
        n_wrong = (first_answer != value_of(middle, content, OBJECT_BYTES)) + await _check(
            bucket, n_objects, content
        )
    return {
        "objects": n_objects,
        "object_bytes": OBJECT_BYTES,
        "in_flight": PUTS_IN_FLIGHT,
        "nodes": len(cluster.nodes),
        "puts_per_second": [round(rate, 1) for rate in rates],
        "few": n_few,
        "at_few": few,
        "at_all": many,
        "owner_rss_bytes": rss_bytes,
        "restart_to_first_answer_seconds": round(answered, 2),
        "owner_moved": after["owner"] != before["owner"],
        "keys_after_restart": after["keys"],
        "wrong": n_wrong,
    }


async def _fill(bucket: aio.Bucket, numbers: range, content: bytes) -> float:
    """Puts per second."""
    began = time.perf_counter()
    await in_flight(numbers, partial(_put, bucket, content), PUTS_IN_FLIGHT)
    rate = len(numbers) / (time.perf_counter() - began)
    note(f"  {numbers.stop:,} objects: {rate:,.0f} puts/s")
    return rate


async def _put(bucket: aio.Bucket, content: bytes, number: int) -> None:
    await bucket.put(name_of(number), value_of(number, content, OBJECT_BYTES))


async def _look(bucket: aio.Bucket, n_objects: int, content: bytes) -> dict[str, float]:
    """What some things cost now, in milliseconds: medians where many are done."""
    rng = random.Random(n_objects)
    gets: list[float] = []
    for number in rng.choices(range(n_objects), k=N_GETS):
        began = time.perf_counter()
        await bucket.get(name_of(number))
        gets.append(time.perf_counter() - began)

    async def get(number: int) -> None:
        await bucket.get(name_of(number))

    numbers = rng.choices(range(n_objects), k=N_GETS)
    began = time.perf_counter()
    await in_flight(numbers, get, PUTS_IN_FLIGHT)
    together = time.perf_counter() - began
    began = time.perf_counter()
    await bucket.snapshot("looked")
    taken = time.perf_counter()
    changing = rng.sample(range(n_objects), min(N_CHANGED, n_objects))
    await in_flight(changing, partial(_put, bucket, content), PUTS_IN_FLIGHT)
    await bucket.snapshot("changed")
    asked = time.perf_counter()
    n_changed = len([change async for change in bucket.diff("looked", "changed")])
    compared = time.perf_counter()
    await bucket.delete_snapshot("looked")
    deleted = time.perf_counter()
    await bucket.delete_snapshot("changed")
    listing = time.perf_counter()
    n_listed = len([entry async for entry in bucket.list(LISTED)])
    listed = time.perf_counter()
    assert n_listed == N_LISTED, n_listed
    assert n_changed == len(changing), n_changed
    return {
        "get_ms": round(1_000 * statistics.median(gets), 3),
        "get_among_many_ms": round(1_000 * together / N_GETS, 3),
        "snapshot_ms": round(1_000 * (taken - began), 2),
        "snapshot_delete_ms": round(1_000 * (deleted - compared), 2),
        "diff_ms": round(1_000 * (compared - asked), 1),
        "list_ms": round(1_000 * (listed - listing), 1),
    }


async def _check(bucket: aio.Bucket, n_objects: int, content: bytes) -> int:
    """How many of some objects, drawn at random, are not what was put."""
    numbers = random.Random(1).choices(range(n_objects), k=N_CHECKED)
    found = await bucket.read_many([name_of(number) for number in numbers])
    return sum(
        value != value_of(number, content, OBJECT_BYTES) for number, value in zip(numbers, found, strict=True)
    )


def _rss_bytes(pid: int) -> int:
    """What the process has in memory, as Linux counts it."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


def objects_text(facts: dict[str, Any]) -> str:
    rates, few, many = facts["puts_per_second"], facts["at_few"], facts["at_all"]
    return (
        f"{facts['objects']:,} objects of {facts['object_bytes']:,} bytes, {facts['nodes']} daemons, "
        f"{facts['in_flight']} puts in flight.\n"
        f"Puts: {rates[0]:,.0f}/s up to {facts['few']:,} objects, {rates[-1]:,.0f}/s in the last tenth, "
        f"which is {rates[-1] / rates[0]:.0%} of it.\n"
        f"A random get, one at a time: {few['get_ms']:.2f} ms then, {many['get_ms']:.2f} ms at the end "
        f"({many['get_ms'] / few['get_ms']:.2f} times); {facts['in_flight']} in flight: "
        f"{1_000 / few['get_among_many_ms']:,.0f}/s, {1_000 / many['get_among_many_ms']:,.0f}/s.\n"
        f"A snapshot: {few['snapshot_ms']:.1f} ms, {many['snapshot_ms']:.1f} ms; deleting it: "
        f"{few['snapshot_delete_ms']:.1f} ms, {many['snapshot_delete_ms']:.1f} ms.\n"
        f"What differs between two snapshots, {N_CHANGED:,} objects: {few['diff_ms']:.0f} ms, "
        f"{many['diff_ms']:.0f} ms.\n"
        f"Listing a prefix of {N_LISTED:,}: {few['list_ms']:.0f} ms, {many['list_ms']:.0f} ms.\n"
        f"The owner's memory: {facts['owner_rss_bytes'] / MiB:,.0f} MiB.\n"
        f"Its daemon killed and started again: a get was answered after "
        f"{facts['restart_to_first_answer_seconds']:.1f} s, "
        f"by {'another' if facts['owner_moved'] else 'the same'} node.\n"
        f"{facts['keys_after_restart']:,} keys; {facts['wrong']} of {N_CHECKED:,} objects came back wrong."
    )
