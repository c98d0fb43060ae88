"""The replicated state of control: ordered keys, each with a value and the revision that last changed it.

Pure and deterministic: every node applies the same transactions in the order of the log and has the same
bytes after each. The revision goes up by one with each transaction that changes something, and never back. A
transaction whose request was applied before changes nothing and has the same outcome: the requests
remembered are part of the state, so that a retry is recognised after a change of leader and after a snapshot
too (DESIGN invariant 10).

A refused transaction leaves no trace and is not remembered: the same request may come again with new
compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sortedcontainers import SortedDict

from blockstore import config
from blockstore.codec.control_record import SnapshotContent, SnapshotItem, Transaction, encode_command
from blockstore.errors import InvalidRequest, TransactionConflict
from blockstore.ids import RequestId


@dataclass(frozen=True, slots=True)
class Versioned:
    value: bytes
    modified: int  # the revision that wrote it


@dataclass(frozen=True, slots=True)
class Applied:
    revision: int
    changed: tuple[str, ...] = ()  # none when the request was applied before


class ControlState:
    def __init__(self, requests_max: int = config.CONTROL_REQUESTS_REMEMBERED) -> None:
        self.revision = 0
        self._requests_max = requests_max
        self._items: SortedDict[str, Versioned] = SortedDict()
        self._folders: dict[str, int] = {}  # of `node/` and its like: the last revision
        self._restored = 0  # which stands for folders that have not changed since
        self._requests: dict[RequestId, int] = {}  # in the order applied

    # --- reading

    def find(self, key: str) -> Versioned | None:
        return self._items.get(key)

    def modified(self, key: str) -> int:
        """The revision to compare with: 0 when there is no such key."""
        item = self._items.get(key)
        return 0 if item is None else item.modified

    def folder_modified(self, folder: str) -> int:
        """As long as it is the same, so is every key that begins with `folder`, which ends with its only
        slash."""
        return self._folders.get(folder, self._restored)

    def prefixed(self, prefix: str) -> Iterator[tuple[str, Versioned]]:
        """In key order. Not to be continued after a change."""
        for key in self._items.irange(minimum=prefix):
            if not key.startswith(prefix):
                return
            yield key, self._items[key]

    def find_request(self, request: RequestId) -> int | None:
        """The revision at which the request was applied, if that is remembered."""
        return self._requests.get(request)

    def __len__(self) -> int:
        return len(self._items)

    # --- changing

    def apply(self, transaction: Transaction) -> Applied:
        """Raise TransactionConflict, and change nothing, unless all compares hold."""
        earlier = self._requests.get(transaction.request)
        if earlier is not None:
            return Applied(earlier)
        for compare in transaction.compares:
            if self.modified(compare.key) != compare.revision:
                raise TransactionConflict(compare.key)
        changed = (*(key for key, _ in transaction.puts), *transaction.deletes)
        if not changed:
            return Applied(self.revision)
        self.revision += 1
        for key, value in transaction.puts:
            self._items[key] = Versioned(value, self.revision)
        for key in transaction.deletes:
            self._items.pop(key, None)
        for key in changed:
            self._folders[key[: key.find("/") + 1]] = self.revision
        self._requests[transaction.request] = self.revision
        if len(self._requests) > self._requests_max:
            del self._requests[next(iter(self._requests))]
        return Applied(self.revision, changed)

    # --- snapshots

    def to_snapshot(self) -> SnapshotContent:
        items = tuple(SnapshotItem(key, item.value, item.modified) for key, item in self._items.items())
        return SnapshotContent(self.revision, items, tuple(self._requests.items()))

    def restore(self, content: SnapshotContent) -> None:
        """Become the state that the snapshot shows."""
        self._items = SortedDict((item.key, Versioned(item.value, item.modified)) for item in content.items)
        self._folders, self._restored = {}, content.revision
        self._requests = dict(content.requests)
        self.revision = content.revision


def check_transaction(transaction: Transaction) -> None:
    """Raise InvalidRequest for what must not enter the log: applying it would have to be the same for
    ever."""
    if len(transaction.compares) + len(transaction.puts) + len(transaction.deletes) > config.CONTROL_KEYS_MAX:
        raise InvalidRequest(f"A control transaction names at most {config.CONTROL_KEYS_MAX} keys.")
    changed = [key for key, _ in transaction.puts] + list(transaction.deletes)
    if len(set(changed)) != len(changed):
        raise InvalidRequest("A control transaction changes a key twice.")
    for key in [*changed, *(compare.key for compare in transaction.compares)]:
        if not 0 < len(key.encode()) <= config.CONTROL_KEY_BYTES_MAX:
            raise InvalidRequest(f"A control key has 1 to {config.CONTROL_KEY_BYTES_MAX} bytes.")
    if len(encode_command(transaction)) > config.RAFT_COMMAND_BYTES_MAX:
        raise InvalidRequest(f"A control transaction has at most {config.RAFT_COMMAND_BYTES_MAX} bytes.")
