"""The table of groups of each policy: from which disks new chunks choose, and whether a policy is possible
at all.

Pure; `placement/` does the drawing. A policy written without a failure domain spreads over nodes; in a store
of one node over its disks, so that several directories protect as several machines would. Its canonical text
says which (`ec(4,2,domain=disk)`) and is kept by its volumes for good: a store that grows does not silently
change what it promised. Tables follow the disks: whenever those change, every table is drawn again, and
members that stay keep their positions (`placement/groups.py`). A chunk already written does not move; its
own placement travels with it.
"""

from __future__ import annotations

from blockstore import config
from blockstore.codec.checksum import crc32c
from blockstore.codec.control_record import PolicyRecord, Transaction, encode_record
from blockstore.codec.messages import Compare
from blockstore.control.views import Views, policy_key
from blockstore.errors import InvalidRequest
from blockstore.ids import RequestId
from blockstore.placement.groups import groups
from blockstore.placement.policy import Domain, Policy
from blockstore.placement.topology import Disk, DiskState, Topology

REPLICAS_BY_DEFAULT = 3


def topology_of(views: Views) -> Topology:
    """Disks of nodes that take part."""
    nodes = {node.node: node for node in views.nodes() if node.state == "active"}
    return Topology(
        Disk(disk.disk, disk.node, nodes[disk.node].zone, disk.capacity, _state(disk.state))
        for disk in views.disks()
        if disk.node in nodes
    )


def _state(text: str) -> DiskState:
    """A state that a newer release wrote gets no new data."""
    match text:
        case "active" | "suspect" | "leaving":
            return text
        case _:
            return "gone"


def n_domains(topology: Topology, domain: Domain) -> int:
    disks = [disk for disk in topology.disks if disk.takes_data]
    if domain == "disk":
        return len(disks)
    if domain == "node":
        return len({disk.node for disk in disks})
    return len({disk.zone for disk in disks})


def choose_policy(views: Views, text: str) -> str:
    """The canonical text of a policy that is possible here. InvalidRequest says what it needs and what would
    fit."""
    topology = topology_of(views)
    usual: Domain = "node" if n_domains(topology, "node") > 1 else "disk"
    if not text:
        spread: Domain = "zone" if n_domains(topology, "zone") >= REPLICAS_BY_DEFAULT else usual
        n_copies = min(REPLICAS_BY_DEFAULT, n_domains(topology, spread))
        if n_copies == 0:
            raise InvalidRequest(
                "There is no disk that takes data; bring one in with `blockstore cluster join`."
            )
        return Policy(1, n_copies - 1, spread).text
    policy = Policy.parse(text)
    if not _names_domain(text):
        policy = policy.over(usual)
    available = n_domains(topology, policy.domain)
    if available < policy.n:
        fits = f"; replicated({min(REPLICAS_BY_DEFAULT, available)}) would fit" if available else ""
        raise InvalidRequest(
            f"Policy {text} needs {_counted(policy.n, policy.domain)} to spread over, and there "
            f"{'is' if available == 1 else 'are'} {available}{fits}."
        )
    return policy.text


def is_same_policy(asked: str, canonical: str) -> bool:
    """Whether what somebody asked for is what a volume has; a domain that was not named may be any."""
    mine, theirs = Policy.parse(asked), Policy.parse(canonical)
    return mine == theirs or (not _names_domain(asked) and mine.over(theirs.domain) == theirs)


def parity_of(text: str) -> int:
    """How many fragments of a chunk of this policy may be lost."""
    return Policy.parse(text).m


def build_table(views: Views, text: str) -> PolicyRecord:
    """The policy's groups over the disks there are now; InvalidRequest when those are too few."""
    topology, policy = topology_of(views), Policy.parse(text)
    n_disks = sum(disk.takes_data for disk in topology.disks)
    n_groups = min(config.GROUP_MEMBERS_MAX // policy.n, -(-config.GROUPS_PER_DISK * n_disks // policy.n))
    known = views.policy(text)
    table = groups(topology, policy, n_groups, () if known is None else known.groups)
    return PolicyRecord(text, table, _digest(topology))


def tables_due(views: Views) -> tuple[str, ...]:
    """Policies whose tables are not of the present disks, and can be drawn over those."""
    topology = topology_of(views)
    digest = _digest(topology)
    return tuple(
        record.text
        for record in views.policies()
        if record.topology != digest
        and n_domains(topology, Policy.parse(record.text).domain) >= Policy.parse(record.text).n
    )


def table_transaction(views: Views, text: str, request: RequestId) -> Transaction:
    """The newly drawn table. It says which disks it was drawn from: if they changed meanwhile, it is due
    again."""
    key = policy_key(text)
    compares = (Compare(key, views.modified(key)),)
    return Transaction(request, compares, ((key, encode_record(build_table(views, text))),))


def _digest(topology: Topology) -> int:
    return crc32c(repr(topology.disks).encode())


def _names_domain(text: str) -> bool:
    return "domain" in text.lower()


def _counted(n: int, what: str) -> str:
    return f"{n} different {what}{'' if n == 1 else 's'}"
