"""Ctrl-C at the worst moment leaves no task half parked."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from blockstore.errors import Unavailable
from blockstore.runtime.memory_net import MemoryLane
from blockstore.runtime.real_net import RealLane


@pytest.mark.parametrize("call", [RealLane.call, MemoryLane.call])
def test_an_answer_to_who_was_interrupted_wakes_nobody(call: Any) -> None:
    """Trio would end the program with an internal error if it did."""
    asked = list[Any]()

    def post(message: object, payload: object, deadline: float, on_answer: Any) -> None:
        asked.append(on_answer)
        signal.raise_signal(signal.SIGINT)
        asked.append("posted")

    async def program() -> str:
        try:
            await call(SimpleNamespace(post=post), None, (), 1.0)
        except KeyboardInterrupt:
            asked[0](Unavailable("too late"))
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            return "interrupted"
        return "answered"

    assert trio.run(program) == "interrupted"
    assert asked[1:] == ["posted"]  # what `post` does is done whole
