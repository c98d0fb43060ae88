"""Every decoder of bytes or text that somebody else may have written, by name."""

from __future__ import annotations

from tests.fuzz.certificates import CERTIFICATES
from tests.fuzz.decoder import Decoder
from tests.fuzz.devices import DEVICES
from tests.fuzz.disk import DISK_FILES
from tests.fuzz.raft import RAFT_FILES
from tests.fuzz.text import TEXTS
from tests.fuzz.volume import VOLUME
from tests.fuzz.wire import WIRE

DECODERS: dict[str, Decoder] = {
    **WIRE,
    **DISK_FILES,
    **RAFT_FILES,
    **VOLUME,
    **DEVICES,
    **CERTIFICATES,
    **TEXTS,
}
