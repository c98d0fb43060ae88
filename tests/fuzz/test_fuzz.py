"""Every decoder bears 200,000 mutated encodings (of bundles of certificates a quarter), and all kept inputs.

More of them, or other seeds: `python -m tests.fuzz --inputs N --seed S`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockstore.errors import Corrupt
from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.kept import keep, kept
from tests.fuzz.run import INPUTS, examine, fuzz_all, input_of


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_decoder_bears_mutated_encodings() -> None:
    reports = fuzz_all(list(DECODERS), INPUTS, seed=0, n_processes=os.cpu_count() or 1)
    for report in reports:
        for finding in report.findings[:3]:
            print(f"{finding}\n  kept as {keep(finding.decoder, finding.data)}")
    assert {report.decoder: len(report.findings) for report in reports if report.findings} == {}
    for report in reports:
        assert report.inputs >= INPUTS // DECODERS[report.decoder].cost, report.decoder
        assert report.decoded, f"{report.decoder}: none was valid, so nothing behind its checks was tried"


@pytest.mark.parametrize("path", kept(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_borne(path: Path) -> None:
    assert examine(DECODERS[path.parent.name], path.read_bytes()) == ""


# --- the fuzzer itself


def test_an_input_can_be_made_again_alone() -> None:
    assert input_of("journal", 3, 1_234) == input_of("journal", 3, 1_234)
    assert input_of("journal", 3, 1_234) != input_of("journal", 4, 1_234)


def test_what_must_not_happen_is_found() -> None:
    def wrong(data: bytes) -> object:
        return data[9]

    def hang(data: bytes) -> object:
        return sum(range(10_000_000))

    def refused(data: bytes) -> object:
        raise Corrupt("It", "here")

    assert examine(Decoder(wrong, []), b"short").startswith("IndexError")
    assert examine(Decoder(hang, []), b"").startswith("took")
    assert examine(Decoder(refused, []), b"") == ""
