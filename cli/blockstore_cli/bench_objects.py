"""`blockstore bench --objects N`: what becomes of the store when one bucket has very many objects.

Puts N objects of 1 KiB, in no order of their names, and compares the rate of the first tenth with that of the
last. Then the memory of the daemon that owns the bucket; then that daemon is killed and started again, and
the time counts until a get is answered, by whoever owns the bucket by then: it has loaded the checkpoint and
replayed the journal. At the end some objects are read back and compared.
"""

from __future__ import annotations

import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster
from blockstore.ids import KiB, MiB
from blockstore_cli.copying import in_flight, run
from blockstore_cli.dev import wait_until_settled
from blockstore_cli.output import note

OBJECT_BYTES = 1 * KiB
PUTS_IN_FLIGHT = 64
N_CHECKED = 1_000
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
        rates = await _fill(bucket, n_objects, content)
        await bucket.get(_name(0))
        before = await bucket.facts()
        node = cluster.nodes[int(before["owner"]) - 1]
        rss_bytes = _rss_bytes(node.pid)
        note(f"  node {node.node} owns the bucket, {rss_bytes / MiB:,.0f} MiB; it is killed")
        killed = time.perf_counter()
        node.kill()
        node.spawn()
        middle = n_objects // 2
        first_answer = await bucket.get(_name(middle), timeout=ANSWER_SECONDS_MAX)
        answered = time.perf_counter() - killed
        await trio.to_thread.run_sync(node.wait_ready)
        after = await bucket.facts()
        n_wrong = (first_answer != _value(middle, content)) + await _check(bucket, n_objects, content)
    return {
        "objects": n_objects,
        "object_bytes": OBJECT_BYTES,
        "in_flight": PUTS_IN_FLIGHT,
        "nodes": len(cluster.nodes),
        "puts_per_second_by_tenth": [round(rate, 1) for rate in rates],
        "owner_rss_bytes": rss_bytes,
        "restart_to_first_answer_seconds": round(answered, 2),
        "owner_moved": after["owner"] != before["owner"],
        "keys_after_restart": after["keys"],
        "wrong": n_wrong,
    }


async def _fill(bucket: aio.Bucket, n_objects: int, content: bytes) -> list[float]:
    """Puts per second of each tenth."""

    async def put(number: int) -> None:
        await bucket.put(_name(number), _value(number, content))

    rates: list[float] = []
    for tenth in range(TENTHS):
        numbers = range(n_objects * tenth // TENTHS, n_objects * (tenth + 1) // TENTHS)
        began = time.perf_counter()
        await in_flight(numbers, put, PUTS_IN_FLIGHT)
        rates.append(len(numbers) / (time.perf_counter() - began))
        note(f"  {numbers.stop:,} objects: {rates[-1]:,.0f} puts/s")
    return rates


async def _check(bucket: aio.Bucket, n_objects: int, content: bytes) -> int:
    """How many of some objects, drawn at random, are not what was put."""
    numbers = random.Random(1).choices(range(n_objects), k=N_CHECKED)
    found = await bucket.read_many([_name(number) for number in numbers])
    return sum(value != _value(number, content) for number, value in zip(numbers, found, strict=True))


def _name(number: int) -> str:
    """Neighbours in time are none in the bucket's order."""
    return f"{number * 2_654_435_761 % 2**32:08x}-{number}"


def _value(number: int, content: bytes) -> bytes:
    start = number * 7 % (len(content) - OBJECT_BYTES)
    return content[start : start + OBJECT_BYTES]


def _rss_bytes(pid: int) -> int:
    """What the process has in memory, as Linux counts it."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")


def objects_text(facts: dict[str, Any]) -> str:
    rates = facts["puts_per_second_by_tenth"]
    return (
        f"{facts['objects']:,} objects of {facts['object_bytes']:,} bytes, {facts['nodes']} daemons, "
        f"{facts['in_flight']} puts in flight.\n"
        f"Puts: {rates[0]:,.0f}/s in the first tenth, {rates[-1]:,.0f}/s in the last, "
        f"which is {rates[-1] / rates[0]:.0%} of it.\n"
        f"The owner's memory: {facts['owner_rss_bytes'] / MiB:,.0f} MiB.\n"
        f"Its daemon killed and started again: a get was answered after "
        f"{facts['restart_to_first_answer_seconds']:.1f} s, "
        f"by {'another' if facts['owner_moved'] else 'the same'} node.\n"
        f"{facts['keys_after_restart']:,} keys; {facts['wrong']} of {N_CHECKED:,} objects came back wrong."
    )
