"""Copying out must never write outside the target, whatever the names and whatever lies in the target."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockstore.errors import InvalidRequest
from blockstore_cli.tree import (
    PART_PREFIX,
    Download,
    TargetTree,
    Upload,
    plan_downloads,
    plan_uploads,
    refuse,
    regular_file,
)


def write(tree: TargetTree, *parts: str, content: bytes = b"x") -> None:
    with tree.create(parts) as file:
        file.write(content)
        file.finish()


def everything_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_uploads_are_all_regular_files_under_the_prefix(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two").write_bytes(b"22")
    (tmp_path / "a").write_bytes(b"1")
    uploads, refused = plan_uploads(tmp_path, "2026")
    assert uploads == [Upload(tmp_path / "a", "2026/a", 1), Upload(tmp_path / "b" / "two", "2026/b/two", 2)]
    assert not refused


def test_links_and_special_files_are_not_followed_but_named(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "out").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    uploads, refused = plan_uploads(tmp_path, "")
    assert not uploads
    assert refused == [
        (str(tmp_path / "loop"), "a symbolic link"),
        (str(tmp_path / "out"), "a symbolic link"),
        (str(tmp_path / "pipe"), "not a regular file"),
    ]


def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff", "wb"):
        pass
    _, refused = plan_uploads(tmp_path, "")
    assert [reason for _, reason in refused] == ["its name is not UTF-8"]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "a/",
        ".",
        "..",
        "a/./b",
        "a\0b",
        "a/" + "n" * 256,
        PART_PREFIX + "1",
    ],
)
def test_names_that_are_no_paths_are_refused(name: str) -> None:
    downloads, refused = plan_downloads([(name, 1), ("fine", 2)], "")
    assert downloads == [Download("fine", ("fine",), 2)]
    assert [refused_name for refused_name, _ in refused] == [name]


def test_the_prefix_that_was_put_in_front_is_cut_off() -> None:
    for prefix in ("2026", "2026/"):
        downloads, _ = plan_downloads([("2026/a/b", 1)], prefix)
        assert downloads == [Download("2026/a/b", ("a", "b"), 1)]


def test_an_object_that_is_also_a_folder_is_refused() -> None:
    downloads, refused = plan_downloads([("a", 1), ("a/b", 2), ("a/b/c", 3)], "")
    assert [item.name for item in downloads] == ["a/b/c"]
    assert [name for name, _ in refused] == ["a", "a/b"]


def test_the_refusal_names_a_few_and_counts_the_rest() -> None:
    text = str(refuse([(f"../{number}", "bad") for number in range(8)], 12))
    assert "8 of 20" in text
    assert "../4" in text
    assert "../5" not in text
    assert "and 3 more" in text


def test_files_appear_whole_in_their_folders(tmp_path: Path) -> None:
    with TargetTree(tmp_path / "new" / "target") as tree:
        write(tree, "a", "b", "c", content=b"deep")
        write(tree, "top", content=b"flat")
        write(tree, "a", "b", "d", content=b"deep too")
        write(tree, "top", content=b"again")
    assert everything_in(tmp_path / "new" / "target") == {
        "a/b/c": b"deep",
        "a/b/d": b"deep too",
        "top": b"again",
    }


def test_a_file_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before")
    with TargetTree(tmp_path) as tree:
        with tree.create(("x",)) as file:
            file.write(b"half")
        assert everything_in(tmp_path) == {"x": b"before"}


def test_a_folder_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").symlink_to(outside)
    with TargetTree(target) as tree, pytest.raises(InvalidRequest, match="nothing goes through it"):
        write(tree, "a", "x")
    assert everything_in(outside) == {}


def test_a_link_that_has_the_files_name_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"keep me")
    target = tmp_path / "target"
    target.mkdir()
    (target / "x").symlink_to(outside)
    with TargetTree(target) as tree:
        write(tree, "x", content=b"new")
    assert outside.read_bytes() == b"keep me"
    assert not (target / "x").is_symlink()
    assert (target / "x").read_bytes() == b"new"


def test_a_folder_replaced_by_a_link_meanwhile_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    with TargetTree(target) as tree:
        write(tree, "a", "1")
        (target / "a").rename(tmp_path / "moved")
        (target / "a").symlink_to(outside)
        write(tree, "b", "1")
        with pytest.raises(InvalidRequest):
            write(tree, "a", "2")
    assert everything_in(outside) == {}


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with TargetTree(tmp_path) as tree, pytest.raises(InvalidRequest, match="where a folder is needed"):
        write(tree, "a", "x")


def test_only_regular_files_are_put(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    assert regular_file(tmp_path / "x") == 3
    with pytest.raises(InvalidRequest, match="cp -r"):
        regular_file(tmp_path)
    with pytest.raises(InvalidRequest, match="No such file"):
        regular_file(tmp_path / "missing")
    with pytest.raises(InvalidRequest, match="not a regular file"):
        regular_file(Path("/dev/null"))
