"""Cheap mutations of valid encodings, by seed.

Block `n` of a run draws everything from (seed, decoder, n), so any input can be made again without those
before its block. An input is a member of the corpus with a few mutations, mostly one: a flipped bit, another
byte, an end cut off, the rest of another member, an extreme length, a token of the format, a repeated or
missing stretch, random bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

BLOCK_INPUTS = 1_000
"""Inputs drawn from one generator."""

INPUT_BYTES_MAX = 64 * 1024

EXTREMES = tuple(
    value.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for value in (0, 1, (1 << 8 * width - 1) - 1, 1 << 8 * width - 1, (1 << 8 * width) - 1)
    for order in ("little", "big")
)

MESSAGEPACK = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc1",
    b"\xc0",
    b"\xc0" * 40,
    b"\xc2",
    b"\xc3",
    b"\x90",
    b"\x80",
    b"\x91",
    b"\x93" * 8,
    b"\x91" * 3_000,
    b"\x81\x01" * 3_000,
    b"\xcb\x7f\xf8\0\0\0\0\0\0",
    b"\xcb\x7f\xf0\0\0\0\0\0\0",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xff",
    b"\xa2\xff\xfe",
    b"\xa3\xed\xa0\x80",
    b"\xa1\0",
    b"\xd4\x05\x01",
    b"\xd6\xff" + b"\xff" * 4,
    b"\x82\x01\x02\x01\x03",
)
"""Claims of 2^32 items, deep nests, NaN and infinity, integers out of range, texts that are not UTF-8,
extensions, a key twice."""

TEXT = (
    b"[" * 3_000,
    b'{"a":' * 1_500,
    b'"',
    b"\\",
    b"\\ud800",
    b"NaN",
    b"1e999",
    b"-",
    b"9" * 5_000,
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\0",
    b"\n",
    b"\xff\xfe",
    b"\xc0\x80",
    "²".encode(),
    "٣".encode(),
    b"~",
    b"~nobody-here/",
    b"..",
    b"/" * 300,
    b"://",
    b":",
    b"[::1]",
    b"@",
    b"]" * 40,
    b",",
    b"%",
    b"\xed\xa0\x80",
)


class Mutator:
    def __init__(self, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> None:
        self._corpus, self._tokens = tuple(corpus), (*tokens, *EXTREMES)
        self._rng = Random(0)

    def begin(self, block_seed: str) -> None:
        self._rng = Random(block_seed)

    def next(self) -> tuple[bytearray, bool]:
        """An input, and whether its checksums are to be made right again."""
        rng, corpus = self._rng, self._corpus
        random, getrandbits = rng.random, rng.getrandbits
        bits = getrandbits(62)
        data = bytearray(corpus[int(random() * len(corpus))])
        reseal = bool(bits & 1)
        bits >>= 1
        while True:
            size = len(data)
            at = int(random() * (size + 1))
            kind = bits & 15
            bits >>= 4
            if kind < 4:
                if at < size:
                    data[at] ^= 1 << (bits & 7)
            elif kind < 6:
                if at < size:
                    data[at] = bits & 255
            elif kind == 6:
                del data[at:]
            elif kind == 7:
                other = corpus[int(random() * len(corpus))]
                data[at:] = other[int(random() * (len(other) + 1)) :]
            elif kind < 10:
                extreme = EXTREMES[int(random() * len(EXTREMES))]
                data[at : at + len(extreme)] = extreme
            elif kind == 10:
                token = self._tokens[int(random() * len(self._tokens))]
                data[at:at] = token
            elif kind == 11:
                token = self._tokens[int(random() * len(self._tokens))]
                data[at : at + len(token)] = token
            elif kind == 12:
                block = data[at : at + 1 + (bits & 63)]
                data[at:at] = block * (2_000 if bits & 0x1F00 == 0 else 1 + (bits >> 13 & 3))
            elif kind == 13:
                del data[at : at + 1 + (bits & 31)]
            elif kind == 14:
                data[at:at] = getrandbits(64).to_bytes(8, "little")[: 1 + (bits & 7)]
            else:
                # Move a stretch to another place.
                block = data[at : at + 16]
                del data[at : at + 16]
                to = int(random() * (len(data) + 1))
                data[to:to] = block
            bits >>= 5
            if bits & 3 or bits == 0:
                break
        del data[INPUT_BYTES_MAX:]
        return data, reseal
