"""What may be written as a policy, and what each says."""

from __future__ import annotations

import pytest

from blockstore.errors import InvalidRequest
from blockstore.placement.policy import Policy


@pytest.mark.parametrize(
    ("text", "k", "m", "min_write", "canonical"),
    [
        ("replicated(3)", 1, 2, 2, "replicated(3)"),
        ("replicated(2)", 1, 1, 1, "replicated(2)"),
        ("replicated(1)", 1, 0, 1, "replicated(1)"),
        (" Replicated( 5 ) ", 1, 4, 4, "replicated(5)"),
        ("ec(4,2)", 4, 2, 5, "ec(4,2)"),
        ("ec(04, 2)", 4, 2, 5, "ec(4,2)"),
        ("ec(2,1)", 2, 1, 3, "ec(2,1)"),
        ("ec(10,4, domain=zone)", 10, 4, 11, "ec(10,4,domain=zone)"),
        ("replicated(3,domain=disk)", 1, 2, 2, "replicated(3,domain=disk)"),
        ("replicated(3,domain=node)", 1, 2, 2, "replicated(3)"),
    ],
)
def test_a_policy_is_read_and_written(text: str, k: int, m: int, min_write: int, canonical: str) -> None:
    policy = Policy.parse(text)
    assert (policy.k, policy.m, policy.n) == (k, m, k + m)
    assert policy.min_write == min_write
    assert policy.text == str(policy) == canonical
    assert Policy.parse(policy.text) == policy


@pytest.mark.parametrize(
    "text",
    [
        "", "replicated", "replicated()", "replicated(0)", "replicated(8)", "replicated(3,2)",
        "replicated(-1)", "ec(4)", "ec(4,0)", "ec(1,2)", "ec(0,2)", "ec(30,3)", "ec(4,2,1)", "ec(4,2",
        "ec(4;2)", "raid6(4,2)", "ec(4,2,domain=galaxy)", "ec(٤,٢)", "x" * 10_000, "ec(4,2)\0",
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Policy.parse(text)
    assert len(str(refused.value)) < 300
    assert str(refused.value).endswith(".")


def test_one_data_shard_is_called_what_it_is() -> None:
    with pytest.raises(InvalidRequest, match=r"replicated\(3\)"):
        Policy.parse("ec(1,2)")


def test_a_store_of_one_node_spreads_over_its_disks() -> None:
    assert Policy.parse("ec(4,2)").over("disk").text == "ec(4,2,domain=disk)"
