"""What must be true of a whole cluster at every moment, and what was seen of it so far.

Pure: told what is seen, it accuses when that cannot be. `watch.py` looks at the nodes and tells. What
journals say is judged by `cores/witness.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from blockstore.ids import ChunkId, DiskId, VolumeId

Accuse = Callable[[str], None]


class Claims:
    def __init__(self, accuse: Accuse) -> None:
        self.n_sealed = 0
        self._accuse = accuse
        self._leaders: dict[int, str] = {}
        self._servers: dict[tuple[VolumeId, int], object] = {}
        self._sealed: dict[tuple[DiskId, ChunkId], tuple[int, int]] = {}

    @property
    def n_terms(self) -> int:
        return len(self._leaders)

    @property
    def n_epochs(self) -> int:
        return len(self._servers)

    # --- who leads, who owns

    def see_leader(self, term: int, who: str) -> None:
        """No two nodes lead control in one term."""
        first = self._leaders.setdefault(term, who)
        if first != who:
            self._accuse(f"{first} and {who} both lead control in term {term}")

    def see_holders(self, holders: Iterable[tuple[VolumeId, str]]) -> None:
        """No two nodes may answer reads of one volume at one moment."""
        alone: dict[VolumeId, str] = {}
        for volume, who in holders:
            first = alone.setdefault(volume, who)
            if first != who:
                self._accuse(f"{first} and {who} both have a lease for volume {volume}")

    def see_server(self, volume: VolumeId, epoch: int, run: object, where: str) -> None:
        """An epoch of a volume is served by one run of one owner."""
        if self._servers.setdefault((volume, epoch), run) is not run:
            self._accuse(f"a second owner, on {where}, serves volume {volume} in epoch {epoch}")

    # --- what chunks hold

    def knows_sealed(self, disk: DiskId, chunk: ChunkId, length: int) -> bool:
        known = self._sealed.get((disk, chunk))
        return known is not None and known[0] == length

    def see_sealed(self, disk: DiskId, chunk: ChunkId, length: int, crc: int) -> None:
        """What is sealed keeps its length and its bytes."""
        now = (length, crc)
        before = self._sealed.get((disk, chunk))
        if before is None:
            self._sealed[disk, chunk] = now
            self.n_sealed += 1
        elif before != now:
            self._accuse(f"the sealed fragment of {chunk} on disk {disk} was {before} and is {now}")

    # --- what waits

    def see_queue(self, what: str, where: str, now: int, most: int) -> None:
        if now > most:
            self._accuse(f"the {what} queue of {where} holds {now}, its bound is {most}")
