"""The release of this program, as its peers are told."""

from __future__ import annotations

from typing import Final

RELEASE: Final = "0.1.0"
