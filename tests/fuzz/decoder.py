"""What a decoder under test is: how to call it, and valid encodings to start from.

`decode` does what the product does with such bytes, as far as that goes without a disk or a peer; it answers
None where the product would find nothing in them. `reseal` makes the checksums of a mutated encoding right
again, and lengths where only that reaches what is behind them. Where a format is mostly padding, inputs are
packed without it, and `decode` puts it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.fuzz.mutator import MESSAGEPACK


@dataclass(frozen=True, slots=True)
class Decoder:
    decode: Callable[[bytes], object]
    corpus: Sequence[bytes]
    reseal: Callable[[bytearray], None] | None = None  # None: there is no checksum
    tokens: Sequence[bytes] = MESSAGEPACK


def u32(value: int) -> bytes:
    return (value & 0xFFFF_FFFF).to_bytes(4, "little")


def chance(name: str) -> Random:
    return Random(f"corpus of {name}")
