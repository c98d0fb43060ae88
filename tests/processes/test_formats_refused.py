"""A store written by another release is refused in words, with its exit code, and left as it is.

Written for real by this release, with the version that it puts into one kind of file raised for the moment.
"""

from __future__ import annotations

import hashlib
import logging
import time
from importlib import import_module
from pathlib import Path

import pytest

import blockstore
from blockstore.errors import UnknownFormat
from blockstore.volume import owner_shell
from blockstore_cli import main

AT_THE_DOOR = {
    "node.json": ("blockstore.daemon.node_directory", "VERSION"),
    "superblock": ("blockstore.codec.superblock", "VERSION"),
    "fragment header": ("blockstore.codec.fragment_file", "VERSION"),
    "fences": ("blockstore.codec.fence_file", "VERSION"),
    "control's log": ("blockstore.codec.raft_file", "VERSION"),
    "control's snapshot": ("blockstore.codec.control_record", "SNAPSHOT_VERSION"),
    "control's records": ("blockstore.codec.control_record", "RECORD_VERSION"),
}
OF_A_VOLUME = {
    "journal": ("blockstore.codec.journal_record", "VERSION"),
    "checkpoint": ("blockstore.codec.run_file", "HEAD_VERSION"),
    "metadata": ("blockstore.kinds.bucket", "META_VERSION"),
}


REWRITTEN = ("lock", "fences-")
"""At each start: the number of the process, and the fences, as they were and in the format they had."""


def write(folder: Path) -> None:
    with blockstore.open(folder) as store:
        store.create_bucket("b").put("x", b"1" * 200_000)


def content(folder: Path) -> dict[str, str]:
    """Without files that were only being made when their store was closed: nothing is in them."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(REWRITTEN)
    }
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if any(data[:4096])}


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run(["get", "b:x", "--store", str(folder)]) == UnknownFormat.exit_code
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert len(told.err.splitlines()) == 2
    assert UnknownFormat.next_step in told.err
    return told.err


@pytest.mark.parametrize("version", [99, 0], ids=["newer", "older"])
@pytest.mark.parametrize("kind", AT_THE_DOOR)
def test_a_store_of_another_format_is_not_opened(
    kind: str,
    version: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, name = AT_THE_DOOR[kind]
    folder = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(import_module(module), name, version)
        write(folder)
    before = content(folder)
    told = refused(folder, capsys)
    assert f"format version {version}" in told
    assert content(folder) == before


def wait_for_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    until = time.monotonic() + 20
    while "keys=1" not in caplog.text:
        assert time.monotonic() < until, caplog.text
        time.sleep(0.01)


@pytest.mark.parametrize("version", [99, 0], ids=["newer", "older"])
@pytest.mark.parametrize("kind", OF_A_VOLUME)
def test_a_volume_of_another_format_is_not_served(
    kind: str,
    version: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "blockstore.volume")
    module, name = OF_A_VOLUME[kind]
    folder = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(import_module(module), name, version)
        patch.setattr(owner_shell, "CHECKPOINT_JOURNAL_BYTES", 1)
        patch.setattr(owner_shell, "CHECKPOINT_LOOK_SECONDS", 0.01)
        with blockstore.open(folder) as store:
            bucket = store.create_bucket("b")
            bucket.put("x", b"1" * 200_000)
            if kind == "checkpoint":
                wait_for_checkpoint(caplog)
    assert f"format version {version}" in refused(folder, capsys)
    write_again = main.run(["put", __file__, "b:y", "--store", str(folder)])
    assert write_again == (0 if kind == "metadata" else UnknownFormat.exit_code)
