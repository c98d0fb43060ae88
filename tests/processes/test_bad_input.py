"""Bad input at every door of the command: each is refused in a sentence with a next step and its documented
exit code, and what was stored before is still there, as it was.

Against one embedded store; what only a cluster can refuse, against a cluster.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

import blockstore
from blockstore.daemon.local_cluster import LocalCluster, free_ports
from blockstore.errors import BlockStoreError
from blockstore.ids import MiB
from blockstore_cli import main

CONTENT = b"kept" * 1_000
SECONDS = 60.0
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded store whose bucket `b` holds `kept`, `d/..` and a snapshot `s`."""
    folder = tmp_path_factory.mktemp("embedded") / "store"
    with blockstore.open(folder) as opened:
        bucket = opened.create_bucket("b")
        bucket.put("kept", CONTENT)
        bucket.put("d/..", CONTENT)
        bucket.snapshot("s")
    return folder


@pytest.fixture
def here(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a file, a folder, a pipe, a dangling link, a folder with something in it."""
    monkeypatch.setenv("BLOCKSTORE", str(store))
    monkeypatch.delenv("BLOCKSTORE_CREDENTIALS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    work = tmp_path / "work"
    (work / "folder").mkdir(parents=True)
    (work / "full").mkdir()
    (work / "full" / "precious").write_bytes(CONTENT)
    (work / "file").write_bytes(CONTENT)
    (work / "dangling").symlink_to("nowhere")
    os.mkfifo(work / "pipe")
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def refuse(code: int, *line: str) -> str:
        """What the command said: one sentence (or a few on one line), and what to do next."""
        assert main.run(list(line)) == code, capsys.readouterr().err
        told = capsys.readouterr()
        assert told.out == ""
        assert len(told.err.splitlines()) == 2, told.err
        sentence, next_step = told.err.splitlines()
        assert sentence
        assert next_step.endswith(".")
        assert told.err.isprintable() or set(filter(lambda char: not char.isprintable(), told.err)) == {"\n"}
        assert main.run([*line, "--json"] if "--" not in line else ["--json", *line]) == code
        told = capsys.readouterr()
        facts = json.loads(told.err)
        assert (told.out, facts["next_step"]) == ("", next_step)
        assert facts["error"]
        return sentence

    return refuse


def everything_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def listed(location: Path | str) -> dict[str, bytes]:
    with blockstore.open(location, create=False) as opened:
        bucket = opened.bucket("b")
        return {entry.name: bucket.get(entry.name) for entry in bucket.list()}


NAMES_OF_VOLUMES = ["", "..", ".", "a b", "a/b", "A", "ü", "a\nb", "a\x1b[2J", "n" * 64, "a:b", "a@b", "-a"]

LINES: list[tuple[str, int, str]] = [
    # objects that are not there, and what names none
    ("get b:missing", 66, "no object 'missing' in bucket 'b'"),
    ("get b: out", 64, "names no object"),
    ("get b out", 64, "names no object"),
    ("get :x", 64, "names no object"),
    ("get b@:x", 64, "names no object"),
    ("get none:x", 66, "no bucket 'none'"),
    ("get b@none:x", 66, "no snapshot 'none' of bucket 'b'"),
    ("ls none", 66, "no bucket 'none'"),
    ("ls b@none", 66, "no snapshot 'none'"),
    ("ls b/x", 64, "cannot name a bucket"),
    ("rm b", 64, "a whole bucket"),
    ("rm b@s:kept", 64, "never changes"),
    ("rm b:missing", 66, "no object 'missing'"),
    ("rm none:x", 66, "no bucket 'none'"),
    ("rm -r b:missing", 66, "no object below 'b:missing'"),
    ("rm -r b:", 64, "--yes"),
    ("bucket show none", 66, "no bucket 'none'"),
    ("bucket delete none --yes", 66, "no bucket 'none'"),
    ("bucket delete b", 64, "--yes"),
    ("bucket create b", 73, "already a bucket 'b'"),
    ("bucket create b --exist-ok --policy replicated(2,domain=disk)", 73, "not replicated(2"),
    ("bucket create c --policy ec(4,2)", 64, "replicated(1"),
    ("bucket create c --policy ec(0,0)", 64, "ec(0,0)"),
    ("bucket create c --policy raid5", 64, "not a policy"),
    ("snapshot create none s", 66, "no bucket 'none'"),
    ("snapshot create b s", 73, "already a snapshot 's'"),
    ("snapshot list none", 66, "no bucket 'none'"),
    ("snapshot delete b none --yes", 66, "no snapshot 'none'"),
    ("snapshot delete b s", 64, "--yes"),
    ("node show 99", 66, "no node 99"),
    ("credential create x --role read", 64, "runs without credentials"),
    # ranges and preconditions
    ("get b:kept out --start 4001", 64, "it has 4000 bytes"),
    ("get b:kept out --start 4611686018427387904", 64, "it has 4000 bytes"),
    ("get b:kept out --start 9 --end 8", 64, "--end 8 lies before --start 9"),
    ("get b:kept out --start -1", 64, "-1 is not in the range"),
    ("get b:kept out --end 99999999999999999999999", 64, "not in the range"),
    ("put file b:kept --if-absent", 65, "b"),
    ("put file b:kept --if-etag 1-00000000", 65, "b"),
    ("put file b:kept --if-etag frob", 64, "not an etag"),
    ("put file b:kept --if-etag 1-00000000 --if-absent", 64, "exclude each other"),
    ("put file b:kept --meta x", 64, "KEY=VALUE"),
    ("put file b:kept --meta =x", 64, "KEY=VALUE"),
    ("put file b:kept --meta x=1 --meta x=2", 64, "given twice"),
    # files
    ("put missing b:x", 64, "No such file"),
    ("put dangling b:x", 64, "No such file"),
    ("put folder b:x", 64, "is a directory; say cp -r"),
    ("put pipe b:x", 64, "not a regular file"),
    ("put /dev/zero b:x", 64, "not a regular file"),
    ("put file none:x", 66, "no bucket 'none'"),
    ("put file b@s:x", 64, "never changes"),
    ("put - b:", 64, "names no object"),
    ("get b:kept file/below", 64, "a link or a file where a folder is needed"),
    ("get b:d/.. folder", 64, "gives no file name"),
    ("get b:d/.. .", 64, "gives no file name"),
    ("cp file other", 64, "exactly one of the two"),
    ("cp b:kept b:other", 64, "exactly one of the two"),
    ("cp -r file b:", 64, "leave -r out"),
    ("cp -r missing b:", 64, "missing does not exist"),
    ("cp -r full none:", 66, "no bucket 'none'"),
    ("cp -r b:missing folder", 66, "no object below 'b:missing'"),
    ("cp -r b: folder", 64, "1 of 2 cannot be copied"),
    ("cp -r b:kept file", 66, "no object below"),
    # where a store is, and where none is
    ("ls --store missing", 66, "it does not exist"),
    ("ls --store full", 66, "no store in it"),
    ("ls --store folder", 66, "no store in it"),
    ("ls --store file", 66, "not a directory"),
    ("ls --store http://x", 64, "tcp://"),
    ("ls --store tcp://", 64, "not an address"),
    ("ls --store tcp://:7440", 64, "not an address"),
    ("ls --store tcp://h:0", 64, "not an address"),
    ("ls --store tcp://h:70000", 64, "not an address"),
    ("ls --store tcp://h:x", 64, "not an address"),
    ("ls --store tcp://[::1", 64, "not an address"),
    ("ls --store tcp://h --credentials missing", 64, "no credential file"),
    ("ls --store tcp://h --credentials folder", 64, "not a file"),
    ("ls --store tcp://h --credentials file", 77, "others can use it"),
    ("bucket create c --store full", 66, "holds other things (precious)"),
    ("bucket create c --store file", 66, "not a directory"),
    ("bucket create c --store file/below", 64, "Not a directory"),
    # clusters and nodes
    ("cluster init full", 66, "is not empty"),
    ("cluster init file/below", 64, "Not a directory"),
    ("cluster init n --listen frob", 64, "no address to listen on"),
    ("cluster init n --listen 127.0.0.1:0", 64, "no address to listen on"),
    ("cluster init n --listen 127.0.0.1:65535", 64, "port 65536"),
    ("cluster init n --listen 127.0.0.1:7000 --bus-port 7000", 64, "port 7000 beside 7000"),
    ("cluster init n --plain --listen 0.0.0.0:7440", 64, "loopback only"),
    ("cluster init n --disk file", 66, "is not a directory"),
    ("cluster init n --disk full", 66, "is not empty"),
    ("cluster init n --name x/y", 64, "cannot be a name"),
    ("cluster init n --credentials-out file", 73, "already a file file"),
    ("cluster init n --credentials-out folder", 73, "already a file folder"),
    ("cluster join n", 64, "is an embedded store"),
    ("node start missing", 66, "does not exist"),
    ("node start full", 66, "no node.json"),
    ("dev --dir full", 66, "holds something else"),
    ("dev --dir file/below", 64, "Not a directory"),
    ("demo --dir full", 66, "holds something else"),
]


@pytest.mark.parametrize(("line", "code", "words"), LINES, ids=[line for line, _, _ in LINES])
def test_a_line_is_refused(
    line: str, code: int, words: str, here: Path, store: Path, request: pytest.FixtureRequest
) -> None:
    before = everything_in(here / "full"), os.listdir(here)
    if line.startswith("demo"):  # it tells first what it is about to do
        assert main.run(line.split()) == code
    else:
        refuse: Refused = request.getfixturevalue("refused")
        assert words in refuse(code, *line.split())
    assert (everything_in(here / "full"), os.listdir(here)) == before, "nothing was made, nothing touched"
    assert listed(store) == {"kept": CONTENT, "d/..": CONTENT}


@pytest.mark.parametrize("name", NAMES_OF_VOLUMES)
def test_a_name_that_is_none_makes_no_bucket(name: str, here: Path, refused: Refused) -> None:
    assert "cannot name a bucket" in refused(64, "bucket", "create", "--", name)
    with blockstore.open(os.environ["BLOCKSTORE"]) as opened:
        assert [bucket.name for bucket in opened.buckets()] == ["b"]


@pytest.mark.parametrize("name", ["", "..", "a b", "a/b", "ü", "a\nb", "n" * 129, "a:b", "a@b"])
def test_a_name_that_is_none_makes_no_snapshot(name: str, here: Path, refused: Refused) -> None:
    assert "cannot name a snapshot" in refused(64, "snapshot", "create", "b", "--", name)
    with blockstore.open(os.environ["BLOCKSTORE"]) as opened:
        assert [one.name for one in opened.bucket("b").snapshots()] == ["s"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n" * 1_025, "the most is 1024"),
        ("ü" * 513, "the most is 1024"),
        ("bad\udcff", "is not UTF-8"),
        ("a\0b", "a NUL"),
    ],
)
def test_a_name_that_is_none_names_no_object(name: str, words: str, here: Path, refused: Refused) -> None:
    for line in (["put", "file", f"b:{name}"], ["get", f"b:{name}", "out"], ["rm", f"b:{name}"]):
        assert words in refused(64, *line)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "name", ["..", ".", "/abs", "a//b", "../x", "a\nb", "a\x1b[2J", "🐍" * 256, "n" * 1_024]
)
def test_any_other_text_names_an_object_and_reaches_no_terminal_raw(
    name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["put", "file", f"b:{name}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == name
    assert main.run(["put", "file", f"b:{name}"]) == 0
    assert main.run(["ls", "-r", "b"]) == 0
    assert set(filter(lambda char: not char.isprintable(), capsys.readouterr().out)) == {"\n"}
    assert main.run(["get", f"b:{name}", "out"]) == 0
    assert main.run(["rm", f"b:{name}"]) == 0
    assert (here / "out").read_bytes() == CONTENT


def test_removing_goes_on_past_what_is_not_there(
    here: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1", "2"):
        assert main.run(["put", "file", f"b:{name}"]) == 0
    assert main.run(["rm", "b:1", "none:x", "b:2"]) == 66
    assert set(listed(store)) == {"kept", "d/..", "1", "2"}, "a bucket that is not there is said first"
    capsys.readouterr()
    assert main.run(["rm", "b:1", "b:gone", "b:2", "b:gone-too"]) == 66
    told = capsys.readouterr().err
    assert "no object 'gone' in bucket 'b' (and 1 more of those named); the other 2 were deleted" in told
    assert listed(store) == {"kept": CONTENT, "d/..": CONTENT}


# --- directories that cannot be used


def test_a_store_that_another_process_has_open_is_left_alone(
    here: Path, store: Path, refused: Refused
) -> None:
    with blockstore.open(store):
        assert f"in use by process {os.getpid()}" in refused(75, "ls", "b")


def test_a_file_in_the_way_of_a_store_is_not_harmed(here: Path, refused: Refused) -> None:
    (here / "s").mkdir()
    (here / "s" / "node.json").write_text("{}")
    assert "cannot be understood" in refused(66, "ls", "--store", "s")
    (here / "s" / "node.json").unlink()
    (here / "s" / "node.json").mkdir()
    assert "s" in refused(64, "ls", "--store", "s")


@contextmanager
def mounted(folder: Path, *options: str) -> Generator[Path]:
    """A small file system of its own at `folder`; skipped where this user may mount none."""
    folder.mkdir()
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_directory_is_said(here: Path, refused: Refused) -> None:
    with mounted(here / "ro", "-t", "tmpfs", "-o", "ro", "tmpfs"):
        for line in (
            "bucket create c --store ro", "bucket create c --store ro/s", "cluster init ro/n",
            "dev --dir ro/d", "bench --dir ro", "get b:kept ro/out",
        ):  # fmt: skip
            code = 64 if line.startswith("get") else 77
            assert "Read-only file system" in refused(code, *line.split())


def test_a_full_disk_is_said_before_anything_is_stored(here: Path, store: Path, refused: Refused) -> None:
    with mounted(here / "small", "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        for line in (
            "bucket create c --store small/s",
            "cluster init small/n",
            "dev --nodes 1 --dir small/d",
        ):
            assert "No space left" in refused(74, *line.split())
            assert refused(66, "ls", "--store", line.split()[-1]), "no store was made, and none seems to be"
        (here / "small" / "ballast").write_bytes(b"x" * (64 * 1024 - 8192))
        with blockstore.open(store) as opened:
            opened.bucket("b").put("large", os.urandom(MiB))
        assert "No space left" in refused(74, "get", "b:large", "small/out")
        assert not (here / "small" / "out").exists()
        assert not list((here / "small").glob(".blockstore-part-*"))
        with blockstore.open(store) as opened:
            opened.bucket("b").delete("large")


# --- addresses


def test_nobody_at_an_address_is_said(here: Path, refused: Refused) -> None:
    port = free_ports(1)
    said = refused(75, "ls", "--store", f"tcp://127.0.0.1:{port}")
    assert f"Nobody answers at tcp://127.0.0.1:{port}" in said
    assert "Connection refused" in said


def test_a_port_in_use_stops_what_would_listen_there(
    here: Path, configured: LocalCluster, refused: Refused
) -> None:
    port = free_ports(2)
    nodes = len(_nodes(configured))
    with socket.create_server(("127.0.0.1", port)):
        for line in (
            f"dev --nodes 1 --port {port}", f"cluster join n --listen 127.0.0.1:{port}",
            f"cluster join n --listen 127.0.0.1:{port + 2} --bus-port {port}",
        ):  # fmt: skip
            assert f"127.0.0.1:{port} is already in use" in refused(69, *line.split())
    assert "Nothing can listen on 192.0.2.1" in refused(
        64, "cluster", "join", "n", "--listen", f"192.0.2.1:{port}"
    )
    assert not (here / "n").exists()
    assert len(_nodes(configured)) == nodes


def _nodes(cluster: LocalCluster) -> tuple[blockstore.NodeStatus, ...]:
    with blockstore.connect(cluster.location, credentials=cluster.credentials) as opened:
        return tuple(opened.status().nodes)


def test_a_cluster_with_keys_wants_one(
    here: Path,
    configured: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: Refused,
) -> None:
    assert main.run(["cluster", "init", "other", "--listen", f"127.0.0.1:{free_ports(1)}", "--json"]) == 0
    capsys.readouterr()
    assert refused(77, "ls", "--credentials", "other/admin.pem")
    assert "file file" in refused(73, "credential", "create", "x", "--role", "read", "--out", "file")
    assert (here / "file").read_bytes() == CONTENT
    assert refused(66, "credential", "revoke", "nobody", "--yes")
    monkeypatch.delenv("BLOCKSTORE_CREDENTIALS")
    assert "needs credentials" in refused(75, "ls")


# --- Ctrl-C in the middle


@pytest.mark.parametrize("line", ["put - b:half", "put huge b:half", "cp -r tree b:half", "cp -r tree b:"])
def test_ctrl_c_leaves_nothing_half_stored(line: str, here: Path, configured: LocalCluster) -> None:
    """The input is a pipe or a sparse file of more than can have been stored by then."""
    (here / "tree").mkdir()
    for path in (here / "huge", here / "tree" / "half"):
        with path.open("wb") as file:
            file.truncate(64 * 1024 * MiB)
    with blockstore.connect(configured.location, credentials=configured.credentials) as opened:
        bucket = opened.create_bucket("b", exist_ok=True)
        bucket.put("kept", CONTENT)
        with (
            open("/dev/zero", "rb") as endless,
            subprocess.Popen(
                [sys.executable, "-m", "blockstore_cli.main", *line.split()],
                stdin=endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ) as process,
        ):  # fmt: skip
            before = int(bucket.facts()["chunks"])
            while int(bucket.facts()["chunks"]) == before:  # until it has begun to store
                assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out, err.strip()) == (130, "", "Interrupted.")
        assert [entry.name for entry in bucket.list()] == ["kept"]
        assert bucket.get("kept") == CONTENT


def test_ctrl_c_leaves_no_half_file(here: Path, configured: LocalCluster) -> None:
    """A file that was there stays what it was, until the new one is whole."""
    with blockstore.connect(configured.location, credentials=configured.credentials) as opened:
        opened.create_bucket("b", exist_ok=True).put("large", io.BytesIO(bytes(256 * MiB)))
        (here / "out").write_bytes(CONTENT)
        command = [sys.executable, "-m", "blockstore_cli.main", "get", "b:large", "out"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while not list(here.glob(".blockstore-part-*")):
                assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out, err.strip()) == (130, "", "Interrupted.")
        assert (here / "out").read_bytes() == CONTENT
        assert not list(here.glob(".blockstore-part-*"))
        opened.bucket("b").delete("large")


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    documented = {
        int(row.split("|")[1]) for row in text.splitlines() if row.startswith("| ") and row[2].isdigit()
    }

    def below(kind: type[BlockStoreError]) -> set[int]:
        return {kind.exit_code}.union(*(below(child) for child in kind.__subclasses__()))

    assert below(BlockStoreError) | {0, 1, 2, 130} == documented
