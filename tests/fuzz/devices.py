"""Decoders of what a block device keeps in its keys and values."""

from __future__ import annotations

from blockstore.ids import GiB, TiB
from blockstore.kinds import block
from tests.fuzz.decoder import Decoder

DEVICES: dict[str, Decoder] = {
    "device-header": Decoder(
        block.decode_header, [block.encode_header(size) for size in (1, 4_096, 10 * GiB, 64 * TiB)]
    ),
    "device-intents": Decoder(
        block.decode_intents,
        [block.encode_intents([(span, span % 2) for span in range(n)]) for n in (1, 3, 16)],
    ),
    "device-key": Decoder(
        block.span_of, [block.side_key(0, 1), block.side_key(2**32 - 1, 0), block.block_key(7, 255)]
    ),
}
