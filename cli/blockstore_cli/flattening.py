"""What `bucket flatten` and `block flatten` share: a clone copies what it has in common with others, and this
shows how far it is. It goes on when nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import blockstore
from blockstore_cli.output import Progress, answer, note

LOOK_SECONDS = 0.5


class _View(Protocol):
    """What a store says of a volume."""

    @property
    def name(self) -> str: ...

    @property
    def clone_of(self) -> str: ...

    @property
    def is_flattening(self) -> bool: ...


def flatten(
    volume: blockstore.Bucket | blockstore.BlockDevice,
    views: Callable[[], Sequence[_View]],
    words: str,
    *,
    wait: bool,
) -> None:
    """Ask for it and, with `wait`, return when `volume` is independent. `views` says of what each is a
    clone."""
    parent = _parent(volume, views)
    volume.flatten()
    if not parent:
        answer({"name": volume.name, "clone_of": ""}, f"{words} {volume.name} depends on no other.")
        return
    if not wait:
        answer(
            {"name": volume.name, "clone_of": parent},
            f"{words} {volume.name} becomes independent of {parent} in the background.",
        )
        return
    progress = Progress("copied", int(volume.facts()["keys"]), 0)
    try:
        while _parent(volume, views):
            progress.advance(int(volume.facts()["flattened_values"]) - progress.items, 0)
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        progress.end()
        note(f"{words} {volume.name} goes on becoming independent in the background.")
        raise
    progress.end()
    answer({"name": volume.name, "clone_of": ""}, f"{words} {volume.name} depends on no other any more.")


def _parent(volume: blockstore.Bucket | blockstore.BlockDevice, views: Callable[[], Sequence[_View]]) -> str:
    return next((view.clone_of for view in views() if view.name == volume.name), "")


def clone_facts(
    volume: blockstore.Bucket | blockstore.BlockDevice, views: Callable[[], Sequence[_View]]
) -> dict[str, str | bool]:
    """Of what it is a clone ("": of nothing), and whether it becomes independent."""
    view = next((view for view in views() if view.name == volume.name), None)
    return {
        "clone_of": "" if view is None else view.clone_of,
        "is_flattening": view is not None and view.is_flattening,
    }
