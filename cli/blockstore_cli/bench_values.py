"""Objects for measuring: names and contents that a number decides."""

from __future__ import annotations


def name_of(number: int) -> str:
    """Neighbours in time are none in the bucket's order."""
    return f"{number * 2_654_435_761 % 2**32:08x}-{number}"


def value_of(number: int, content: bytes, n_bytes: int) -> bytes:
    """So many bytes of random content, which is longer."""
    start = number * 4_099 % (len(content) - n_bytes)
    return content[start : start + n_bytes]
