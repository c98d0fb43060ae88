"""Where a store is said to be, and what is said when that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockstore.api.location import Cluster, Directories, parse_seeds, resolve
from blockstore.api.opening import check_directories
from blockstore.errors import InvalidRequest, NotAStore
from blockstore.runtime.interfaces import Address


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def write_config(tmp_path: Path, text: str) -> None:
    folder = tmp_path / ".config" / "blockstore"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(text)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("tcp://10.0.0.1:7441", [("10.0.0.1", 7441)]),
        ("tcp://a:1,b:2, c:3", [("a", 1), ("b", 2), ("c", 3)]),
        ("tcp://host", [("host", 7440)]),
        ("tcp://host/", [("host", 7440)]),
        ("tcp://[::1]:7440,[fe80::1]", [("::1", 7440), ("fe80::1", 7440)]),
    ],
)
def test_addresses(text: str, seeds: list[tuple[str, int]]) -> None:
    assert parse_seeds(text) == tuple(Address(host, port) for host, port in seeds)


@pytest.mark.parametrize(
    "text",
    [
        "tcp://", "tcp://:7440", "tcp://a:", "tcp://a:0", "tcp://a:65536", "tcp://a:x", "tcp://a:-1", "tcp://a:٣",
        "tcp://a,", "tcp://::1:7440", "tcp://[::1:7440", "tcp://a b:1", "tcp://u@a:1", "tcp://a/path", "tcp://[]:1",
    ],
)  # fmt: skip
def test_malformed_addresses_are_shown_with_a_good_one(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is not an address; write it like tcp://10\.0\.0\.1:7440"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["http://a:1", "://a", "unix:///run/x"])
def test_other_schemes(text: str) -> None:
    with pytest.raises(InvalidRequest, match="reached over tcp://"):
        resolve(text)


def test_what_the_caller_says_goes_before_environment_and_file(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    write_config(tmp_path, 'store = "tcp://file:1"\ncredentials = "file.pem"\n')
    assert resolve(None, None, environment) == Cluster((Address("file", 1),), "file.pem")
    environment |= {"BLOCKSTORE": "tcp://env:2", "BLOCKSTORE_CREDENTIALS": "env.pem"}
    assert resolve(None, None, environment) == Cluster((Address("env", 2),), "env.pem")
    assert resolve("tcp://said:3", Path("said.pem"), environment) == Cluster(
        (Address("said", 3),), "said.pem"
    )
    assert resolve("./data", None, environment) == Directories((Path("data"),))


def test_several_directories_are_several_disks() -> None:
    assert resolve(["/a", Path("/b")]) == Directories((Path("/a"), Path("/b")))
    for wrong, says in (
        ([], "at least one"),
        (["/a", "/a"], "named twice"),
        (["tcp://a:1", "/b"], "several"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            resolve(wrong)


def test_no_location_at_all_says_how_to_give_one(environment: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match=r"Say a directory or tcp://.*BLOCKSTORE.*config\.toml"):
        resolve(None, None, environment)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("store = ", "cannot be read"),
        ("stroe = 'x'", "stroe means nothing"),
        ("store = 7", "store means nothing"),
    ],
)
def test_a_wrong_configuration_is_named(
    tmp_path: Path, environment: dict[str, str], text: str, says: str
) -> None:
    write_config(tmp_path, text)
    with pytest.raises(InvalidRequest, match=says):
        resolve(None, None, environment)


def test_a_misspelled_variable_is_named(environment: dict[str, str]) -> None:
    environment |= {"BLOCKSTORE": "tcp://a:1", "BLOCKSTORE_PORT": "tcp://10.0.0.1:7440", "BLOCKSTORES": "x"}
    environment["BLOCKSTORE_SERVICE_HOST"] = "10.0.0.1"
    assert resolve(None, None, environment) == Cluster((Address("a", 1),), None)
    environment["BLOCKSTORE_CREDENTIAL"] = "key.pem"
    with pytest.raises(InvalidRequest, match="BLOCKSTORE_CREDENTIAL, which means nothing"):
        resolve(None, None, environment)


def test_a_store_is_made_only_where_nothing_else_is(tmp_path: Path) -> None:
    place = Directories((tmp_path / "new",))
    check_directories(place, create=True)
    with pytest.raises(NotAStore, match="it does not exist"):
        check_directories(place, create=False)
    (tmp_path / "new").mkdir()
    check_directories(place, create=True)
    with pytest.raises(NotAStore, match="no store in it"):
        check_directories(place, create=False)
    (tmp_path / "new" / "thesis.tex").touch()
    with pytest.raises(NotAStore, match=r"holds other things \(thesis\.tex\)"):
        check_directories(place, create=True)
    with pytest.raises(NotAStore, match="not a directory"):
        check_directories(Directories((tmp_path / "new" / "thesis.tex",)), create=True)
