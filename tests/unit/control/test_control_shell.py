"""Whole control, in one process: everything real but the world."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blockstore import config
from blockstore.codec.messages import (
    Compare,
    CreateCredential,
    CreateVolume,
    DeleteVolume,
    Events,
    FetchEvents,
    FetchStatus,
    FetchView,
    ListVolumes,
    RevokeCredential,
    Status,
    View,
    Volumes,
)
from blockstore.control.health import NodeFacts
from blockstore.control.replica_shell import MEMBERS_FILES
from blockstore.errors import (
    AlreadyExists,
    BlockStoreError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    TransactionConflict,
)
from blockstore.ids import NodeId
from blockstore.runtime.interfaces import Peer
from tests.unit.control.sim_cluster import SimCluster, refused, sim_cluster


async def test_a_store_of_one_node_leads_itself_and_holds_its_lease(autojump_clock: MockClock) -> None:
    async with sim_cluster(1) as cluster:
        volume = await cluster.create_volume(1, "photos")
        assert (volume.owner, volume.policy) == (1, "replicated(1,domain=disk)")
        cluster.kill(1)
        await cluster.start(1)
        control = cluster.machines[1].running
        assert not control.lease_valid(cluster.clock.now())  # not before it is announced
        await control.started()
        assert control.lease_valid(cluster.clock.now())
        node = control.views.node(NodeId(1))
        assert node is not None
        assert node.incarnation == 2
        assert control.views.volume_by_name("photos") == volume


@pytest.mark.parametrize(("n_nodes", "n_voters"), [(2, 1), (3, 3), (5, 5)])
async def test_a_cluster_chooses_its_voters_as_nodes_join(
    autojump_clock: MockClock, n_nodes: int, n_voters: int
) -> None:
    async with sim_cluster(n_nodes) as cluster:
        await cluster.until(lambda: all(len(control.views.nodes()) == n_nodes for control in cluster.running))
        assert {len(control.voters) for control in cluster.running} == {n_voters}


async def test_any_node_serves_any_request_and_reads_its_own_writes(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        for number in (1, 2, 3):
            volume = await cluster.create_volume(number, f"v{number}")
            assert volume.owner
        answer = await cluster.ask(2, ListVolumes())
        assert isinstance(answer, Volumes)
        assert [one.name for one in answer.volumes] == ["v1", "v2", "v3"]
        assert len({one.owner for one in answer.volumes}) == 3
        assert isinstance(await refused(cluster, 2, DeleteVolume("nope", cluster.request())), NotFound)
        await cluster.ask(3, DeleteVolume("v1", cluster.request()))
        view = await cluster.ask(1, FetchView("v1", at_least=cluster.machines[3].running.revision))
        assert isinstance(view, View)
        assert view.volume is None
        assert [node.node for node in view.nodes] == [1, 2, 3]


async def test_a_creation_repeated_under_its_id_at_another_node_is_the_same_one(
    autojump_clock: MockClock,
) -> None:
    async with sim_cluster(3) as cluster:
        message = CreateVolume("photos", "bucket", "", False, cluster.request())
        first = await cluster.ask(1, message)
        again = await cluster.ask(3, message)
        assert isinstance(first, View)
        assert isinstance(again, View)
        assert first.volume == again.volume
        other = CreateVolume("photos", "bucket", "", False, cluster.request())
        assert isinstance(await refused(cluster, 2, other), AlreadyExists)


async def test_many_create_at_once_at_different_nodes(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(cluster.create_volume, 1 + number % 3, f"v{number}")
        control = cluster.machines[2].running
        await cluster.until(lambda: len(control.views.volumes()) == 12)
        assert sorted(volume.volume for volume in control.views.volumes()) == list(range(1, 13))


async def test_a_conflict_is_told_and_nothing_happens(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        follower = cluster.other_than(cluster.leader)
        with pytest.raises(TransactionConflict):
            await follower.transact(
                (Compare("x", 5),),
                (("x", b"1"),),
                request=follower.next_request(),
                deadline=cluster.clock.now() + 5,
            )
        revision = await follower.transact(
            (Compare("x", 0),),
            (("x", b"1"),),
            request=follower.next_request(),
            deadline=cluster.clock.now() + 5,
        )
        assert follower.views.modified("x") == revision


@pytest.mark.parametrize("n_nodes", [3, 5])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_killed_leaders_volumes_have_new_owners_within_two_seconds(
    autojump_clock: MockClock, n_nodes: int, seed: int
) -> None:
    async with sim_cluster(n_nodes, seed) as cluster:
        for number in range(2 * n_nodes):
            await cluster.create_volume(1, f"v{number}")
        killed = cluster.leader
        survivor = cluster.other_than(killed)
        theirs = survivor.views.volumes_of(NodeId(killed))
        assert len(theirs) == 2
        cluster.kill(killed)
        took = await cluster.until(lambda: not survivor.views.volumes_of(NodeId(killed)))
        assert took < 2.0
        for before in theirs:
            after = survivor.views.volume(before.volume)
            assert after is not None
            assert after.epoch == before.epoch + 1
        await cluster.until(
            lambda: all(control.lease_valid(cluster.clock.now()) for control in cluster.running)
        )


async def test_a_killed_owners_volumes_move_as_soon_as_its_lease_is_over(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        for number in range(6):
            await cluster.create_volume(1, f"v{number}")
        killed = cluster.other_than(cluster.leader).me
        leader = cluster.machines[cluster.leader].running
        cluster.kill(killed)
        assert await cluster.until(lambda: not leader.views.volumes_of(killed)) < 1.2


async def test_a_node_cut_off_loses_its_lease_before_others_own_its_volumes_and_learns_it_on_return(
    autojump_clock: MockClock,
) -> None:
    async with sim_cluster(3) as cluster:
        for number in range(6):
            await cluster.create_volume(1, f"v{number}")
        cut = cluster.machines[cluster.leader].running  # the hardest: it leads and owns
        assert cut.views.volumes_of(cut.me)
        survivor = cluster.other_than(cut.me)
        cluster.cut(cut.me)
        await cluster.until(lambda: not survivor.views.volumes_of(cut.me))
        assert not cut.lease_valid(cluster.clock.now())
        assert cut.views.volumes_of(cut.me)  # it does not know yet
        cluster.heal()
        await cluster.until(lambda: not cut.views.volumes_of(cut.me))
        await cluster.until(lambda: cut.lease_valid(cluster.clock.now()))


@pytest.mark.parametrize("seed", range(4))
async def test_leases_never_overlap_whatever_is_killed_cut_and_healed(
    autojump_clock: MockClock, seed: int
) -> None:
    async with sim_cluster(5, seed) as cluster:
        rng = cluster.rng
        cluster.bus_carrier.faults.loss = 0.05
        cluster.bus_carrier.faults.duplication = 0.05
        cluster.bus_carrier.faults.delay_max = 0.05
        for number in range(10):
            await cluster.create_volume(1, f"v{number}")
        for _ in range(12):
            victim = rng.randrange(1, 6)
            if rng.random() < 0.5:
                cluster.kill(victim)
                await trio.sleep(rng.uniform(0.05, 3.0))
                await cluster.start(victim)
            else:
                cluster.cut(victim)
                await trio.sleep(rng.uniform(0.05, 3.0))
                cluster.heal()
            await trio.sleep(rng.uniform(0.0, 2.0))
        await cluster.until(lambda: settled(cluster))
        revisions = {control.revision for control in cluster.running}
        assert len(revisions) == 1
        snapshots = {control._replica._take_snapshot() for control in cluster.running}
        assert len(snapshots) == 1


def settled(cluster: SimCluster) -> bool:
    now = cluster.clock.now()
    owned = sum(len(control.views.volumes_of(control.me)) for control in cluster.running)
    return (
        owned == 10
        and all(control.lease_valid(now) for control in cluster.running)
        and len({control.revision for control in cluster.running}) == 1
    )


async def test_a_restarted_node_comes_back_with_the_next_incarnation(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        victim = cluster.other_than(cluster.leader).me
        cluster.kill(victim)
        await trio.sleep(0.2)
        await cluster.start(victim)
        restarted = cluster.machines[victim].running
        with trio.fail_after(5):
            await restarted.started()
        other = cluster.other_than(victim)
        node = other.views.node(victim)
        assert node is not None
        assert node.incarnation == 2
        await cluster.until(lambda: other.is_live(victim) and restarted.lease_valid(cluster.clock.now()))


async def test_a_cluster_that_lost_power_comes_back_by_itself(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        for number in range(3):
            await cluster.create_volume(1, f"v{number}")
        await trio.sleep(0.2)
        for number in (1, 2, 3):
            cluster.kill(number)
        await trio.sleep(5)
        for number in (3, 1, 2):
            await cluster.start(number)
        with trio.fail_after(10):
            for control in cluster.running:
                await control.started()
        await cluster.until(
            lambda: all(control.lease_valid(cluster.clock.now()) for control in cluster.running)
        )
        assert {len(control.views.volumes()) for control in cluster.running} == {3}
        await cluster.create_volume(2, "after")


async def test_a_node_knows_whom_to_ask_and_let_in_before_its_copy_is_there(
    autojump_clock: MockClock,
) -> None:
    async with sim_cluster(3) as cluster:
        await trio.sleep(0.2)
        for number in (1, 2, 3):
            cluster.kill(number)
        await cluster.start(2)  # alone: nobody tells it what is committed
        control = cluster.machines[2].running
        assert [node.node for node in control.known.nodes()] == [1, 2, 3]
        assert control.peer_of_certificate("f" * 64, "client", "root").role == "admin"
        assert (await refused(cluster, 2, FetchView())).retry


async def test_a_voter_dead_for_long_is_replaced(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "VOTER_DEAD_SECONDS", 6.0)
    async with sim_cluster(4) as cluster:
        voters = cluster.machines[1].running.voters
        victim = next(node for node in sorted(voters) if node != cluster.leader)
        spare = next(node for node in (1, 2, 3, 4) if node not in voters)
        cluster.kill(victim)
        leader = cluster.machines[cluster.leader].running
        await trio.sleep(5)
        assert victim in leader.voters
        await cluster.until(lambda: leader.voters == voters - {victim} | {spare})


async def test_status_tells_what_a_dead_node_means(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        await cluster.create_volume(1, "photos")
        await trio.sleep(0.3)  # its owner tells in its next heartbeat that it serves it
        healthy = await cluster.ask(2, FetchStatus())
        assert isinstance(healthy, Status)
        assert healthy.sentence == "All data is complete; any 2 more nodes may fail."
        assert healthy.severity == 0
        victim = cluster.other_than(cluster.leader).me
        cluster.kill(victim)
        await trio.sleep(3)
        degraded = await cluster.ask(cluster.leader, FetchStatus())
        assert isinstance(degraded, Status)
        assert degraded.severity == 1
        assert f"node {victim} is out" in degraded.sentence
        assert {fact.code for fact in degraded.facts} == {"node-down", "no-voter-to-spare"}
        assert [node.live for node in degraded.nodes].count(False) == 1


async def test_what_a_node_finds_wrong_with_its_disks_is_known_everywhere(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        await cluster.create_volume(1, "photos")
        control = cluster.other_than(2)
        (failed,), (rotten,) = (control.views.disks_of(NodeId(number)) for number in (2, 3))
        cluster.machines[2].facts = NodeFacts(suspect=(failed.disk,))
        cluster.machines[3].facts = NodeFacts(damaged=((rotten.disk, 2),))
        await trio.sleep(0.3)
        for running in cluster.running:
            assert running.suspect_disks() == {failed.disk}
            status = await cluster.ask(running.me, FetchStatus())
            assert isinstance(status, Status)
            assert {fact.code for fact in status.facts} == {"disk-suspect", "fragments-damaged"}
        cluster.machines[2].facts = NodeFacts()  # its node started anew
        await trio.sleep(0.3)
        assert control.suspect_disks() == frozenset()


async def test_events_reach_a_waiting_reader_at_every_node(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        seen = await cluster.ask(2, FetchEvents(0, 0.0))
        assert isinstance(seen, Events)
        assert "node-joined" in {event.code for event in seen.events}
        waiting = await cluster.ask(2, FetchEvents(seen.next, 0.5))
        assert isinstance(waiting, Events)
        assert waiting.events == ()
        found: list[Events] = []

        async def read() -> None:
            answer = await cluster.ask(2, FetchEvents(waiting.next, 8.0))
            assert isinstance(answer, Events)
            found.append(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(1)
            await cluster.create_volume(3, "photos")
        assert [event.code for event in found[0].events] == ["volume-created"]


async def test_a_revoked_credential_is_refused_everywhere_and_its_connections_are_named(
    autojump_clock: MockClock,
) -> None:
    async with sim_cluster(3) as cluster:
        dropped: list[tuple[NodeId, frozenset[str]]] = []
        for control in cluster.running:
            control.on_credentials_changed = lambda gone, me=control.me: dropped.append((me, gone))
        mark = "ab" * 32
        await cluster.ask(2, CreateCredential("loader", "read", mark, cluster.request()))
        await cluster.until(lambda: all(control.views.credential("loader") for control in cluster.running))
        for control in cluster.running:
            assert control.peer_of_certificate(mark, "client", "loader") == Peer(
                "client", "loader", "read", mark
            )
        await cluster.ask(3, RevokeCredential("loader", cluster.request()))
        await cluster.until(lambda: len(dropped) == 3)
        assert {gone for _, gone in dropped} == {frozenset({mark})}
        for control in cluster.running:
            with pytest.raises(PermissionDenied, match="revoked"):
                control.peer_of_certificate(mark, "client", "loader")
        last = await refused(cluster, 1, RevokeCredential("root", cluster.request()))
        assert isinstance(last, InvalidRequest)


async def test_a_role_that_may_not_is_refused(autojump_clock: MockClock) -> None:
    async with sim_cluster(1) as cluster:
        reader = Peer("client", "loader", "read")
        lane = cluster.network.seen_as(reader, "reader").lane(cluster.machines[1].address)
        message = CreateVolume("photos", "bucket", "", False, cluster.request())
        with pytest.raises(PermissionDenied, match="Client loader has the role read; CreateVolume needs"):
            await lane.call(message, (), cluster.clock.now() + 5)


async def test_nothing_can_be_changed_without_a_majority_and_the_error_says_so(
    autojump_clock: MockClock,
) -> None:
    async with sim_cluster(3) as cluster:
        for number in (2, 3):
            cluster.kill(number)
        message = CreateVolume("photos", "bucket", "", False, cluster.request())
        with pytest.raises(BlockStoreError) as caught:
            await cluster.ask(1, message, seconds=3)
        assert caught.value.retry
        status = await cluster.ask(1, FetchStatus())
        assert isinstance(status, Status)
        assert status.severity == 2
        assert "no-leader" in {fact.code for fact in status.facts}


async def test_a_full_disk_does_not_end_a_node_that_learns_of_new_members(autojump_clock: MockClock) -> None:
    async with sim_cluster(3) as cluster:
        disk = cluster.machines[2].disk
        disk.capacity_bytes, had = 0, disk.capacity_bytes
        await cluster.join(4)
        before = [disk.read_file(name) for name in MEMBERS_FILES]
        await cluster.until(
            lambda: NodeId(4) in {node.node for node in cluster.machines[2].running.views.nodes()}
        )
        await trio.sleep(1)
        assert [disk.read_file(name) for name in MEMBERS_FILES] == before
        disk.capacity_bytes = had
        await cluster.until(lambda: disk.read_file(MEMBERS_FILES[1]) != before[1])


@pytest.mark.parametrize("name", MEMBERS_FILES)
async def test_a_rotten_bit_among_the_members_does_not_keep_a_node_from_its_peers(
    autojump_clock: MockClock, name: str
) -> None:
    async with sim_cluster(3) as cluster:
        cluster.kill(1)
        disk = cluster.machines[1].disk
        content = disk.read_file(name)
        assert content is not None
        disk.replace_file(name, content[:-1] + bytes([content[-1] ^ 1]))
        await cluster.start(1)
        await cluster.machines[1].running.started()
        await trio.sleep(1)
        assert disk.read_file(MEMBERS_FILES[0]) == disk.read_file(MEMBERS_FILES[1])
