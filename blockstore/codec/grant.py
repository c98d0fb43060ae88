"""The proof that an owner granted a chunk to a client, which the nodes check without asking anybody.

A client appends straight to the nodes, and a node cannot know which chunks an owner has given out. So the
owner signs what it grants: the chunk, and the certificate it is granted to, under a key that every node has
in its copy of control and no client ever sees. Without it whoever may write one value could append to the
journal of any volume, or use up the ids of chunks that are still to come.

Pure. Keyed BLAKE2b of 16 bytes: a microsecond, for appends of 128 KiB and more.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from blockstore.ids import ChunkId

KEY_BYTES = 32
TOKEN_BYTES = 16

_CHUNK = struct.Struct("<qqq")


def grant_token(key: bytes, chunk: ChunkId, fingerprint: str) -> bytes:
    """What shows that the holder of this certificate ("" where there are none) may append to `chunk`."""
    content = _CHUNK.pack(*chunk) + fingerprint.encode()
    return hashlib.blake2b(content, digest_size=TOKEN_BYTES, key=key, person=b"blockstore grant").digest()


def is_granted(key: bytes, chunk: ChunkId, fingerprint: str, token: bytes) -> bool:
    try:
        return hmac.compare_digest(token, grant_token(key, chunk, fingerprint))
    except struct.error:
        return False  # numbers that no chunk has
