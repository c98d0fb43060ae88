"""The store for programs that run under trio: the same names as in `blockstore`, with `await`.

```python
from blockstore import aio

async with aio.connect("tcp://10.0.0.1:7440") as store:
    photos = await store.bucket("photos")
    data = await photos.get("cats/1.jpg")
```
"""

from __future__ import annotations

from blockstore.api.block_device import BlockDevice, DeviceSnapshot, RangeChanges
from blockstore.api.bucket import Batch, Bucket
from blockstore.api.history import Changes
from blockstore.api.object_reader import ObjectReader
from blockstore.api.opening import connect, open
from blockstore.api.reading import Listing
from blockstore.api.snapshot import CachedSnapshot, Snapshot
from blockstore.api.store import Store
from blockstore.kinds.block import RangeChange
from blockstore.kinds.bucket import CommonPrefix, ObjectInfo
from blockstore.kinds.object_history import Change, ObjectVersion, Restored

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
    "RangeChanges",
    "ObjectReader",
    "ObjectInfo",
    "CommonPrefix",
    "Listing",
    "Change",
    "Changes",
    "ObjectVersion",
    "Restored",
]
