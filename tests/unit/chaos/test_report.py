"""What a run comes to: each violation and each broken promise is a problem with its seed."""

from __future__ import annotations

import json

from chaos.report import GAP_SECONDS_MAX, VIOLATIONS_SHOWN, Report
from chaos.run import Struck, Verdict
from chaos.schedule import Aim


def struck(*kinds: str, gap: float = 0.5) -> Struck:
    roles: list[Aim] = ["anyone"] * len(kinds)
    return Struck(kinds, tuple(range(1, len(kinds) + 1)), tuple(roles), gap, {"copies": gap})


def verdict_of(*steps: Struck, seed: int = 7, violations: tuple[str, ...] = ()) -> Verdict:
    return Verdict(seed, list(steps), list(violations), n_writes=100, n_reads=200, n_bytes=3 << 20, n_kills=6)


def test_a_run_that_kept_everything() -> None:
    report = Report((verdict_of(struck("kill"), struck("kill", gap=1.25)),), {})
    assert report.problems == []
    text = "\n".join(report.lines())
    assert report.lines()[-1] == "Nothing was lost, nothing was made up."
    assert "kill           2       1.25 s     < 3 s" in text
    assert "2 faults in 0 s (1 clusters, 6 processes killed, 0 bits flipped)." in text
    assert "100 acknowledged writes (3 MiB) by 200 reads" in text


def test_a_violation_is_a_problem_with_its_seed() -> None:
    report = Report(
        (verdict_of(struck("kill"), seed=3, violations=("copies: k is missing",)), verdict_of()), {}
    )
    assert report.problems == ["seed 3: copies: k is missing"]
    assert report.lines()[-2:] == ["VIOLATION: seed 3: copies: k is missing", "FAILED."]


def test_a_gap_longer_than_promised_is_a_problem_when_one_node_was_hurt() -> None:
    for kind, limit in GAP_SECONDS_MAX.items():
        assert Report((verdict_of(struck(kind, gap=limit)),), {}).problems == []
        (problem,) = Report((verdict_of(struck(kind, gap=limit + 0.1)),), {}).problems
        assert f"no write for {limit + 0.1:.2f} s after a {kind} ({limit:.0f} promised)" in problem


def test_for_two_at_once_the_gap_is_told_and_no_problem() -> None:
    report = Report((verdict_of(struck("kill", "kill", gap=6.5)),), {})
    assert report.problems == []
    assert "Longest gap when faults overlapped: 6.50 s." in report.lines()
    assert "< 3 s" not in "\n".join(report.lines())  # none came alone, so none was measured against it


def test_on_a_busy_machine_gaps_are_told_and_no_problem() -> None:
    report = Report((verdict_of(struck("kill", gap=6.5)),), {}, is_busy=True)
    assert report.problems == []
    text = "\n".join(report.lines())
    assert "6.50 s" in text
    assert "< 3 s" not in text


def test_what_could_not_be_had_is_said() -> None:
    report = Report((verdict_of(struck("kill")),), {"power": "needs root"})
    assert "power      skipped: needs root" in report.lines()


def test_many_violations_are_counted_and_not_all_printed() -> None:
    violations = tuple(f"copies: object {number} is missing" for number in range(VIOLATIONS_SHOWN + 5))
    lines = Report((verdict_of(violations=violations),), {}).lines()
    assert sum(line.startswith("VIOLATION") for line in lines) == VIOLATIONS_SHOWN
    assert "… and 5 more." in lines


def test_rounds_are_added_up_and_json_has_every_one() -> None:
    report = Report(
        (verdict_of(struck("kill", gap=1.0)), verdict_of(struck("freeze", "kill", gap=4.0), seed=8)), {}
    )
    facts = json.loads(json.dumps(report.facts([7, 8])))
    assert facts["passed"] is True
    assert facts["seeds"] == [7, 8]
    assert facts["kinds"]["kill"] == {"times": 2, "longest_gap_seconds": 1.0, "promised_seconds": 3.0}
    assert facts["longest_gap_seconds_overlapping"] == 4.0
    assert [one["seed"] for one in facts["rounds"]] == [7, 8]
    assert facts["rounds"][1]["struck"][0]["kinds"] == ["freeze", "kill"]


def test_roles_that_were_met_are_counted() -> None:
    one = Struck(("kill", "kill"), (1, 2), ("leader", "owner"), 0.1, {})
    verdict = verdict_of(one, struck("kill"))
    assert (verdict.n_hits("leader"), verdict.n_hits("owner"), verdict.n_hits("anyone")) == (1, 1, 1)
