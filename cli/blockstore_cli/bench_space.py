"""`blockstore bench --space N`: what a data set takes on the disks, and what reading it at random costs.

Puts N objects of 100 KiB into an erasure coded bucket, and a tenth of them into a replicated one. When
nothing waits to be packed any more: bytes on disks for each byte of the objects, as the owner counts them
and as the file systems do; bytes written to disks for each byte put, as the owner counts them and as the
system does. Then random reads, one object and 64 at a time, of both buckets, and again of the coded one
with one daemon killed. At the end a bucket of a tenth of the objects is overwritten ten times, without
snapshots.

What is read is compared with what was put."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
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
from blockstore_cli.output import note, size

OBJECT_BYTES = 100 * KiB
PUTS_IN_FLIGHT = 16
READ_AT_ONCE = 64
OVERWRITES = 10
PART = 10
"""Of the objects, one in so many is in the buckets for comparison."""

LOOK_SECONDS = 1.0
SETTLED_LOOKS = 8
"""The owner looks every two seconds whether there is something to pack, and every five for garbage."""

SETTLE_SECONDS_MAX = 900.0


def measure_space(n_objects: int, n_nodes: int, seconds: float, folder: Path) -> dict[str, Any]:
    """The facts that `bench --space` prints; each kind of read goes on for `seconds`."""
    with LocalCluster.create(folder / "space", n_nodes, security="plain") as cluster:
        wait_until_settled(cluster)
        return run(partial(_measure, cluster, n_objects, seconds))


async def _measure(cluster: LocalCluster, n_objects: int, seconds: float) -> dict[str, Any]:
    content = os.urandom(4 * MiB)
    n_part = max(1, n_objects // PART)
    async with aio.connect(cluster.location) as store:
        taken, written = _allocated(cluster), _written(cluster)
        coded = await store.create_bucket("coded", policy="ec(4,2)")
        await _fill(coded, n_objects, content)
        facts = await _settle(coded)
        put_bytes = n_objects * OBJECT_BYTES
        space = {
            "put_bytes": put_bytes,
            "disk_bytes": facts["disk_bytes"],
            "allocated_bytes": _allocated(cluster) - taken,
            "written_bytes": facts["written_bytes"],
            "system_written_bytes": _written(cluster) - written,
        }
        copies = await store.create_bucket("copies", policy="replicated(3)")
        await _fill(copies, n_part, content)
        reads = {
            "replicated_get": await _read(copies, n_part, content, 1, seconds),
            "get": await _read(coded, n_objects, content, 1, seconds),
            "read_many": await _read(coded, n_objects, content, READ_AT_ONCE, seconds),
        }
        victim = cluster.nodes[-1]
        note(f"  node {victim.node} is killed")
        victim.kill()
        await _read(coded, n_objects, content, READ_AT_ONCE, seconds)  # until everybody knows
        reads["get_without_a_node"] = await _read(coded, n_objects, content, 1, seconds)
        reads["read_many_without_a_node"] = await _read(coded, n_objects, content, READ_AT_ONCE, seconds)
        victim.spawn()
        await trio.to_thread.run_sync(victim.wait_ready)
        again = await store.create_bucket("again", policy="ec(4,2)")
        for number in range(OVERWRITES):
            note(f"  overwriting, {number + 1} of {OVERWRITES}")
            await _fill(again, n_part, content)
        overwritten = await _settle(again)
        await _read(again, n_part, content, READ_AT_ONCE, seconds)
    return {
        "objects": n_objects,
        "object_bytes": OBJECT_BYTES,
        "nodes": len(cluster.nodes),
        **space,
        "objects_per_second": {what: round(rate, 1) for what, rate in reads.items()},
        "overwritten_bytes": n_part * OBJECT_BYTES,
        "overwrites": OVERWRITES,
        "overwritten_disk_bytes": overwritten["disk_bytes"],
    }


async def _fill(bucket: aio.Bucket, n_objects: int, content: bytes) -> None:
    told = 0.0

    async def put(number: int) -> None:
        nonlocal told
        await bucket.put(name_of(number), value_of(number, content, OBJECT_BYTES))
        if time.monotonic() - told > 10:
            told = time.monotonic()
            note(f"  {bucket.name}: {number:,} of {n_objects:,} objects")

    began = time.perf_counter()
    await in_flight(range(n_objects), put, PUTS_IN_FLIGHT)
    rate = n_objects / (time.perf_counter() - began)
    note(f"  {bucket.name}: {n_objects:,} objects, {rate:,.0f} puts/s")


async def _settle(bucket: aio.Bucket) -> dict[str, Any]:
    """The bucket's facts when it has done what it does in the background."""
    n_alike, last = 0, (0, 0)
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while n_alike < SETTLED_LOOKS and time.monotonic() < deadline:
        await trio.sleep(LOOK_SECONDS)
        facts = await bucket.facts()
        now = int(facts["packed_bytes"]), int(facts["disk_bytes"])
        if now == last:
            n_alike += 1
        else:
            n_alike, last = 0, now
            note(f"  {bucket.name}: {size(now[0])} packed, {size(now[1])} on disks")
    return await bucket.facts()


async def _read(bucket: aio.Bucket, n_objects: int, content: bytes, n_at_once: int, seconds: float) -> float:
    """Objects a second, chosen at random; AssertionError if one is not what was put."""
    rng = random.Random(n_at_once)
    n_read, took = 0, 0.0
    while took < seconds:
        numbers = [rng.randrange(n_objects) for _ in range(n_at_once)]
        names = [name_of(number) for number in numbers]
        began = time.perf_counter()
        found: Sequence[bytes] = (
            await bucket.read_many(names) if n_at_once > 1 else [await bucket.get(names[0])]
        )
        took += time.perf_counter() - began
        n_read += n_at_once
        for number, value in zip(numbers, found, strict=True):
            assert value == value_of(number, content, OBJECT_BYTES), (
                f"object {name_of(number)} came back wrong"
            )
    note(f"  {bucket.name}, {n_at_once} at a time: {n_read / took:,.0f} objects/s")
    return n_read / took


def _allocated(cluster: LocalCluster) -> int:
    """What the nodes' files take, as their file system counts it: preallocated space included."""
    return sum(
        path.stat().st_blocks * 512
        for node in cluster.nodes
        for path in node.directory.rglob("*")
        if path.is_file()
    )


def _written(cluster: LocalCluster) -> int:
    """What the daemons have written so far, as Linux counts it: whole pages."""
    total = 0
    for node in cluster.nodes:
        for line in Path(f"/proc/{node.pid}/io").read_text().splitlines():
            name, _, value = line.partition(": ")
            total += int(value) if name == "write_bytes" else 0
    return total


def space_text(facts: dict[str, Any]) -> str:
    put, rates = facts["put_bytes"], facts["objects_per_second"]
    again = facts["overwritten_bytes"]
    return (
        f"{facts['objects']:,} objects of {facts['object_bytes']:,} bytes under ec(4,2), {facts['nodes']} "
        f"daemons: {size(put)}.\n"
        f"On the disks for each of their bytes: {facts['disk_bytes'] / put:.2f}; what the files take, with "
        f"what is preallocated: {facts['allocated_bytes'] / put:.2f}.\n"
        f"Written for each byte put: {facts['written_bytes'] / put:.2f}; as the system counts it: "
        f"{facts['system_written_bytes'] / put:.2f}.\n"
        f"Random reads, one at a time: {rates['get']:,.0f} objects/s, replicated(3) "
        f"{rates['replicated_get']:,.0f} ({rates['get'] / rates['replicated_get']:.0%}); {READ_AT_ONCE} at a "
        f"time: {rates['read_many']:,.0f} ({rates['read_many'] / rates['get']:.1f} times).\n"
        f"With a daemon killed: {rates['get_without_a_node']:,.0f} "
        f"({rates['get_without_a_node'] / rates['get']:.0%}) and {rates['read_many_without_a_node']:,.0f} "
        f"({rates['read_many_without_a_node'] / rates['read_many']:.0%}).\n"
        f"{size(again)} overwritten {facts['overwrites']} times: "
        f"{facts['overwritten_disk_bytes'] / again:.2f} bytes on the disks for each that is live."
    )
