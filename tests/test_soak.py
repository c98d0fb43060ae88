"""The long run of everything: what ends it, what it calls a failure, and how it shares the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import ROWS, Proof, exit_code, soak, verdict


def proof(name: str, code: str, *, takes_minutes: bool = True, share: float = 1.0) -> Proof:
    return Proof(name, ("-c", code), share=share, n_lines=2, takes_minutes=takes_minutes)


def test_the_proofs_of_a_row_share_its_minutes() -> None:
    for row in ROWS:
        assert sum(one.share for one in row) == pytest.approx(1.0)
    names = [one.name for row in ROWS for one in row]
    assert len(set(names)) == len(names)


def test_those_that_have_seeds_are_told_their_minutes() -> None:
    one = Proof("p", ("-m", "x"), share=0.25, n_lines=1)
    assert one.command(60)[1:] == ["-m", "x", "--minutes", "15"]
    assert proof("p", "pass", takes_minutes=False).command(60)[1:] == ["-c", "pass"]


async def test_a_failure_is_told_with_the_end_of_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = proof("good", "print('one'); print('two'); print('three')")
    bad = proof("bad", "print('seed 7'); raise SystemExit(1)")
    results = await soak([[good], [bad]], 1.0, tmp_path)
    told = capsys.readouterr().out
    assert "   two\n   three" in told
    assert "one" not in told.replace("python -c print('one')", "")
    assert f"   seed 7\n   FAILED; all that it said is in {tmp_path / 'bad.log'}" in told
    assert verdict(results) == "1 of 2 proofs held; FAILED: bad."
    assert exit_code(results) == 1


async def test_what_has_no_time_to_try_all_is_stopped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forever = "import signal; signal.pause()"
    results = await soak([[proof("states", forever, takes_minutes=False, share=0.001)]], 10.0, tmp_path)
    assert "Stopped when its time was over: not all was tried." in capsys.readouterr().out
    assert verdict(results) == "0 of 1 proofs held; not all tried: states."
    assert exit_code(results) == 0


async def test_a_proof_that_does_not_end_by_itself_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.soak.GRACE_MINUTES", 0.005)
    results = await soak([[proof("hangs", "import signal; signal.pause()", share=0.0)]], 1.0, tmp_path)
    assert verdict(results) == "0 of 1 proofs held; FAILED: hangs."
    assert exit_code(results) == 1


def test_nothing_tried_is_no_success() -> None:
    assert exit_code([]) == 1
