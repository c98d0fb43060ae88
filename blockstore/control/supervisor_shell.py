"""What the control leader does besides answering: owners for volumes, voters for control, tables for
policies.

Runs exactly while this node leads and its copy has all that leaders before it committed: before that it
grants no lease and moves nothing (`liveness.py`, point 3). Each decision is made by a core from the state as
it is now and carried out as one transaction or one change of members; what fails because something changed
is decided anew in the next round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from blockstore import config
from blockstore.codec.control_record import Transaction
from blockstore.control.assignment import Move, Mover
from blockstore.control.group_table import table_transaction, tables_due
from blockstore.control.liveness import LeaseGranter, LiveSet
from blockstore.control.replica_shell import Replica
from blockstore.control.voters import Candidate, Membership, next_membership
from blockstore.errors import BlockStoreError, NotLeader, TransactionConflict
from blockstore.ids import NodeId
from blockstore.runtime.interfaces import Clock

log = logging.getLogger("blockstore.control")

ROUND_SECONDS = config.HEARTBEAT_SECONDS / 2
"""A dead owner is noticed so much later than it could be; planning for 1,000 volumes takes a millisecond or
two."""


class Supervisor:
    def __init__(
        self, replica: Replica, clock: Clock, live: LiveSet, event: Callable[[str, str], None]
    ) -> None:
        self.granter = LeaseGranter()
        self._mover = Mover(self.granter)
        self._replica, self._clock, self._live, self._event = replica, clock, live, event
        self._seen_live: frozenset[NodeId] = frozenset()

    def on_elected(self) -> None:
        self.granter.on_elected(self._clock.now())

    def on_deposed(self) -> None:
        self.granter.on_deposed()

    def grant(self, node: NodeId, now: float) -> float | None:
        """Seconds of lease for a node that was just heard of; None when none can be granted."""
        return self.granter.grant(node, now, self._replica.raft.lease_until)

    async def run(self) -> None:
        """Lead. Cancelled when this node does not any more."""
        self._event("leader", f"Node {self._replica.me} leads control.")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._assign)
            nursery.start_soon(self._keep_members)
            nursery.start_soon(self._keep_tables)

    def _deadline(self) -> float:
        return self._clock.now() + config.OPERATION_SECONDS

    async def _pause(self) -> None:
        await self._clock.sleep_until(self._clock.now() + ROUND_SECONDS)

    # --- owners

    async def _assign(self) -> None:
        views = self._replica.views
        while True:
            now = self._clock.now()
            live = self._live.live(now)
            self._tell_changes(live)
            planned = self._mover.begin(views, live, self._replica.next_request(), now)
            if planned is None:
                await self._pause()
            else:
                await self._move(*planned)

    async def _move(self, moves: tuple[Move, ...], transaction: Transaction) -> None:
        """Commit the moves, or know that they were refused."""
        if await self._settle(transaction):
            for move in moves:
                self._event(
                    "owner",
                    f"Node {move.new_owner} owns volume {move.volume} from epoch {move.epoch} on, "
                    f"in place of node {move.old_owner}.",
                )
        self._mover.end(moves)

    async def _settle(self, transaction: Transaction) -> bool:
        """Whether it was applied; returns only when that is certain. Being deposed cancels it, and unbars
        all."""
        while True:
            try:
                await self._replica.commit_here(transaction, self._deadline())
            except TransactionConflict:
                return False
            except NotLeader:
                await trio.sleep_forever()  # we are about to be told
            except BlockStoreError as error:
                log.warning("move_undecided why=%s", error)
                await self._pause()
            else:
                return True

    def _tell_changes(self, live: frozenset[NodeId]) -> None:
        if not self._seen_live:
            self._seen_live = live
        for node in sorted(live - self._seen_live):
            self._event("node-up", f"Node {node} answers.")
        for node in sorted(self._seen_live - live):
            self._event("node-down", f"Node {node} does not answer any more.")
        self._seen_live = live

    # --- voters

    async def _keep_members(self) -> None:
        raft = self._replica.raft
        while True:
            wanted = next_membership(
                Membership(raft.voters, raft.learners),
                self._candidates(),
                self._replica.me,
            )
            if wanted is not None:
                try:
                    await raft.change_members(wanted.voters, wanted.learners, self._deadline())
                except BlockStoreError as error:
                    log.info("members_not_changed why=%s", error)
                else:
                    voters = ", ".join(str(node) for node in sorted(wanted.voters))
                    self._event(
                        "members", f"Control's voters are {voters}; {len(wanted.learners)} nodes learn."
                    )
                    continue
            await self._pause()

    def _candidates(self) -> list[Candidate]:
        now, raft = self._clock.now(), self._replica.raft
        return [
            Candidate(
                record,
                self._live.is_live(record.node, now),
                self._live.silent_seconds(record.node, now),
                max(0, raft.applied_index - raft.match_index(record.node)),
            )
            for record in self._replica.views.nodes()
        ]

    # --- tables

    async def _keep_tables(self) -> None:
        replica = self._replica
        while True:
            revision = replica.revision
            for text in tables_due(replica.views):
                transaction = table_transaction(replica.views, text, replica.next_request())
                try:
                    await replica.commit_here(transaction, self._deadline())
                except BlockStoreError as error:
                    log.info("table_not_drawn policy=%s why=%s", text, error)
                else:
                    self._event("groups", f"Policy {text} spreads over the disks that there are now.")
            if tables_due(replica.views):
                await self._pause()
            else:
                await replica.changed(revision, "disk/")
