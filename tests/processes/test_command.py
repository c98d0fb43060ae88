"""The command on a real cluster: what it answers, what it leaves behind, how it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import blockstore
from blockstore.daemon.local_cluster import LocalCluster
from blockstore_cli import main

pytestmark = pytest.mark.usefixtures("configured")


class Spoken:
    """What one call of the command answered."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Command:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: str | Path, code: int = 0) -> Spoken:
        """Run it and check its exit code."""
        got = main.run([str(argument) for argument in arguments])
        sys.stdout.flush()
        said = self._capfd.readouterr()
        assert got == code, said.err
        return Spoken(got, said.out, said.err)

    def until_whole(self) -> None:
        """Wait until status has nothing to say: on a busy machine a heartbeat may be late."""
        until = time.monotonic() + 20
        while main.run(["cluster", "status"]):
            assert time.monotonic() < until, self._capfd.readouterr().out
        self._capfd.readouterr()


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(capfd)


def test_buckets_are_made_listed_shown_and_deleted(command: Command) -> None:
    assert command("bucket", "create", "b1", "--policy", "replicated(3)", "--json").json() == {
        "name": "b1",
        "policy": "replicated(3)",
    }
    assert {"name": "b1", "policy": "replicated(3)", "clone_of": ""} in command(
        "bucket", "list", "--json"
    ).json()["buckets"]
    shown = command("bucket", "show", "b1", "--json").json()
    assert (shown["name"], shown["policy"], shown["snapshots"]) == ("b1", "replicated(3)", [])
    assert "already a bucket 'b1'" in command("bucket", "create", "b1", code=73).err
    command("bucket", "create", "b1", "--policy", "replicated(3)", "--exist-ok")
    refused = command("bucket", "delete", "b1", code=64)
    assert "--yes" in refused.err
    assert command("bucket", "delete", "b1", "--yes", "--json").json() == {"deleted": "b1"}
    assert "no bucket 'b1'" in command("ls", "b1", code=66).err


@pytest.mark.parametrize("policy", ["raid5", "ec(0,2)", "replicated(0)", "ec(200,100)"])
def test_a_policy_that_is_none_is_refused(command: Command, policy: str) -> None:
    command("bucket", "create", "never", "--policy", policy, code=64)


@pytest.mark.parametrize("name", ["a/b", "", "a b", "-x", "n" * 200])
def test_a_name_that_is_none_is_refused(command: Command, name: str) -> None:
    command("bucket", "create", "--", name, code=64)


def test_an_object_comes_back_as_it_went_in(command: Command, tmp_path: Path) -> None:
    command("bucket", "create", "o1")
    content = random.Random(1).randbytes(300_000)
    (tmp_path / "in").write_bytes(content)
    put = command("put", tmp_path / "in", "o1:a/b", "--meta", "camera=old", "--json").json()
    assert (put["name"], put["size"], put["metadata"]) == ("a/b", 300_000, {"camera": "old"})
    command("get", "o1:a/b", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    command("get", "o1:a/b", tmp_path / "part", "--start", "100000", "--end", "200001")
    assert (tmp_path / "part").read_bytes() == content[100_000:200_001]
    command("get", "o1:a/b", tmp_path)  # a directory: under the object's last name
    assert (tmp_path / "b").read_bytes() == content
    assert command("put", tmp_path / "in", "o1:a/b", "--if-absent", code=65).err
    command("put", tmp_path / "in", "o1:a/b", "--if-etag", put["etag"])
    command("put", tmp_path / "in", "o1:a/b", "--if-etag", put["etag"], code=65)


def test_standard_input_and_output_are_files_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command("bucket", "create", "o2")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    command("put", "-", "o2:greeting")
    assert command("get", "o2:greeting").out == "hello\n"


def test_what_is_not_there_is_said(command: Command, tmp_path: Path) -> None:
    command("bucket", "create", "o3")
    assert "no object 'x' in bucket 'o3'" in command("get", "o3:x", tmp_path / "x", code=66).err
    assert not (tmp_path / "x").exists()
    assert "no bucket 'nowhere'" in command("put", __file__, "nowhere:x", code=66).err
    assert "no snapshot 's'" in command("ls", "o3@s:", code=66).err
    assert "No such file" in command("put", tmp_path / "missing", "o3:x", code=64).err
    command("rm", "o3:x", code=66)


def test_listing_shows_folders_or_everything(command: Command) -> None:
    command("bucket", "create", "l1")
    for name in ("a", "d/1", "d/2", "e\x1b[2J"):
        command("put", __file__, f"l1:{name}")
    assert command("ls", "l1").out == "a\nd/\ne\\x1b[2J\n"
    assert command("ls", "l1:d/").out == "d/1\nd/2\n"
    assert [line["name"] for line in command("ls", "-r", "l1", "--json").lines()] == [
        "a",
        "d/1",
        "d/2",
        "e\x1b[2J",
    ]
    assert command("ls", "l1", "--json").lines()[1] == {"prefix": "d/"}
    assert len(command("ls", "-l", "l1").out.splitlines()) == 3
    assert "l1" in command("ls").out.split()


def test_removing_many_asks(command: Command) -> None:
    command("bucket", "create", "r1")
    for name in ("a", "d/1", "d/2"):
        command("put", __file__, f"r1:{name}")
    command("rm", "r1:", code=64)
    command("rm", "-r", "r1:d", code=64)
    assert command("ls", "-r", "r1").out.split() == ["a", "d/1", "d/2"]
    assert command("rm", "-r", "r1:d", "--yes", "--json").json() == {"deleted": 2}
    command("rm", "-r", "r1:d", "--yes", code=66)
    assert command("ls", "-r", "r1").out.split() == ["a"]


def tree_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_tree_goes_in_and_comes_back_as_of_a_snapshot(command: Command, tmp_path: Path) -> None:
    chance = random.Random(2)
    source = tmp_path / "source"
    for number in range(60):
        path = source / f"d{number % 7}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice([0, 1, 5_000, 140_000])))
    (source / "large").write_bytes(chance.randbytes(9_000_000))  # several pieces on the way back
    command("bucket", "create", "t1")
    copied = command("cp", "-r", source, "t1:2026", "--json").json()
    assert (copied["objects"], copied["left_out"]) == (61, [])
    command("snapshot", "create", "t1", "before")
    command("rm", "-r", "t1:2026/d1", "--yes")
    command("put", __file__, "t1:2026/large")
    command("cp", "-r", "t1@before:2026", tmp_path / "then")
    assert tree_of(tmp_path / "then") == tree_of(source)
    command("cp", "-r", "t1:2026/", tmp_path / "now")
    now = tree_of(tmp_path / "now")
    assert not [name for name in now if name.startswith("d1/")]
    assert now["large"] == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def test_names_that_lead_outside_are_never_written(
    command: Command, configured: LocalCluster, tmp_path: Path
) -> None:
    command("bucket", "create", "t2")
    with blockstore.connect(configured.location, credentials=configured.credentials) as store:
        bucket = store.bucket("t2")
        for name in ("../escape", "/absolute", "d/../../escape", "d//x", "fine"):
            bucket.put(name, b"x")
    target = tmp_path / "target"
    refused = command("cp", "-r", "t2:", target, code=64)
    assert "4 of 5 cannot be copied" in refused.err
    assert not target.exists() or not any(target.iterdir())
    left_out = command("cp", "-r", "t2:", target, "--skip", "--json").json()
    assert (left_out["objects"], len(left_out["left_out"])) == (1, 4)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["fine", "target"]


def test_links_in_a_tree_are_refused_or_left_out(command: Command, tmp_path: Path) -> None:
    command("bucket", "create", "t3")
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert "a symbolic link" in command("cp", "-r", tmp_path, "t3:", code=64).err
    assert command("ls", "-r", "t3").out == ""
    assert command("cp", "-r", tmp_path, "t3:", "--skip", "--json").json()["objects"] == 1
    assert command("ls", "-r", "t3").out == "real\n"


def test_snapshots_are_listed_and_deleted(command: Command) -> None:
    command("bucket", "create", "s1")
    command("put", __file__, "s1:x")
    command("snapshot", "create", "s1", "one")
    command("snapshot", "create", "s1", "one", code=73)
    command("snapshot", "create", "s1", "a/b", code=64)
    listed = command("snapshot", "list", "s1", "--json").json()["snapshots"]
    assert [one["name"] for one in listed] == ["one"]
    command("snapshot", "delete", "s1", "two", "--yes", code=66)
    command("snapshot", "delete", "s1", "one", code=64)
    command("snapshot", "delete", "s1", "one", "--yes")
    command("ls", "s1@one:", code=66)


def test_a_diff_and_a_log_say_what_happened(command: Command, tmp_path: Path) -> None:
    command("bucket", "create", "h1")
    (tmp_path / "file").write_bytes(b"1" * 2_048)
    command("put", __file__, "h1:a")
    command("put", __file__, "h1:b")
    command("snapshot", "create", "h1", "one")
    command("put", tmp_path / "file", "h1:a")
    command("rm", "h1:b")
    command("put", tmp_path / "file", "h1:c\x1b")
    lines = command("snapshot", "diff", "h1@one").out.splitlines()
    assert [line[:3] for line in lines] == ["~ a", "- b", "+ c", "1 a"]
    assert lines[0].endswith(" → 2.0 KiB")
    assert lines[2:] == [r"+ c\x1b  2.0 KiB", "1 added, 1 changed, 1 removed."]
    *changes, counts = command("snapshot", "diff", "h1@one", "--json").lines()
    assert [(one["change"], one["name"]) for one in changes] == [
        ("changed", "a"),
        ("removed", "b"),
        ("added", "c\x1b"),
    ]
    assert (changes[0]["new"]["size"], changes[1]["new"]) == (2_048, None)
    assert counts == {"added": 1, "changed": 1, "removed": 1}
    command("snapshot", "create", "h1", "two")
    assert len(command("snapshot", "diff", "h1@one:b", "h1@two").out.splitlines()) == 2
    for arguments in (["h1"], ["h1@one", "h1"], ["h1@one", "h2@two"]):
        command("snapshot", "diff", *arguments, code=64)
    assert "no snapshot 'three'" in command("snapshot", "diff", "h1@three", code=66).err

    lines = command("log", "h1:a").out.splitlines()
    assert [line.split()[-1] for line in lines] == ["IN", "@two", "@one"]
    assert "now, @two" in lines[1]
    gone, there = command("log", "h1:b", "--json").json()["versions"]
    assert (gone["object"], gone["current"], gone["first_snapshot"]) == (None, True, "two")
    assert (there["object"]["name"], there["last_snapshot"], there["snapshots"]) == ("b", "one", 1)
    assert "deleted" in command("log", "h1:b").out
    assert "no object 'x' in bucket 'h1'" in command("log", "h1:x", code=66).err
    command("log", "h1", code=64)


def test_objects_are_restored_and_the_command_that_undoes_it_does(command: Command, tmp_path: Path) -> None:
    command("bucket", "create", "back1")
    (tmp_path / "new").write_bytes(b"new")
    for name in ("d/a b", "d/c", "e"):
        command("put", __file__, f"back1:{name}")
    command("snapshot", "create", "back1", "one")
    command("put", tmp_path / "new", "back1:d/a b")
    command("rm", "back1:d/c", "back1:e")
    told = command("restore", "back1:d/a b", "--at", "one", "--dry-run").out.splitlines()
    assert told[0].startswith("~ d/a b  3 B → ")
    assert told[1] == "As of @one: 0 would be added, 1 changed, 0 removed. Nothing was changed."
    assert "--yes" in command("restore", "back1:d/a b", "--at", "one", code=64).err
    assert command("get", "back1:d/a b").out == "new"

    done = command("restore", "-r", "back1:d", "--at", "one", "--yes").out
    assert done.startswith("As of @one: 1 added, 1 changed, 0 removed.\nWhat was before is kept as @")
    assert command("ls", "-r", "back1").out == "d/a b\nd/c\n"
    undo = shlex.split(done.splitlines()[-1])
    assert undo[:4] == ["blockstore", "restore", "-r", "back1:d"]
    assert command(*undo[1:], "--yes", "--json").json()["removed"] == 1
    assert command("get", "back1:d/a b").out == "new"

    elsewhere = command("restore", "back1:d/a b", "--at", "one", "--to", "f", "--yes", "--json").json()
    assert (elsewhere["added"], shlex.split(elsewhere["undo"])[2]) == (1, "back1:f")
    assert command("get", "back1:f").out == Path(__file__).read_text()


def test_when_to_restore_to_is_a_snapshot_or_a_time(command: Command) -> None:
    command("bucket", "create", "back2")
    command("put", __file__, "back2:x")
    command("snapshot", "create", "back2", "20300101")
    assert "All is as it was at @20300101." in command("restore", "back2:x", "--at", "20300101").out
    tomorrow = (datetime.now() + timedelta(days=1)).isoformat(sep=" ", timespec="minutes")
    assert "All is as it was at @20300101." in command("restore", "-r", "back2:", "--at", tomorrow).out
    assert "neither a snapshot of back2" in command("restore", "back2:x", "--at", "lunch", code=64).err
    assert "no snapshot" in command("restore", "back2:x", "--at", "2001-01-01", code=66).err
    assert "neither now nor" in command("restore", "back2:y", "--at", "20300101", code=66).err


def test_a_bucket_is_rolled_back_and_forward(command: Command) -> None:
    command("bucket", "create", "back3")
    command("put", __file__, "back3:x")
    command("snapshot", "create", "back3", "one")
    command("rm", "back3:x")
    command("put", __file__, "back3:y")
    assert "--yes" in command("snapshot", "rollback", "back3@one", code=64).err
    done = command("snapshot", "rollback", "back3@one", "--yes", "--json").json()
    assert (done["added"], done["changed"], done["removed"]) == (1, 0, 1)
    assert command("ls", "back3").out == "x\n"
    command(*shlex.split(done["undo"])[1:], "--yes")
    assert command("ls", "back3").out == "y\n"
    assert "Nothing was changed" in command("snapshot", "rollback", f"back3@{done['safety']}").out
    command("snapshot", "rollback", "back3@one:x", "--yes", code=64)
    command("snapshot", "rollback", "back3", "--yes", code=64)
    assert "no snapshot 'two'" in command("snapshot", "rollback", "back3@two", "--yes", code=66).err


def test_a_held_snapshot_is_released_before_it_is_deleted(command: Command) -> None:
    command("bucket", "create", "hold1")
    command("snapshot", "create", "hold1", "kept")
    command("snapshot", "hold", "hold1", "other", code=66)
    assert command("snapshot", "hold", "hold1", "kept", "--json").json()["held"] is True
    assert command("snapshot", "list", "hold1").out.splitlines()[1].endswith("held")
    refused = command("snapshot", "delete", "hold1", "kept", "--yes", code=65).err
    assert "is held" in refused
    assert "blockstore snapshot release" in refused
    assert "'kept' of bucket 'hold1' is held" in command("bucket", "delete", "hold1", "--yes", code=65).err
    command("snapshot", "release", "hold1", "kept")
    assert command("snapshot", "list", "hold1", "--json").json()["snapshots"][0]["held"] is False
    command("snapshot", "delete", "hold1", "kept", "--yes")
    command("snapshot", "create", "hold1", "kept")
    command("snapshot", "hold", "hold1", "kept")
    command("bucket", "delete", "hold1", "--yes", "--even-held")


def test_status_says_first_how_the_data_is(command: Command) -> None:
    command.until_whole()
    told = command("cluster", "status")
    assert "data" in told.out.splitlines()[0]
    status = command("cluster", "status", "--json").json()
    assert (status["severity"], len(status["nodes"])) == (0, 3)
    assert all(node["live"] for node in status["nodes"])
    assert sum(node["leader"] for node in status["nodes"]) == 1
    assert len(command("node", "list", "--json").json()["nodes"]) == 3
    assert command("node", "show", "2", "--json").json()["id"] == 2
    assert "no node 9" in command("node", "show", "9", code=66).err
    assert command("cluster", "events", "--json").lines()


def test_nobody_there_is_data_at_risk(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockstore_cli.cluster.STATUS_SECONDS", 1.0)
    told = command("cluster", "status", "--store", "tcp://127.0.0.1:9", "--json", code=2)
    assert told.json()["severity"] == 2


def test_a_role_that_may_read_may_not_write(
    command: Command, configured: LocalCluster, tmp_path: Path
) -> None:
    command("bucket", "create", "c1")
    command("put", __file__, "c1:x")
    made = command(
        "credential", "create", "reader", "--role", "read", "--out", tmp_path / "r.pem", "--json"
    ).json()
    assert (made["name"], made["role"]) == ("reader", "read")
    assert (tmp_path / "r.pem").stat().st_mode & 0o077 == 0
    mine = ("--credentials", tmp_path / "r.pem")
    assert command("ls", "c1", *mine).out == "x\n"
    command("put", __file__, "c1:y", *mine, code=77)
    command("bucket", "create", "c2", *mine, code=77)
    command("credential", "revoke", "reader", code=64)
    command("credential", "revoke", "reader", "--yes")
    command("ls", "c1", *mine, code=77)
    listed = command("credential", "list", "--json").json()["credentials"]
    assert [one["revoked"] for one in listed if one["name"] == "reader"] == [True]


def test_ctrl_c_ends_what_waits_quietly() -> None:
    following = [sys.executable, "-m", "blockstore_cli.main", "cluster", "events", "--follow"]
    with subprocess.Popen(following, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()  # it is at work
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told.strip()) == (130, "Interrupted.")


def test_a_reader_that_has_gone_is_no_catastrophe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    listing = [sys.executable, "-m", "blockstore_cli.main", "node", "list"]
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(
            listing, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert done.returncode != 0
    assert done.stderr == ""


def test_an_embedded_store_is_spoken_to_in_the_same_way(command: Command, tmp_path: Path) -> None:
    mine = ("--store", tmp_path / "store")
    command("bucket", "create", "e1", *mine)
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for name in ("a", "d/1", "d/2"):
        (source / name).write_bytes(os.urandom(200_000))
    command("cp", "-r", source, "e1:", *mine)
    command("snapshot", "create", "e1", "s", *mine)
    command("rm", "-r", "e1:d", "--yes", *mine)
    assert command("ls", "-r", "e1", *mine).out == "a\n"
    command("cp", "-r", "e1@s:", tmp_path / "back", *mine)
    assert tree_of(tmp_path / "back") == tree_of(source)
    status = command("cluster", "status", "--json", *mine, code=0).json()
    assert len(status["nodes"]) == 1
    command("cluster", "join", tmp_path / "n", *mine, code=64)
