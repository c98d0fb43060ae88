"""Where a chunk ends when its writer is gone."""

from __future__ import annotations

import pytest

from blockstore.chunk.sealing import seal_length
from blockstore.codec.messages import FragmentState
from blockstore.ids import ChunkId, DiskId, VolumeId


def state(length: int, *, sealed: bool = False, doubtful: bool = False) -> FragmentState:
    return FragmentState(DiskId(1), ChunkId(VolumeId(1), 1, 1), length, sealed, doubtful)


@pytest.mark.parametrize(
    ("answers", "length"),
    [
        ([state(100)], 100),
        ([state(100), state(80), state(90)], 80),
        ([state(100), state(0)], 0),
        ([state(100), state(20, doubtful=True)], 100),
        ([state(50, doubtful=True), state(20, doubtful=True)], 50),
        ([state(70, sealed=True), state(60), state(100)], 70),
        ([state(70, sealed=True), state(65, sealed=True), state(100)], 65),
        ([state(30, sealed=True, doubtful=True), state(70, sealed=True)], 70),
        ([state(30, sealed=True, doubtful=True), state(70)], 30),
    ],
)
def test_the_smallest_sound_answer_decides(answers: list[FragmentState], length: int) -> None:
    assert seal_length(answers) == length
    assert seal_length(reversed(answers)) == length
