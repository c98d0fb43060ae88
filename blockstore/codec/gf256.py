"""Arithmetic in GF(2^8), the field of the erasure code.

The field is the one of reedsolo's defaults and of ISA-L: bytes are polynomials over GF(2) modulo
x^8 + x^4 + x^3 + x^2 + 1 (0x11d), whose element 2 generates every non-zero one. Addition is XOR.
Source: Plank, "A tutorial on Reed-Solomon coding for fault-tolerance in RAID-like systems", 1997.
"""

from __future__ import annotations

from functools import lru_cache

PRIMITIVE_POLYNOMIAL = 0x11D


def _exponentials() -> bytes:
    powers = bytearray()
    value = 1
    for _ in range(255):
        powers.append(value)
        value <<= 1
        if value & 0x100:
            value ^= PRIMITIVE_POLYNOMIAL
    return bytes(powers * 2)  # twice, so that a sum of two logarithms needs no modulo


_EXP = _exponentials()
_LOG = bytes(_EXP.index(value) if value else 0 for value in range(256))  # of 0 there is none


def multiply(a: int, b: int) -> int:
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def invert(a: int) -> int:
    """The element whose product with `a` is 1; ZeroDivisionError for 0."""
    if not a:
        raise ZeroDivisionError("0 has no inverse in GF(256)")
    return _EXP[255 - _LOG[a]]


@lru_cache(maxsize=256)
def row_of(factor: int) -> bytes:
    """`factor` times every byte, as a table for `bytes.translate`."""
    return bytes(multiply(factor, value) for value in range(256))
