"""Decoders of what a block device keeps in its keys and values."""

from __future__ import annotations

from blockstore.ids import GiB, TiB
from blockstore.kinds import block
from tests.fuzz.decoder import Decoder

DEVICES: dict[str, Decoder] = {
    "device-header": Decoder(
        block.decode_header, [block.encode_header(size) for size in (1, 4_096, 10 * GiB, 64 * TiB)]
    ),
    "device-mark": Decoder(
        block.decode_mark,
        [
            block.WriterMark(b"\1" * block.TOKEN_BYTES).meta,
            block.WriterMark(bytes(range(block.TOKEN_BYTES)), b"\xff" * block.TOKEN_BYTES).meta,
        ],
    ),
    "device-key": Decoder(
        block.span_of, [block.span_key(0), block.span_key(2**32 - 1), block.block_key(7, 255)]
    ),
}
