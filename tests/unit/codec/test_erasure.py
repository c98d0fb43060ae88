"""The erasure code against reedsolo, which defines it, on every kernel there is here."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pytest
import reedsolo

from blockstore.codec import gf256
from blockstore.codec.erasure import Buffer, ErasureCode, Kernel, PortableKernel, erasure_code, fastest_kernel
from blockstore.codec.matrix import decode_rows, parity_matrix

CODES = [(1, 1), (2, 1), (3, 2), (4, 2), (6, 3), (8, 3), (10, 4), (16, 4), (20, 8)]
KERNELS: list[Kernel] = [PortableKernel()]
if fastest_kernel().name != "portable":
    KERNELS.append(fastest_kernel())


@pytest.fixture(params=KERNELS, ids=lambda kernel: kernel.name)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    chosen: Kernel = request.param
    return chosen


def random_shards(k: int, length: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(length) for _ in range(k)]


def test_the_wheel_beside_us_brings_the_fast_kernel() -> None:
    pytest.importorskip("pyeclib")
    assert fastest_kernel().name.startswith("isa-l")


def test_every_element_has_its_inverse() -> None:
    assert all(gf256.multiply(a, gf256.invert(a)) == 1 for a in range(1, 256))
    assert gf256.multiply(0, 7) == 0
    with pytest.raises(ZeroDivisionError):
        gf256.invert(0)


def test_multiplication_is_that_of_polynomials_modulo_the_primitive_one() -> None:
    for a, b in random.Random(3).choices([(a, b) for a in range(256) for b in range(256)], k=2_000):
        product = 0
        for bit in range(8):
            if b >> bit & 1:
                product ^= a << bit
        for bit in range(15, 7, -1):
            if product >> bit & 1:
                product ^= gf256.PRIMITIVE_POLYNOMIAL << (bit - 8)
        assert gf256.multiply(a, b) == product


def test_the_parity_matrix_of_ec_4_2_is_fixed_for_ever() -> None:
    assert [row.hex() for row in parity_matrix(4, 2)] == ["1f0f0703", "1e0e0602"]


@pytest.mark.parametrize(("k", "m"), CODES)
def test_parity_is_what_reedsolo_says(k: int, m: int, kernel: Kernel) -> None:
    data = random_shards(k, 41)
    parity = ErasureCode(k, m, kernel).encode(data)
    codec: Any = reedsolo.RSCodec(m, nsize=k + m, prim=0x11D, fcr=0)
    for position in range(41):
        codeword = bytes(codec.encode(bytes(shard[position] for shard in data)))
        assert codeword[k:] == bytes(shard[position] for shard in parity)


@pytest.mark.parametrize(("k", "m"), CODES)
def test_any_k_shards_give_the_others(k: int, m: int, kernel: Kernel) -> None:
    code = ErasureCode(k, m, kernel)
    data = random_shards(k, 97)
    shards: list[Buffer] = [*data, *code.encode(data)]
    patterns = list(combinations(range(k + m), m))
    if len(patterns) > 300:
        patterns = random.Random(5).sample(patterns, 60)
    rng = random.Random(6)
    for lost in patterns:
        came = [index for index in range(k + m) if index not in lost]
        rng.shuffle(came)  # answers come in any order
        left: dict[int, Buffer] = {index: shards[index] for index in came}
        rebuilt = code.reconstruct(left, lost)
        assert [bytes(shard) for shard in rebuilt] == [bytes(shards[index]) for index in lost]


def test_reedsolo_decodes_what_we_encode() -> None:
    data = random_shards(4, 8)
    shards: list[Buffer] = [*data, *ErasureCode(4, 2).encode(data)]
    codec: Any = reedsolo.RSCodec(2, nsize=6, prim=0x11D, fcr=0)
    for lost in combinations(range(6), 2):
        for position in range(8):
            word = bytearray(shard[position] for shard in shards)
            for index in lost:
                word[index] = 0
            decoded = bytes(codec.decode(word, erase_pos=list(lost))[0])
            assert decoded == bytes(shard[position] for shard in data)


@pytest.mark.parametrize("length", [1, 7, 15, 16, 31, 32, 33, 63, 64, 65, 255, 4_095, 4_097, 65_537])
def test_kernels_agree_at_every_length_and_alignment(length: int) -> None:
    room = random_shards(5, length + 8, seed=length)
    for offset in (0, 1, 7):
        data = [memoryview(shard)[offset : offset + length] for shard in room]
        results = [[bytes(shard) for shard in ErasureCode(5, 3, kernel).encode(data)] for kernel in KERNELS]
        assert all(result == results[0] for result in results)


def test_buffers_of_every_kind_are_taken_and_let_go(kernel: Kernel) -> None:
    code = ErasureCode(4, 2, kernel)
    plain = random_shards(4, 64)
    mixed: list[Buffer] = [
        plain[0],
        bytearray(plain[1]),
        memoryview(plain[2]),
        memoryview(bytearray(plain[3])),
    ]
    assert code.encode(mixed) == code.encode(plain)
    second = mixed[1]
    assert isinstance(second, bytearray)
    second += b"grows: nothing holds the buffer any more"


def test_given_buffers_are_filled_and_nothing_beyond(kernel: Kernel) -> None:
    code = ErasureCode(4, 2, kernel)
    data = random_shards(4, 100)
    into = [bytearray(b"\xff" * 100) for _ in range(2)]
    result = code.encode(data, into)
    assert result[0] is into[0]
    assert result == code.encode(data)
    assert [len(shard) for shard in into] == [100, 100]


def test_a_shard_that_is_there_is_given_back_as_it_is() -> None:
    code = erasure_code(4, 2)
    data = random_shards(4, 32)
    shards: dict[int, Buffer] = dict(enumerate(data))
    del shards[1]
    shards[5] = code.encode(data)[1]
    first, second = code.reconstruct(shards, [0, 1])
    assert first is data[0]
    assert bytes(second) == data[1]


def test_empty_shards_have_empty_parity(kernel: Kernel) -> None:
    assert ErasureCode(3, 2, kernel).encode([b"", b"", b""]) == [bytearray(), bytearray()]


def test_too_few_shards_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        erasure_code(4, 2).reconstruct({0: b"a", 1: b"b", 2: b"c"}, [3])


def test_survivors_that_are_data_need_no_inverse() -> None:
    assert decode_rows(3, 2, (0, 1, 2), (3,)) == (parity_matrix(3, 2)[0],)
