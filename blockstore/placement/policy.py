"""How data is protected: which scheme, and what must not fail together.

A policy is written `replicated(3)` or `ec(4,2)`; `ec(4,2,domain=zone)` says what two fragments of one chunk
may never share. Its canonical text is its identity: it names the policy in control and travels with volumes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from blockstore.errors import InvalidRequest

Domain = Literal["disk", "node", "zone"]
"""`zone` is the whole path of a node's zone, the innermost level that was named."""

REPLICAS_MAX = 7
"""More is never asked for durability; fan-out grows with each."""
SHARDS_MAX = 32
"""k + m. Wide codes of warehouses end here, and so does a read that needs k nodes."""

_FORM = re.compile(r"(replicated|ec)\(([0-9]{1,3})(?:,([0-9]{1,3}))?(?:,domain=(disk|node|zone))?\)")
_HOW = "write replicated(3) or ec(4,2), and `,domain=disk|node|zone` before the bracket if it is not node"


@dataclass(frozen=True, slots=True)
class Policy:
    """`k` data shards (1 for replicas) and `m` further fragments, in `k + m` distinct failure domains."""

    k: int
    m: int
    domain: Domain = "node"

    def __post_init__(self) -> None:
        if self.k == 1 and not 0 <= self.m < REPLICAS_MAX:
            raise InvalidRequest(f"replicated({self.m + 1}): there are 1 to {REPLICAS_MAX} copies.")
        if self.k != 1 and not (self.k >= 2 and self.m >= 1 and self.n <= SHARDS_MAX):
            raise InvalidRequest(
                f"ec({self.k},{self.m}): there are 2 or more data shards, 1 or more parity shards,"
                f" and {SHARDS_MAX} at most together."
            )

    @classmethod
    def parse(cls, text: str) -> Policy:
        """The policy of a text, spaces and case aside; InvalidRequest says what was expected."""
        found = _FORM.fullmatch("".join(text.split()).lower())
        if found is None:
            raise InvalidRequest(f"{text[:80]!r} is not a policy: {_HOW}.")
        scheme, first, second, domain = found.groups()
        chosen = cast("Domain", domain or "node")
        if scheme == "replicated" and second is None:
            return cls(1, int(first) - 1, chosen)
        if scheme == "ec" and second is not None:
            if int(first) < 2:
                raise InvalidRequest(
                    f"{text}: one data shard is a copy; write replicated({int(second) + 1})."
                )
            return cls(int(first), int(second), chosen)
        raise InvalidRequest(f"{text[:80]!r} has the wrong number of numbers: {_HOW}.")

    @property
    def text(self) -> str:
        scheme = f"replicated({self.n}" if self.is_replicated else f"ec({self.k},{self.m}"
        return f"{scheme})" if self.domain == "node" else f"{scheme},domain={self.domain})"

    def __str__(self) -> str:
        return self.text

    @property
    def n(self) -> int:
        """Fragments of a chunk."""
        return self.k + self.m

    @property
    def is_replicated(self) -> bool:
        return self.k == 1

    @property
    def min_write(self) -> int:
        """The fewest members a chunk's write set may have when it is opened (DESIGN invariant 1)."""
        return max(1, self.n - 1) if self.is_replicated else self.k + 1

    def journal_policy(self) -> Policy:
        """How a volume of this policy keeps its journal: in copies, as many as survive what the policy
        survives."""
        return self if self.is_replicated else Policy(1, min(self.m, REPLICAS_MAX - 1), self.domain)

    def over(self, domain: Domain) -> Policy:
        """The same scheme with another failure domain; a store of one node spreads over its disks."""
        return Policy(self.k, self.m, domain)


assert get_args(Domain) == ("disk", "node", "zone"), "the pattern above names them too"
