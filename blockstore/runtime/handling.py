"""What becomes of a handler's exceptions: the same on every kind of lane."""

from __future__ import annotations

import logging
from typing import Final

from blockstore.errors import BlockStoreError
from blockstore.runtime.interfaces import Handler, IncomingCall

log: Final = logging.getLogger("blockstore.lanes")


def handle(handler: Handler, call: IncomingCall) -> None:
    try:
        handler(call)
    except BlockStoreError as error:
        call.fail(error)
    except Exception:
        # A bug of ours in one request must not take the daemon down with all others; the log has where it is.
        log.exception("peer %s: handling %s failed", call.peer, type(call.message).__name__)
        call.fail(BlockStoreError("internal error; see the log of the daemon that answered"))
