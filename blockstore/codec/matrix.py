"""The matrices of the erasure code: what parity is, and how lost shards follow from others.

The code is systematic Reed-Solomon as reedsolo defines it (`RSCodec(m, nsize=k + m)`, field 0x11d, first root
2^0): byte i of the k data shards and m parity shards together are one of its codewords. It is linear, so the
codewords of the k unit vectors are the columns of the parity matrix, and any k of the k + m rows of
[identity; parity] can be inverted (Reed-Solomon codes are maximum distance separable).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import reedsolo

from blockstore.codec import gf256

Matrix = tuple[bytes, ...]
"""Rows, one byte for each coefficient."""


@lru_cache(maxsize=64)
def parity_matrix(k: int, m: int) -> Matrix:
    """m rows of k coefficients: parity shard r is the sum of row[r][i] times data shard i."""
    assert k >= 1
    assert m >= 1
    assert k + m <= 255, "a codeword of GF(256) has no more symbols"
    codec: Any = reedsolo.RSCodec(m, nsize=k + m, prim=gf256.PRIMITIVE_POLYNOMIAL, fcr=0)
    columns: list[bytes] = []
    for position in range(k):
        unit = bytearray(k)
        unit[position] = 1
        columns.append(bytes(codec.encode(bytes(unit)))[k:])
    return tuple(bytes(column[row] for column in columns) for row in range(m))


def generator_row(k: int, m: int, shard_index: int) -> bytes:
    """How one shard follows from the data shards."""
    if shard_index < k:
        return bytes(int(position == shard_index) for position in range(k))
    return parity_matrix(k, m)[shard_index - k]


def decode_rows(k: int, m: int, survivors: Sequence[int], wanted: Sequence[int]) -> Matrix:
    """How each wanted shard follows from exactly k surviving ones: a row of k coefficients each."""
    assert len(survivors) == k
    inverse = _inverse([generator_row(k, m, survivor) for survivor in survivors])
    return tuple(_row_times(generator_row(k, m, shard), inverse) for shard in wanted)


def _row_times(row: bytes, matrix: Sequence[bytes]) -> bytes:
    product = bytearray(len(matrix[0]))
    for factor, line in zip(row, matrix, strict=True):
        if factor:
            for column, value in enumerate(line.translate(gf256.row_of(factor))):
                product[column] ^= value
    return bytes(product)


def _inverse(rows: Sequence[bytes]) -> list[bytes]:
    """Gauss and Jordan: the identity, put to the right of the matrix, becomes its inverse."""
    size = len(rows)
    work = [bytearray(row + bytes(int(i == line) for i in range(size))) for line, row in enumerate(rows)]
    for column in range(size):
        pivot = next(line for line in range(column, size) if work[line][column])
        work[column], work[pivot] = work[pivot], work[column]
        scaled = work[column].translate(gf256.row_of(gf256.invert(work[column][column])))
        work[column] = scaled
        for line in range(size):
            factor = work[line][column]
            if factor and line != column:
                step = scaled.translate(gf256.row_of(factor))
                work[line] = bytearray(a ^ b for a, b in zip(work[line], step, strict=True))
    return [bytes(line[size:]) for line in work]
