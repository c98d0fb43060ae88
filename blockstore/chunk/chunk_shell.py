"""The chunk client: read values from their chunks, write values into new ones.

One place to import it from. Despite the name it knows no event loop: everything is written over
`runtime.interfaces.Caller`, which runs it under trio or over blocking sockets.
"""

from __future__ import annotations

from blockstore.chunk.node_table import NodeTable
from blockstore.chunk.read_shell import ChunkReader, Want
from blockstore.chunk.write_shell import DataWriter, RequestGrant

__all__ = ["ChunkReader", "DataWriter", "NodeTable", "RequestGrant", "Want"]
