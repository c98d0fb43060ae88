"""Every decoder bears 200,000 mutated encodings, and all kept inputs; and no decoder is left out.

More of them, or other seeds: `python -m tests.fuzz --minutes M`.
"""

from __future__ import annotations

import ast
import os
import sys
import time
from pathlib import Path
from types import FrameType

import pytest

from blockstore.errors import Corrupt
from tests.fuzz.decoder import Decoder
from tests.fuzz.decoders import DECODERS
from tests.fuzz.kept import keep, kept
from tests.fuzz.run import HANG_SECONDS, INPUTS, examine, fuzz_all, input_of

SEED = 1

REACHED_MIN = 0.4
"""Share of inputs whose checksums are right, where there are any."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_decoder_bears_mutated_encodings() -> None:
    reports = fuzz_all(list(DECODERS), INPUTS, SEED, n_processes=os.cpu_count() or 1)
    for report in reports:
        print(report)
        for finding in report.findings[:3]:
            print(f"{finding}\n  kept as {keep(finding.decoder, finding.data)}")
    print(f"{sum(report.cpu_seconds for report in reports):.0f} CPU seconds")
    assert {report.decoder: len(report.findings) for report in reports if report.findings} == {}
    assert [report.decoder for report in reports] == list(DECODERS)
    for report in reports:
        assert report.inputs >= INPUTS, report.decoder
        assert report.reached >= REACHED_MIN * report.inputs, report.decoder
        assert report.decoded, f"{report.decoder}: none was valid, so nothing behind its checks was tried"


@pytest.mark.parametrize("path", kept(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_borne(path: Path) -> None:
    assert examine(DECODERS[path.parent.name], path.read_bytes()) == ""


# --- none is left out

_VERBS = ("decode", "parse", "unpack", "unframe", "scan")

_FUZZED_ELSEWHERE = {
    "runtime/interfaces.py": "says what there is, and does nothing",
    "codec/matrix.py": "takes no bytes: which shards there are",
    "runtime/lane_socket.py:_parse": "hands what a socket brought to Inbox.parse",
    "block.py:_parse_device": "hands a text to parse_place",
    "control/views.py:_decode": "hands a value to decode_record",
    "consensus/raft_log.py:_scan_segments": "reads files for scan_segment",
}


def test_every_decoder_there_is_gets_mutated_encodings() -> None:
    root = Path(__file__).parents[2]
    called = _functions_called()
    left_out = list[str]()
    for package in (root / "blockstore", root / "cli" / "blockstore_cli"):
        for path in sorted(package.rglob("*.py")):
            place = path.relative_to(package).as_posix()
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.FunctionDef) or not node.name.lstrip("_").startswith(_VERBS):
                    continue
                if {place, f"{place}:{node.name}"} & _FUZZED_ELSEWHERE.keys():
                    continue
                if (str(path), node.name) not in called:
                    left_out.append(f"{place}:{node.name}")
    assert left_out == [], "give each a Decoder in tests/fuzz, or say here why it needs none"


def _functions_called() -> set[tuple[str, str]]:
    called = set[tuple[str, str]]()

    def on_event(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add((frame.f_code.co_filename, frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        for decoder in DECODERS.values():
            for valid in decoder.corpus:
                decoder.decode(valid)
    finally:
        sys.setprofile(before)
    return called


@pytest.mark.parametrize("name", DECODERS)
def test_checksums_are_made_right_again(name: str) -> None:
    """`reseal` leaves what the encoder made as it is: then what it does to others brings them as far."""
    decoder = DECODERS[name]
    for valid in decoder.corpus:
        assert decoder.decode(valid) is not None
        if decoder.reseal is not None:
            again = bytearray(valid)
            decoder.reseal(again)
            assert bytes(again) == valid


# --- the fuzzer itself


def test_an_input_can_be_made_again_alone() -> None:
    assert input_of("journal", 3, 1_234) == input_of("journal", 3, 1_234)
    assert input_of("journal", 3, 1_234) != input_of("journal", 4, 1_234)


def test_what_must_not_happen_is_found() -> None:
    def wrong(data: bytes) -> object:
        return data[9]

    def hang(data: bytes) -> object:
        until = time.thread_time() + 1.1 * HANG_SECONDS
        while time.thread_time() < until:
            pass
        return data

    def refused(data: bytes) -> object:
        raise Corrupt("It", "here")

    assert examine(Decoder(wrong, []), b"short").startswith("IndexError")
    assert examine(Decoder(hang, []), b"").startswith("took")
    assert examine(Decoder(refused, []), b"") == ""
