"""CRC-32C: the one checksum of everything stored or sent.

`crc32c(data)` is the plain sum; `crc32c(more, crc32c(data))` is the sum of both, joined. A sum that starts
from another value is how a record's identity is bound into it: start from `crc32c(identity)` and the same
bytes found in another place fail. For bytes of one length the sum is a bijection of its start, so two
different starts never agree by chance.

The name is the library's own function, not a wrapper: at 4 KiB the sum takes 0.3 us, and a Python call 0.1
us more. It takes any contiguous buffer and releases the GIL while it works on a large one.

Source: RFC 3720, appendix B.4 (Castagnoli's polynomial, reflected).
"""

from __future__ import annotations

from fastcrc import crc32

crc32c = crc32.iscsi

__all__ = ["crc32c"]
