"""Is all data safe, and if not, why, and what may be done? Facts, one sentence, one severity.

Pure: from the state, who is live, and what the nodes told in their heartbeats. The margin is how many more
nodes (in a cluster of one: disks) may fail before something cannot be read. It is the smallest over the
groups of every policy in use, over the journals of all volumes, and over what owners report of chunks with
fewer fragments than promised, so it errs to the cautious side: a group may hold nothing yet. Nothing is
called healthy while a node is down or a chunk has too few fragments (no repair brings them back in this
release, and the facts say so).

Severity: 0 all is as promised; 1 something is missing, and the data survives at least one more failure; 2 it
may not, or some of it cannot be reached now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from blockstore import config
from blockstore.codec.control_record import NodeRecord, VolumeRecord
from blockstore.codec.messages import Fact
from blockstore.control.views import Views
from blockstore.ids import DiskId, NodeId, VolumeId

NO_REPAIR = "This release does not rebuild fragments elsewhere."


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node tells of itself in its heartbeats."""

    used_bytes: tuple[tuple[DiskId, int], ...] = ()
    suspect: tuple[DiskId, ...] = ()
    owned: tuple[VolumeId, ...] = ()  # that it serves
    under_protected: tuple[tuple[VolumeId, int, int], ...] = ()  # volume, chunks, failures the worst survives
    damaged: tuple[tuple[DiskId, int], ...] = ()  # disk, fragments of which something cannot be read
    full: tuple[DiskId, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """What one node sees around it."""

    live: frozenset[NodeId]
    told: Mapping[NodeId, NodeFacts]
    last_heard: Callable[[NodeId], float]  # wall clock
    leader: NodeId  # 0: none known
    voters: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Health:
    facts: tuple[Fact, ...]
    sentence: str
    severity: int


def assess(views: Views, observed: Observed, parity: Callable[[str], int]) -> Health:
    """`parity`: of a policy's text, how many fragments of a chunk may be lost."""
    dead = [node for node in views.nodes() if node.node not in observed.live]
    suspect = {disk for node in observed.live for disk in _told(observed, node).suspect}
    unit = "node" if len(views.nodes()) > 1 else "disk"
    damaged = {disk: n for node in observed.live for disk, n in _told(observed, node).damaged}
    margin = _margin_with_damage(views, observed, suspect, set(damaged), parity, unit)
    facts = [
        *_leader_facts(observed),
        *(_node_down(node, observed, margin) for node in dead),
        *(_disk_suspect(disk, margin) for disk in sorted(suspect)),
        *(_disk_damaged(disk, damaged[disk], margin) for disk in sorted(damaged)),
        *_under_protected(views, observed),
        *_owner_facts(views, observed),
        *_voter_facts(observed),
        *_space_facts(views, observed),
        *_policy_facts(views, parity),
    ]
    severity = max((_SEVERITIES[fact.severity] for fact in facts), default=0)
    return Health(tuple(facts), _sentence(views, dead, suspect, margin, severity, unit), severity)


_SEVERITIES = {"info": 0, "warning": 1, "danger": 2}


def _told(observed: Observed, node: NodeId) -> NodeFacts:
    return observed.told.get(node, NodeFacts())


# --- the margin


def _margin_with_damage(
    views: Views,
    observed: Observed,
    suspect: set[DiskId],
    damaged: set[DiskId],
    parity: Callable[[str], int],
    unit: str,
) -> int | None:
    """A damaged fragment counts as if its whole disk were missing. Damage on several disks may be in one
    chunk or in several, so it may leave nothing to spare, but is not said to make anything unreadable."""
    margin = _margin(views, observed, suspect, parity, unit)
    if margin is None or not damaged:
        return margin
    singly = [_margin(views, observed, suspect | {disk}, parity, unit) for disk in sorted(damaged)]
    jointly = _margin(views, observed, suspect | damaged, parity, unit)
    return min(margin, max(0, jointly or 0), *(one or 0 for one in singly))


def _margin(
    views: Views, observed: Observed, suspect: set[DiskId], parity: Callable[[str], int], unit: str
) -> int | None:
    """Failures that all data survives; negative when some cannot be read now; None when there is no data."""

    def survives(disks: Iterable[DiskId], spare: int) -> int:
        """More failures that a chunk with fragments on `disks` survives, when the worst units fail first."""
        held: Counter[int] = Counter()
        for disk in disks:
            node = views.node_of_disk(disk)
            if node not in observed.live or disk in suspect:
                spare -= 1
            else:
                held[node if unit == "node" else disk] += 1
        failures = -1 if spare < 0 else 0
        for _, n_fragments in held.most_common():
            spare -= n_fragments
            if spare < 0:
                break
            failures += 1
        return failures

    margins: list[int] = []
    volumes = views.volumes()
    for text in sorted({volume.policy for volume in volumes}):
        policy = views.policy(text)
        groups = () if policy is None else policy.groups
        margins += [survives(group, parity(text)) for group in groups]
    for volume in volumes:
        for part in volume.journal:
            disks = [disk for disk in part.disks if disk]
            margins.append(survives(disks, len(disks) - 1))
    for node in observed.live:
        margins += [spare for _, _, spare in _told(observed, node).under_protected]
    return min(margins) if margins else None


def _sentence(
    views: Views,
    dead: list[NodeRecord],
    suspect: set[DiskId],
    margin: int | None,
    severity: int,
    unit: str,
) -> str:
    missing = _listed("node", [node.node for node in dead]) + _listed("disk", sorted(suspect))
    out = f"{' and '.join(missing)} {'is' if len(dead) + len(suspect) == 1 else 'are'} out" if missing else ""
    if margin is None:
        return f"There is no data yet; {out}." if out else "There is no data yet, and every node is up."
    more = f"any {margin} more {unit}{'' if margin == 1 else 's'} may fail"
    if margin < 0:
        return (
            f"Some data cannot be read{': ' + out if out else ''}; it can again when what is missing is back."
        )
    if margin == 0:
        last = f"losing any one {unit} more may lose data"
        if not out:
            return f"All data is readable; {last}."
        return f"All data is readable, but {out}, and {last}."
    if out:
        return (
            f"All data is readable, but {out} and what is there is missing one copy until it is back; {more}."
        )
    if severity:
        return f"All data is readable, but not all is as promised (see the facts); {more}."
    return f"All data is complete; {more}."


def _listed(what: str, ids: list[NodeId] | list[DiskId]) -> list[str]:
    return [f"{what} {one}" for one in ids]


# --- facts


def _leader_facts(observed: Observed) -> Iterable[Fact]:
    if not observed.leader:
        yield Fact(
            "no-leader",
            "danger",
            "This node knows no control leader.",
            0.0,
            "Owners keep serving while their leases run; nothing can be created, moved or replaced.",
            "The voters elect a leader as soon as a majority of them can talk to each other.",
            "Start the voters that are down: "
            + ", ".join(str(node) for node in sorted(observed.voters))
            + ".",
        )


def _node_down(node: NodeRecord, observed: Observed, margin: int | None) -> Fact:
    return Fact(
        "node-down",
        "danger" if margin is not None and margin < 1 else "warning",
        f"Node {node.node} ({node.host}:{node.port}) does not answer.",
        observed.last_heard(node.node),
        "Every chunk with a fragment there has one fewer than promised." + _further(margin),
        f"Its volumes get other owners, and new chunks avoid it. {NO_REPAIR}",
        "Start it again: its fragments count as soon as it is back.",
    )


def _disk_suspect(disk: DiskId, margin: int | None) -> Fact:
    return Fact(
        "disk-suspect",
        "danger" if margin is not None and margin < 1 else "warning",
        f"Disk {disk} answered with an I/O error.",
        0.0,
        "What it holds is counted as missing." + _further(margin),
        f"What failed is not written again; new chunks avoid it until its node restarts. {NO_REPAIR}",
        "Look at the kernel's log; keep the disk, other copies are read.",
    )


def _disk_damaged(disk: DiskId, n_fragments: int, margin: int | None) -> Fact:
    return Fact(
        "fragments-damaged",
        "danger" if margin is not None and margin < 1 else "warning",
        f"{n_fragments} fragment{'' if n_fragments == 1 else 's'} on disk {disk} cannot be read in full.",
        0.0,
        "Nothing of it is served; their chunks have one fewer than promised." + _further(margin),
        f"Other copies are read, and nothing more is written to it. {NO_REPAIR}",
        "Copy what matters again (`blockstore cp`), and look at the disk: rot seldom comes alone.",
    )


def _further(margin: int | None) -> str:
    if margin is None:
        return ""
    if margin < 0:
        return " Some chunks have too few left to be read."
    return f" {margin} more failure{'' if margin == 1 else 's'} cannot lose data."


def _under_protected(views: Views, observed: Observed) -> Iterable[Fact]:
    for node in sorted(observed.live):
        for volume, n_chunks, spare in _told(observed, node).under_protected:
            if n_chunks:
                yield Fact(
                    "under-protected",
                    "danger" if spare < 1 else "warning",
                    f"{_name(views, volume)} has {n_chunks} chunk{'' if n_chunks == 1 else 's'} with fewer "
                    "fragments than promised.",
                    0.0,
                    f"They were written while a member was out; they survive {max(spare, 0)} more failures.",
                    NO_REPAIR,
                    "Copy what matters again (`blockstore cp`): new chunks have all their fragments.",
                )


def _owner_facts(views: Views, observed: Observed) -> Iterable[Fact]:
    for volume in views.volumes():
        if volume.owner not in observed.live:
            yield Fact(
                "no-owner",
                "danger",
                f"{_name(views, volume.volume)} has no owner that is up.",
                observed.last_heard(volume.owner) if volume.owner else 0.0,
                "Nothing in it can be found or written until it has one; nothing is lost.",
                "The control leader names another as soon as the lease of the last one is surely over.",
                "None, unless it lasts for more than a few seconds: then look at the control leader.",
            )
        elif volume.volume not in _told(observed, volume.owner).owned:
            yield Fact(
                "owner-starting",
                "warning",
                f"Node {volume.owner} takes {_name(views, volume.volume)} over.",
                0.0,
                "Calls to it wait; nothing is lost.",
                "It fences the owner before it and replays the journal.",
                "None, unless it lasts: then look at that node's log.",
            )


def _voter_facts(observed: Observed) -> Iterable[Fact]:
    n_voters, n_live = len(observed.voters), len(observed.voters & observed.live)
    if n_live < n_voters and n_live <= n_voters // 2 + 1:
        yield Fact(
            "no-voter-to-spare",
            "warning",
            f"{n_live} of {n_voters} voters are up; {n_voters // 2 + 1} are needed.",
            0.0,
            "With one fewer nothing can be created and a dead owner is not replaced; no data is lost.",
            "A voter that stays away is replaced, if another node is up.",
            "Bring back "
            + ", ".join(f"node {node}" for node in sorted(observed.voters - observed.live))
            + ".",
        )


def _space_facts(views: Views, observed: Observed) -> Iterable[Fact]:
    for node in sorted(observed.live):
        told = _told(observed, node)
        for disk, used in told.used_bytes:
            record = views.disk(disk)
            if disk in told.full:
                yield Fact(
                    "disk-full",
                    "warning",
                    f"Disk {disk} of node {node} is full.",
                    0.0,
                    "Writes that need it are refused; reading and deleting go on.",
                    "Space of what is deleted comes back when a whole chunk is garbage.",
                    "Add disks or nodes, or delete something.",
                )
            elif record is not None and record.capacity and used >= config.DISK_NEARLY_FULL * record.capacity:
                yield Fact(
                    "disk-nearly-full",
                    "warning",
                    f"Disk {disk} of node {node} is {100 * used // record.capacity} % full.",
                    0.0,
                    "Writes that need it will be refused when it is full; reading and deleting go on.",
                    "None.",
                    "Add disks or nodes, or delete something.",
                )


def _policy_facts(views: Views, parity: Callable[[str], int]) -> Iterable[Fact]:
    for text in sorted({volume.policy for volume in views.volumes()}):
        if parity(text) == 0:
            yield Fact(
                "kept-once",
                "info",
                f"Policy {text} keeps data once.",
                0.0,
                "Losing a disk loses what is on it. That is what the policy says.",
                "None.",
                "Choose another policy for data that must survive a disk.",
            )


def _name(views: Views, volume: VolumeId) -> str:
    record: VolumeRecord | None = views.volume(volume)
    return f"Volume {volume}" if record is None else f"{record.kind.capitalize()} {record.name!r}"
