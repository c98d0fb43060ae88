"""Which volume gets which owner, when its present one is gone.

Pure. An owner is replaced only when it is silent *and* its lease is surely over (`liveness.py`): a slow node
keeps what it has. The new owner is live; best is one that has a replica of the volume's open journal on its
own disks, since it will replay that; among those, the one that owns fewest volumes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from blockstore.codec.control_record import Transaction, VolumeRecord, encode_record
from blockstore.codec.messages import Compare
from blockstore.control.liveness import LeaseGranter
from blockstore.control.views import Views, volume_key
from blockstore.ids import NodeId, RequestId, VolumeId

MOVES_MAX = 32
"""In one transaction, which fits into one command of the log. The rest follow in the next."""


@dataclass(frozen=True, slots=True)
class Move:
    volume: VolumeId
    old_owner: NodeId  # 0: there was none
    new_owner: NodeId
    epoch: int  # of the new owner


def choose_owner(
    views: Views, live: Collection[NodeId], volume: VolumeRecord | None, load: Counter[NodeId]
) -> NodeId:
    """The best live owner for `volume` (None: a new one); 0 when no node that may own one lives."""
    candidates = [record.node for record in views.nodes() if record.node in live and record.state == "active"]
    holders: set[NodeId] = set()
    if volume is not None and volume.journal:
        holders = {views.node_of_disk(disk) for disk in volume.journal[-1].disks if disk}
    return min(candidates, key=lambda node: (node not in holders, load[node], node), default=NodeId(0))


def owner_load(views: Views) -> Counter[NodeId]:
    """How many volumes each node owns."""
    return Counter(volume.owner for volume in views.volumes() if volume.owner)


def plan_moves(views: Views, live: Collection[NodeId], over: Collection[NodeId]) -> tuple[Move, ...]:
    """Up to MOVES_MAX volumes that need an owner, each with the one it gets. `over`: nodes without any
    lease."""
    load = owner_load(views)
    moves: list[Move] = []
    for volume in views.volumes():
        owner = volume.owner
        if owner and views.node(owner) is not None and (owner in live or owner not in over):
            continue
        new_owner = choose_owner(views, live, volume, load)
        if not new_owner or new_owner == owner:
            continue
        load[new_owner] += 1
        moves.append(Move(volume.volume, owner, new_owner, volume.epoch + 1))
        if len(moves) == MOVES_MAX:
            break
    return tuple(moves)


def plan_handover(views: Views, live: Collection[NodeId], leaving: NodeId) -> tuple[Move, ...]:
    """Up to MOVES_MAX volumes of a node that stops, each with its next owner; () when nobody else lives.

    The node itself asks for these, when it has ceased to act as owner: so no lease need run out."""
    load = owner_load(views)
    heirs = [node for node in live if node != leaving]
    moves: list[Move] = []
    for volume in views.volumes_of(leaving)[:MOVES_MAX]:
        if new_owner := choose_owner(views, heirs, volume, load):
            load[new_owner] += 1
            moves.append(Move(volume.volume, leaving, new_owner, volume.epoch + 1))
    return tuple(moves)


class Mover:
    """Takes volumes from nodes that are gone and gives them to others, one transaction at a time. While one
    is under way, the nodes that it takes from get no lease (`liveness.py`, point 3)."""

    def __init__(self, granter: LeaseGranter) -> None:
        self._granter = granter

    def begin(
        self, views: Views, live: Collection[NodeId], request: RequestId, now: float
    ) -> tuple[tuple[Move, ...], Transaction] | None:
        """What to commit now; None when every volume has an owner that lives, or may still live."""
        owners = {volume.owner for volume in views.volumes()}
        moves = plan_moves(views, live, self._granter.over(owners, now))
        if not moves:
            return None
        self._granter.bar({move.old_owner for move in moves})
        return moves, move_transaction(views, moves, request)

    def end(self, moves: Collection[Move]) -> None:
        """The transaction was applied here, or never will be."""
        self._granter.unbar({move.old_owner for move in moves})


def move_transaction(views: Views, moves: Collection[Move], request: RequestId) -> Transaction:
    compares: list[Compare] = []
    puts: list[tuple[str, bytes]] = []
    for move in moves:
        volume, key = views.volume(move.volume), volume_key(move.volume)
        assert volume is not None
        record = with_owner(volume, move.new_owner)
        assert record.epoch == move.epoch
        compares.append(Compare(key, views.modified(key)))
        puts.append((key, encode_record(record)))
    return Transaction(request, tuple(compares), tuple(puts))


def with_owner(volume: VolumeRecord, owner: NodeId) -> VolumeRecord:
    """The same volume in its next epoch."""
    return VolumeRecord(
        volume.volume, volume.name, volume.kind, volume.policy, volume.epoch + 1, owner, volume.root,
        volume.journal, volume.created,
    )  # fmt: skip
