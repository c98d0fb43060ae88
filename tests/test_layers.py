"""Reads every import there is and checks the order of the layers (docs/design/overview.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = (
    "errors", "ids", "config", "version", "runtime", "codec", "placement", "consensus", "control", "node",
    "chunk", "volume", "kinds", "daemon", "api", "gateway",
)  # fmt: skip
"""Lowest first: a module imports from its own layer and from those before it."""

FACADES = {"blockstore/__init__.py", "blockstore/aio.py"}
"""They name what programs use: the classes of api/, and the values that these return."""

FACADES_NAME = {"aio", "api", "errors", "kinds", "codec"}

TRIO_LAYERS = {"runtime", "daemon", "api", "gateway"}
"""Elsewhere only `*_shell.py` may know trio: what decides is pure."""

COMMAND_IMPORTS = {"", "aio", "api", "errors", "ids", "config", "daemon"}
"""What the command may use of the library: the public API, errors, units, and the daemons it starts."""

LIBRARY = sorted((ROOT / "blockstore").rglob("*.py"))
COMMAND = sorted((ROOT / "cli" / "blockstore_cli").rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of each module that a file imports; those only for type checkers count too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the whole name"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def layer_of(name: str) -> str:
    """`blockstore.codec.frame` -> `codec`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def show(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", LIBRARY, ids=show)
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    if show(path) in FACADES:
        allowed = FACADES_NAME
    else:
        mine = path.relative_to(ROOT / "blockstore").parts[0].removesuffix(".py")
        assert mine in LAYERS, f"{show(path)}: which layer is this?"
        allowed = set(LAYERS[: LAYERS.index(mine) + 1])
        if mine == "runtime":
            allowed -= {"codec"}
    for line, name in imported(path):
        top = name.split(".")[0]
        assert top not in {"blockstore_cli", "chaos", "tests"}, (
            f"{show(path)}:{line}: the library imports {name}"
        )
        if top == "blockstore":
            assert layer_of(name) in allowed, f"{show(path)}:{line}: imports {name}, which is not below it"


@pytest.mark.parametrize("path", LIBRARY, ids=show)
def test_only_shells_import_trio(path: Path) -> None:
    parts = path.relative_to(ROOT / "blockstore").parts
    if parts[0] in TRIO_LAYERS or path.name.endswith("_shell.py") or show(path) in FACADES:
        return
    for line, name in imported(path):
        assert name.split(".")[0] not in {"trio", "zmq", "socket", "ssl"}, (
            f"{show(path)}:{line}: imports {name}"
        )


@pytest.mark.parametrize("path", COMMAND, ids=show)
def test_the_command_uses_only_the_public_api_and_the_daemons(path: Path) -> None:
    for line, name in imported(path):
        if name.split(".")[0] != "blockstore":
            continue
        layer = layer_of(name)
        is_name_of_api = layer not in LAYERS and not (ROOT / "blockstore" / f"{layer}.py").exists()
        assert is_name_of_api or layer in COMMAND_IMPORTS, f"{show(path)}:{line}: imports {name}"


def test_the_folder_of_the_command_is_not_a_package() -> None:
    assert not (ROOT / "cli" / "__init__.py").exists()  # else it would be imported as cli.blockstore_cli
