"""A daemon that is asked to stop hands over first: nobody waits until it is missed."""

from __future__ import annotations

import trio

from blockstore import aio
from blockstore.daemon.local_cluster import LocalCluster
from blockstore_cli.dev import wait_until_settled


async def test_when_it_has_ended_others_own_its_volumes_and_lead_control(cluster: LocalCluster) -> None:
    async with aio.connect(cluster.location, credentials=cluster.credentials) as store:
        buckets = [await store.create_bucket(f"b{number}") for number in range(6)]
        for stopped in cluster.nodes:
            for bucket in buckets:
                await bucket.put("k", b"%d" % stopped.node)
            led = (await store.status()).leader == stopped.node
            await trio.to_thread.run_sync(stopped.stop)
            if led:
                assert "leads=False" in stopped.log.read_text(), "it resigned, and was not just missed"
            with trio.fail_after(10):
                # Who answers may hear of the new leader a moment after it leads: its bus is young.
                status = await store.status()
                while status.leader in (0, stopped.node):
                    await trio.sleep(0.02)
                    status = await store.status()
            assert stopped.node not in {volume.owner for volume in status.volumes}
            for bucket in buckets:
                assert await bucket.get("k") == b"%d" % stopped.node
                await bucket.put("k", b"by the next owner")
            await trio.to_thread.run_sync(stopped.start)
            await trio.to_thread.run_sync(wait_until_settled, cluster)
