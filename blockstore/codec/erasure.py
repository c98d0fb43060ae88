"""Stripe to shards and back: any k of the k + m shards give the others.

The code is defined in `matrix.py`; this module does its one operation on bulk data, a matrix times byte
strings, with the fastest kernel there is: ISA-L as the pyeclib wheel brings it, else the system's, else the
standard library. All of them give the same bytes, and a kernel is used only after it agreed with the portable
one. ISA-L is called through ctypes on the callers' buffers, without the interpreter lock: 4 MiB
under ec(4,2) take 0.2 ms, where the portable kernel needs 15 ms and pyeclib's own functions 1.2 ms (they copy
every shard and keep the lock).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

from blockstore.codec import gf256
from blockstore.codec.matrix import Matrix, decode_rows, parity_matrix

Buffer = bytes | bytearray | memoryview

SHARDS_MAX = 255
_DECODE_TABLES_MAX = 256
"""Erasure patterns kept prepared, for each code: all of ec(4,2), and those that matter of wide ones."""


class Kernel(Protocol):
    """Multiplies a matrix with byte strings."""

    @property
    def name(self) -> str: ...

    def prepare(self, rows: Matrix) -> Any:
        """The matrix in the form that this kernel (and no other) wants."""
        ...

    def multiply(self, prepared: Any, sources: Sequence[Buffer], outputs: Sequence[bytearray]) -> None:
        """Fill one output for each row, as long as every source."""
        ...


class ErasureCode:
    """One code, ec(k, m). Safe to share between threads."""

    def __init__(self, k: int, m: int, kernel: Kernel | None = None) -> None:
        assert k >= 1
        assert m >= 1
        assert k + m <= SHARDS_MAX
        self.k, self.m = k, m
        self.kernel = kernel if kernel is not None else fastest_kernel()
        self._encode_table = self.kernel.prepare(parity_matrix(k, m))
        self._decode_table: Callable[[tuple[int, ...], tuple[int, ...]], Any] = lru_cache(_DECODE_TABLES_MAX)(
            self._prepare_decode
        )

    def encode(self, data: Sequence[Buffer], into: Sequence[bytearray] | None = None) -> list[bytearray]:
        """The m parity shards of k data shards of one length. Inputs are neither copied nor changed. `into`
        are m buffers of that length to fill and return: new ones cost three times the arithmetic."""
        assert len(data) == self.k
        length = _common_length(data)
        outputs = [bytearray(length) for _ in range(self.m)] if into is None else list(into)
        assert len(outputs) == self.m
        self.kernel.multiply(self._encode_table, data, outputs)
        return outputs

    def reconstruct(self, shards: Mapping[int, Buffer], wanted: Sequence[int]) -> list[Buffer]:
        """The wanted shards, from any k or more of them (or of the same byte range of each). One that is in
        `shards` already is given back as it is."""
        assert all(0 <= index < self.k + self.m for index in (*shards, *wanted))
        missing = tuple(sorted({index for index in wanted if index not in shards}))
        rebuilt: dict[int, Buffer] = {}
        if missing:
            survivors = tuple(sorted(shards)[: self.k])
            assert len(survivors) == self.k, "the caller sees to it that k shards are there"
            sources = [shards[index] for index in survivors]
            length = _common_length(sources)
            outputs = [bytearray(length) for _ in missing]
            self.kernel.multiply(self._decode_table(survivors, missing), sources, outputs)
            rebuilt.update(zip(missing, outputs, strict=True))
        return [rebuilt[index] if index in rebuilt else shards[index] for index in wanted]

    def _prepare_decode(self, survivors: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
        return self.kernel.prepare(decode_rows(self.k, self.m, survivors, wanted))


@lru_cache(maxsize=64)
def erasure_code(k: int, m: int) -> ErasureCode:
    """The shared instance, so that prepared tables are shared as well."""
    return ErasureCode(k, m)


@lru_cache(maxsize=1)
def fastest_kernel() -> Kernel:
    for path in _isal_candidates():
        with suppress(OSError, AttributeError):  # not there, or a library without these functions
            kernel = IsalKernel(path)
            if _agrees_with_portable(kernel):
                return kernel
    return PortableKernel()


def _isal_candidates() -> Iterator[str]:
    """Where ISA-L may be: in a private folder of pyeclib's wheel, which its metadata names, or installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("pyeclib") or ():
            if file.name.startswith("libisal") and ".so" in file.name:
                yield str(file.locate())
    yield "libisal.so.2"


def _agrees_with_portable(kernel: Kernel) -> bool:
    sources = [bytes((position * 7 + shard) & 0xFF for position in range(333)) for shard in range(5)]
    rows = parity_matrix(5, 3)
    results: list[list[bytearray]] = []
    for one in (kernel, PortableKernel()):
        outputs = [bytearray(333) for _ in rows]
        one.multiply(one.prepare(rows), sources, outputs)
        results.append(outputs)
    return results[0] == results[1]


def _common_length(buffers: Sequence[Buffer]) -> int:
    lengths = {memoryview(buffer).nbytes for buffer in buffers}
    assert len(lengths) == 1, "the shards of a stripe have one length"
    return lengths.pop()


# --- kernels


class PortableKernel:
    """`bytes.translate` for the product and Python's integers for the sum: about 290 MB/s."""

    name = "portable"

    def prepare(self, rows: Matrix) -> Matrix:
        return rows

    def multiply(self, prepared: Matrix, sources: Sequence[Buffer], outputs: Sequence[bytearray]) -> None:
        columns = [source if isinstance(source, bytes) else bytes(source) for source in sources]
        for row, output in zip(prepared, outputs, strict=True):
            assert len(output) == len(columns[0])
            total = 0
            for factor, column in zip(row, columns, strict=True):
                if factor:
                    product = column if factor == 1 else column.translate(gf256.row_of(factor))
                    total ^= int.from_bytes(product, "little")
            output[:] = total.to_bytes(len(output), "little")


class _PyBuffer(ctypes.Structure):
    """`Py_buffer`, in the stable ABI since Python 3.11: the one way to the address of a read-only buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_TABLE_BYTES = 32  # of ISA-L, for each coefficient


class IsalKernel:
    """`ec_encode_data` of one ISA-L library. Tables are never shared: their layout differs between builds."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.name = f"isa-l ({path.rpartition('/')[2]})"
        self._init_tables = library.ec_init_tables
        self._init_tables.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self._init_tables.restype = None
        self._encode = library.ec_encode_data
        self._encode.argtypes = (
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._encode.restype = None
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
        self._get_buffer = prototype(("PyObject_GetBuffer", ctypes.pythonapi))  # raises what it raised
        self._release_buffer = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(
            ("PyBuffer_Release", ctypes.pythonapi)
        )

    def prepare(self, rows: Matrix) -> tuple[int, int, ctypes.Array[ctypes.c_char]]:
        k = len(rows[0])
        table = ctypes.create_string_buffer(_TABLE_BYTES * k * len(rows))
        self._init_tables(k, len(rows), b"".join(rows), table)
        return k, len(rows), table

    def multiply(
        self,
        prepared: tuple[int, int, ctypes.Array[ctypes.c_char]],
        sources: Sequence[Buffer],
        outputs: Sequence[bytearray],
    ) -> None:
        k, n_rows, table = prepared
        assert len(sources) == k
        assert len(outputs) == n_rows
        length = len(outputs[0])
        if not length:
            return
        n_held = 0
        held = (_PyBuffer * (k + n_rows))()
        start = ctypes.addressof(held)
        step = ctypes.sizeof(_PyBuffer)
        try:
            for buffer in (*sources, *outputs):
                self._get_buffer(
                    buffer, start + n_held * step, 0
                )  # PyBUF_SIMPLE: contiguous bytes or BufferError
                n_held += 1
            assert all(view.len == length for view in held)  # the library believes us
            addresses = (ctypes.c_void_p * (k + n_rows))(*[view.buf for view in held])
            first = ctypes.addressof(addresses)
            self._encode(length, k, n_rows, table, first, first + k * ctypes.sizeof(ctypes.c_void_p))
        finally:
            for position in range(n_held):
                self._release_buffer(start + position * step)
