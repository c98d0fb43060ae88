"""What msgspec raises for bytes that do not encode the type they should.

Besides its own error: texts that are not UTF-8, and nests deeper than Python's stack, which it meets also in
fields that it only skips.
"""

from __future__ import annotations

from typing import Final

import msgspec

MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
