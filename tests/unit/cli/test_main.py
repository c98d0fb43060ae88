"""How the command is spoken to, and how it fails: sentences, next steps, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from blockstore.errors import InvalidRequest, NotFound
from blockstore_cli import main
from blockstore_cli.settings import Settings


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def visit(command: click.Command, path: tuple[str, ...]) -> None:
        found.append(path)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                visit(below, (*path, name))

    visit(main.root, ())
    return found


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BLOCKSTORE", raising=False)
    monkeypatch.delenv("BLOCKSTORE_CREDENTIALS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_help_says_what_it_does_and_a_verb_has_an_example(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: {' '.join(('blockstore', *path))}")
    if "Commands:" not in text:
        assert f"Example:\n    blockstore {' '.join(path)}" in text
        assert "--json" in text


SENSELESS = {
    "frobnicate": "blockstore",
    "bucket frobnicate": "blockstore bucket",
    "bucket create": "blockstore bucket create",
    "ls --frob": "blockstore ls",
    "node show x": "blockstore node show",
    "get b:x --start -1": "blockstore get",
    "get b:x --start 1e3": "blockstore get",
    "put x": "blockstore put",
    "ls b extra": "blockstore ls",
    "dev --nodes 0": "blockstore dev",
    "dev --port 80": "blockstore dev",
    "bench --objects 3": "blockstore bench",
    "cluster init d --bus-port 70000": "blockstore cluster init",
    "completion tcsh": "blockstore completion",
}


@pytest.mark.parametrize("line", SENSELESS)
def test_a_line_that_makes_no_sense_is_a_sentence_and_where_to_look(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(line.split()) == 64
    told = capsys.readouterr()
    sentence, next_step = told.err.splitlines()
    assert sentence.endswith((".", ")"))
    assert (told.out, next_step) == ("", f"See `{SENSELESS[line]} --help`.")
    assert main.run([*line.split(), "--json"]) == 64
    told = capsys.readouterr()
    facts = {"error": "InvalidRequest", "message": sentence, "next_step": next_step}
    assert (told.out, json.loads(told.err)) == ("", facts)


@pytest.mark.parametrize("option", ["--store", "--credentials"])
def test_an_option_that_a_script_left_empty_is_not_the_default(
    option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BLOCKSTORE", str(tmp_path))
    assert main.run(["rm", "-r", "b:", "--yes", option, ""]) == 64
    assert f"{option}': it is empty." in capsys.readouterr().err


def test_without_a_store_the_ways_to_name_one_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ls"]) == InvalidRequest.exit_code
    assert "Which store?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", [["--json", "ls", "photos"], ["ls", "--json", "photos"], ["ls", "photos", "--json"]]
)
def test_json_may_stand_anywhere_and_errors_are_json_too(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(line) == 64
    told = capsys.readouterr()
    assert told.out == ""
    assert json.loads(told.err)["error"] == "InvalidRequest"


def test_a_directory_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["--store", str(tmp_path / "typo"), "ls"]) == 66
    assert "is not a store: it does not exist" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


def test_ctrl_c_is_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Settings, *, create: bool = False) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(Settings, "open", interrupted)
    assert main.run(["ls"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_errors_of_the_store_give_sentence_next_step_and_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(self: Settings, *, create: bool = False) -> object:
        raise NotFound("bucket 'photos'")

    monkeypatch.setattr(Settings, "open", missing)
    assert main.run(["ls", "photos"]) == 66
    assert capsys.readouterr().err == f"There is no bucket 'photos'.\n{NotFound.next_step}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_for_our_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["completion", shell]) == 0
    assert "_BLOCKSTORE_COMPLETE" in capsys.readouterr().out


def test_copying_is_between_files_and_a_bucket(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["cp", "-r", "a", "b"]) == 64
    assert main.run(["cp", "-r", "a:x", "b:y"]) == 64
    assert "exactly one of the two" in capsys.readouterr().err
