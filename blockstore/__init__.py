"""A store that a Python program embeds in one line and that grows into a cluster that loses nothing.

```python
import blockstore

with blockstore.open("./data") as store:
    photos = store.create_bucket("photos", exist_ok=True)
    photos.put("cats/1.jpg", data)
```

`blockstore.aio` has the same names for trio. What is named here is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockstore import aio, errors
    from blockstore.api.blocking import (
        Batch,
        Bucket,
        CachedSnapshot,
        ObjectReader,
        Snapshot,
        Store,
        connect,
        open,
    )
    from blockstore.api.blocking_device import BlockDevice, DeviceSnapshot
    from blockstore.api.samples import Samples
    from blockstore.codec.messages import CredentialView, Events, NodeStatus, NodeView, Status, VolumeView
    from blockstore.errors import BlockStoreError
    from blockstore.kinds.block import RangeChange
    from blockstore.kinds.bucket import CommonPrefix, ObjectInfo
    from blockstore.kinds.object_history import Change, ObjectVersion, Restored

_PLACES = {
    "aio": "blockstore.aio",
    "errors": "blockstore.errors",
    "open": "blockstore.api.blocking",
    "connect": "blockstore.api.blocking",
    "Store": "blockstore.api.blocking",
    "Batch": "blockstore.api.blocking",
    "Bucket": "blockstore.api.blocking",
    "Snapshot": "blockstore.api.blocking",
    "CachedSnapshot": "blockstore.api.blocking",
    "BlockDevice": "blockstore.api.blocking_device",
    "DeviceSnapshot": "blockstore.api.blocking_device",
    "RangeChange": "blockstore.kinds.block",
    "Samples": "blockstore.api.samples",
    "ObjectReader": "blockstore.api.blocking",
    "ObjectInfo": "blockstore.kinds.bucket",
    "CommonPrefix": "blockstore.kinds.bucket",
    "Change": "blockstore.kinds.object_history",
    "ObjectVersion": "blockstore.kinds.object_history",
    "Restored": "blockstore.kinds.object_history",
    "BlockStoreError": "blockstore.errors",
    "Status": "blockstore.codec.messages",
    "NodeStatus": "blockstore.codec.messages",
    "NodeView": "blockstore.codec.messages",
    "VolumeView": "blockstore.codec.messages",
    "Events": "blockstore.codec.messages",
    "CredentialView": "blockstore.codec.messages",
}

__all__ = [
    "open",
    "connect",
    "Store",
    "Bucket",
    "Batch",
    "Snapshot",
    "CachedSnapshot",
    "BlockDevice",
    "DeviceSnapshot",
    "RangeChange",
    "Samples",
    "ObjectReader",
    "ObjectInfo",
    "CommonPrefix",
    "Change",
    "ObjectVersion",
    "Restored",
    "errors",
    "BlockStoreError",
    "aio",
    "Status",
    "NodeStatus",
    "NodeView",
    "VolumeView",
    "Events",
    "CredentialView",
]


def __getattr__(name: str) -> object:
    """Importing everything takes a tenth of a second, and every daemon and command imports this package."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'blockstore' has no attribute {name!r}")
    module = importlib.import_module(place)
    found: object = module if place.rpartition(".")[2] == name else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
